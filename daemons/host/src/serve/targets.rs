//! Targets of `logs.ship` on this host: who ships sees none of its directories, only what writes to what host.toml names.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use model::{
    Verb,
    api::ErrorKind,
    host::{Form, LogTarget, Place},
};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, openat},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};
use wire::{Fault, Replier, host::OpenTarget, varlink::Empty};

use super::Capability;

impl Capability {
    pub(super) async fn open_target(&self, target: &LogTarget, replier: &mut Replier<'_>) -> Result<(), Fault> {
        self.grants.check_all(Verb::Ship)?;
        if !self.host.config.logs.ship.contains(target) {
            return Err(Fault::denied(format!("{target}: host.toml does not name it in logs.ship")));
        }
        let opened = match (&target.place, target.form) {
            (Place::File(path), _) => open_file(path),
            (Place::Unix(path), Form::Json) => connected(path, &[SocketType::STREAM]),
            (Place::Unix(path), _) => connected(path, &[SocketType::DGRAM, SocketType::STREAM]),
            (Place::Tcp(..) | Place::Udp(..), _) => {
                return Err(Fault::new(ErrorKind::Invalid, format!("{target} is not on this host")));
            }
        };
        let opened = opened.map_err(|error| Fault::new(ErrorKind::Unavailable, error.to_string()))?;
        Ok(replier.done::<OpenTarget>(&Empty {}, &[opened.as_fd()]).await?)
    }
}

/// Opens a file to add to it.
fn open_file(path: &Path) -> Result<OwnedFd, Errno> {
    let flags =
        OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::from(0o640))?;
    match FileType::from_raw_mode(fstat(&file)?.st_mode) {
        FileType::RegularFile => Ok(file),
        _ => Err(Errno::INVAL),
    }
}

/// Connects to a socket, of the first type that it takes; never waits.
fn connected(path: &Path, types: &[SocketType]) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let mut result = Err(Errno::PROTOTYPE);
    for kind in types {
        let socket = socket_with(AddressFamily::UNIX, *kind, flags, None)?;
        result = connect(&socket, &address).map(|()| socket);
        if !matches!(result, Err(Errno::PROTOTYPE)) {
            break;
        }
    }
    result
}
