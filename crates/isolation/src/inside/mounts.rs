//! File systems inside a new root, by descriptor.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, StatVfsMountFlags, fstatvfs, mkdirat, openat, openat2, statvfs},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
    },
};

/// Paths are resolved as if `root` were `/`, and no link of proc leads out of it.
const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Opens `path` as seen by who has `root` as `/`.
pub(super) fn open_in(root: BorrowedFd<'_>, path: &str, flags: OFlags, mode: u32) -> rustix::io::Result<OwnedFd> {
    openat2(root, path, flags | OFlags::CLOEXEC, Mode::from(mode), RESOLVE)
}

/// The directory `path` below `root`; it and its parents are made where missing.
pub(super) fn directory(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let open = || open_in(root, path, OFlags::PATH | OFlags::DIRECTORY, 0);
    match open() {
        Err(Errno::NOENT) => {}
        done => return Ok(done?),
    }
    let (parent, name) = split(path)?;
    let parent = directory(root, parent)?;
    match mkdirat(&parent, name, Mode::from(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(open()?),
        Err(error) => Err(error.into()),
    }
}

/// The same for what the host mounts: no link of the image's leads it elsewhere. One at `/proc` that points to `/` would have
/// proc lie over the root, where no mask is put on it.
pub(super) fn own_directory(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat2(root, path, flags, Mode::empty(), RESOLVE | ResolveFlags::NO_SYMLINKS) {
        Err(Errno::LOOP) => Err(io::Error::other("the image has a link there; make it a directory")),
        Err(Errno::NOTDIR) => Err(io::Error::other("the image has something there that is no directory; make it one")),
        // Nothing is there, not even a link to nothing: it is made.
        Err(Errno::NOENT) => directory(root, path),
        done => Ok(done?),
    }
}

/// The file `path` below `root` as a place to mount on; made empty where missing.
pub(super) fn mount_point_file(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    match open_in(root, path, OFlags::PATH, 0) {
        Err(Errno::NOENT) => {}
        done => return Ok(done?),
    }
    let (parent, name) = split(path)?;
    let parent = directory(root, parent)?;
    Ok(openat(
        &parent,
        name,
        OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::from(0o644),
    )?)
}

/// Parent and last component.
pub(super) fn split(path: &str) -> io::Result<(&str, &str)> {
    let illegal = || io::Error::new(io::ErrorKind::InvalidInput, "no file name");
    let (parent, name) = path.trim_end_matches('/').rsplit_once('/').ok_or_else(illegal)?;
    if name.is_empty() || name == ".." || name == "." {
        return Err(illegal());
    }
    Ok((if parent.is_empty() { "/" } else { parent }, name))
}

/// A new file system, not attached anywhere yet.
pub(super) fn new(kind: &str, options: &[(&str, &str)], flags: MountAttrFlags) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

/// An overlay of `/layers/0` (the lowest) and following, written to `/state`. Its superblock belongs to the caller's
/// user namespace, so that neither device nodes nor foreign setuid bits in it ever come alive.
pub(super) fn overlay(layers: usize) -> rustix::io::Result<OwnedFd> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_flag(context.as_fd(), "userxattr")?;
    // The uppermost is named first.
    for n in (0..layers).rev() {
        fsconfig_set_string(context.as_fd(), "lowerdir+", format!("/layers/{n}"))?;
    }
    fsconfig_set_string(context.as_fd(), "upperdir", "/state/upper")?;
    fsconfig_set_string(context.as_fd(), "workdir", "/state/work")?;
    fsconfig_create(context.as_fd())?;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)?;
    // Where overlayfs can't make the directory it works in, it does not fail: nothing can be written then.
    if fstatvfs(&mount)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        let whole = statvfs("/state")?.f_flag.contains(StatVfsMountFlags::RDONLY);
        return Err(if whole { Errno::ROFS } else { Errno::NOSPC });
    }
    Ok(mount)
}

/// A copy of the mount at `path`, and of those below it if `recursive`; not attached anywhere yet.
pub(super) fn copy(path: impl AsRef<Path>, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path.as_ref(), flags)
}

/// Attaches `mount` over what `target` is.
pub(super) fn attach(mount: impl AsFd, target: impl AsFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount.as_fd(), "", target.as_fd(), "", flags)
}

/// Attaches `mount` at a path of the kernel's own file systems.
pub(super) fn attach_at(mount: impl AsFd, path: &str) -> rustix::io::Result<()> {
    move_mount(mount.as_fd(), "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}
