//! The daemon's side of the keeper: what is to outlive the daemon.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
};

use wire::keeper::{Word, recv, send};

/// The keeper, as the daemon sees it: its standard input.
#[derive(Debug)]
pub struct Keeper {
    socket: OwnedFd,
}

impl Keeper {
    /// Takes the socket, and all that is held.
    pub fn connect() -> io::Result<(Self, BTreeMap<String, OwnedFd>)> {
        Self::new(io::stdin().as_fd().try_clone_to_owned()?)
    }

    fn new(socket: OwnedFd) -> io::Result<(Self, BTreeMap<String, OwnedFd>)> {
        let mut held = BTreeMap::new();
        loop {
            match recv(&socket)? {
                Some((Word::Held, name, Some(fd))) => drop(held.insert(name, fd)),
                Some((Word::End, ..)) => return Ok((Self { socket }, held)),
                Some(_) => {}
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// Has `fd` held under `name`, in place of what was there.
    pub fn keep(&self, name: &str, fd: impl AsFd) -> io::Result<()> {
        send(self.socket.as_fd(), Word::Keep, name, Some(fd.as_fd()))
    }

    /// Gives up what is held under `name`. A keeper that is gone holds nothing.
    pub fn drop(&self, name: &str) {
        let _ = send(self.socket.as_fd(), Word::Drop, name, None);
    }

    /// Once this daemon has ended, the keeper goes on as `program`.
    pub fn go_on_as(&self, program: impl AsFd) -> io::Result<()> {
        send(self.socket.as_fd(), Word::Become, "", Some(program.as_fd()))
    }

    /// The host has stopped.
    pub fn stop(&self) {
        let _ = send(self.socket.as_fd(), Word::Stop, "", None);
    }

    /// A descriptor that becomes readable when the keeper ends; it never says anything more.
    pub fn end(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn a_daemon_begins_with_what_is_held_and_adds_to_it() {
        let pair = || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let (keeper, daemon) = pair();
        let (fd, _other) = pair();
        send(keeper.as_fd(), Word::Held, "netns/network", Some(fd.as_fd())).unwrap();
        send(keeper.as_fd(), Word::End, "", None).unwrap();
        let (ours, held) = Keeper::new(daemon).unwrap();
        assert_eq!(held.into_keys().collect::<Vec<_>>(), ["netns/network"]);
        ours.keep("shim/a", &fd).unwrap();
        ours.drop("shim/a");
        let said: Vec<_> =
            (0..2).map(|_| recv(&keeper).unwrap().unwrap()).map(|(word, name, _)| (word, name)).collect();
        assert_eq!(said, [(Word::Keep, "shim/a".to_owned()), (Word::Drop, "shim/a".to_owned())]);
    }
}
