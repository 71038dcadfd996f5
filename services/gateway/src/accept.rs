//! Takes connections from one listening socket, as many as there is room for, and hands each to what its address is for.

use std::{io, sync::Arc, time::Duration};

use model::ListenAddress;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, sleep},
};

use crate::{
    backend::{connect, prepare},
    follow::Directory,
    http,
    route::Site,
    splice::relay,
    wake::DEADLINE,
};

/// Connections served at once at most.
const CONNECTIONS: usize = 20_000;
/// Descriptors of one connection at most: two sockets and two pipes.
const DESCRIPTORS: u64 = 6;
/// Descriptors for everything else.
const RESERVED: u64 = 512;
/// Pause when the system has no room for another connection.
const NO_ROOM: Duration = Duration::from_millis(100);

/// What clients together may use.
#[derive(Debug)]
pub struct Limits {
    places: Arc<Semaphore>,
    /// How long the head of a request may take.
    pub head: Duration,
}

impl Limits {
    /// As many connections as the limit of descriptors allows, which is raised as far as it may be.
    pub fn of_this_process() -> Self {
        let limit = getrlimit(Resource::Nofile);
        let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
        let descriptors = if raised.is_ok() { limit.maximum } else { limit.current };
        let places = descriptors.map_or(CONNECTIONS as u64, |n| n.saturating_sub(RESERVED) / DESCRIPTORS);
        Self::new(places.clamp(16, CONNECTIONS as u64) as usize, http::head_time())
    }

    /// `connections` at once.
    pub fn new(connections: usize, head: Duration) -> Self {
        Self { places: Arc::new(Semaphore::new(connections)), head }
    }
}

/// Accepts until it is dropped; connections wait in the socket's backlog while there is no room.
pub async fn accept(listener: TcpListener, listen: ListenAddress, directory: Arc<Directory>, limits: Arc<Limits>) {
    loop {
        let Ok(place) = limits.places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (directory, head) = (directory.clone(), limits.head);
                tokio::spawn(async move {
                    dispatch(stream, peer.ip(), listen, directory, head).await;
                    drop(place);
                });
            }
            // One client's connection broke while it waited; else the socket or the system has no room (EMFILE, ENOBUFS).
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%listen, %error, "a connection was not accepted");
                sleep(NO_ROOM).await;
            }
        }
    }
}

async fn dispatch(
    stream: TcpStream,
    peer: std::net::IpAddr,
    listen: ListenAddress,
    directory: Arc<Directory>,
    head: Duration,
) {
    if prepare(&stream).is_err() {
        return;
    }
    let target = directory.find(listen, |site| match site {
        Site::Address(target) => Some(target),
        Site::Content(_) => None,
    });
    let Some((vps, port, _in_use)) = target else {
        return http::serve(stream, peer, listen, directory, head).await;
    };
    let by = || format!("connection from {}", peer.to_canonical());
    match connect(&vps, port, by, Instant::now() + DEADLINE).await {
        Ok((server, _)) => {
            if let Err(error) = relay(stream, server).await {
                tracing::debug!(vps = %vps.name, %error, "a relayed connection ended");
            }
        }
        Err(reason) => tracing::debug!(vps = %vps.name, %reason, "a connection was closed"),
    }
}
