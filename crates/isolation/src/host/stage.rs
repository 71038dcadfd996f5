//! Step 4: a child that becomes the shim, in a mount namespace that holds only what its VPS is made of.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, chownat, makedev, mkdirat, mknodat, open, openat},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree, unmount,
    },
    process::{Resource, Rlimit, chdir, fchdir, getrlimit, pivot_root, setrlimit, umask},
    thread::{Gid, Uid, UnshareFlags},
};
use sys::{
    mount::{Attributes, set_attributes},
    namespace::unshare,
    process::{Child, close_on_exec_from, drop_bounding_set, exec_fd, place_fd, spawn_child_in},
};

use super::{HostError, Shown};

/// The descriptor under which the shim finds the daemon's socket.
pub const SHIM_SOCKET: i32 = 3;
/// The soft limit of descriptors that programs inside begin with, as on any Linux; they may raise it.
const DESCRIPTORS: u64 = 1024;
/// Character devices in the shim's `/dev`: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// What a shim is started with.
#[derive(Debug)]
pub struct ShimStart<'a> {
    /// The program `bailiwick-shim`.
    pub binary: BorrowedFd<'a>,
    /// Its end of the socket to the daemon.
    pub socket: BorrowedFd<'a>,
    /// The cgroup it is born in (`Cgroup::shim_directory`).
    pub cgroup: BorrowedFd<'a>,
    /// The uid and gid it runs as; owns the VPS's user namespace.
    pub user: u32,
    /// The VPS's first id; owns the device nodes.
    pub first: u32,
    /// A directory of the host; the shim's root is mounted over it, where nobody else sees it.
    pub mount_point: &'a Path,
    /// Layers, the lowest first; they come to `/layers/0`, `/layers/1`…
    pub layers: &'a [PathBuf],
    /// The id-mapping of layers (`layer_map`).
    pub layer_map: Option<BorrowedFd<'a>>,
    /// Comes to `/state`.
    pub state: &'a Path,
    /// Come to `/binds/0`, `/binds/1`…
    pub binds: &'a [HostBind],
    /// Of those with `HostBind::shown`, what `show` made.
    pub shown: &'a [Option<OwnedFd>],
}

/// A file or directory of the host that a VPS sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostBind {
    /// On the host; symbolic links are followed.
    pub source: PathBuf,
    /// Inside the VPS, absolute.
    pub target: String,
    /// Whether the VPS may write there.
    pub writable: bool,
    /// Whether ids are mapped as those of layers are.
    pub layer_map: bool,
    /// Whether it is a volume (`Step::Volume`).
    pub volume: bool,
    /// Of a directory that host.toml allows: what was found there, and how it is shown.
    pub shown: Option<Shown>,
}

/// Forks the shim. What fails in the child is given to `report` there, before it exits.
pub fn spawn_shim(start: &ShimStart<'_>, report: impl FnOnce(&HostError)) -> Result<Child, HostError> {
    let child = spawn_child_in(start.cgroup, || {
        let error = match become_shim(start) {
            Err(error) => error,
            Ok(never) => match never {},
        };
        report(&error);
        1
    });
    child.map_err(fault("forking", "the shim"))
}

pub(super) fn fault<E: Into<io::Error>>(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> HostError {
    let path = path.into();
    move |source| HostError::Stage { action, path, source: source.into() }
}

fn become_shim(start: &ShimStart<'_>) -> Result<std::convert::Infallible, HostError> {
    umask(Mode::empty());
    // Root's alone: the shim could not lower it later. By the older file (-15 of 17 parts), which leaves the least value that
    // whoever comes of this process may choose at 0: init and the tenant's programs do, and must not spare themselves.
    match std::fs::write("/proc/self/oom_adj", "-15") {
        // A host that is itself a container may lack CAP_SYS_RESOURCE; the shim is then as likely a victim as any.
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound) => {}
        done => done.map_err(fault("setting", "oom_adj"))?,
    }
    unshare(UnshareFlags::NEWNS).map_err(fault("making", "a mount namespace"))?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(fault("making private", "/"))?;
    let root = stage_root(start)?;
    enter_root(&root).map_err(fault("changing the root to", start.mount_point))?;
    drop_rights(start.user).map_err(fault("dropping rights for", "the shim"))?;
    let error = execute(start);
    Err(fault("executing", "bailiwick-shim")(error))
}

fn stage_root(start: &ShimStart<'_>) -> Result<OwnedFd, HostError> {
    let tmpfs = new_mount("tmpfs", &[("mode", "755"), ("size", "64k"), ("nr_inodes", "512")], MountAttrFlags::empty())
        .map_err(fault("mounting", "tmpfs"))?;
    // Attached first: before Linux 6.15 nothing can be mounted inside a detached tree.
    attach(&tmpfs, CWD, start.mount_point).map_err(fault("mounting over", start.mount_point))?;
    let root = tmpfs;
    for name in ["layers", "state", "binds", "dev", "proc", "sys"] {
        mkdirat(&root, name, Mode::from(0o755)).map_err(fault("making", name))?;
    }
    let layer_flags = Attributes::RDONLY | Attributes::NODEV;
    for (n, layer) in start.layers.iter().enumerate() {
        bind(&root, layer, &format!("layers/{n}"), layer_flags, start.layer_map).map_err(fault("mounting", layer))?;
    }
    let state_flags = Attributes::NODEV | Attributes::NOSUID;
    let state = clone_tree(start.state, state_flags, None).and_then(|tree| attach(&tree, root.as_fd(), "state"));
    state.map_err(fault("mounting", start.state))?;
    for (n, b) in start.binds.iter().enumerate() {
        if let Some(Some(tree)) = start.shown.get(n) {
            let target = format!("binds/{n}");
            let attached = mkdirat(&root, &target, Mode::from(0o755)).map_err(io::Error::from);
            attached.and_then(|()| attach(tree, root.as_fd(), target)).map_err(fault("mounting", &b.source))?;
            continue;
        }
        let flags = if b.writable { state_flags } else { state_flags | Attributes::RDONLY };
        let map = start.layer_map.filter(|_| b.layer_map);
        bind(&root, &b.source, &format!("binds/{n}"), flags, map).map_err(fault("mounting", &b.source))?;
    }
    devices(&root, start.first).map_err(fault("making", "/dev"))?;
    // Only processes of the VPS itself are seen through the shim's proc (it owns their user namespace).
    let hidden =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    new_mount("proc", &[("hidepid", "invisible")], hidden)
        .and_then(|proc| attach(&proc, root.as_fd(), "proc"))
        .map_err(fault("mounting", "/proc"))?;
    new_mount("sysfs", &[], hidden)
        .and_then(|sys| attach(&sys, root.as_fd(), "sys"))
        .map_err(fault("mounting", "/sys"))?;
    Ok(root)
}

fn new_mount(kind: &str, options: &[(&str, &str)], flags: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

pub(super) fn attach(mount: &OwnedFd, directory: BorrowedFd<'_>, path: impl rustix::path::Arg) -> io::Result<()> {
    Ok(move_mount(mount, "", directory, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

pub(super) fn clone_tree(source: &Path, flags: Attributes, map: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let tree = open_tree(CWD, source, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    set_attributes(tree.as_fd(), flags, map, false)?;
    Ok(tree)
}

/// A directory of the host as a mount of its own that is attached nowhere: who holds it can't reach what lies above.
pub fn detached(directory: &Path) -> Result<OwnedFd, HostError> {
    let flags = Attributes::NODEV | Attributes::NOSUID | Attributes::NOEXEC;
    clone_tree(directory, flags, None).map_err(fault("detaching", directory))
}

/// Mounts `source` at `target`, which is made a directory or an empty file as `source` is.
fn bind(root: &OwnedFd, source: &Path, target: &str, flags: Attributes, map: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let tree = clone_tree(source, flags, map)?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&tree)?.st_mode);
    if kind == FileType::Directory {
        mkdirat(root, target, Mode::from(0o755))?;
    } else {
        openat(root, target, OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from(0o644))?;
    }
    attach(&tree, root.as_fd(), target)
}

fn devices(root: &OwnedFd, owner: u32) -> Result<(), Errno> {
    for (name, major, minor) in DEVICES {
        let path = format!("dev/{name}");
        mknodat(root, &path, FileType::CharacterDevice, Mode::from(0o666), makedev(major, minor))?;
        let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
        chownat(root, &path, Some(uid), Some(gid), AtFlags::empty())?;
    }
    Ok(())
}

pub(super) fn enter_root(root: &OwnedFd) -> Result<(), Errno> {
    fchdir(root)?;
    pivot_root(".", ".")?;
    // The old root lies over the new one now; what goes is the host's whole tree.
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")
}

fn drop_rights(user: u32) -> io::Result<()> {
    drop_bounding_set()?;
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    Ok(rustix::thread::set_thread_res_uid(uid, uid, uid)?)
}

/// Standard error stays the daemon's, where the host's log is; descriptor 3 is the socket; all others close.
fn execute(start: &ShimStart<'_>) -> io::Error {
    let prepared = || -> io::Result<()> {
        let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        place_fd(null.as_fd(), 0)?;
        place_fd(null.as_fd(), 1)?;
        // The program's descriptor may be 3 itself.
        let program = rustix::io::fcntl_dupfd_cloexec(start.binary, SHIM_SOCKET + 1)?;
        place_fd(start.socket, SHIM_SOCKET)?;
        close_on_exec_from(SHIM_SOCKET as u32 + 1)?;
        umask(Mode::from(0o022));
        // Programs that close all descriptors they could have must not find the daemon's limit. Last: the numbers of the
        // daemon's descriptors, which this child still has, may all be above it.
        let limit = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(DESCRIPTORS), maximum: limit.maximum });
        Err(exec_fd(program.as_fd(), &[CString::from(c"bailiwick-shim")], &[]))
    };
    prepared().err().unwrap_or_else(|| io::ErrorKind::Other.into())
}
