//! What the host daemon and the keeper say to each other: one fixed message on a seqpacket socket, at most one
//! descriptor beside it. The keeper parses nothing else.
//!
//! The keeper holds descriptors under names. A new daemon first receives them all (`Held` each, then `End`).
//! Names: `listen/ADDRESS`, `host/VPS`, `service/NAME`, `api`, `admin`, `userns/VPS`, `netns/VPS`, `shim/VPS`, `lock`.
//!
//! A keeper that becomes another version hands it all of them, and three that no daemon is given: [`ROOT_LOCK`], [`PREVIOUS`] and,
//! between the two, [`NEXT`]. The daemon of the new version drops [`PREVIOUS`] when it has taken over.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use crate::seqpacket::{recv_with_fds, send_with_fds};

/// The keeper's lock of the host's root.
pub const ROOT_LOCK: &str = "keeper/lock";
/// The program that the keeper goes back to when the new version's daemon ends before it has taken over.
pub const PREVIOUS: &str = "keeper/previous";
/// The program that the keeper goes on as, once the daemon has ended.
pub const NEXT: &str = "keeper/next";

/// Bytes of a name at most.
pub const NAME: usize = 127;
const SIZE: usize = 1 + 1 + NAME;

/// What is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Word {
    /// Daemon: keep this descriptor under this name, in place of the one that was there.
    Keep = 1,
    /// Daemon: close the descriptor of this name.
    Drop = 2,
    /// Keeper: a descriptor it holds.
    Held = 3,
    /// Keeper: that was all.
    End = 4,
    /// Daemon: the host stops; end when I end, and do not start me again.
    Stop = 5,
    /// Daemon: once I have ended, go on as this program (a newer or older keeper) in place of yourself.
    Become = 6,
}

/// Sends one message.
pub fn send(socket: BorrowedFd<'_>, word: Word, name: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    if name.len() > NAME {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "name too long"));
    }
    let mut bytes = [0; SIZE];
    bytes[0] = word as u8;
    bytes[1] = name.len() as u8;
    bytes[2..2 + name.len()].copy_from_slice(name.as_bytes());
    send_with_fds(socket, &bytes, fd.as_slice()).map(drop)
}

/// Receives one message; `None` when the other end is closed.
pub fn recv(socket: impl AsFd) -> io::Result<Option<(Word, String, Option<OwnedFd>)>> {
    let illegal = || io::Error::new(io::ErrorKind::InvalidData, "not a keeper message");
    let mut bytes = [0; SIZE];
    let (n, fds) = recv_with_fds(socket.as_fd(), &mut bytes)?;
    if n == 0 {
        return Ok(None);
    }
    let word = match bytes[0] {
        1 => Word::Keep,
        2 => Word::Drop,
        3 => Word::Held,
        4 => Word::End,
        5 => Word::Stop,
        6 => Word::Become,
        _ => return Err(illegal()),
    };
    let name = bytes.get(2..2 + usize::from(bytes[1])).ok_or_else(illegal)?;
    let name = std::str::from_utf8(name).map_err(|_| illegal())?.to_owned();
    if n != SIZE {
        return Err(illegal());
    }
    Ok(Some((word, name, fds.into_iter().next())))
}
