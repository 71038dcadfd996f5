//! Descriptors that go on through an execve(2) of the same process, under names.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs::File,
    io::{self, Read, Seek, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::{FdFlags, fcntl_setfd},
};

use crate::process::exec_fd;

/// Executes the file behind `program` in place of this process; `arguments` are given the number of a list of `held` and what
/// else there is to say. The program takes them by [`take`]. Returns only when that failed: then all is as it was.
pub fn exec_with<'a>(
    program: BorrowedFd<'_>,
    held: impl Iterator<Item = (&'a str, BorrowedFd<'a>)> + Clone,
    arguments: impl FnOnce(i32) -> Vec<CString>,
    environment: &[CString],
) -> io::Error {
    let exec = || -> io::Result<io::Error> {
        let list = list(held.clone())?;
        for fd in held.clone().map(|(_, fd)| fd).chain([list.as_fd()]) {
            fcntl_setfd(fd, FdFlags::empty())?;
        }
        Ok(exec_fd(program, &arguments(list.as_raw_fd()), environment))
    };
    let error = exec().unwrap_or_else(|error| error);
    for (_, fd) in held {
        let _ = fcntl_setfd(fd, FdFlags::CLOEXEC);
    }
    error
}

/// A line for each descriptor: its number and its name, which has no line end.
fn list<'a>(held: impl Iterator<Item = (&'a str, BorrowedFd<'a>)>) -> io::Result<File> {
    let mut list = File::from(memfd_create("held", MemfdFlags::CLOEXEC)?);
    let lines: String = held.map(|(name, fd)| format!("{} {name}\n", fd.as_raw_fd())).collect();
    list.write_all(lines.as_bytes())?;
    list.rewind()?;
    Ok(list)
}

/// Takes what this process inherited by [`exec_with`], once. `number` is the list's.
pub fn take(number: i32) -> io::Result<Vec<(String, OwnedFd)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if number < 3 || TAKEN.swap(true, Ordering::Relaxed) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut text = String::new();
    File::from(own(number)?).read_to_string(&mut text)?;
    let mut seen = BTreeSet::from([0, 1, 2, number]);
    let one = |line: &str| {
        let (number, name) = line.split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
        let number = number.parse().map_err(|_| io::ErrorKind::InvalidData)?;
        if !seen.insert(number) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok((name.to_owned(), own(number)?))
    };
    text.lines().map(one).collect()
}

fn own(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes integers; it fails when nothing is open under this number.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and left to this process by what executed it; `take` runs once and gives each number one owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
