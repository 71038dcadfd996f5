//! Step 6: from the shim's ids and namespaces into those of the VPS.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags, open},
    io::write,
    process::setsid,
    thread::{Gid, LinkNameSpaceType, Uid, UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use super::StepError;

/// What the daemon made, and gave to the shim.
#[derive(Debug)]
pub struct Entrance {
    /// The user namespace.
    pub user: OwnedFd,
    /// The network namespace; none: the one the shim is in.
    pub network: Option<OwnedFd>,
    /// `tasks` of the VPS's v1 cgroups, opened by the daemon, whose rights count.
    pub tasks: Vec<OwnedFd>,
}

/// Makes the calling process root of the VPS's user namespace, in its network namespace, with new mount, uts, ipc
/// and cgroup namespaces, and a new pid namespace for the children it makes from here on.
pub fn enter(entrance: &Entrance) -> Result<(), StepError> {
    // Before the ids change, since then /proc/self belongs to the host's root; the shim's own protection from the
    // out-of-memory killer is not the tenant's.
    step("resetting oom_score_adj", || {
        let file = open("/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        write(&file, b"0")?;
        Ok(())
    })?;
    // First, so that all that comes is charged to the VPS.
    step("joining the cgroups", || {
        for tasks in &entrance.tasks {
            write(tasks, b"0")?;
        }
        Ok(())
    })?;
    step("joining the user namespace", || sys::namespace::enter(entrance.user.as_fd(), LinkNameSpaceType::User))?;
    step("becoming its root", || {
        set_thread_groups(&[])?;
        set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
        Ok(set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?)
    })?;
    if let Some(network) = &entrance.network {
        step("joining the network namespace", || sys::namespace::enter(network.as_fd(), LinkNameSpaceType::Network))?;
    }
    step("making namespaces", || {
        sys::namespace::unshare(
            UnshareFlags::NEWNS
                | UnshareFlags::NEWUTS
                | UnshareFlags::NEWIPC
                | UnshareFlags::NEWCGROUP
                | UnshareFlags::NEWPID,
        )
    })?;
    // A session of its own; the shim's terminal, if it had one, is nobody's inside.
    step("making a session", || {
        setsid()?;
        Ok(())
    })
}

fn step(name: &str, run: impl FnOnce() -> io::Result<()>) -> Result<(), StepError> {
    run().map_err(|source| StepError { step: name.to_owned(), source })
}
