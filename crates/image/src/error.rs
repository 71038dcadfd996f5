use std::{
    ffi::CString,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use model::LayerId;
use rustix::io::Errno;

use archive::ArchiveError;

/// Why the layer store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A system call failed.
    #[error("{doing} {path}: {source}")]
    System {
        /// Such as `opening`.
        doing: &'static str,
        /// Of what.
        path: PathBuf,
        /// Why.
        source: Errno,
    },
    /// A device node, which no layer may hold.
    #[error("{path} is a device node; a layer holds none")]
    Device {
        /// Where.
        path: PathBuf,
    },
    /// An attribute that is none, is too large, or that the store's file system has no room for.
    #[error(
        "{} has an attribute {} that the layer store does not take: {source}",
        shown(.path.as_os_str().as_bytes()), shown(.name.to_bytes())
    )]
    Attribute {
        /// Whose.
        path: PathBuf,
        /// Which.
        name: CString,
        /// Why.
        source: Errno,
    },
    /// Deeper than any real tree.
    #[error("{} is more than {limit} directories deep", shown(.path.as_os_str().as_bytes()))]
    TooDeep {
        /// Where.
        path: PathBuf,
        /// How deep is too deep.
        limit: usize,
    },
    /// Somebody wrote to a tree while it was being read.
    #[error("{path} changed while it was being read")]
    Changed {
        /// Where.
        path: PathBuf,
    },
    /// A layer's content is not what its name says.
    #[error("image layer sha256:{id} is damaged (its content is sha256:{found})")]
    Damaged {
        /// Its name.
        id: LayerId,
        /// The name of what is there.
        found: LayerId,
    },
    /// No such layer.
    #[error("image layer sha256:{0} is missing")]
    Missing(LayerId),
    /// An archive cannot be read.
    #[error("the archive can't be unpacked: {0}")]
    Archive(#[from] ArchiveError),
    /// What an archive is compressed with is not known, or the stream broke at once.
    #[error("the archive can't be unpacked: {0}")]
    Compression(#[source] std::io::Error),
    /// An archive holds what no layer may.
    #[error("the archive can't be unpacked: {path} {what}")]
    Refused {
        /// The entry, escaped.
        path: String,
        /// Why.
        what: String,
    },
    /// An archive is larger than allowed.
    #[error("the archive can't be unpacked: {what}")]
    TooLarge {
        /// What there is too much of, and the limit.
        what: String,
    },
    /// The disk that the store is on has only what is reserved.
    #[error("there is no room for an image layer: {0}")]
    Reserved(String),
    /// A layer's stream broke off, or could not be written to.
    #[error("the stream of an image layer broke off: {0}")]
    Stream(#[source] std::io::Error),
    /// Somebody builds or removes at this moment.
    #[error("an image is being built in this layer store; try again when that is done")]
    Busy,
    /// An image's file cannot be understood.
    #[error("{path} is damaged: {source}")]
    BadImage {
        /// Which.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
}

impl StoreError {
    /// Whether the disk has no space, or no files, left.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Reserved(_) | Self::System { source: Errno::NOSPC | Errno::DQUOT, .. })
    }
}

/// Adds what was being done, and to what.
pub(crate) trait Doing<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T> Doing<T> for rustix::io::Result<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::System { doing, path: path.to_owned(), source })
    }
}

impl<T> Doing<T> for std::io::Result<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)).doing(doing, path)
    }
}

/// Bytes of a path for a person: control characters and what is no text are escaped, and it is cut where it is long.
pub(crate) fn shown(path: &[u8]) -> String {
    let cut = &path[..path.len().min(200)];
    let text = String::from_utf8_lossy(cut).escape_debug().to_string();
    format!("`{text}{}`", if cut.len() < path.len() { "…" } else { "" })
}
