use std::io;

use rustix::io::Errno;

/// Why a stream could not be unpacked, or a directory not be packed.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Its first block is no header.
    #[error("this is no tar archive")]
    NotTar,
    /// It ends where more is due.
    #[error("the archive ends early, after {0} bytes")]
    Ends(u64),
    /// A block that should be a header is none, or says what can't be.
    #[error("the archive is damaged at byte {at}: {what}")]
    Damaged {
        /// Where.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// One of its members is not taken.
    #[error("`{}` in the archive {why}", shown(.path))]
    Member {
        /// As the archive has it.
        path: Vec<u8>,
        /// Why.
        why: Refusal,
    },
    /// A step on the file system failed.
    #[error("{doing} `{}`: {source}", shown(.path))]
    System {
        /// Such as `writing`.
        doing: &'static str,
        /// What.
        path: Vec<u8>,
        /// Why.
        source: Errno,
    },
    /// The stream.
    #[error("the archive's stream broke: {0}")]
    Stream(#[from] io::Error),
}

/// Why one member is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `/etc/passwd`
    #[error("has an absolute path")]
    Absolute,
    /// `../x`
    #[error("leads out of it by `..`")]
    Upwards,
    /// A NUL in it, or too long.
    #[error("has a path that no file can have")]
    Path,
    /// An earlier member is a link, or no directory, where this one needs a directory.
    #[error("leads through what is no directory")]
    Through,
    /// A hard link to nothing.
    #[error("is a hard link to what is not in it")]
    NoTarget,
    /// A file where a directory with something in it is.
    #[error("would take the place of a directory that is not empty")]
    InTheWay,
    /// Somebody wrote to it while it was read.
    #[error("changed while it was read")]
    Changed,
    /// Ids that no VPS has.
    #[error("belongs to id {0}; those of a VPS end at 65535 (give all of it one owner)")]
    Owner(u64),
    /// A kind of member that this does not know.
    #[error("is of a kind that is not known here: `{}`", char::from(*.0))]
    Kind(u8),
    /// Directories in each other.
    #[error("is deeper than {0} directories")]
    Deep(usize),
}

impl ArchiveError {
    /// The error number of a step on the file system.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::System { source, .. } => Some(*source),
            _ => None,
        }
    }
}

/// A path for a person: bounded, and without what would move a cursor.
fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let mut shown: String = text
        .chars()
        .take(200)
        .flat_map(|c| if c.is_control() { '?' } else { c }.to_string().chars().collect::<Vec<_>>())
        .collect();
    if text.chars().nth(200).is_some() {
        shown.push('…');
    }
    shown
}

/// Gives an error number its place.
pub(crate) trait Doing<T> {
    fn doing(self, doing: &'static str, path: &[u8]) -> Result<T, ArchiveError>;
}

impl<T> Doing<T> for Result<T, Errno> {
    fn doing(self, doing: &'static str, path: &[u8]) -> Result<T, ArchiveError> {
        self.map_err(|source| ArchiveError::System { doing, path: path.to_vec(), source })
    }
}
