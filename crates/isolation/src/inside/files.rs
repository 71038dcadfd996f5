//! Small files written into a new root.

use std::{io, os::fd::BorrowedFd};

use rustix::{
    fs::{AtFlags, FileType, OFlags, fstat, ftruncate, unlinkat},
    io::{Errno, read, write},
};

use super::mounts::{directory, open_in, split};

/// Writes `content` to `path` below `root`. A link that leads nowhere, such as an image's `/etc/resolv.conf` into
/// `/run`, is replaced; a file that says the same already is left alone, so that it costs no write to disk.
pub(super) fn write_file(root: BorrowedFd<'_>, path: &str, content: &str) -> io::Result<()> {
    let (parent, name) = split(path)?;
    // Not blocking: what is there may be a pipe.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match open_in(root, path, flags, 0o644) {
        Err(Errno::NOENT) => {
            let parent = directory(root, parent)?;
            match unlinkat(&parent, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => open_in(root, path, flags, 0o644)?,
                Err(error) => return Err(error.into()),
            }
        }
        opened => opened?,
    };
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if u64::try_from(stat.st_size) == Ok(content.len() as u64) {
        let mut present = vec![0; content.len()];
        if read(&file, present.as_mut_slice())? == content.len() && present == content.as_bytes() {
            return Ok(());
        }
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    }
    ftruncate(&file, 0)?;
    let mut rest = content.as_bytes();
    while !rest.is_empty() {
        rest = &rest[write(&file, rest)?..];
    }
    Ok(())
}
