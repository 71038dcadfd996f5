//! Files that share blocks on disk until one of them is written to (ioctl_ficlonerange(2)): btrfs, xfs and others have that.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::fs::{CWD, Mode, OFlags, open, openat};

const FICLONERANGE: libc::c_ulong = 0x4020_940d;

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Where it begins, in bytes.
    pub at: u64,
    /// Bytes. None is shared where this is 0.
    pub length: u64,
}

/// Has the bytes `range` of `from` be those of `to` at `at` too, on the same blocks. What of `from` is not on disk yet is
/// written first.
///
/// # Errors
/// `at`, or a bound of the range, is not that of a block; the file system shares none, or not between these two files.
pub fn share(from: BorrowedFd<'_>, range: Range, to: BorrowedFd<'_>, at: u64) -> io::Result<()> {
    if range.length == 0 {
        // To the kernel it means all that follows.
        return Ok(());
    }
    // struct file_clone_range: descriptor, offset, length, offset there.
    let arguments = [u64::from(from.as_raw_fd().cast_unsigned()), range.at, range.length, at];
    // SAFETY: FICLONERANGE reads one struct file_clone_range, four words of 64 bits, from the pointer, which leads to them.
    let done = unsafe { libc::ioctl(to.as_raw_fd(), FICLONERANGE as _, arguments.as_ptr()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A file that nothing leads to (`O_TMPFILE`), in the file system of `directory`: to write, and to read only. It is gone with
/// its last descriptor, also when the machine stops.
pub fn nameless(directory: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let written = openat(CWD, directory, flags, Mode::RUSR)?;
    let path = format!("/proc/self/fd/{}", written.as_raw_fd());
    let read = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok((written, read))
}

/// Whether files in the file system of `directory` share blocks; an error says why not.
pub fn possible(directory: &Path) -> io::Result<()> {
    const BYTES: usize = 64 << 10;
    let (from, _) = nameless(directory)?;
    let (to, _) = nameless(directory)?;
    rustix::io::write(&from, &[1; BYTES])?;
    share(from.as_fd(), Range { at: 0, length: BYTES as u64 }, to.as_fd(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nameless_is_read_and_nowhere_to_be_found() {
        let place = std::env::temp_dir().join(format!("bailiwick-share-{}", std::process::id()));
        std::fs::create_dir(&place).unwrap();
        let (written, read) = nameless(&place).unwrap();
        rustix::io::write(&written, b"kept").unwrap();
        let mut bytes = [0; 8];
        assert_eq!(rustix::io::read(&read, &mut bytes).unwrap(), 4);
        assert!(rustix::io::write(&read, b"x").is_err());
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
        std::fs::remove_dir(&place).unwrap();
    }
}
