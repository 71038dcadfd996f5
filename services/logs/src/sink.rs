//! A connection to a target.

use std::{
    fs::File,
    future::pending,
    io::{self, Write as _},
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use model::host::{Form, LogTarget, Place};
use rustix::net::{SocketType, sockopt::socket_type};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket, UnixDatagram, UnixStream, lookup_host},
    time::timeout,
};
use wire::{Client, host::OpenTarget};

use crate::{
    form::{Record, journald, json, syslog},
    shared::{Chunk, Shared},
};

/// How long a target may take to be connected to, or to take a piece of a log.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a file is written to before it is opened anew: it may have been rotated.
const FILE: Duration = Duration::from_secs(2);

/// What takes lines.
pub struct Sink {
    form: Form,
    way: Way,
}

enum Way {
    Tcp(TcpStream),
    Unix(UnixStream),
    Udp(UdpSocket),
    Datagrams(UnixDatagram),
    /// Opened when.
    File(File, Instant),
}

fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} within {} s", PATIENCE.as_secs()))
}

impl Sink {
    /// Connects.
    pub async fn open(target: &LogTarget, host: &Client) -> io::Result<Self> {
        let way = timeout(PATIENCE, way(target, host)).await.map_err(|_| late("not connected"))??;
        Ok(Self { form: target.form, way })
    }

    /// Sends lines, all or an error.
    pub async fn send(&mut self, shared: &Shared, host: &Client, chunk: &Chunk) -> io::Result<()> {
        if let Way::File(_, since) = &self.way
            && since.elapsed() >= FILE
        {
            self.way = way(&shared.target, host).await?;
        }
        let Chunk { vps, tenant, lines } = chunk;
        let records = lines.iter().map(|line| Record { node: &shared.node, vps, tenant: tenant.as_ref(), line });
        timeout(PATIENCE, self.way.send(self.form, records)).await.map_err(|_| late("it took nothing"))?
    }

    /// Whether all that was sent has arrived, as far as the kernel knows.
    pub fn arrived(&self) -> bool {
        let unsent = |fd: std::os::fd::BorrowedFd<'_>| sys::socket::unsent(fd).is_ok_and(|bytes| bytes == 0);
        match &self.way {
            Way::Tcp(stream) => unsent(stream.as_fd()),
            Way::Unix(stream) => unsent(stream.as_fd()),
            Way::Udp(_) | Way::Datagrams(_) | Way::File(..) => true,
        }
    }

    /// Waits until the other end has gone.
    pub async fn broken(&mut self) -> io::Error {
        let mut buffer = [0; 1024];
        loop {
            let read = match &mut self.way {
                Way::Tcp(stream) => stream.read(&mut buffer).await,
                Way::Unix(stream) => stream.read(&mut buffer).await,
                Way::Udp(_) | Way::Datagrams(_) | Way::File(..) => pending().await,
            };
            match read {
                Ok(0) => return io::Error::new(io::ErrorKind::ConnectionReset, "it closed the connection"),
                // What it says means nothing.
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    }
}

async fn way(target: &LogTarget, host: &Client) -> io::Result<Way> {
    match &target.place {
        Place::Tcp(name, port) => {
            let stream = TcpStream::connect((name.as_str(), *port)).await?;
            let socket = SockRef::from(&stream);
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(PATIENCE).with_interval(PATIENCE / 6))?;
            socket.set_tcp_user_timeout(Some(PATIENCE))?;
            Ok(Way::Tcp(stream))
        }
        Place::Udp(name, port) => {
            let mut addresses = lookup_host((name.as_str(), *port)).await?;
            let address = addresses.next().ok_or_else(|| io::Error::other("it has no address"))?;
            let any: std::net::IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            let socket = UdpSocket::bind((any, 0)).await?;
            socket.connect(address).await?;
            Ok(Way::Udp(socket))
        }
        Place::Unix(_) | Place::File(_) => {
            let asked = host.call_with_fds(&OpenTarget { target: target.clone() }, &[]).await;
            let (_, fds) = asked.map_err(io::Error::other)?;
            let fd = fds.into_iter().next().ok_or_else(|| io::Error::other("the host sent no descriptor"))?;
            local(target, fd)
        }
    }
}

/// What the host opened.
fn local(target: &LogTarget, fd: OwnedFd) -> io::Result<Way> {
    if matches!(target.place, Place::File(_)) {
        return Ok(Way::File(fd.into(), Instant::now()));
    }
    if socket_type(&fd)? == SocketType::DGRAM {
        return Ok(Way::Datagrams(UnixDatagram::from_std(fd.into())?));
    }
    Ok(Way::Unix(UnixStream::from_std(fd.into())?))
}

impl Way {
    async fn send(&mut self, form: Form, records: impl Iterator<Item = Record<'_>>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(&written(form, records)).await,
            Self::Unix(stream) => stream.write_all(&written(form, records)).await,
            Self::Udp(socket) => {
                for record in records {
                    socket.send(&datagram(form, record)).await?;
                }
                Ok(())
            }
            Self::Datagrams(socket) => {
                for record in records {
                    socket.send(&datagram(form, record)).await?;
                }
                Ok(())
            }
            Self::File(file, _) => {
                let before = file.metadata()?.len();
                // No half of a line stays on a disk that is full.
                file.write_all(&written(form, records)).inspect_err(|_| drop(file.set_len(before)))
            }
        }
    }
}

/// For a stream or a file.
fn written<'a>(form: Form, records: impl Iterator<Item = Record<'a>>) -> Vec<u8> {
    let mut out = Vec::new();
    for record in records {
        match form {
            Form::Syslog => syslog::write(record, true, &mut out),
            Form::Json => json::write(record, &mut out),
            // Its socket takes datagrams.
            Form::Journald => out.extend(journald::message(record)),
        }
    }
    out
}

/// For a socket that takes one message at a time.
fn datagram(form: Form, record: Record<'_>) -> Vec<u8> {
    match form {
        Form::Journald => journald::message(record),
        Form::Syslog | Form::Json => syslog::message(record).into_bytes(),
    }
}
