//! Reads tar archives (pax, ustar, GNU) from a stream. Everything in one is hostile: each header is bounded before it is
//! kept, and nothing is believed that the checksum or the stream's length contradicts.

use std::io::{self, ErrorKind, Read};

mod header;
mod write;

pub use header::{Entry, Kind, Xattrs};
use header::{Header, Type};
pub use write::Writer;

const BLOCK: usize = 512;
/// Bytes of a path at most (the kernel's PATH_MAX without its NUL).
pub const PATH: usize = 4095;
/// Bytes of one entry's extended header at most: a few attributes of the kernel's largest size.
const EXTENDED: u64 = 1 << 20;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// No tar archive at all.
    #[error("it is no tar archive (plain, or compressed with gzip or zstd)")]
    NotTar,
    /// It ends in the middle.
    #[error("it ends in the middle, at byte {at} of what it unpacks to")]
    Cut {
        /// Where.
        at: u64,
    },
    /// A header that contradicts itself.
    #[error("the header at byte {at} is damaged: {what}")]
    Damaged {
        /// Where in the unpacked archive.
        at: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Something longer than anything real.
    #[error("{what} of the entry at byte {at} is longer than {limit} bytes")]
    TooLong {
        /// Where.
        at: u64,
        /// Of what.
        what: &'static str,
        /// How long is too long.
        limit: u64,
    },
    /// A file stored without its holes.
    #[error("{path} is stored as a sparse file, which is not understood: make the archive without --sparse")]
    Sparse {
        /// Which, escaped.
        path: String,
    },
    /// Neither file, directory nor link.
    #[error("the entry at byte {at} is of the unknown kind {kind:?}")]
    UnknownKind {
        /// Where.
        at: u64,
        /// As it is written.
        kind: char,
    },
    /// The stream failed.
    #[error("reading it: {0}")]
    Read(#[source] io::Error),
}

/// An archive that is being read.
#[derive(Debug)]
pub struct Archive<R> {
    input: R,
    /// Bytes taken from `input`.
    at: u64,
    /// Bytes of the entry's content that have not been read.
    content: u64,
    /// Zeros after them.
    padding: u64,
}

impl<R: Read> Archive<R> {
    /// Begins at the start of `input`.
    pub fn new(input: R) -> Self {
        Self { input, at: 0, content: 0, padding: 0 }
    }

    /// The next entry; none at the end. What was not read of the last one's content is passed over.
    pub fn next(&mut self) -> Result<Option<Entry>, ArchiveError> {
        let mut extended = header::Extended::default();
        loop {
            self.pass_over()?;
            let at = self.at;
            let Some(block) = self.block()? else { return Ok(None) };
            let header = Header::parse(&block, at)?;
            (self.content, self.padding) = (header.size, (BLOCK as u64 - header.size % BLOCK as u64) % BLOCK as u64);
            match header.kind {
                Type::Extended => extended.read(&self.whole("the extended header", EXTENDED)?, at)?,
                // what is said for all entries is said by each of them too, or is a comment
                Type::Global => drop(self.whole("the global header", EXTENDED)?),
                Type::LongPath => extended.path = Some(text(self.whole("the path", PATH as u64 + 1)?)),
                Type::LongLink => extended.link = Some(text(self.whole("the link", PATH as u64 + 1)?)),
                Type::Entry(kind) => {
                    let entry = header.entry(kind, &block, extended, at)?;
                    let holds = matches!(entry.kind, Kind::File);
                    if holds {
                        (self.content, self.padding) =
                            (entry.size, (BLOCK as u64 - entry.size % BLOCK as u64) % BLOCK as u64);
                    }
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// A part of the entry's content; 0 at its end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let most = usize::try_from(self.content).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = loop {
            match self.input.read(&mut buffer[..most]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read.map_err(ArchiveError::Read)?,
            }
        };
        if read == 0 {
            return Err(ArchiveError::Cut { at: self.at });
        }
        self.at += read as u64;
        self.content -= read as u64;
        Ok(read)
    }

    /// What follows the archive, to its end.
    pub fn rest(mut self) -> Result<(), ArchiveError> {
        io::copy(&mut self.input, &mut io::sink()).map(drop).map_err(ArchiveError::Read)
    }

    /// All of a header's content, which is at most `limit` bytes.
    fn whole(&mut self, what: &'static str, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        if self.content > limit {
            return Err(ArchiveError::TooLong { at: self.at, what, limit });
        }
        let mut bytes = vec![0; self.content as usize];
        self.exact(&mut bytes)?;
        self.content = 0;
        Ok(bytes)
    }

    fn pass_over(&mut self) -> Result<(), ArchiveError> {
        let mut left = self.content.saturating_add(self.padding);
        (self.content, self.padding) = (0, 0);
        let mut buffer = [0; 16 * BLOCK];
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.exact(&mut buffer[..most])?;
            left -= most as u64;
        }
        Ok(())
    }

    /// A header; none at the end: a block of zeros, or the stream's.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
        let mut block = [0; BLOCK];
        match self.exact(&mut block) {
            Ok(()) => Ok(block.iter().any(|byte| *byte != 0).then_some(block)),
            Err(ArchiveError::Cut { at }) if at == self.at && at > 0 && at.is_multiple_of(BLOCK as u64) => Ok(None),
            Err(ArchiveError::Cut { .. }) if self.at < BLOCK as u64 => Err(ArchiveError::NotTar),
            Err(error) => Err(error),
        }
    }

    fn exact(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.input.read(&mut buffer[filled..]) {
                Ok(0) => return Err(ArchiveError::Cut { at: self.at }),
                Ok(read) => {
                    filled += read;
                    self.at += read as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(ArchiveError::Read(error)),
            }
        }
        Ok(())
    }
}

/// Without what follows the first NUL.
fn text(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}
