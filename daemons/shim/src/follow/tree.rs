//! The directories that patterns lead through: watched, and looked into when one of them changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RawDir, inotify, open, openat, statat},
    io::Errno,
    process::fchdir,
};

use super::{
    pattern::{Pattern, is_plain, matches},
    show,
};

/// Directories that are watched at once.
const DIRECTORIES: usize = 256;
/// Names of a directory that are looked at.
const NAMES: usize = 20_000;
/// At the top, what the kernel fills itself.
const KERNELS: [&[u8]; 3] = [b"dev", b"proc", b"sys"];

/// A regular file that a pattern means.
#[derive(Debug)]
pub struct Found {
    pub path: Vec<u8>,
    pub directory: Rc<OwnedFd>,
    pub name: CString,
    /// Device and inode.
    pub identity: (u64, u64),
}

/// What patterns lead through.
#[derive(Debug)]
pub struct Tree {
    patterns: Vec<Pattern>,
    watches: BTreeSet<i32>,
}

/// A pattern, and which of its parts names what is in a directory.
type Role = (usize, usize);

impl Tree {
    pub fn new(patterns: &[String]) -> Self {
        Self { patterns: patterns.iter().map(|text| Pattern::new(text)).collect(), watches: BTreeSet::new() }
    }

    /// Whether that watch is one of a directory.
    pub fn watches(&self, watch: i32) -> bool {
        self.watches.contains(&watch)
    }

    /// The files there are, and what is to be said. Watches come before looks, so that nothing falls between.
    pub fn look(&mut self, events: &OwnedFd) -> (Vec<Found>, Vec<String>) {
        let mut look = Look::new(&self.patterns, events);
        let roles = (0..self.patterns.len()).map(|pattern| (pattern, 0)).collect();
        match open("/", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(root) => look.directory(Rc::new(root), b"", roles),
            Err(error) => look.remarks.push(format!("/ can't be read: {error}")),
        }
        let Look { found, remarks, watches, .. } = look;
        for watch in self.watches.difference(&watches) {
            let _ = inotify::remove_watch(events, *watch);
        }
        self.watches = watches;
        (found, remarks)
    }
}

struct Look<'a> {
    patterns: &'a [Pattern],
    events: &'a OwnedFd,
    found: Vec<Found>,
    remarks: Vec<String>,
    watches: BTreeSet<i32>,
}

impl<'a> Look<'a> {
    fn new(patterns: &'a [Pattern], events: &'a OwnedFd) -> Self {
        Self { patterns, events, found: Vec::new(), remarks: Vec::new(), watches: BTreeSet::new() }
    }

    fn directory(&mut self, directory: Rc<OwnedFd>, path: &[u8], roles: Vec<Role>) {
        if self.watches.len() >= DIRECTORIES {
            let text = format!("more than {DIRECTORIES} directories: {} and others are not followed", show(path));
            return self.remarks.push(text);
        }
        use inotify::WatchFlags;
        let flags = WatchFlags::CREATE | WatchFlags::MOVE | WatchFlags::DELETE | WatchFlags::ONLYDIR;
        match fchdir(&*directory).and_then(|()| inotify::add_watch(self.events, ".", flags)) {
            Ok(watch) => drop(self.watches.insert(watch)),
            Err(error) => self.remarks.push(format!("{}/ can't be watched: {error}", show(path))),
        }
        let patterns = self.patterns;
        let part = |(pattern, at): Role| patterns[pattern].0[at].as_slice();
        // What each name stands for.
        let mut names = BTreeMap::<Vec<u8>, Vec<Role>>::new();
        for role in roles.iter().filter(|role| is_plain(part(**role))) {
            names.entry(part(*role).to_vec()).or_default().push(*role);
        }
        let wild: Vec<_> = roles.into_iter().filter(|role| !is_plain(part(*role))).collect();
        if !wild.is_empty() {
            match self.names(&directory, path) {
                Ok(all) => {
                    for name in all.into_iter().filter(|name| !path.is_empty() || !KERNELS.contains(&name.as_slice())) {
                        let meant: Vec<_> = wild.iter().copied().filter(|role| matches(part(*role), &name)).collect();
                        if !meant.is_empty() {
                            names.entry(name).or_default().extend(meant);
                        }
                    }
                }
                Err(error) => self.remarks.push(format!("{}/ can't be read: {error}", show(path))),
            }
        }
        for (name, roles) in names {
            let full = [path, b"/", &name].concat();
            let Ok(name) = CString::new(name) else { continue };
            let (files, deeper): (Vec<_>, Vec<_>) =
                roles.into_iter().partition(|(pattern, at)| at + 1 == patterns[*pattern].0.len());
            if !files.is_empty() {
                self.file(&directory, &name, &full);
            }
            let deeper: Vec<_> = deeper.into_iter().map(|(pattern, at)| (pattern, at + 1)).collect();
            if !deeper.is_empty() {
                self.enter(&directory, &name, &full, deeper);
            }
        }
    }

    fn names(&mut self, directory: &OwnedFd, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut buffer = [MaybeUninit::uninit(); 8 << 10];
        // One of its own: a position is shared by all copies of a descriptor.
        let again = openat(directory, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut entries = RawDir::new(again, &mut buffer);
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let name = entry?.file_name().to_bytes().to_vec();
            if names.len() == NAMES {
                self.remarks.push(format!("{}/ holds more than {NAMES} names: not all are looked at", show(path)));
                break;
            }
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn file(&mut self, directory: &Rc<OwnedFd>, name: &CString, path: &[u8]) {
        let Ok(stat) = statat(&**directory, name, AtFlags::SYMLINK_NOFOLLOW) else { return };
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::RegularFile => self.found.push(Found {
                path: path.to_vec(),
                directory: directory.clone(),
                name: name.clone(),
                identity: (stat.st_dev, stat.st_ino),
            }),
            FileType::Directory => {}
            FileType::Symlink => self.link(path),
            _ => self.remarks.push(format!("{} is not followed: it is no regular file", show(path))),
        }
    }

    fn link(&mut self, path: &[u8]) {
        self.remarks.push(format!("{} is a symbolic link and not followed: write the path it leads to", show(path)));
    }

    fn enter(&mut self, directory: &OwnedFd, name: &CString, path: &[u8], roles: Vec<Role>) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(directory, name, flags, Mode::empty()) {
            Ok(inner) => self.directory(Rc::new(inner), path, roles),
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
                // Else a file where a pattern means directories.
                if stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink) {
                    self.link(path);
                }
            }
            Err(error) => self.remarks.push(format!("{}/ can't be read: {error}", show(path))),
        }
    }
}
