//! What is reserved of the disk stays free, whoever fills the store: who makes a layer looks on the way.

use std::{os::fd::BorrowedFd, path::Path};

use model::disk::Disk;
use rustix::fs::fstatvfs;

use crate::error::{Doing, StoreError};

/// Bytes, and names, between two looks.
const BYTES: u64 = 8 << 20;
const NAMES: u64 = 256;

/// Looks at the disk that a directory is on.
pub struct Room<'a> {
    directory: BorrowedFd<'a>,
    reserve: u8,
    bytes: u64,
    names: u64,
}

impl<'a> Room<'a> {
    /// Has looked once. `reserve` is in per cent.
    pub fn new(directory: BorrowedFd<'a>, reserve: u8) -> Result<Self, StoreError> {
        let mut room = Self { directory, reserve, bytes: 0, names: 0 };
        room.look().map(|()| room)
    }

    /// So many bytes were written.
    pub fn wrote(&mut self, bytes: u64) -> Result<(), StoreError> {
        self.bytes += bytes;
        if self.bytes < BYTES { Ok(()) } else { self.look() }
    }

    /// A file or directory was made.
    pub fn made(&mut self) -> Result<(), StoreError> {
        self.names += 1;
        if self.names < NAMES { Ok(()) } else { self.look() }
    }

    fn look(&mut self) -> Result<(), StoreError> {
        (self.bytes, self.names) = (0, 0);
        let stat = fstatvfs(self.directory).doing("looking at", Path::new("/"))?;
        let (blocks, files) = ([stat.f_blocks, stat.f_bavail], [stat.f_files, stat.f_favail]);
        let disk = Disk::of_fragments(stat.f_frsize, blocks, files);
        match disk.lacks(self.reserve) {
            Some(lacking) => Err(StoreError::Reserved(lacking)),
            None => Ok(()),
        }
    }
}
