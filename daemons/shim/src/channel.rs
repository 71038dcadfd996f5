//! What the shim and the init of its VPS say to each other: one CBOR value per seqpacket message. Init lives among the
//! tenant's processes; what it says is bounded and parsed, and believed only in what concerns its own VPS.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use model::{ExitStatus, RunSpec, run::WindowSize};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wire::seqpacket::{recv_message, send_with_fds};

/// Bytes of a message from init.
pub const FROM_INIT: usize = 4 << 10;
/// Bytes of a message to init: as large as one from the daemon.
pub const TO_INIT: usize = wire::shim::MAX_MESSAGE;
/// Bytes of a reason at most.
const MAX_REASON: usize = 1 << 10;

/// From the shim to init.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToInit {
    /// Start a program more; descriptors: its standard streams, or the socket for its terminal.
    Exec {
        id: u64,
        command: Vec<String>,
        env: BTreeMap<String, String>,
        user: String,
        cwd: String,
        terminal: Option<WindowSize>,
    },
    /// Send SIGKILL to the program of that `Exec`, and its session's processes.
    ExecKill { id: u64 },
    /// Send this signal to the VPS's program.
    Signal { number: i32 },
    /// To one that waits in its frame: finish it, and start the program.
    Go { run: Box<RunSpec> },
}

/// From init to the shim.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromInit {
    /// The inside is built. Descriptors: the seccomp listener, the notify socket and `/dev/log`, and where lines
    /// of files come, as far as there are such.
    Built { listener: bool, notify: bool, syslog: bool, files: bool },
    /// The program was executed.
    Started,
    /// It could not be built or executed.
    NotStarted { reason: String },
    /// A program of `Exec` ended.
    ExecEnded { id: u64, status: ExitStatus, error: Option<String> },
    /// The program ended; init ends, and with it all that is left.
    Ended { status: ExitStatus },
    /// The frame is there; it waits for `Go`.
    Framed,
}

/// Both ends.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

/// Sends one message without waiting; an error when the other end does not take any.
pub fn send<T: Serialize>(socket: impl AsFd, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes =
        minicbor_serde::to_vec(message).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e.to_string()))?;
    send_with_fds(socket.as_fd(), &bytes, fds).map(drop)
}

/// What came.
pub enum Received<T> {
    /// A message and its descriptors.
    Message(T, Vec<OwnedFd>),
    /// Nothing yet.
    Nothing,
    /// The other end is closed.
    Closed,
}

/// Takes the next message of at most `max` bytes, if there is one.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd, max: usize) -> io::Result<Received<T>> {
    match recv_message(socket.as_fd(), max) {
        Ok((bytes, _)) if bytes.is_empty() => Ok(Received::Closed),
        Ok((bytes, fds)) => {
            let parsed = minicbor_serde::from_slice(&bytes);
            Ok(Received::Message(parsed.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?, fds))
        }
        Err(error) if error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()) => Ok(Received::Nothing),
        Err(error) if error.raw_os_error() == Some(Errno::CONNRESET.raw_os_error()) => Ok(Received::Closed),
        Err(error) => Err(error),
    }
}

/// `text` cut to what fits a message.
pub fn bounded(mut text: String) -> String {
    if text.len() > MAX_REASON {
        let end = (0..=MAX_REASON).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_init_says_is_bounded_and_parsed() {
        let (shim, init) = pair().expect("sockets");
        assert!(matches!(receive::<FromInit>(&shim, FROM_INIT), Ok(Received::Nothing)));
        let reason = bounded("ü".repeat(5_000));
        assert_eq!(reason.len(), MAX_REASON);
        send(&init, &FromInit::NotStarted { reason: reason.clone() }, &[]).expect("sent");
        let got = receive::<FromInit>(&shim, FROM_INIT);
        assert!(matches!(got, Ok(Received::Message(FromInit::NotStarted { reason: r }, _)) if r == reason));
        for junk in [&b"junk"[..], &[0xff; 64], &vec![0x9b; 100_000]] {
            send_with_fds(init.as_fd(), junk, &[]).expect("sent");
            assert!(receive::<FromInit>(&shim, FROM_INIT).is_err());
        }
        drop(init);
        assert!(matches!(receive::<FromInit>(&shim, FROM_INIT), Ok(Received::Closed)));
    }
}
