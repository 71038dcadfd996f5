//! Tar streams, into a directory and out of one.
//!
//! Whoever wrote a stream is hostile, and so is who filled the directory: all sizes are bounded, and nothing is reached
//! but by descriptors of directories below the one that was given, never through a link. May touch: that directory, the
//! stream. Must never: be run with rights on anything else of the host (`isolation::host::confine`).
#![forbid(unsafe_code)]

mod copy;
mod error;
mod header;
mod pack;
mod pax;
mod read;
mod unpack;
mod write;

pub use copy::{CopyTo, Share, copy, replay};
pub use error::{ArchiveError, Refusal};
pub use header::{Header, Kind};
pub use pack::{Pack, pack};
pub use read::{Attributes, Member, Members};
pub use unpack::{Unpack, unpack};
pub use write::Writer;

/// What has been moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files, directories, links and pipes.
    pub entries: u64,
    /// Bytes of files, holes left out.
    pub bytes: u64,
    /// Devices and sockets, which mean nothing elsewhere, that were left out.
    pub left_out: u64,
    /// Files that changed while they were read: what is missing in the stream is zeroes.
    pub changed: u64,
}

/// Bytes of a path at most (PATH_MAX, without the end).
pub const PATH: usize = 4095;
/// Bytes of a block of a tar stream.
pub const BLOCK: usize = 512;
/// Bytes that are read or written at once.
const CHUNK: usize = 256 << 10;

/// Which attributes travel with a volume: access lists, and what users note. File capabilities mean nothing where setuid
/// does not.
fn travels(attribute: &[u8]) -> bool {
    attribute.starts_with(b"user.") || attribute.starts_with(b"system.posix_acl_")
}

#[cfg(test)]
mod tests;
