//! Takes connections from one listening socket, as many as there is room for, and hands each to what its address is for.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use model::ListenAddress;
use rustix::{
    net::sockopt::set_socket_linger,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

use crate::{
    backend::prepare,
    dial::{self, dial},
    end,
    follow::Directory,
    http,
    quiet::Activity,
    route::Site,
    splice::relay,
    transparent::Transparent,
    wake::{NotReached, Place, Use, Vps},
};

/// Connections served at once at most.
const CONNECTIONS: usize = 20_000;
/// Descriptors of one connection at most: two sockets and two pipes.
const DESCRIPTORS: u64 = 6;
/// Flows of datagrams at once at most, of one descriptor each.
const FLOWS: u64 = 8192;
/// Descriptors for everything else.
const RESERVED: u64 = 512;
/// Connections that may wait, as the host daemon asks for.
pub const BACKLOG: i32 = 4096;
/// Pause when the system has no room for another connection.
const NO_ROOM: Duration = Duration::from_millis(100);

/// What a socket listens for.
#[derive(Debug, Clone, Copy)]
pub enum Entrance {
    /// Routes, at an address of the host's.
    Host(ListenAddress),
    /// A VPS's neighbours, at its own address.
    Door(SocketAddr),
}

impl fmt::Display for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(address) => address.fmt(f),
            Self::Door(address) => address.fmt(f),
        }
    }
}

/// What clients may use and be shown as.
#[derive(Debug)]
pub struct Limits {
    places: Arc<Semaphore>,
    flows: Arc<Semaphore>,
    connections: usize,
    /// How long the head of a request may take.
    pub head: Duration,
    /// Whether servers can see clients' addresses.
    pub transparent: Option<Transparent>,
}

impl Limits {
    /// As many connections as the limit of descriptors allows, which is raised as far as it may be.
    pub fn of_this_process(transparent: Option<Transparent>) -> Self {
        let limit = getrlimit(Resource::Nofile);
        let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
        let descriptors = if raised.is_ok() { limit.maximum } else { limit.current };
        let places = descriptors.map_or(CONNECTIONS as u64, |n| n.saturating_sub(RESERVED + FLOWS) / DESCRIPTORS);
        let places = places.clamp(16, CONNECTIONS as u64) as usize;
        Self { transparent, ..Self::new(places, http::head_time()) }
    }

    /// A place for a flow of datagrams, if there is one.
    pub fn flow(&self) -> Option<OwnedSemaphorePermit> {
        self.flows.clone().try_acquire_owned().ok()
    }

    /// `connections` at once.
    pub fn new(connections: usize, head: Duration) -> Self {
        let [places, flows] = [connections, FLOWS as usize].map(|most| Arc::new(Semaphore::new(most)));
        Self { places, flows, connections, head, transparent: None }
    }

    /// Waits until there is no connection; none is accepted any more from here on.
    pub async fn unused(&self) {
        let all = u32::try_from(self.connections).unwrap_or(u32::MAX);
        if let Ok(places) = self.places.acquire_many(all).await {
            places.forget();
        }
    }
}

/// Accepts until it is dropped; connections wait in the socket's backlog while there is no room.
pub async fn accept(listener: TcpListener, entrance: Entrance, directory: Arc<Directory>, limits: Arc<Limits>) {
    let mut listener = listener.into_std().and_then(watched);
    let mut end = std::pin::pin!(end::begun());
    loop {
        let Ok(place) = limits.places.clone().acquire_owned().await else { return };
        let socket = match &listener {
            Ok(socket) => socket,
            Err(error) => return tracing::error!(%entrance, %error, "a socket can't be watched"),
        };
        let accepted = tokio::select! {
            accepted = next(socket) => accepted,
            () = &mut end => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (directory, limits) = (directory.clone(), limits.clone());
                tokio::spawn(async move {
                    match entrance {
                        Entrance::Host(listen) => dispatch(stream, peer, listen, directory, &limits).await,
                        Entrance::Door(at) => let_in(stream, peer.ip(), at, directory).await,
                    }
                    drop(place);
                });
            }
            // One client's connection broke while it waited; else the socket or the system has no room (EMFILE, ENOBUFS).
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            // Another holder of the socket shut it down.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                tracing::warn!(%entrance, "a socket was shut down; listening again");
                sleep(NO_ROOM).await;
                listener = listener.and_then(again);
            }
            Err(error) => {
                tracing::warn!(%entrance, %error, "a connection was not accepted");
                sleep(NO_ROOM).await;
            }
        }
    }
}

/// The next connection. A socket that is or was shut down is `InvalidInput`: the runtime takes that for its end and would
/// call it ready for ever, also when it listens again.
async fn next(listener: &AsyncFd<std::net::TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    loop {
        let mut guard = listener.readable().await?;
        let ended = guard.ready().is_read_closed();
        match guard.try_io(|listener| listener.get_ref().accept()) {
            Ok(accepted) => {
                let (stream, peer) = accepted?;
                stream.set_nonblocking(true)?;
                return Ok((TcpStream::from_std(stream)?, peer));
            }
            Err(_) if ended => return Err(io::ErrorKind::InvalidInput.into()),
            Err(_) => {}
        }
    }
}

/// Listens again, and watches the socket as a new one.
fn again(listener: AsyncFd<std::net::TcpListener>) -> io::Result<AsyncFd<std::net::TcpListener>> {
    let socket = listener.into_inner();
    rustix::net::listen(&socket, BACKLOG)?;
    watched(socket)
}

// What made this constructor unsound is a type that answers another descriptor each time; this one answers its own.
#[allow(deprecated)]
fn watched(socket: std::net::TcpListener) -> io::Result<AsyncFd<std::net::TcpListener>> {
    AsyncFd::with_interest(socket, Interest::READABLE)
}

async fn dispatch(
    stream: TcpStream,
    peer: SocketAddr,
    listen: ListenAddress,
    directory: Arc<Directory>,
    limits: &Limits,
) {
    if prepare(&stream).is_err() {
        return;
    }
    let target = directory.find(listen, Site::address, |ignore| ignore.address(peer.ip()));
    let Some((target, in_use)) = target else {
        return http::serve(stream, peer.ip(), listen, directory, limits.head).await;
    };
    let (ignored, counts) = (in_use.is_none(), &target.vps.ignored);
    let by = format!("connection from {}", peer.ip().to_canonical());
    let server = dial(&stream, peer, &target, limits.transparent.as_ref(), || (!ignored).then(|| by.clone())).await;
    if ignored {
        let count = if server.is_ok() { &counts.served } else { &counts.refused };
        count.fetch_add(1, Ordering::Relaxed);
    }
    if let Err(reason) = pass_on(stream, server, &target.vps, in_use, by).await {
        tracing::debug!(vps = %target.vps.name, reason, "a connection was closed");
    }
}

/// A neighbour's connection. One that no rule allows is reset at once, as if nobody listened.
async fn let_in(stream: TcpStream, peer: IpAddr, at: SocketAddr, directory: Arc<Directory>) {
    // Until its server has it: a reset, so that nobody takes it for an answer that was empty.
    if set_socket_linger(&stream, Some(Duration::ZERO)).is_err() || prepare(&stream).is_err() {
        return;
    }
    let Some((vps, port, in_use, from)) = directory.door(at, peer) else { return };
    let by = format!("connection from {from}");
    let passed_on = async {
        let server = dial::plain(&vps, port, || Some(by.clone())).await;
        pass_on(stream, server, &vps, Some(in_use), by.clone()).await
    };
    let ended = tokio::select! {
        ended = passed_on => ended,
        () = directory.shut(at, peer) => Err("its rule was taken back".to_owned()),
    };
    if let Err(reason) = ended {
        tracing::debug!(vps = %vps.name, %from, reason, "a neighbour's connection was closed");
    }
}

async fn pass_on(
    client: TcpStream,
    server: Result<(TcpStream, Place), NotReached>,
    vps: &Arc<Vps>,
    in_use: Option<Use>,
    by: String,
) -> Result<(), String> {
    let (server, place) = server.map_err(|reason| reason.to_string())?;
    set_socket_linger(&client, None).map_err(|error| error.to_string())?;
    let activity = Activity::new(vps.clone(), place.generation, in_use, by);
    relay(client, server, &activity).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::net;

    use super::*;

    #[tokio::test]
    async fn a_socket_that_was_shut_down_and_repaired_does_not_spin() {
        let free = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        // By number: a port that the kernel chose is given up by a shutdown.
        let ours = net::TcpListener::bind(address).unwrap();
        ours.set_nonblocking(true).unwrap();
        let other = ours.try_clone().unwrap();
        let listener = watched(ours).unwrap();
        rustix::net::shutdown(&other, rustix::net::Shutdown::Both).unwrap();
        let refused = next(&listener).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        // Repaired by the other holder before it was tried again.
        rustix::net::listen(&other, 16).unwrap();
        let refused = next(&listener).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        let listener = again(listener).unwrap();
        let client = net::TcpStream::connect(address).unwrap();
        let (_, peer) = next(&listener).await.unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
    }
}
