//! Connections to a VPS: made when it can be reached, kept between requests within one generation.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::{
    http::Upload,
    wake::{NotReached, Place, Vps},
};

/// Connections kept for one VPS.
const KEPT: usize = 256;
/// How long one connection may take to come about: the link is local.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes of an answer's head at most.
pub const MAX_HEAD: usize = 64 << 10;

/// A connection that takes requests.
pub struct Backend {
    sender: SendRequest<Upload>,
    /// The generation of the VPS it was made in.
    pub generation: u64,
    port: u16,
    /// Whether it has served a request before.
    pub reused: bool,
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backend")
            .field("port", &self.port)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// Connections that wait for a request, the last used on top.
#[derive(Debug, Default)]
pub struct Pool(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    generation: Option<u64>,
    backends: Vec<Backend>,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes all that are not of the generation `keep`, and takes no others back.
    pub fn clear(&self, keep: Option<u64>) {
        let mut kept = self.lock();
        if kept.generation != keep {
            kept.generation = keep;
            kept.backends.clear();
        }
    }

    fn take(&self, place: Place, port: u16) -> Option<Backend> {
        let mut kept = self.lock();
        if kept.generation != Some(place.generation) {
            return None;
        }
        while let Some(at) = kept.backends.iter().rposition(|backend| backend.port == port) {
            let backend = kept.backends.remove(at);
            if backend.sender.is_ready() {
                return Some(backend);
            }
        }
        None
    }

    fn put(&self, backend: Backend) {
        let mut kept = self.lock();
        if kept.generation == Some(backend.generation) && kept.backends.len() < KEPT && !backend.sender.is_closed() {
            kept.backends.push(backend);
        }
    }
}

impl Backend {
    /// Takes a connection that waits, or makes one. The caller holds a `Use`.
    pub async fn get(
        vps: &Vps,
        port: u16,
        fresh: bool,
        by: impl Fn() -> Option<String>,
        deadline: Instant,
    ) -> Result<Self, NotReached> {
        let place = vps.reach(&by, deadline).await?;
        if !fresh && let Some(backend) = vps.pool.take(place, port) {
            return Ok(backend);
        }
        loop {
            let (stream, place) = connect(vps, port, &by, deadline).await?;
            let handshake = http1::Builder::new().max_header_size(MAX_HEAD).handshake(TokioIo::new(stream)).await;
            match handshake {
                Ok((sender, connection)) => {
                    tokio::spawn(connection.with_upgrades());
                    return Ok(Self { sender, generation: place.generation, port, reused: false });
                }
                Err(_) => vps.lost(place),
            }
        }
    }

    /// Sends a request. A request that no byte of was written comes back with the error.
    pub async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, (hyper::Error, Option<Request<Upload>>)> {
        self.sender.try_send_request(request).await.map_err(|mut error| {
            let request = error.take_message();
            (error.into_error(), request)
        })
    }

    /// Keeps the connection for the next request; its answer has been read to the end.
    pub fn keep(mut self, vps: &Arc<Vps>) {
        self.reused = true;
        if self.sender.is_ready() {
            vps.pool.put(self);
        } else if !self.sender.is_closed() {
            let vps = vps.clone();
            tokio::spawn(async move {
                if self.sender.ready().await.is_ok() {
                    vps.pool.put(self);
                }
            });
        }
    }
}

/// Makes a connection once the VPS can be reached. One that is refused means that the VPS is going down, or has been
/// since it was said to be up.
pub async fn connect(
    vps: &Vps,
    port: u16,
    by: impl Fn() -> Option<String>,
    deadline: Instant,
) -> Result<(TcpStream, Place), NotReached> {
    connect_by(vps, by, deadline, |address| open((address, port).into())).await
}

/// The same, with a connection that `open` makes to the VPS's address.
pub async fn connect_by<F: Future<Output = io::Result<TcpStream>>>(
    vps: &Vps,
    by: impl Fn() -> Option<String>,
    deadline: Instant,
    open: impl Fn(IpAddr) -> F,
) -> Result<(TcpStream, Place), NotReached> {
    loop {
        let place = vps.reach(&by, deadline).await?;
        match timeout_at(deadline.min(Instant::now() + CONNECT), open(place.address)).await {
            Ok(Ok(stream)) => {
                vps.found();
                return Ok((stream, place));
            }
            Ok(Err(error)) => tracing::debug!(vps = %vps.name, %error, "a connection failed"),
            Err(_) => tracing::debug!(vps = %vps.name, "a connection did not come about in time"),
        }
        vps.lost(place);
    }
}

/// A connection from the gateway's own address.
pub async fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    prepare(&stream)?;
    Ok(stream)
}

/// What every connection gets: no delay, and notice of a peer that vanished.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream.as_fd(), true)?;
    sockopt::set_tcp_keepidle(stream.as_fd(), Duration::from_secs(60))?;
    Ok(())
}
