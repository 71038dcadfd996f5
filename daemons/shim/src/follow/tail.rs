//! One file that is followed.

use std::{io, os::fd::OwnedFd, time::Instant};

use rustix::{
    fs::{FileType, Mode, OFlags, fstat, inotify, openat},
    io::pread,
    process::fchdir,
};

use super::{
    frame::{Position, hash},
    tree::Found,
};
use crate::log::MAX_LINE;

/// Bytes that hash as a file's beginning.
const HEAD: usize = 256;
/// Bytes that a file may be ahead of what was taken.
const BEHIND: u64 = 8 << 20;
/// Of which so many are kept.
const KEPT: u64 = 1 << 20;

/// A file, and how far it has been read.
#[derive(Debug)]
pub struct Tail {
    fd: OwnedFd,
    pub path: Vec<u8>,
    /// Device and inode.
    pub identity: (u64, u64),
    /// Number of its watch.
    pub watch: i32,
    /// Since when it can't be found any more, or was last written to afterwards.
    pub gone: Option<Instant>,
    offset: u64,
    head: (u64, usize),
}

/// What a read brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// Bytes in the buffer: whole lines, unless one is longer than that.
    pub length: usize,
    /// Whether there is more.
    pub more: bool,
    /// Bytes that were left out.
    pub dropped: u64,
}

impl Tail {
    /// None: it is not that file any more, or nothing to follow. Its device is never opened: what is no regular file was left
    /// out before, and a pipe that took its place blocks nobody.
    pub fn open(found: Found, events: &OwnedFd) -> io::Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = openat(&*found.directory, &*found.name, flags, Mode::empty())?;
        let stat = fstat(&fd)?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !regular || (stat.st_dev, stat.st_ino) != found.identity {
            return Ok(None);
        }
        fchdir(&*found.directory)?;
        let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::DONT_FOLLOW;
        let watch = inotify::add_watch(events, &*found.name, flags)?;
        let Found { path, identity, .. } = found;
        Ok(Some(Self { fd, path, identity, watch, gone: None, offset: 0, head: (hash(b""), 0) }))
    }

    /// Goes on where it was, if it is that file still.
    pub fn resume(&mut self, was: &Position) {
        let length = (was.head_length as usize).min(HEAD);
        let same = was.inode == self.identity.1 && self.head_of(length).is_ok_and(|head| head == (was.head, length));
        if same {
            (self.offset, self.head) = (was.offset, (was.head, length));
        }
    }

    /// What it has now is not read.
    pub fn skip_all(&mut self) -> io::Result<()> {
        self.offset = fstat(&self.fd)?.st_size as u64;
        self.head = self.head_of(HEAD)?;
        Ok(())
    }

    pub fn position(&self) -> [u8; Position::BYTES] {
        let (head, length) = self.head;
        let Self { offset, identity: (_, inode), .. } = *self;
        Position { path: hash(&self.path), inode, offset, head, head_length: length as u64 }.bytes()
    }

    /// Hash of its first `length` bytes, or of as many as were taken or there are.
    fn head_of(&self, length: usize) -> io::Result<(u64, usize)> {
        let mut bytes = [0; HEAD];
        let mut filled = 0;
        while filled < length {
            match pread(&self.fd, &mut bytes[filled..length], filled as u64)? {
                0 => break,
                n => filled += n,
            }
        }
        Ok((hash(&bytes[..filled]), filled))
    }

    /// Reads lines that were added; `last`: also one that has no end yet.
    pub fn read(&mut self, buffer: &mut [u8], last: bool) -> io::Result<Read> {
        let size = fstat(&self.fd)?.st_size as u64;
        // Cut, and perhaps written to again.
        if size < self.offset || self.head_of(self.head.1)? != self.head {
            (self.offset, self.head) = (0, (hash(b""), 0));
        }
        let mut read = Read::default();
        if size - self.offset > BEHIND {
            let from = self.offset;
            self.offset = size - KEPT;
            let n = pread(&self.fd, &mut *buffer, self.offset)?;
            self.offset += buffer[..n].iter().position(|b| *b == b'\n').map_or(0, |at| at as u64 + 1);
            read.dropped = self.offset - from;
        }
        let n = pread(&self.fd, &mut *buffer, self.offset)?;
        let whole = buffer[..n].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        read.length = match whole {
            0 if n >= MAX_LINE || last => n,
            whole => whole,
        };
        self.offset += read.length as u64;
        read.more = n == buffer.len() || (last && read.length > 0);
        if self.head.1 < HEAD && read.length > 0 {
            self.head = self.head_of(HEAD.min(self.offset as usize))?;
        }
        Ok(read)
    }

    /// Ends its watch.
    pub fn close(self, events: &OwnedFd) {
        let _ = inotify::remove_watch(events, self.watch);
    }
}
