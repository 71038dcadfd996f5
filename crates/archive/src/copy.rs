//! A directory's stream, kept for later in two files, so that it is made in a moment: blocks of large files are shared with a
//! file `content`, where the file system can, and all the rest is in `log`. What is there becomes the very stream that [`pack`]
//! would have made then.
//!
//! `log` is a row of runs: a word that says how many bytes, then these; or, with [`SHARED`] in that word, one more word that
//! says where in `content` they are.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{fs::fstatvfs, io::Errno};

use crate::{ArchiveError, CHUNK, Counts, Pack, pack::pack_to, write::Output};

const SHARED: u64 = 1 << 63;
/// Bytes of a file below which it is quicker to read it.
const SMALL: u64 = 16 << 10;
/// Bytes that are shared by one call, so that it is told how it goes on.
const MOST: u64 = 1 << 30;

/// Where a copy goes.
#[derive(Debug)]
pub struct CopyTo<'a> {
    /// Two empty files.
    pub log: &'a File,
    /// On the file system of what is copied.
    pub content: &'a File,
    /// Shares so many bytes of a file, from there on, with `content`, at a place there (FICLONERANGE).
    pub share: Share,
    /// Bytes that may be read and written where they can't be shared.
    pub limit: u64,
    /// Whether the file system shares at all; if so, small files do not count there.
    pub shares: bool,
}

/// From, where there, how many, to, where there.
pub type Share = fn(BorrowedFd<'_>, u64, u64, BorrowedFd<'_>, u64) -> io::Result<()>;

/// Copies what is in `root`, and what it is itself. `heard` is told how it goes on, and ends it by an error.
///
/// # Errors
/// Something can't be read or written, or more than `limit` can't be shared.
pub fn copy(
    root: BorrowedFd<'_>,
    to: &CopyTo<'_>,
    heard: &mut dyn FnMut(&Counts) -> io::Result<()>,
) -> Result<Counts, ArchiveError> {
    let block = fstatvfs(to.content).map_err(io::Error::from)?.f_bsize.max(512);
    let output = Copying { to, block, end: 0, pending: Vec::with_capacity(2 * CHUNK), unshared: 0 };
    pack_to(root, output, Pack::Volume, heard)
}

struct Copying<'a> {
    to: &'a CopyTo<'a>,
    /// Bytes of a block.
    block: u64,
    /// Where `content` ends.
    end: u64,
    /// What is still to be written to `log`.
    pending: Vec<u8>,
    /// Bytes of files that could not be shared.
    unshared: u64,
}

impl Copying<'_> {
    fn put(&mut self, words: &[u64], bytes: bool) -> io::Result<()> {
        let mut log = self.to.log;
        let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        log.write_all(&words)?;
        if bytes {
            log.write_all(&self.pending)?;
            self.pending.clear();
        }
        Ok(())
    }

    fn count(&mut self, bytes: u64) -> io::Result<()> {
        self.unshared += bytes;
        if self.unshared > self.to.limit {
            let message = format!("more than {} MiB can't be shared", self.to.limit >> 20);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        Ok(())
    }
}

impl Write for Copying<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.pending.len() {
            0 => Ok(()),
            bytes => self.put(&[bytes as u64], true),
        }
    }
}

impl Output for Copying<'_> {
    /// Whole blocks only: what is left of a file is read, and `content` ends with a block.
    fn take(&mut self, file: BorrowedFd<'_>, at: u64, length: u64) -> io::Result<u64> {
        let whole = length.min(MOST) / self.block * self.block;
        let read = length.min(CHUNK as u64);
        if self.to.shares && whole < SMALL.max(self.block) {
            return Ok(0);
        }
        let place = self.end;
        let shared = match self.to.shares && at.is_multiple_of(self.block) {
            true => (self.to.share)(file, at, whole, self.to.content.as_fd(), place),
            false => Err(Errno::OPNOTSUPP.into()),
        };
        match shared {
            Ok(()) => {
                self.flush()?;
                self.put(&[whole | SHARED, place], false)?;
                self.end += whole;
                Ok(whole)
            }
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOSPC) => Err(error),
            // Not this file, which may be one that is written in place (chattr(1) +C), or not these bytes.
            Err(_) => self.count(read).map(|()| 0),
        }
    }
}

/// Writes the stream that was copied.
///
/// # Errors
/// The files are not what [`copy`] made, can't be read, or the stream not be written to.
pub fn replay(log: &File, content: &File, mut output: impl Write) -> io::Result<()> {
    let (mut log, mut content) = (log, content);
    log.seek(SeekFrom::Start(0))?;
    while let Some(head) = word(log)? {
        let length = head & !SHARED;
        let moved = if head & SHARED == 0 {
            io::copy(&mut log.take(length), &mut output)?
        } else {
            let at = word(log)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            content.seek(SeekFrom::Start(at))?;
            io::copy(&mut content.take(length), &mut output)?
        };
        if moved != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    output.flush()
}

/// None at the end.
fn word(mut log: &File) -> io::Result<Option<u64>> {
    let mut bytes = [0; 8];
    match log.read(&mut bytes)? {
        0 => return Ok(None),
        n => log.read_exact(&mut bytes[n..])?,
    }
    Ok(Some(u64::from_le_bytes(bytes)))
}

#[cfg(test)]
mod tests;
