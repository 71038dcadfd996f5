use std::io;

use image::StoreError;
use model::api::ErrorKind;
use wire::Fault;

/// Why an image could not be built or removed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No package of that name.
    #[error("debian has no package `{package}`{}", suggestion(.nearest))]
    NoPackage {
        /// As it was written.
        package: String,
        /// One that is there.
        nearest: Option<String>,
    },
    /// A program failed; its own words say why.
    #[error("{doing} failed:\n{said}{}", next(.said))]
    Program {
        /// Such as `installing nginx-light`.
        doing: String,
        /// Its last lines.
        said: String,
    },
    /// A program is not there.
    #[error(
        "running {program}: {source}; the VPS of the apps service needs the host's userland (`userland = true`) and mmdebstrap installed there"
    )]
    NoProgram {
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A file of this service.
    #[error("{doing}: {source}")]
    File {
        /// What was being done.
        doing: String,
        /// Why.
        source: io::Error,
    },
    /// What `/etc/os-release` says.
    #[error(
        "the host's /etc/os-release names no Debian release (VERSION_CODENAME); images of Debian packages need one"
    )]
    NotDebian,
    /// No such image.
    #[error("no image {0}")]
    NoImage(String),
    /// Its content must be sent.
    #[error("the content of image {0} is not here: build it from its file or directory")]
    NotSent(String),
    /// The file changed while it was sent, or the sender went away.
    #[error("what was sent is not {0}: it ended early, or changed while it was read")]
    OtherContent(String),
    /// Another host on the same layer store.
    #[error("image {0} is used by another host on this layer store")]
    UsedElsewhere(String),
    /// The task that built it is gone.
    #[error("the build ended without a result; try again")]
    Lost,
    /// The layer store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn suggestion(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

fn next(said: &str) -> &'static str {
    let unreachable = ["Temporary failure resolving", "Could not resolve", "Failed to fetch", "Could not connect"];
    match unreachable.iter().any(|words| said.contains(words)) {
        true => "\nnext: see whether the host reaches its Debian mirror (`apt-get update`), then try again",
        false => "",
    }
}

impl From<BuildError> for Fault {
    fn from(error: BuildError) -> Self {
        let kind = match error {
            BuildError::NoPackage { .. } | BuildError::NoImage(_) | BuildError::NotSent(_) => ErrorKind::NotFound,
            BuildError::NoProgram { .. } | BuildError::NotDebian => ErrorKind::Lacking,
            BuildError::UsedElsewhere(_) | BuildError::Store(StoreError::Busy) => ErrorKind::Conflict,
            BuildError::OtherContent(_) => ErrorKind::Invalid,
            BuildError::Store(
                StoreError::Archive(_)
                | StoreError::Refused { .. }
                | StoreError::TooLarge { .. }
                | StoreError::TooDeep { .. }
                | StoreError::Attribute { .. },
            ) => ErrorKind::Invalid,
            BuildError::Store(ref error) if error.is_full() => ErrorKind::Lacking,
            BuildError::Lost => ErrorKind::Unavailable,
            _ => ErrorKind::Failed,
        };
        Fault::new(kind, error.to_string())
    }
}
