//! Listening sockets: unix ones for services and capabilities, TCP and UDP ones at addresses of the host's or the network VPS's.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use isolation::host::within;
use model::{ListenAddress, Transport, api::ErrorKind};
use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, Uid, chmodat, chownat, open, unlinkat},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt},
};
use wire::Fault;

use crate::host::{Host, lock};

/// Connections that may wait; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// Bytes of datagrams that may wait; the kernel caps it at net.core.rmem_max.
const DATAGRAMS: usize = 1 << 20;

fn stream(family: AddressFamily) -> Result<OwnedFd, Errno> {
    socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// The address of a socket in a directory, however long that directory's path is.
fn address(directory: &OwnedFd, file: &str) -> Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{file}", directory.as_raw_fd()))
}

fn directory(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// A listening socket at `parent/file`, in place of what is there, that only `owner` may connect to.
pub fn listen_unix(parent: &Path, file: &str, owner: u32) -> io::Result<OwnedFd> {
    let parent = directory(parent)?;
    match unlinkat(&parent, file, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let socket = stream(AddressFamily::UNIX)?;
    bind(&socket, &address(&parent, file)?)?;
    chmodat(&parent, file, Mode::from(0o600), AtFlags::empty())?;
    chownat(&parent, file, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)), AtFlags::SYMLINK_NOFOLLOW)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// A connection to the listening socket at `parent/file`; fails at once when too many wait there.
pub fn connect_unix(parent: &Path, file: &str) -> io::Result<OwnedFd> {
    let parent = directory(parent)?;
    let socket = stream(AddressFamily::UNIX)?;
    connect(&socket, &address(&parent, file)?)?;
    Ok(socket)
}

/// Whether the socket at `parent/file` listens. What listens there may see a connection that ends at once.
pub fn takes_connections(parent: &Path, file: &str) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    !connect_unix(parent, file).is_err_and(|error| matches!(error.kind(), ConnectionRefused | NotFound))
}

impl Host {
    /// A listening TCP socket, or a bound UDP one: on the host, or where the network VPS has the address. Its namespace
    /// outlives it, and so does what waits at the socket.
    pub fn listen(&self, address: &ListenAddress) -> Result<OwnedFd, Fault> {
        if !self.config.network.owns(address.0.ip()) {
            return listen_at(address, Where::Host);
        }
        let pinned = lock(&self.pinned);
        let network = pinned.as_ref().and_then(|pinned| pinned.namespaces.network.as_ref());
        let network = network.ok_or_else(|| {
            Fault::new(ErrorKind::Unavailable, format!("{address} belongs to the network VPS, which is not there yet"))
        })?;
        let bound = within(network.as_fd(), || listen_at(address, Where::Owned));
        bound.unwrap_or_else(|error| Err(Fault::new(ErrorKind::Failed, format!("listening on {address}: {error}"))))
    }
}

/// One in the network namespace of the calling thread.
fn listen_at(address: &ListenAddress, place: Where) -> Result<OwnedFd, Fault> {
    bind_at(*address, place).map_err(|errno| match errno {
        Errno::ADDRINUSE => {
            let who = user_of_port(address.port());
            let who = who.map_or_else(|| "another program".to_owned(), |(name, pid)| format!("{name} (pid {pid})"));
            Fault::new(ErrorKind::Conflict, format!("{address} is in use by {who}; stop it, or choose another port"))
        }
        Errno::ADDRNOTAVAIL => {
            Fault::new(ErrorKind::Invalid, format!("{address} is not an address of this host; `ip address` shows them"))
        }
        other => Fault::new(ErrorKind::Failed, format!("listening on {address}: {}", io::Error::from(other))),
    })
}

/// Where an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    /// On an interface of the host's.
    Host,
    /// With the network VPS, by routes that it may still have to make.
    Owned,
}

fn bind_at(ListenAddress(address, transport): ListenAddress, place: Where) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = match transport {
        Transport::Tcp => {
            let socket = stream(family)?;
            sockopt::set_socket_reuseaddr(&socket, true)?;
            socket
        }
        // Another one at the same port would get some of its datagrams.
        Transport::Udp => {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(family, SocketType::DGRAM, flags, None)?;
            sockopt::set_socket_recv_buffer_size(&socket, DATAGRAMS)?;
            socket
        }
    };
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    if place == Where::Owned {
        sockopt::set_ip_freebind(&socket, true)?;
    }
    bind(&socket, &address)?;
    if transport == Transport::Tcp {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

/// Repairs a listening socket whose holder shut it down or changed its backlog.
pub fn listen_again(socket: impl AsFd) -> io::Result<()> {
    Ok(listen(socket, BACKLOG)?)
}

/// The program that listens on a port, looked for in /proc.
fn user_of_port(port: u16) -> Option<(String, String)> {
    let inodes: Vec<_> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let pid = process.file_name().to_string_lossy().into_owned();
        if inodes.is_empty() || !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let mut fds = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let holds = |link: fs::DirEntry| {
            fs::read_link(link.path()).is_ok_and(|target| inodes.iter().any(|i| target.as_os_str() == i.as_str()))
        };
        if fds.any(holds) {
            let name = fs::read_to_string(process.path().join("comm")).ok()?;
            return Some((name.trim().to_owned(), pid));
        }
    }
    None
}

/// Inodes of sockets that listen on `port`, in a table of proc(5)'s /proc/net/tcp.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    let suffix = format!(":{port:04X}");
    let row = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let listens = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == "0A";
        listens.then(|| fields.get(9).map(ToString::to_string)).flatten()
    };
    table.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_names_the_program() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = ListenAddress::tcp(other.local_addr().unwrap());
        let fault = listen_at(&address, Where::Host).unwrap_err();
        assert_eq!(fault.kind, ErrorKind::Conflict);
        assert!(fault.message.contains(&format!("(pid {})", std::process::id())), "{fault}");
    }

    #[test]
    fn a_wildcard_takes_both_families_and_can_be_repaired() {
        // A number the kernel chose would be given up by the shutdown; ours are always asked for by number.
        let free = std::net::TcpListener::bind("[::]:0").unwrap();
        let address = ListenAddress::tcp(free.local_addr().unwrap());
        drop(free);
        let listener = std::net::TcpListener::from(listen_at(&address, Where::Host).unwrap());
        let port = address.port();
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
        listen_again(&listener).unwrap();
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    }

    #[test]
    fn a_unix_listener_that_was_shut_down_is_noticed_and_can_be_replaced() {
        let parent = std::env::temp_dir().join(format!("bailiwick-listeners-{}", std::process::id()));
        fs::create_dir_all(&parent).unwrap();
        assert!(!takes_connections(&parent, "s.sock"));
        let socket = listen_unix(&parent, "s.sock", 0).unwrap();
        assert!(takes_connections(&parent, "s.sock"));
        rustix::net::shutdown(&socket, rustix::net::Shutdown::Both).unwrap();
        assert!(!takes_connections(&parent, "s.sock"));
        let _socket = listen_unix(&parent, "s.sock", 0).unwrap();
        assert!(takes_connections(&parent, "s.sock"));
        fs::remove_dir_all(&parent).unwrap();
    }

    #[test]
    fn a_foreign_address_is_refused() {
        let fault = listen_at(&"192.0.2.1:80".parse().unwrap(), Where::Host).unwrap_err();
        assert_eq!(fault.kind, ErrorKind::Invalid);
    }
}
