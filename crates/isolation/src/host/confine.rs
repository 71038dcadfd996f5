//! A child that reaches one directory and nothing else of the host: for what reads or writes trees that a tenant made.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags, open},
    mount::{MountPropagationFlags, mount_change},
    process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, Gid, LinkNameSpaceType, Uid, UnshareFlags, set_capabilities, set_no_new_privs,
        set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};
use sys::{
    mount::Attributes,
    namespace::{IdMap, create_user, enter, unshare},
    process::{Child, close_all_but, drop_bounding_set, spawn_child},
};

use super::{
    BLOCK, HostError, LAYER_IDS,
    stage::{attach, clone_tree, enter_root, fault},
};

/// Bytes of memory it may map.
const MEMORY: u64 = 1 << 30;
/// Descriptors it may have: those of directories in each other are held.
const DESCRIPTORS: u64 = 4096;

/// What such a child is given.
#[derive(Debug)]
pub struct Confine<'a> {
    /// The directory of the host that becomes its root; no setuid, no devices, no programs there.
    pub directory: &'a Path,
    /// Whether it may write there.
    pub writable: bool,
    /// A directory of the host over which that is mounted, where nobody else sees it.
    pub mount_point: &'a Path,
    /// Descriptors that stay open, besides standard error.
    pub keep: &'a [BorrowedFd<'a>],
}

/// Forks a child that runs `run` with its root as a descriptor, in a user namespace in which the ids of layers and
/// volumes are 0 to 65535. It is root there, with what it takes to give files away, and nothing more; it ends with this
/// process. What fails before `run` is given to `report`.
pub fn spawn_confined(
    confine: &Confine<'_>,
    report: impl FnOnce(&HostError),
    run: impl FnOnce(OwnedFd) -> i32,
) -> Result<Child, HostError> {
    let map = IdMap { inside: 0, outside: LAYER_IDS, count: BLOCK };
    let user = create_user(0, map, false).map_err(|source| HostError::Namespaces { first: LAYER_IDS, source })?.0;
    let child = spawn_child(|| match become_confined(confine, user.as_fd()) {
        Ok(root) => run(root),
        Err(error) => {
            report(&error);
            1
        }
    });
    child.map_err(fault("forking", confine.directory))
}

fn become_confined(confine: &Confine<'_>, user: BorrowedFd<'_>) -> Result<OwnedFd, HostError> {
    let failed = |action| move |error: io::Error| fault(action, confine.directory)(error);
    isolate(confine, user).map_err(failed("confining a child to"))?;
    drop_rights().map_err(failed("dropping rights for"))?;
    open("/", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(fault("opening", "/"))
}

fn isolate(confine: &Confine<'_>, user: BorrowedFd<'_>) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let errors = io::stderr();
    let keep = [confine.keep, &[errors.as_fd(), user]].concat();
    close_all_but(&keep)?;
    unshare(UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS)?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    let flags = Attributes::NODEV | Attributes::NOSUID | Attributes::NOEXEC;
    let flags = if confine.writable { flags } else { flags | Attributes::RDONLY };
    let tree = clone_tree(confine.directory, flags, None)?;
    attach(&tree, CWD, confine.mount_point)?;
    enter_root(&tree)?;
    enter(user, LinkNameSpaceType::User)
}

fn drop_rights() -> io::Result<()> {
    drop_bounding_set()?;
    set_thread_groups(&[])?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    let kept = CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER | CapabilitySet::FSETID;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)?;
    set_no_new_privs(true)?;
    // Its ids have changed, which took the signal away.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let limits = [(Resource::As, MEMORY), (Resource::Nofile, DESCRIPTORS), (Resource::Core, 0), (Resource::Nproc, 0)];
    for (resource, limit) in limits {
        // A lower limit that is there already stays.
        let _ = setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) });
    }
    Ok(())
}
