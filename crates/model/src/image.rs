//! Images: where a root filesystem comes from, and the layers it is made of.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ImageRef {
    /// `debian:nginx-light` or `debian:php-fpm,nginx-light`: Debian packages on one shared base layer, sorted, no
    /// duplicates; `debian:` alone is the base.
    Debian(Vec<String>),
}

/// Why a text is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageRefError {
    /// No `kind:` before it, or one that is not there.
    #[error("`{0}` names no image: write \"debian:PACKAGE[,PACKAGE]\"")]
    UnknownKind(String),
    /// Not a Debian package name (Debian policy 5.6.1).
    #[error("`{0}` is not a Debian package name: at least two of a-z 0-9 + - . beginning with a letter or digit")]
    IllegalPackage(String),
}

impl FromStr for ImageRef {
    type Err = ImageRefError;

    fn from_str(text: &str) -> Result<Self, ImageRefError> {
        let Some(packages) = text.strip_prefix("debian:") else {
            return Err(ImageRefError::UnknownKind(text.to_owned()));
        };
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
        Ok(Self::Debian(list))
    }
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
        }
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
