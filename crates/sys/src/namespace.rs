//! Namespaces as descriptors, made in a child that ends at once.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::{
    fs::{Mode, OFlags, open},
    process::Pid,
    thread::{Gid, LinkNameSpaceType, Uid, UnshareFlags},
};

use crate::process::{Child, spawn_child};

/// One line of a `uid_map` and `gid_map`: `count` ids from `inside` on are `outside` and following (user_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    /// First id in the namespace.
    pub inside: u32,
    /// First id outside of it.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// unshare(2) of everything but descriptor tables.
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    if flags.contains(UnshareFlags::FILES) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: the one flag that makes unshare unsafe, FILES, is excluded above.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Moves the calling thread into a namespace (setns(2)).
pub fn enter(namespace: BorrowedFd<'_>, kind: LinkNameSpaceType) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(namespace, Some(kind))?)
}

/// The maps of users' and of groups' ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Maps {
    /// Users'.
    pub users: IdMap,
    /// Groups'.
    pub groups: IdMap,
}

impl From<IdMap> for Maps {
    fn from(map: IdMap) -> Self {
        Self { users: map, groups: map }
    }
}

/// A user namespace that a child is making.
#[derive(Debug)]
pub struct PendingUser {
    child: Child,
    socket: UnixStream,
    maps: Maps,
    network: bool,
}

/// Begins a user namespace owned by `owner` (uid and gid), with `maps` for uids and gids, and with `network` a network
/// namespace owned by it. The caller needs CAP_SETUID, CAP_SETGID and CAP_SYS_ADMIN.
pub fn begin_user(owner: u32, maps: impl Into<Maps>, network: bool) -> io::Result<PendingUser> {
    let (socket, mut theirs) = UnixStream::pair()?;
    let mut ours = Some(socket);
    let child = spawn_child(|| {
        // So that the last read ends when the parent does.
        drop(ours.take());
        let made = (|| {
            rustix::thread::set_thread_groups(&[])?;
            let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
            let more = if network { UnshareFlags::NEWNET } else { UnshareFlags::empty() };
            unshare(UnshareFlags::NEWUSER | more)
        })();
        let errno = made.err().map_or(0, |e: io::Error| e.raw_os_error().unwrap_or(1));
        let _ = theirs.write_all(&errno.to_ne_bytes());
        // The parent kills this child as soon as it holds the descriptors; its end is the end of this read too.
        let _ = theirs.read(&mut [0]);
        0
    })?;
    let socket = ours.ok_or(io::ErrorKind::NotConnected)?;
    Ok(PendingUser { child, socket, maps: maps.into(), network })
}

impl PendingUser {
    /// Waits for the child and takes the namespaces from it.
    pub fn finish(mut self) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
        let mut errno = [0; 4];
        let taken = self.socket.read_exact(&mut errno).and_then(|()| match i32::from_ne_bytes(errno) {
            0 => take(self.child.pid, self.maps, self.network),
            errno => Err(io::Error::from_raw_os_error(errno)),
        });
        self.child.kill();
        taken
    }
}

/// `begin_user` and `finish` in one.
pub fn create_user(owner: u32, maps: impl Into<Maps>, network: bool) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    begin_user(owner, maps, network)?.finish()
}

fn take(pid: Pid, maps: Maps, network: bool) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let directory = open(
        format!("/proc/{}", pid.as_raw_nonzero()),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    for (file, map) in [("uid_map", maps.users), ("gid_map", maps.groups)] {
        let line = format!("{} {} {}", map.inside, map.outside, map.count);
        let file = rustix::fs::openat(&directory, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&file, line.as_bytes())?;
    }
    let namespace =
        |name: &str| rustix::fs::openat(directory.as_fd(), name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let user = namespace("ns/user")?;
    let network = if network { Some(namespace("ns/net")?) } else { None };
    Ok((user, network))
}
