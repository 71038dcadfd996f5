//! Volumes: mounted, and on their first use filled with what the image has in their place, owners and modes included.
//!
//! The host prepares a volume's own directory; what a VPS sees is `data` in it. Filling goes to `new` beside it, which
//! becomes `data` when it is whole and on disk, so a start that is killed leaves a volume that is filled anew.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, FlockOperation, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid,
        XattrFlags, chownat, fchmod, fchown, fgetxattr, flistxattr, flock, fsetxattr, fstat, fsync, futimens, mkdirat,
        mkfifoat, openat, readlinkat, renameat, seek, statat, symlinkat, syncfs,
    },
    io::Errno,
};

use super::mounts;
use crate::remove_tree;

/// Directories in each other that are copied at most; each costs descriptors.
const DEPTH: usize = 128;
/// Bytes of one extended attribute, and of the list of their names (xattr(7)).
const ATTRIBUTE: usize = 64 << 10;
const DATA: &str = "data";
const NEW: &str = "new";

/// Mounts the volume that is prepared at `prepared` at `target` below `root`.
pub(super) fn mount(root: BorrowedFd<'_>, prepared: &str, target: &str) -> io::Result<()> {
    let place = directory(CWD, prepared)?;
    let missing = || match statat(&place, DATA, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(true),
        found => found.map(|_| false),
    };
    if missing()? {
        // Two VPSs may use one volume for the first time at once.
        flock(&place, FlockOperation::LockExclusive)?;
        if missing()? {
            fill(root, &place, prepared, target)?;
        }
        flock(&place, FlockOperation::Unlock)?;
    }
    mounts::attach(mounts::copy(format!("{prepared}/{DATA}"), false)?, mounts::directory(root, target)?)?;
    Ok(())
}

fn fill(root: BorrowedFd<'_>, place: &OwnedFd, prepared: &str, target: &str) -> io::Result<()> {
    if statat(place, NEW, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        remove_tree(format!("{prepared}/{NEW}").as_ref())?;
    }
    mkdirat(place, NEW, Mode::from(0o755))?;
    let new = directory(place, NEW)?;
    match mounts::open_in(root, target, OFlags::RDONLY | OFlags::DIRECTORY, 0) {
        Ok(image) => copy(&image, &new, DEPTH)?,
        Err(Errno::NOENT | Errno::NOTDIR) => {}
        Err(error) => return Err(error.into()),
    }
    syncfs(&new)?;
    renameat(place, NEW, place, DATA)?;
    Ok(fsync(place)?)
}

fn directory(parent: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Copies what is in the directory `from`, and what it is itself, to the empty directory `to`. What is neither file,
/// directory, link nor pipe is left out: nothing in a volume is a device, and a socket ends with who made it.
fn copy(from: &OwnedFd, to: &OwnedFd, depth: usize) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::other(format!("the image has more than {DEPTH} directories in each other there")));
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                mkdirat(to, name, Mode::from(0o700))?;
                let (source, target) =
                    (openat(from, name, flags, Mode::empty())?, openat(to, name, flags, Mode::empty())?);
                copy(&source, &target, depth - 1)?;
            }
            FileType::RegularFile => {
                let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mut source = File::from(openat(from, name, read, Mode::empty())?);
                let mut target = File::from(openat(to, name, write, Mode::from(0o600))?);
                content(&mut source, &mut target, stat.st_size.unsigned_abs())?;
                dress(source.as_fd(), target.as_fd(), &stat)?;
            }
            FileType::Symlink => {
                symlinkat(readlinkat(from, name, Vec::new())?, to, name)?;
                let (uid, gid) = owner(&stat);
                chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            FileType::Fifo => {
                mkfifoat(to, name, Mode::from(0o600))?;
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let pipe = openat(to, name, flags, Mode::empty())?;
                dress(pipe.as_fd(), pipe.as_fd(), &stat)?;
            }
            _ => {}
        }
    }
    dress(from.as_fd(), to.as_fd(), &fstat(from)?)
}

/// Copies a file's content and leaves its holes: as much as an image says on a few blocks need not fit on the disk.
fn content(source: &mut File, target: &mut File, size: u64) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let start = match seek(&*source, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            // A file system that does not tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            found => found?,
        };
        let end = seek(&*source, SeekFrom::Hole(start)).unwrap_or(size).min(size);
        if end <= start {
            break;
        }
        seek(&*source, SeekFrom::Start(start))?;
        seek(&*target, SeekFrom::Start(start))?;
        io::copy(&mut source.take(end - start), target)?;
        at = end;
    }
    target.set_len(size)
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

/// Gives `to` the attributes, owner, mode and times of `from`.
fn dress(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    attributes(from, to)?;
    let (uid, gid) = owner(stat);
    fchown(to, uid, gid)?;
    // After the owner: a change of it takes setuid bits away.
    fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec as _),
    };
    Ok(futimens(to, &times)?)
}

/// Access lists and what users note; file capabilities mean nothing on a volume.
fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut names = vec![0; ATTRIBUTE];
    let length = match flistxattr(from, names.as_mut_slice()) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        length => length?,
    };
    let mut value = vec![0; ATTRIBUTE];
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_") {
            let length = fgetxattr(from, name, value.as_mut_slice())?;
            match fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
                // A file system without them.
                Err(Errno::OPNOTSUPP) => {}
                done => done?,
            }
        }
    }
    Ok(())
}
