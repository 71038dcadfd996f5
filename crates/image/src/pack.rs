//! A directory becomes an archive: in the order of names, and nothing in it that is not in the directory, so that the same
//! tree always gives the same bytes.

use std::{
    collections::HashMap,
    ffi::{CStr, OsStr},
    io::{Read as _, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};

use crate::{
    archive::{Entry, Kind, Writer, Xattrs},
    error::{Doing, StoreError},
    meta,
    tree::{DEPTH, names},
};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Writes the tree at `directory` to `output`. What is mounted on a directory in it is left out, and so are sockets.
pub fn pack(directory: &Path, output: impl Write) -> Result<(), StoreError> {
    let root = openat(CWD, directory, DIRECTORY, Mode::empty()).doing("opening", directory)?;
    let device = fstat(&root).doing("looking at", directory)?.st_dev;
    let mut pack = Pack { writer: Writer::new(output), links: HashMap::new(), device, base: directory };
    pack.directory(&root, Path::new(""), 0)?;
    pack.writer.finish().doing("writing the archive of", directory)
}

struct Pack<'a, W> {
    writer: Writer<W>,
    /// The first path of each file that has several.
    links: HashMap<(u64, u64), PathBuf>,
    device: u64,
    base: &'a Path,
}

impl<W: Write> Pack<'_, W> {
    fn directory(&mut self, directory: &OwnedFd, path: &Path, depth: usize) -> Result<(), StoreError> {
        let here = self.base.join(path);
        if depth > DEPTH {
            return Err(StoreError::TooDeep { path: here, limit: DEPTH });
        }
        let stat = fstat(directory).doing("looking at", &here)?;
        let mut entry = entry(&stat, &Path::new(".").join(path), Kind::Directory);
        entry.xattrs = xattrs(directory.as_fd(), &here)?;
        self.put(&entry, &here)?;
        if stat.st_dev != self.device {
            return Ok(());
        }
        for name in names(directory, &here)? {
            self.node(directory.as_fd(), &name, &path.join(OsStr::from_bytes(name.to_bytes())), depth)?;
        }
        Ok(())
    }

    fn node(&mut self, parent: BorrowedFd<'_>, name: &CStr, path: &Path, depth: usize) -> Result<(), StoreError> {
        let here = self.base.join(path);
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).doing("looking at", &here)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let inner =
                    openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()).doing("opening", &here)?;
                return self.directory(&inner, path, depth + 1);
            }
            FileType::Socket => return Ok(()),
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            _ => Kind::Device,
        };
        let mut entry = entry(&stat, &Path::new(".").join(path), kind);
        if stat.st_nlink > 1 && kind != Kind::Device {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                (entry.kind, entry.link) =
                    (Kind::Link, Path::new(".").join(first).into_os_string().into_encoded_bytes());
                return self.put(&entry, &here);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        match kind {
            Kind::File => self.file(parent, name, entry, &here),
            Kind::Symlink => {
                entry.link = readlinkat(parent, name, Vec::new()).doing("reading", &here)?.into_bytes();
                self.put(&entry, &here)
            }
            _ => self.put(&entry, &here),
        }
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr, mut entry: Entry, here: &Path) -> Result<(), StoreError> {
        // NONBLOCK: should it have become a fifo meanwhile
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(parent, name, flags, Mode::empty()).doing("opening", here)?;
        let changed = || StoreError::Changed { path: here.to_owned() };
        let stat = fstat(&file).doing("looking at", here)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(changed());
        }
        entry.size = u64::try_from(stat.st_size).unwrap_or(0);
        entry.xattrs = xattrs(file.as_fd(), here)?;
        self.put(&entry, here)?;
        let mut file = std::fs::File::from(file).take(entry.size);
        let mut buffer = vec![0; 64 << 10];
        let mut left = entry.size;
        while left > 0 {
            let read = file.read(&mut buffer).doing("reading", here)?;
            if read == 0 {
                return Err(changed());
            }
            left -= read as u64;
            self.writer.content(&buffer[..read]).doing("writing the archive of", here)?;
        }
        self.writer.pad(entry.size).doing("writing the archive of", here)
    }

    fn put(&mut self, entry: &Entry, here: &Path) -> Result<(), StoreError> {
        self.writer.entry(entry).doing("writing the archive of", here)
    }
}

fn entry(stat: &Stat, path: &Path, kind: Kind) -> Entry {
    Entry {
        path: path.as_os_str().as_bytes().to_vec(),
        kind,
        mode: stat.st_mode & 0o7777,
        uid: u64::from(stat.st_uid),
        gid: u64::from(stat.st_gid),
        mtime: stat.st_mtime,
        ..Entry::default()
    }
}

fn xattrs(file: BorrowedFd<'_>, path: &Path) -> Result<Xattrs, StoreError> {
    let found = meta::read_xattrs(file, path)?;
    Ok(found.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect())
}
