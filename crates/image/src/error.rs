use std::path::{Path, PathBuf};

use model::LayerId;
use rustix::io::Errno;

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
    /// Deeper than any real tree.
    #[error("{path} is more than {limit} directories deep")]
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
    #[error(
        "image layer {id} is damaged (its content is {found}); build its images again with `bailiwick image build --refresh`"
    )]
    Damaged {
        /// Its name.
        id: LayerId,
        /// The name of what is there.
        found: LayerId,
    },
    /// No such layer.
    #[error("image layer {0} is not in the store")]
    Missing(LayerId),
    /// An image's file cannot be understood.
    #[error("{path} is damaged: {source}")]
    BadImage {
        /// Which.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
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
