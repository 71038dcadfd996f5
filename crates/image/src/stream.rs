//! A layer as a stream: what its digest is over, byte for byte. Who reads it makes the same tree, whiteouts and opaque
//! directories included, or finds that it is another.
//!
//! Whoever wrote a stream is hostile: each entry lies in a directory that this reader has made and still holds, and all
//! sizes are bounded.

use std::{
    ffi::{CString, OsStr},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use archive::PATH;
use model::LayerId;
use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, ResolveFlags, chmodat, linkat, mkdirat, mkfifoat, mknodat, openat, openat2,
        symlinkat,
    },
    io::Errno,
};

use crate::{
    Limits, Store, StoreError,
    error::{Doing, shown},
    meta::{self, Meta, Xattrs},
    room::Room,
    tree::{self, DEPTH},
    unpack::bounded,
};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Ids that a layer has.
const IDS: u64 = 65_536;
/// Bytes of an attribute's name and value, and attributes of one file (xattr(7)).
const NAME: u64 = 255;
const VALUE: u64 = 64 << 10;
const ATTRIBUTES: u64 = 1024;

impl Store {
    /// Writes a layer as a stream; an error when it is damaged.
    pub fn write_layer(&self, id: &LayerId, output: &mut dyn Write) -> Result<(), StoreError> {
        if !self.has_layer(id) {
            return Err(StoreError::Missing(id.clone()));
        }
        let path = self.layer_path(id);
        let directory = openat(rustix::fs::CWD, &path, DIRECTORY, Mode::empty()).doing("opening", &path)?;
        let found = tree::pass_to(&directory, &path, None, Some(output))?.id;
        if found == *id { Ok(()) } else { Err(StoreError::Damaged { id: id.clone(), found }) }
    }

    /// Takes a layer from a stream; one that is there already is not read. Its files' bytes.
    pub fn read_layer(&self, id: &LayerId, input: impl Read, limits: Limits) -> Result<u64, StoreError> {
        if self.has_layer(id) {
            return Ok(tree::pass(&self.layer_path(id), None)?.size);
        }
        let added = self.add_with(|root| {
            read(input, root, limits)?;
            // Looked at before it gets a name: what is another layer is none that was asked for.
            let root = root.try_clone_to_owned().doing("opening", Path::new("/"))?;
            let seen = tree::pass_open(&root, Path::new(""), None)?.id;
            if seen == *id { Ok(()) } else { Err(StoreError::Damaged { id: id.clone(), found: seen }) }
        });
        added.map(|(_, size)| size)
    }
}

fn refused(path: &[u8], what: impl Into<String>) -> StoreError {
    StoreError::Refused { path: shown(path), what: what.into() }
}

/// A directory that is being filled; it gets what it is when nothing comes into it any more.
struct Open {
    path: Vec<u8>,
    directory: OwnedFd,
    meta: Meta,
    attributes: Xattrs,
}

struct Reader<'a, R> {
    input: R,
    root: BorrowedFd<'a>,
    limits: Limits,
    entries: u64,
    bytes: u64,
    room: Room<'a>,
    /// From the root to where entries come.
    open: Vec<Open>,
}

/// Makes the tree that a stream says in the empty directory `root`.
fn read(input: impl Read, root: BorrowedFd<'_>, limits: Limits) -> Result<(), StoreError> {
    let room = Room::new(root, limits.reserve)?;
    let mut reader = Reader { input, root, limits, entries: 0, bytes: 0, room, open: Vec::new() };
    while reader.entry()? {}
    while let Some(last) = reader.open.pop() {
        close(&last)?;
    }
    match reader.entries {
        0 => Err(refused(b"", "has nothing in it")),
        _ => Ok(()),
    }
}

fn close(open: &Open) -> Result<(), StoreError> {
    meta::apply(open.directory.as_fd(), &open.meta, &open.attributes, Path::new(OsStr::from_bytes(&open.path)))
}

impl<R: Read> Reader<'_, R> {
    fn exact(&mut self, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.input.read_exact(buffer).map_err(StoreError::Stream)
    }

    fn number(&mut self) -> Result<u64, StoreError> {
        let mut bytes = [0; 8];
        self.exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn field(&mut self, most: u64) -> Result<Vec<u8>, StoreError> {
        let length = self.number()?;
        if length > most {
            return Err(refused(b"", format!("has a field of {length} bytes, of {most} at most")));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        self.exact(&mut bytes)?;
        Ok(bytes)
    }

    fn meta(&mut self, path: &[u8]) -> Result<Meta, StoreError> {
        let (mode, uid, gid) = (self.number()?, self.number()?, self.number()?);
        let mtime = self.number()? as i64;
        if mode > 0o7777 || uid >= IDS || gid >= IDS {
            return Err(refused(path, format!("has mode {mode:o} and belongs to {uid}:{gid}")));
        }
        Ok(Meta { uid: uid as u32, gid: gid as u32, mode: mode as u32, mtime })
    }

    fn attributes(&mut self, path: &[u8]) -> Result<Xattrs, StoreError> {
        let count = self.number()?;
        if count > ATTRIBUTES {
            return Err(refused(path, format!("has {count} attributes")));
        }
        let mut found = Vec::new();
        for _ in 0..count {
            let (name, value) = (self.field(NAME)?, self.field(VALUE)?);
            match CString::new(name).ok().filter(|name| meta::is_kept(name)) {
                Some(name) => found.push((name, value)),
                None => return Err(refused(path, "has an attribute that no layer keeps")),
            }
        }
        Ok(found)
    }

    /// One entry; false: that was all.
    fn entry(&mut self) -> Result<bool, StoreError> {
        let mut kind = [0];
        loop {
            match self.input.read(&mut kind) {
                Ok(0) => return Ok(false),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(StoreError::Stream(error)),
            }
        }
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(bounded::too_many(self.limits.entries));
        }
        self.room.made()?;
        let path = self.field(PATH as u64)?;
        let name = self.place(&path, kind[0])?;
        let shown_path = PathBuf::from(OsStr::from_bytes(&path));
        let parent = match self.open.last() {
            Some(open) => open.directory.try_clone().doing("opening", &shown_path)?,
            None => self.root.try_clone_to_owned().doing("opening", &shown_path)?,
        };
        match kind[0] {
            b'd' => self.directory(&parent, name, path, &shown_path)?,
            b'f' => self.file(&parent, &name, &path, &shown_path)?,
            b'l' => {
                let meta = self.meta(&path)?;
                let to = CString::new(self.field(PATH as u64)?).map_err(|_| refused(&path, "links to no path"))?;
                symlinkat(to.as_c_str(), &parent, &name).doing("making", &shown_path)?;
                meta::apply_at(&parent, &name, &meta, &shown_path)?;
            }
            b'p' => {
                let meta = self.meta(&path)?;
                let mode = Mode::from_raw_mode(meta.mode);
                mkfifoat(&parent, &name, mode).doing("making", &shown_path)?;
                meta::apply_at(&parent, &name, &meta, &shown_path)?;
                chmodat(&parent, &name, mode, AtFlags::empty()).doing("setting the mode of", &shown_path)?;
            }
            b'h' => {
                let first = self.field(PATH as u64)?;
                self.link(&parent, &name, &first, &path)?;
            }
            // A whiteout, which is a device node to nobody.
            b'w' => {
                mknodat(&parent, &name, FileType::CharacterDevice, Mode::empty(), 0).doing("making", &shown_path)?
            }
            kind => return Err(refused(&path, format!("is of the unknown kind {kind}"))),
        }
        Ok(true)
    }

    /// Closes the directories that this path is not in; its name in the one that is left.
    fn place(&mut self, path: &[u8], kind: u8) -> Result<CString, StoreError> {
        if self.open.is_empty() || path.is_empty() {
            return match self.open.is_empty() && path.is_empty() && kind == b'd' {
                true => Ok(CString::default()),
                false => Err(refused(path, "does not begin with its root")),
            };
        }
        let at = path.iter().rposition(|byte| *byte == b'/');
        let (parent, name) = at.map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]));
        while self.open.last().is_some_and(|open| open.path != parent) {
            if let Some(done) = self.open.pop() {
                close(&done)?;
            }
        }
        let legal = !matches!(name, b"" | b"." | b"..") && name.len() <= 255 && !name.contains(&b'/');
        match CString::new(name) {
            Ok(name) if legal && !self.open.is_empty() => Ok(name),
            _ => Err(refused(path, "does not come where it belongs")),
        }
    }

    fn directory(&mut self, parent: &OwnedFd, name: CString, path: Vec<u8>, at: &Path) -> Result<(), StoreError> {
        if self.open.len() > DEPTH {
            return Err(StoreError::TooDeep { path: at.to_owned(), limit: DEPTH });
        }
        let meta = self.meta(&path)?;
        let attributes = self.attributes(&path)?;
        let directory = match path.is_empty() {
            true => openat(parent, ".", DIRECTORY, Mode::empty()),
            false => {
                mkdirat(parent, &name, Mode::RWXU).doing("making", at)?;
                openat(parent, &name, DIRECTORY, Mode::empty())
            }
        };
        let directory = directory.doing("opening", at)?;
        self.open.push(Open { path, directory, meta, attributes });
        Ok(())
    }

    fn file(&mut self, parent: &OwnedFd, name: &CString, path: &[u8], at: &Path) -> Result<(), StoreError> {
        let meta = self.meta(path)?;
        let attributes = self.attributes(path)?;
        let mut left = self.number()?;
        self.bytes = self.bytes.saturating_add(left);
        if self.bytes > self.limits.bytes {
            return Err(bounded::files_too_large(self.limits.bytes));
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(parent, name, flags, Mode::RUSR | Mode::WUSR).doing("making", at)?;
        let mut file = std::fs::File::from(file);
        let mut buffer = vec![0; 64 << 10];
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.exact(&mut buffer[..most])?;
            file.write_all(&buffer[..most]).doing("writing", at)?;
            left -= most as u64;
            self.room.wrote(most as u64)?;
        }
        meta::apply(file.as_fd(), &meta, &attributes, at)
    }

    /// Another name of a file that came before.
    fn link(&mut self, parent: &OwnedFd, name: &CString, first: &[u8], path: &[u8]) -> Result<(), StoreError> {
        let missing = || refused(path, format!("is a hard link to {}, which is no file before it", shown(first)));
        let at = first.iter().rposition(|byte| *byte == b'/');
        let (above, target) = at.map_or((&b"."[..], first), |at| (&first[..at], &first[at + 1..]));
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let directory = openat2(self.root, above, DIRECTORY, Mode::empty(), resolve).map_err(|_| missing())?;
        if matches!(target, b"" | b"." | b"..") || first.contains(&0) {
            return Err(missing());
        }
        match linkat(&directory, target, parent, name, AtFlags::empty()) {
            Err(Errno::NOENT | Errno::PERM | Errno::ISDIR | Errno::NOTDIR) => Err(missing()),
            linked => linked.doing("linking", Path::new(OsStr::from_bytes(path))),
        }
    }
}
