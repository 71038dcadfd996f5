//! An archive becomes a tree. Whatever it holds, only the given directory is written to: every path is resolved by the
//! kernel with that directory as its root, and each name is made anew, never written through.

use std::{
    ffi::{CString, OsStr},
    io::Read,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use archive::{Kind, Member, Members, PATH};
use rustix::{
    fs::{
        AtFlags, Mode, OFlags, ResolveFlags, SeekFrom, ftruncate, linkat, mkdirat, mkfifoat, openat, openat2, seek,
        symlinkat, unlinkat,
    },
    io::{Errno, write},
};

use crate::{
    compression::decompressed,
    error::{Doing, StoreError, shown},
    meta::{self, Meta, Xattrs},
    room::Room,
    tree::DEPTH,
};

pub(crate) mod bounded;

use bounded::Bounded;

/// What an archive may hold at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the unpacked archive, headers and all; and of its files, with their holes.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
    /// Per cent of the store's disk, and of its files, that stay free.
    pub reserve: u8,
}

/// Ids that a layer has.
const IDS: u64 = 65_536;
/// Bytes of directories' names that are remembered until the end.
const NAMES: usize = 64 << 20;
/// Where a device node is passed over: a VPS has its own `/dev`.
const DEVICES: &[u8] = b"dev";

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Unpacks the archive that `input` is, compressed or not, into the empty directory `root`. On an error what was made
/// stays there for the caller to remove.
pub fn unpack(input: impl Read, root: BorrowedFd<'_>, limits: Limits) -> Result<(), StoreError> {
    // the compressed stream too: one of empty frames unpacks to nothing without an end
    let read = decompressed(Bounded::new(input, limits.bytes)).map_err(StoreError::Compression)?;
    let mut archive = Members::new(Bounded::new(read, limits.bytes));
    let room = Room::new(root, limits.reserve)?;
    let mut tree = Tree { root, parent: None, times: vec![(Vec::new(), 0)], names: 0, sizes: 0, room, limits };
    rustix::fs::fchmod(root, Mode::from_raw_mode(0o755)).doing("setting the mode of", Path::new("/"))?;
    let mut entries = 0;
    let too_large = |error| bounded::too_large(error, limits.bytes);
    while let Some(entry) = archive.next_member().map_err(too_large)? {
        entries += 1;
        if entries > limits.entries {
            return Err(bounded::too_many(limits.entries));
        }
        tree.add(&entry, &mut archive).map_err(|error| match error {
            StoreError::Archive(error) => too_large(error),
            error => error,
        })?;
    }
    if entries == 0 {
        return Err(StoreError::TooLarge { what: "it is empty".to_owned() });
    }
    tree.set_times()
}

struct Tree<'a> {
    root: BorrowedFd<'a>,
    /// The directory of the last entry, which is often that of the next.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Directories' times, set when nothing is made in them any more.
    times: Vec<(Vec<u8>, i64)>,
    names: usize,
    /// Bytes of files so far, with their holes: whoever reads the layer reads those too.
    sizes: u64,
    room: Room<'a>,
    limits: Limits,
}

/// A path taken apart: no `.`, no `..`, not absolute.
struct Parts<'a> {
    parent: Vec<u8>,
    /// Empty: the root itself.
    name: &'a [u8],
}

impl Parts<'_> {
    fn whole(&self) -> Vec<u8> {
        if self.parent.is_empty() { self.name.to_vec() } else { [&self.parent[..], b"/", self.name].concat() }
    }
}

fn refused(path: &[u8], what: impl Into<String>) -> StoreError {
    StoreError::Refused { path: shown(path), what: what.into() }
}

fn no_directory(path: &[u8], error: Errno) -> StoreError {
    let what = if error == Errno::LOOP { "is reached by too many links, or a loop of them" } else { "is no directory" };
    refused(path, format!("has content, and {what}"))
}

fn parts(path: &[u8]) -> Result<Parts<'_>, StoreError> {
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    if path.len() > PATH || path.contains(&0) {
        return Err(refused(path, "is no path"));
    }
    if names.contains(&&b".."[..]) {
        return Err(refused(path, "leads out of the image with `..`"));
    }
    if names.len() > DEPTH {
        return Err(refused(path, format!("is more than {DEPTH} directories deep")));
    }
    if names.iter().any(|name| name.len() > 255) {
        return Err(refused(path, "has a name of more than 255 bytes"));
    }
    let (name, parent) = names.split_last().map_or((&b""[..], &[][..]), |(name, parent)| (name, parent));
    Ok(Parts { parent: parent.join(&b'/'), name })
}

impl Tree<'_> {
    fn add<R: Read>(&mut self, entry: &Member, archive: &mut Members<R>) -> Result<(), StoreError> {
        let parts = parts(&entry.path)?;
        let path = parts.whole();
        let meta = meta(entry)?;
        let shown_path = Path::new(OsStr::from_bytes(&path));
        if parts.name.is_empty() {
            if entry.kind != Kind::Directory {
                return Err(refused(&entry.path, "is the image's root, and no directory"));
            }
            self.times[0].1 = meta.mtime;
            return meta::apply(self.root, &meta, &xattrs(entry)?, shown_path);
        }
        if entry.kind == Kind::Device {
            return match parts.parent.split(|byte| *byte == b'/').next() {
                Some(DEVICES) => Ok(()),
                _ => Err(refused(&entry.path, "is a device node; an image holds none outside /dev")),
            };
        }
        self.room.made()?;
        self.parent_of(&parts.parent)?;
        let name = CString::new(parts.name).map_err(|_| refused(&entry.path, "is no path"))?;
        let Some((parent_path, parent_fd)) = self.parent.take() else { return Ok(()) };
        let parent = parent_fd.as_fd();
        let mut replaced = true;
        if entry.kind != Kind::Directory {
            match unlinkat(parent, &name, AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::NOENT) => replaced = false,
                Err(Errno::ISDIR | Errno::PERM) => match unlinkat(parent, &name, AtFlags::REMOVEDIR) {
                    Err(Errno::NOTEMPTY | Errno::EXIST) => {
                        return Err(refused(&entry.path, "comes again, and was a directory with content before"));
                    }
                    removed => removed.doing("removing", shown_path)?,
                },
                Err(error) => return Err(error).doing("removing", shown_path),
            }
        }
        let made = match entry.kind {
            Kind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(parent, &name, flags, Mode::RUSR | Mode::WUSR).doing("making", shown_path)?;
                self.content(&file, entry, archive, shown_path)?;
                meta::apply(file.as_fd(), &meta, &xattrs(entry)?, shown_path)
            }
            Kind::Symlink => {
                let link = CString::new(entry.link.as_slice()).map_err(|_| refused(&entry.path, "links to no path"))?;
                if link.is_empty() {
                    return Err(refused(&entry.path, "links to nothing"));
                }
                symlinkat(&link, parent, &name).doing("making", shown_path)?;
                meta::apply_at(parent, &name, &meta, shown_path)
            }
            Kind::Fifo => {
                let mode = Mode::from_raw_mode(meta.mode);
                mkfifoat(parent, &name, mode).doing("making", shown_path)?;
                rustix::fs::chmodat(parent, &name, mode, AtFlags::empty()).doing("setting the mode of", shown_path)?;
                meta::apply_at(parent, &name, &meta, shown_path)
            }
            Kind::Hard => self.link(entry, parent, &name, shown_path),
            Kind::Directory => {
                match mkdirat(parent, &name, Mode::RWXU) {
                    Ok(()) => replaced = false,
                    Err(Errno::EXIST) => match unlinkat(parent, &name, AtFlags::empty()) {
                        Ok(()) => mkdirat(parent, &name, Mode::RWXU).doing("making", shown_path)?,
                        Err(Errno::ISDIR | Errno::PERM) => {}
                        Err(error) => return Err(error).doing("removing", shown_path),
                    },
                    Err(error) => return Err(error).doing("making", shown_path),
                }
                let directory = openat(parent, &name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
                let directory = directory.doing("opening", shown_path)?;
                meta::apply(directory.as_fd(), &meta, &xattrs(entry)?, shown_path)?;
                self.remember(path, meta.mtime)
            }
            // a device was dealt with above, and a member is of no other kind
            _ => Ok(()),
        };
        // a path that led through what was replaced leads elsewhere now
        self.parent = (!replaced).then_some((parent_path, parent_fd));
        made
    }

    fn link(&self, entry: &Member, parent: BorrowedFd<'_>, name: &CString, path: &Path) -> Result<(), StoreError> {
        let to = parts(&entry.link)?;
        let missing =
            || refused(&entry.path, format!("is a hard link to {}, which is no file before it", shown(&entry.link)));
        let Ok(directory) = within(self.root, &to.parent) else { return Err(missing()) };
        let target = CString::new(to.name).map_err(|_| missing())?;
        // without SYMLINK_FOLLOW: a symbolic link gets another name, nothing is followed
        match linkat(&directory, &target, parent, name, AtFlags::empty()) {
            Err(Errno::NOENT | Errno::PERM | Errno::ISDIR | Errno::NOTDIR) => Err(missing()),
            linked => linked.doing("linking", path),
        }
    }

    fn content<R: Read>(
        &mut self,
        file: &OwnedFd,
        entry: &Member,
        archive: &mut Members<R>,
        path: &Path,
    ) -> Result<(), StoreError> {
        self.sizes = self.sizes.saturating_add(entry.size);
        if self.sizes > self.limits.bytes {
            return Err(bounded::files_too_large(self.limits.bytes));
        }
        let mut buffer = vec![0; 64 << 10];
        for (offset, length) in &entry.extents {
            if *offset > 0 {
                seek(file, SeekFrom::Start(*offset)).doing("writing", path)?;
            }
            let mut left = *length;
            while left > 0 {
                let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let read = archive.read(&mut buffer[..most])?;
                left -= read as u64;
                self.room.wrote(read as u64)?;
                let mut rest = &buffer[..read];
                while !rest.is_empty() {
                    match write(file, rest) {
                        Ok(written) => rest = &rest[written..],
                        Err(Errno::INTR) => {}
                        Err(error) => return Err(error).doing("writing", path),
                    }
                }
            }
        }
        if entry.extents.last().map_or(0, |(offset, length)| offset + length) < entry.size {
            ftruncate(file, entry.size).doing("writing", path)?;
        }
        Ok(())
    }

    /// Opens the directory at `path` as `self.parent`, and makes what is missing on the way.
    fn parent_of(&mut self, path: &[u8]) -> Result<(), StoreError> {
        if self.parent.as_ref().is_some_and(|(last, _)| last == path) {
            return Ok(());
        }
        let directory = match within(self.root, path) {
            Err(Errno::NOENT) => self.make(path)?,
            Err(error @ (Errno::NOTDIR | Errno::LOOP)) => return Err(no_directory(path, error)),
            opened => opened.doing("opening", Path::new(OsStr::from_bytes(path)))?,
        };
        self.parent = Some((path.to_vec(), directory));
        Ok(())
    }

    /// Directories that the archive does not name belong to root and have no time.
    fn make(&mut self, path: &[u8]) -> Result<OwnedFd, StoreError> {
        let shown_path = Path::new(OsStr::from_bytes(path));
        let mut parent = within(self.root, b"").doing("opening", shown_path)?;
        let ends = (0..path.len()).filter(|n| path[*n] == b'/').chain([path.len()]);
        for end in ends {
            let here = &path[..end];
            match within(self.root, here) {
                Ok(directory) => parent = directory,
                Err(Errno::NOENT) => {
                    let name = here.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
                    let name = CString::new(name).map_err(|_| refused(path, "is no path"))?;
                    match mkdirat(&parent, &name, Mode::from_raw_mode(0o755)) {
                        Err(Errno::EXIST) => return Err(refused(path, "has content, and is a link to nothing")),
                        made => made.doing("making", shown_path)?,
                    }
                    let directory = openat(&parent, &name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
                    parent = directory.doing("opening", shown_path)?;
                    let meta = Meta { uid: 0, gid: 0, mode: 0o755, mtime: 0 };
                    meta::apply(parent.as_fd(), &meta, &Vec::new(), shown_path)?;
                    self.room.made()?;
                    self.remember(here.to_vec(), 0)?;
                }
                Err(error @ (Errno::NOTDIR | Errno::LOOP)) => return Err(no_directory(path, error)),
                Err(error) => return Err(error).doing("opening", shown_path),
            }
        }
        Ok(parent)
    }

    fn remember(&mut self, path: Vec<u8>, mtime: i64) -> Result<(), StoreError> {
        self.names += path.len() + 32;
        if self.names > NAMES {
            return Err(StoreError::TooLarge { what: format!("its directories' names are more than {NAMES} bytes") });
        }
        self.times.push((path, mtime));
        Ok(())
    }

    /// The deepest last: to set the time of one does not change another's.
    fn set_times(&mut self) -> Result<(), StoreError> {
        self.parent = None;
        for (path, mtime) in std::mem::take(&mut self.times) {
            // it may have been replaced by something else since
            let Ok(directory) = within(self.root, &path) else { continue };
            let time = rustix::fs::Timespec { tv_sec: mtime, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::futimens(&directory, &times)
                .doing("setting the time of", Path::new(OsStr::from_bytes(&path)))?;
        }
        Ok(())
    }
}

/// The directory at `path` with `root` as the root of all that is followed on the way.
fn within(root: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let path = if path.is_empty() { b"." } else { path };
    openat2(root, path, DIRECTORY, Mode::empty(), resolve)
}

fn meta(entry: &Member) -> Result<Meta, StoreError> {
    let id = |id: u64, what: &str| match u32::try_from(id) {
        Ok(small) if id < IDS => Ok(small),
        _ => Err(refused(&entry.path, format!("belongs to {what} {id}; a layer's ids are 0 to {}", IDS - 1))),
    };
    Ok(Meta {
        uid: id(entry.owner.0, "user")?,
        gid: id(entry.owner.1, "group")?,
        mode: entry.mode,
        // what a file system of today can hold
        mtime: entry.modified.0.clamp(0, 0x3_7fff_ffff),
    })
}

/// The attributes that a layer keeps. Those of overlayfs would be read by the overlay that the layer becomes a part of.
fn xattrs(entry: &Member) -> Result<Xattrs, StoreError> {
    let mut kept = Vec::new();
    for (name, value) in &entry.attributes {
        let Ok(name) = CString::new(name.as_slice()) else {
            return Err(refused(&entry.path, "has an attribute whose name is none"));
        };
        if meta::is_kept(&name) && !name.to_bytes().starts_with(b"user.overlay.") {
            let value =
                if name.to_bytes() == b"security.capability" { capability(entry, value)? } else { value.clone() };
            kept.push((name, value));
        }
    }
    Ok(kept)
}

/// A file's capabilities (capabilities(7)) for whoever is root where the layer is used: of revision 3, without whose root
/// was meant.
fn capability(entry: &Member, value: &[u8]) -> Result<Vec<u8>, StoreError> {
    let mut value = value.to_vec();
    match (value.len(), value.get(3)) {
        (20, Some(2)) => {}
        (24, Some(3)) => {
            value.truncate(20);
            value[3] = 2;
        }
        _ => return Err(refused(&entry.path, "has capabilities of an unknown form")),
    }
    Ok(value)
}

#[cfg(test)]
mod tests;
