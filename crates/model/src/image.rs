//! Images: where a root filesystem comes from, and the layers it is made of.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ImageRef {
    /// `debian:nginx-light` or `debian:php-fpm,nginx-light`: Debian packages on one shared base layer, sorted, no
    /// duplicates; `debian:` alone is the base.
    Debian(Vec<String>),
    /// `tar:app@sha256:…`, `dir:app@sha256:…`: an archive or a directory that somebody sent, known by its digest.
    Sent {
        /// What it was.
        kind: SentKind,
        /// Its name, for people; the digest decides.
        name: ImageName,
        /// SHA-256 of the archive as it was sent.
        digest: Digest,
    },
}

/// What an image was that somebody sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SentKind {
    /// An archive.
    Tar,
    /// A directory; what is sent is an archive of it.
    Dir,
}

impl SentKind {
    /// The word before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tar => "tar",
            Self::Dir => "dir",
        }
    }
}

/// What a person writes as `image`: an image, or the path of one that has not been sent yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// An image.
    Image(ImageRef),
    /// `tar:app.tar.zst`, `dir:./rootfs`: a path where the person is.
    Path(SentKind, String),
}

/// Images by how a spec file writes the paths they were read from.
pub type SentImages = BTreeMap<String, ImageRef>;

/// Why a text is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageRefError {
    /// No `kind:` before it, or one that is not there.
    #[error("`{0}` names no image: write \"debian:PACKAGE[,PACKAGE]\", \"tar:FILE\" or \"dir:DIRECTORY\"")]
    UnknownKind(String),
    /// A path where an image must be meant that is there already.
    #[error("`{0}` is a path: an image is meant, such as \"tar:app@sha256:…\", as `bailiwick image ls` shows it")]
    Path(String),
    /// Empty, longer than the kernel takes, or with a control character.
    #[error("`{0}` is no path: 1 to 4095 bytes without control characters")]
    IllegalPath(String),
    /// Not a Debian package name (Debian policy 5.6.1).
    #[error("`{0}` is not a Debian package name: at least two of a-z 0-9 + - . beginning with a letter or digit")]
    IllegalPackage(String),
}

impl FromStr for ImageRef {
    type Err = ImageRefError;

    fn from_str(text: &str) -> Result<Self, ImageRefError> {
        match text.parse()? {
            ImageSource::Image(image) => Ok(image),
            ImageSource::Path(..) => Err(ImageRefError::Path(text.to_owned())),
        }
    }
}

impl FromStr for ImageSource {
    type Err = ImageRefError;

    fn from_str(text: &str) -> Result<Self, ImageRefError> {
        let (kind, rest) = match text.split_once(':') {
            Some(("debian", packages)) => return Ok(Self::Image(debian(packages)?)),
            Some(("tar", rest)) => (SentKind::Tar, rest),
            Some(("dir", rest)) => (SentKind::Dir, rest),
            _ => return Err(ImageRefError::UnknownKind(text.to_owned())),
        };
        if let Some((name, digest)) = rest.split_once('@')
            && let (Ok(name), Ok(digest)) = (name.parse(), digest.parse())
        {
            return Ok(Self::Image(ImageRef::Sent { kind, name, digest }));
        }
        if rest.is_empty() || rest.len() > 4095 || rest.chars().any(char::is_control) {
            return Err(ImageRefError::IllegalPath(rest.escape_debug().to_string()));
        }
        Ok(Self::Path(kind, rest.to_owned()))
    }
}

fn debian(packages: &str) -> Result<ImageRef, ImageRefError> {
    let mut list = Vec::new();
    for package in packages.split(',').filter(|_| !packages.is_empty()) {
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
        let starts = package.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if package.len() < 2 || package.len() > 128 || !starts || !package.bytes().all(legal) {
            return Err(ImageRefError::IllegalPackage(package.to_owned()));
        }
        list.push(package.to_owned());
    }
    list.sort();
    list.dedup();
    Ok(ImageRef::Debian(list))
}

impl TryFrom<String> for ImageRef {
    type Error = ImageRefError;
    fn try_from(text: String) -> Result<Self, ImageRefError> {
        text.parse()
    }
}

impl From<ImageRef> for String {
    fn from(image: ImageRef) -> String {
        image.to_string()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian(packages) => write!(f, "debian:{}", packages.join(",")),
            Self::Sent { kind, name, digest } => write!(f, "{}:{name}@{digest}", kind.as_str()),
        }
    }
}

/// The name of an image that was sent: `[a-z0-9][a-z0-9._-]*`, at most 64 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName(String);

/// A text that is no image's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an image's name: at most 64 of a-z 0-9 . _ - beginning with a letter or digit")]
pub struct ImageNameError(String);

impl FromStr for ImageName {
    type Err = ImageNameError;

    fn from_str(text: &str) -> Result<Self, ImageNameError> {
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let starts = text.bytes().next().is_some_and(word);
        match starts && text.len() <= 64 && text.bytes().all(|b| word(b) || b"._-".contains(&b)) {
            true => Ok(Self(text.to_owned())),
            false => Err(ImageNameError(text.escape_debug().to_string())),
        }
    }
}

impl ImageName {
    /// The name for what is at a path whose last part is `file`: without the endings of archives, what is not legal as `-`.
    pub fn for_file(file: &str) -> Self {
        let file = file.to_ascii_lowercase();
        let endings = [".tar.zst", ".tar.gz", ".tgz", ".tar"];
        let stem = endings.iter().find_map(|ending| file.strip_suffix(ending)).unwrap_or(&file);
        let legal = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let name: String = stem.chars().map(legal).collect();
        let name: String = name.trim_start_matches(['.', '_', '-']).chars().take(64).collect();
        Self(if name.is_empty() { "image".to_owned() } else { name })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SHA-256, written `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(LayerId);

impl Digest {
    /// From 64 hexadecimal digits.
    pub fn from_hex(hex: String) -> Result<Self, LayerIdError> {
        LayerId::try_from(hex).map(Self)
    }
}

impl FromStr for Digest {
    type Err = LayerIdError;

    fn from_str(text: &str) -> Result<Self, LayerIdError> {
        let hex = text.strip_prefix("sha256:").ok_or_else(|| LayerIdError(text.to_owned()))?;
        Self::from_hex(hex.to_owned())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// A layer's name: the SHA-256 of its canonical tar stream, as 64 hexadecimal digits; also its directory's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerId(String);

/// A text that is not 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a layer id: 64 hexadecimal digits")]
pub struct LayerIdError(String);

impl LayerId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LayerId {
    type Error = LayerIdError;
    fn try_from(text: String) -> Result<Self, LayerIdError> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 64 && text.bytes().all(hex) { Ok(Self(text)) } else { Err(LayerIdError(text)) }
    }
}

impl From<LayerId> for String {
    fn from(id: LayerId) -> String {
        id.0
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An image that has been built: what it is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Where it came from.
    pub reference: ImageRef,
    /// Its layers, the lowest (base) first.
    pub layers: Vec<LayerId>,
    /// Bytes of each layer, in the same order.
    pub sizes: Vec<u64>,
    /// Unix time of the build, seconds.
    pub built: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_no_image_until_it_has_a_digest() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let text = format!("tar:app@{digest}");
        let image: ImageRef = text.parse().expect("an image");
        assert_eq!(image.to_string(), text);
        assert!(matches!(image, ImageRef::Sent { kind: SentKind::Tar, .. }));
        for path in ["tar:app.tar", "dir:./rootfs", "tar:app@sha256:12", "dir:-@x"] {
            assert!(matches!(path.parse(), Ok(ImageSource::Path(..))), "{path}");
            assert!(path.parse::<ImageRef>().is_err(), "{path}");
        }
        for wrong in ["tar:", "dir:a\nb", "oci:x", "tar"] {
            assert!(wrong.parse::<ImageSource>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_files_name_becomes_an_images() {
        let name = |file| ImageName::for_file(file).to_string();
        assert_eq!(
            [name("App.tar.zst"), name("my site.tgz"), name("..."), name("rootfs")],
            ["app", "my-site", "image", "rootfs"]
        );
    }
}
