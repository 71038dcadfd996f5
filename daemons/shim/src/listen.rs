//! The program's `listen` on the routed port (step 9): performed here on a copy of its socket, then answered. Announcing
//! first and letting the kernel go on would say `Ready` before the socket listens.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketAddr, SocketAddrAny, SocketType, getsockname, listen,
        sockopt::{socket_domain, socket_type},
    },
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};
use sys::seccomp::{Answer, Notification, answer, receive, still_waits};

/// The descriptor is for a thread, not for a process (`PIDFD_THREAD`).
const THREAD: PidfdFlags = PidfdFlags::from_bits_retain(rustix::fs::OFlags::EXCL.bits());

/// What a held call was.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The wanted port listens.
    Ready,
    /// Something else, or nobody waits any more.
    Other,
    /// The call failed because its socket could not be reached; why.
    Failed(String),
}

enum Look {
    Listens,
    Other,
    Refused(Errno),
    Gone,
}

/// Answers one held call. `port`: the one that is waited for; none once the VPS is ready, when the kernel makes each call.
/// Nothing here waits for the tenant: all that is touched is a socket's state.
pub fn answer_one(listener: BorrowedFd<'_>, port: Option<u16>) -> std::io::Result<Heard> {
    let Some(call) = receive(listener)? else { return Ok(Heard::Other) };
    let look = port.map_or(Look::Other, |port| listen_for(listener, &call, port));
    let (said, heard) = match look {
        Look::Gone => return Ok(Heard::Other),
        Look::Listens => (Answer::Value(0), Heard::Ready),
        // No verdict: this call is allowed whatever its arguments are by now.
        Look::Other => (Answer::Continue, Heard::Other),
        Look::Refused(errno) => {
            let why = format!("listen failed: its socket could not be reached: {errno}");
            (Answer::Errno(errno.raw_os_error()), Heard::Failed(why))
        }
    };
    Ok(if answer(listener, call.id, said)? { heard } else { Heard::Other })
}

fn listen_for(listener: BorrowedFd<'_>, call: &Notification, port: u16) -> Look {
    let Some(thread) = Pid::from_raw(call.thread) else { return Look::Refused(Errno::SRCH) };
    let pidfd = match pidfd_open(thread, THREAD) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Look::Gone,
        Err(errno) => return Look::Refused(errno),
    };
    // The number may have become another thread's until now.
    if !still_waits(listener, call.id) {
        return Look::Gone;
    }
    let socket = match pidfd_getfd(&pidfd, call.arguments[0] as i32, PidfdGetfdFlags::empty()) {
        Ok(socket) => socket,
        // The kernel will say what is wrong with it.
        Err(Errno::BADF) => return Look::Other,
        Err(Errno::SRCH) => return Look::Gone,
        Err(errno) => return Look::Refused(errno),
    };
    if !is_at(socket.as_fd(), port) {
        return Look::Other;
    }
    match listen(&socket, call.arguments[1] as i32) {
        Ok(()) => Look::Listens,
        // So will it make and fail this one.
        Err(_) => Look::Other,
    }
}

/// Whether it is a TCP socket bound to that port.
fn is_at(socket: BorrowedFd<'_>, port: u16) -> bool {
    let stream = socket_type(socket) == Ok(SocketType::STREAM);
    let internet = matches!(socket_domain(socket), Ok(AddressFamily::INET | AddressFamily::INET6));
    stream && internet && getsockname(socket).ok().and_then(port_of) == Some(port)
}

fn port_of(address: SocketAddrAny) -> Option<u16> {
    SocketAddr::try_from(address).ok().map(|a| a.port())
}
