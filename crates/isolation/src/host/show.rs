//! Directories of the host that VPSs see since host.toml allows it.
//!
//! A directory is opened without following any link, and mounted by its descriptor: who can write above it can make it
//! another directory, but cannot lead anybody elsewhere. Of the ids on disk only the directory's own owner and group are
//! mapped. What belongs to others is nobody's inside, and nothing that a VPS writes can belong to them.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
};
use sys::{
    mount::{Attributes, set_attributes},
    namespace::{IdMap, Maps, create_user},
};

use super::{HostError, stage::fault};

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its file system.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Its owner on the host.
    pub user: u32,
    /// Its group on the host.
    pub group: u32,
}

/// How a directory is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// What it was when that was decided.
    pub found: Found,
    /// Who its owner and group are in the VPS, as the host numbers them.
    pub seen_as: (u32, u32),
    /// Whether programs may be run from there.
    pub programs: bool,
}

/// Looks at a directory.
pub fn find(path: &Path) -> Result<Found, HostError> {
    open_directory(path).map(|(_, found)| found)
}

/// The directory `path` as a mount that is attached nowhere: without setuid and devices, its ids mapped; what is mounted
/// below it is not seen. It must still be what was found.
pub fn show(path: &Path, shown: &Shown, writable: bool) -> Result<OwnedFd, HostError> {
    let (directory, found) = open_directory(path)?;
    if found != shown.found {
        return Err(HostError::NotShown { path: path.to_owned(), what: "became another directory just now" });
    }
    let (users, groups) = shown.seen_as;
    let one = |inside, outside| IdMap { inside, outside, count: 1 };
    let maps = Maps { users: one(found.user, users), groups: one(found.group, groups) };
    let map = create_user(0, maps, false).map_err(|source| HostError::Namespaces { first: users, source })?.0;
    let mut flags = Attributes::NODEV | Attributes::NOSUID;
    if !writable {
        flags = flags | Attributes::RDONLY;
    }
    if !shown.programs {
        flags = flags | Attributes::NOEXEC;
    }
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&directory, "", clone).map_err(fault("mounting", path))?;
    match set_attributes(tree.as_fd(), flags, Some(map.as_fd()), false) {
        Ok(()) => Ok(tree),
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            Err(HostError::NotShown { path: path.to_owned(), what: "is on a file system that can't map owners" })
        }
        Err(error) => Err(fault::<io::Error>("mounting", path)(error)),
    }
}

fn open_directory(path: &Path) -> Result<(OwnedFd, Found), HostError> {
    let wrong = |what| HostError::NotShown { path: path.to_owned(), what };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open("/", flags, Mode::empty()).map_err(fault("opening", "/"))?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let relative = path.strip_prefix("/").map_err(|_| wrong("is not absolute"))?;
    let directory = openat2(&root, relative, flags, Mode::empty(), resolve).map_err(|error| match error {
        Errno::LOOP => wrong("is a symbolic link, or there is one in its path; write what it leads to"),
        Errno::NOTDIR => wrong("is not a directory"),
        Errno::NOENT => wrong("does not exist"),
        error => fault("opening", path)(error),
    })?;
    let stat = fstat(&directory).map_err(fault("looking at", path))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let found = Found { device: stat.st_dev, inode: stat.st_ino, user: stat.st_uid, group: stat.st_gid };
            Ok((directory, found))
        }
        _ => Err(wrong("is not a directory")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_is_followed() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        std::fs::create_dir_all(at("real/inner")).unwrap();
        std::os::unix::fs::symlink(at("real"), at("link")).unwrap();
        std::fs::write(at("file"), "").unwrap();
        assert!(find(&at("real/inner")).is_ok());
        for (path, what) in [
            ("link", "symbolic link"),
            ("link/inner", "symbolic link"),
            ("file", "not a directory"),
            ("none", "does not exist"),
        ] {
            let error = find(&at(path)).unwrap_err().to_string();
            assert!(error.contains(what), "{path}: {error}");
        }
        assert!(find(Path::new("/proc/self/cwd")).unwrap_err().to_string().contains("symbolic link"));
    }
}
