//! Removing a tree that somebody hostile made, however deep and large, with three descriptors and no recursion.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, Mode, OFlags, fstat, openat, renameat, unlinkat},
    io::Errno,
};

/// Removes the directory `path` with all that is in it. Directories that are not empty are moved up to it first, so
/// that none is ever deeper than two.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    remove_tree_at(CWD, path)
}

/// The same for `name` in `parent`.
pub fn remove_tree_at(parent: impl AsFd, name: &Path) -> io::Result<()> {
    let parent = parent.as_fd();
    empty(&directory(parent, name)?, 1)?;
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Subvolumes in each other, out of which nothing can be moved; tenants can't make any.
const SUBVOLUMES: usize = 8;

fn empty(root: &OwnedFd, depth: usize) -> io::Result<()> {
    let device = fstat(root)?.st_dev;
    let mut moved = 0u64;
    // Names that are moved in while the directory is read may be read or not: until a pass finds nothing.
    while pass(root, &mut |name| {
        let below = directory(root, name)?;
        if fstat(&below)?.st_dev != device && depth < SUBVOLUMES {
            empty(&below, depth + 1).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        }
        while pass(&below, &mut |name| hoist(&below, name, root, &mut moved))? {}
        present(unlinkat(root, name, AtFlags::REMOVEDIR))
    })? {}
    Ok(())
}

fn directory(parent: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// Unlinks what can be, and gives each directory that is not empty to `full`; whether there was anything.
fn pass(directory: &OwnedFd, full: &mut impl FnMut(&CStr) -> Result<(), Errno>) -> Result<bool, Errno> {
    let mut any = false;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        any = true;
        match present(unlinkat(directory, name, AtFlags::empty())) {
            Err(Errno::ISDIR | Errno::PERM) => match present(unlinkat(directory, name, AtFlags::REMOVEDIR)) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => full(name)?,
                done => done?,
            },
            done => done?,
        }
    }
    Ok(any)
}

/// Moves the directory `name` of `from` into `root`, under a name that is free there.
fn hoist(from: &OwnedFd, name: &CStr, root: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    loop {
        *moved += 1;
        match renameat(from, name, root, format!(".{moved}")) {
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            done => return done,
        }
    }
}

/// What is gone already is as it should be.
fn present(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use rustix::fs::mkdirat;

    use super::*;

    fn place(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("bailiwick-remove-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn a_tree_deeper_than_descriptors_and_paths_reach_is_removed() {
        let path = place("deep");
        let mut at = directory(CWD, &path).unwrap();
        for _ in 0..5_000 {
            mkdirat(&at, "dddddddd", Mode::from(0o700)).unwrap();
            at = directory(&at, "dddddddd").unwrap();
        }
        drop(at);
        remove_tree(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn links_are_not_followed_and_names_may_be_in_the_way() {
        let (path, other) = (place("links"), place("other"));
        fs::write(other.join("kept"), "x").unwrap();
        symlink(&other, path.join("link")).unwrap();
        fs::write(path.join(".1"), "in the way").unwrap();
        for n in 2..6 {
            fs::create_dir_all(path.join(format!(".{n}/a/b/c"))).unwrap();
            symlink(&other, path.join(format!(".{n}/a/b/link"))).unwrap();
        }
        remove_tree(&path).unwrap();
        assert!(!path.exists() && other.join("kept").exists());
        fs::remove_dir_all(&other).unwrap();
    }
}
