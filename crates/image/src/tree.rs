//! One pass over a tree: digests it and, when asked, copies it at the same time.
//!
//! The digest is over a stream like a canonical tar: entries in the order of their names, depth first, each with type,
//! path, mode, owner, time, attributes and content, every field preceded by its length. Reached by directory
//! descriptors only, never through a symbolic link.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, OsStr},
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use model::LayerId;
use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, linkat, mkdirat, mkfifoat, mknodat, openat, readlinkat,
        statat, symlinkat,
    },
    io::{Errno, read},
};
use sha2::{Digest, Sha256};

use crate::{
    error::{Doing, StoreError},
    meta,
};

/// No real tree is deeper; each level holds two descriptors.
pub const DEPTH: usize = 128;

/// Bytes of paths that are remembered of files with several names.
const NAMES: usize = 64 << 20;

/// What a pass found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The layer's name.
    pub id: LayerId,
    /// Bytes of all files.
    pub size: u64,
}

/// Digests the tree at `source`; copies it to `target`, an empty directory.
pub fn pass(source: &Path, target: Option<BorrowedFd<'_>>) -> Result<Found, StoreError> {
    let directory = openat(CWD, source, DIRECTORY, Mode::empty()).doing("opening", source)?;
    pass_open(&directory, source, target)
}

/// The same for a directory that is open.
pub fn pass_open(directory: &OwnedFd, source: &Path, target: Option<BorrowedFd<'_>>) -> Result<Found, StoreError> {
    pass_to(directory, source, target, None)
}

/// The same, with what is digested written to `stream`, of which `stream::read` makes the same tree.
pub fn pass_to<'a>(
    directory: &OwnedFd,
    source: &Path,
    target: Option<BorrowedFd<'a>>,
    stream: Option<&'a mut dyn Write>,
) -> Result<Found, StoreError> {
    let buffer = vec![0; 256 << 10];
    let (digest, links) = (Sha256::new(), HashMap::new());
    let mut pass = Pass { digest, stream, broken: None, size: 0, links, names: 0, target, buffer };
    pass.directory(directory, target, Path::new(""), 0)?;
    if let Some(error) = pass.broken {
        return Err(StoreError::Stream(error));
    }
    let id = hex::encode(pass.digest.finalize());
    let id = LayerId::try_from(id).map_err(|_| StoreError::Changed { path: source.to_owned() })?;
    Ok(Found { id, size: pass.size })
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

struct Pass<'a> {
    digest: Sha256,
    stream: Option<&'a mut dyn Write>,
    /// Why the stream could not be written to.
    broken: Option<io::Error>,
    size: u64,
    /// The first path of each file that has several.
    links: HashMap<(u64, u64), PathBuf>,
    /// Bytes of those paths.
    names: usize,
    target: Option<BorrowedFd<'a>>,
    buffer: Vec<u8>,
}

/// One name in a directory, and where its copy goes.
struct Place<'a> {
    source: BorrowedFd<'a>,
    target: Option<BorrowedFd<'a>>,
    name: &'a CStr,
    path: &'a Path,
}

impl Pass<'_> {
    fn say(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        if let (Some(stream), None) = (&mut self.stream, &self.broken) {
            self.broken = stream.write_all(bytes).err();
        }
    }

    fn field(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.say(bytes);
    }

    fn number(&mut self, number: u64) {
        self.say(&number.to_le_bytes());
    }

    fn header(&mut self, kind: u8, path: &Path, stat: &Stat) {
        self.entry(kind, path);
        for number in [u64::from(stat.st_mode & 0o7777), u64::from(stat.st_uid), u64::from(stat.st_gid)] {
            self.number(number);
        }
        self.say(&stat.st_mtime.to_le_bytes());
    }

    fn entry(&mut self, kind: u8, path: &Path) {
        self.say(&[kind]);
        self.field(path.as_os_str().as_bytes());
    }

    fn xattrs(&mut self, xattrs: &meta::Xattrs) {
        self.number(xattrs.len() as u64);
        for (name, value) in xattrs {
            self.field(name.to_bytes());
            self.field(value);
        }
    }

    fn directory(
        &mut self,
        source: &OwnedFd,
        target: Option<BorrowedFd<'_>>,
        path: &Path,
        depth: usize,
    ) -> Result<(), StoreError> {
        if depth > DEPTH {
            return Err(StoreError::TooDeep { path: path.to_owned(), limit: DEPTH });
        }
        let stat = fstat(source).doing("looking at", path)?;
        let xattrs = meta::read_xattrs(source.as_fd(), path)?;
        self.header(b'd', path, &stat);
        self.xattrs(&xattrs);
        for name in names(source, path)? {
            let path = path.join(OsStr::from_bytes(name.to_bytes()));
            self.node(&Place { source: source.as_fd(), target, name: &name, path: &path }, depth)?;
        }
        match target {
            // last, since each entry that is made changes the time
            Some(target) => meta::apply(target, &(&stat).into(), &xattrs, path),
            None => Ok(()),
        }
    }

    fn node(&mut self, place: &Place<'_>, depth: usize) -> Result<(), StoreError> {
        let stat = statat(place.source, place.name, AtFlags::SYMLINK_NOFOLLOW).doing("looking at", place.path)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let source = openat(place.source, place.name, DIRECTORY, Mode::empty()).doing("opening", place.path)?;
                let target = match place.target {
                    Some(target) => {
                        mkdirat(target, place.name, Mode::RWXU).doing("making", place.path)?;
                        Some(openat(target, place.name, DIRECTORY, Mode::empty()).doing("opening", place.path)?)
                    }
                    None => None,
                };
                self.directory(&source, target.as_ref().map(AsFd::as_fd), place.path, depth + 1)
            }
            // overlayfs makes all whiteouts of one file: they are no hard links
            FileType::CharacterDevice if stat.st_rdev == 0 => self.whiteout(place),
            FileType::CharacterDevice | FileType::BlockDevice => {
                Err(StoreError::Device { path: place.path.to_owned() })
            }
            // means nothing without the process that made it
            FileType::Socket => Ok(()),
            kind => {
                if stat.st_nlink > 1 && self.link(place, &stat)? {
                    return Ok(());
                }
                match kind {
                    FileType::Symlink => self.symlink(place, &stat),
                    FileType::Fifo => self.fifo(place, &stat),
                    _ => self.file(place),
                }
            }
        }
    }

    fn whiteout(&mut self, place: &Place<'_>) -> Result<(), StoreError> {
        self.entry(b'w', place.path);
        let Some(target) = place.target else { return Ok(()) };
        mknodat(target, place.name, FileType::CharacterDevice, Mode::empty(), 0).doing("making", place.path)
    }

    /// Another name of a file that has been seen; false: it has not.
    fn link(&mut self, place: &Place<'_>, stat: &Stat) -> Result<bool, StoreError> {
        let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)).cloned() else {
            self.names += place.path.as_os_str().len() + 32;
            if self.names > NAMES {
                let what = format!("the paths of its files with several names are more than {NAMES} bytes");
                return Err(StoreError::TooLarge { what });
            }
            self.links.insert((stat.st_dev, stat.st_ino), place.path.to_owned());
            return Ok(false);
        };
        self.entry(b'h', place.path);
        self.field(first.as_os_str().as_bytes());
        if let (Some(root), Some(target)) = (self.target, place.target) {
            // every directory on the way was made by this pass
            linkat(root, &first, target, place.name, AtFlags::empty()).doing("linking", place.path)?;
        }
        Ok(true)
    }

    fn symlink(&mut self, place: &Place<'_>, stat: &Stat) -> Result<(), StoreError> {
        let to = readlinkat(place.source, place.name, Vec::new()).doing("reading", place.path)?;
        self.header(b'l', place.path, stat);
        self.field(to.to_bytes());
        let Some(target) = place.target else { return Ok(()) };
        symlinkat(to.as_c_str(), target, place.name).doing("making", place.path)?;
        meta::apply_at(target, place.name, &stat.into(), place.path)
    }

    fn fifo(&mut self, place: &Place<'_>, stat: &Stat) -> Result<(), StoreError> {
        self.header(b'p', place.path, stat);
        let Some(target) = place.target else { return Ok(()) };
        let mode = Mode::from_raw_mode(stat.st_mode);
        mkfifoat(target, place.name, mode).doing("making", place.path)?;
        meta::apply_at(target, place.name, &stat.into(), place.path)?;
        // the umask took part in making it
        rustix::fs::chmodat(target, place.name, mode, AtFlags::empty()).doing("setting the mode of", place.path)
    }

    fn file(&mut self, place: &Place<'_>) -> Result<(), StoreError> {
        // NONBLOCK: should it have become a fifo meanwhile
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let source = openat(place.source, place.name, flags, Mode::empty()).doing("opening", place.path)?;
        let stat = fstat(&source).doing("looking at", place.path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(StoreError::Changed { path: place.path.to_owned() });
        }
        let xattrs = meta::read_xattrs(source.as_fd(), place.path)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.header(b'f', place.path, &stat);
        self.xattrs(&xattrs);
        self.number(size);
        let target = match place.target {
            Some(target) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                Some(openat(target, place.name, flags, Mode::RUSR | Mode::WUSR).doing("making", place.path)?)
            }
            None => None,
        };
        let mut copied = 0;
        loop {
            let read = match read(&source, &mut self.buffer[..]) {
                Err(Errno::INTR) => continue,
                read => read.doing("reading", place.path)?,
            };
            if read == 0 {
                break;
            }
            // Taken out meanwhile: it is lent to no other.
            let buffer = std::mem::take(&mut self.buffer);
            self.say(&buffer[..read]);
            self.buffer = buffer;
            if let Some(error) = self.broken.take() {
                return Err(StoreError::Stream(error));
            }
            if let Some(target) = &target {
                write_all(target.as_fd(), &self.buffer[..read]).doing("writing", place.path)?;
            }
            copied += read as u64;
        }
        if copied != size {
            return Err(StoreError::Changed { path: place.path.to_owned() });
        }
        self.size += size;
        match target {
            Some(target) => meta::apply(target.as_fd(), &(&stat).into(), &xattrs, place.path),
            None => Ok(()),
        }
    }
}

fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub fn names(directory: &OwnedFd, path: &Path) -> Result<Vec<CString>, StoreError> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).doing("reading", path)? {
        let entry = entry.doing("reading", path)?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Removes the tree at `path`, through no symbolic link; nothing when it is not there.
pub fn remove_tree(path: &Path) -> Result<(), StoreError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default();
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL).doing("removing", path)?;
    let directory = openat(CWD, parent, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty());
    remove(directory.doing("opening", parent)?.as_fd(), &name, path)
}

/// Removes what `name` in `parent` is, a whole tree too, however deep; nothing when it is not there.
pub fn remove(parent: BorrowedFd<'_>, name: &CStr, path: &Path) -> Result<(), StoreError> {
    use rustix::fs::unlinkat;
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {
            let name = Path::new(OsStr::from_bytes(name.to_bytes()));
            sys::remove::remove_tree_at(parent, name).doing("removing", path)
        }
        Err(error) => Err(error).doing("removing", path),
    }
}
