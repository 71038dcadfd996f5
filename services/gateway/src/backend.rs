//! Connections to a VPS: made when it can be reached, kept between requests within one generation.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::{
    http::Upload,
    socket::Socket,
    wake::{NotReached, Place, Vps},
};

/// Connections kept for one VPS.
const KEPT: usize = 256;
/// Pause before the next try when there is no room for a connection.
const NO_ROOM: Duration = Duration::from_millis(50);
/// How long one connection may take to come about: the link is local.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes of an answer's head at most.
pub const MAX_HEAD: usize = 64 << 10;

/// How long a connection waits for its next request at most.
const UNUSED: Duration = Duration::from_secs(60);

/// What reads and writes a connection.
type Line = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// A connection that takes requests.
pub struct Backend {
    sender: SendRequest<Upload>,
    /// Polled by whoever sends or reads, so that no other task has to be woken in between; none: it has ended.
    line: Option<Line>,
    kept: Instant,
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
            if backend.is_ready() {
                return Some(backend);
            }
        }
        None
    }

    fn put(&self, mut backend: Backend) {
        backend.kept = Instant::now();
        let mut kept = self.lock();
        let unused = kept.backends.iter().take_while(|other| backend.kept - other.kept > UNUSED).count();
        kept.backends.drain(..unused);
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
            match http1::Builder::new().max_header_size(MAX_HEAD).handshake(Socket::new(stream)).await {
                Ok((sender, connection)) => {
                    let line: Option<Line> = Some(Box::pin(connection.with_upgrades()));
                    let (generation, kept) = (place.generation, Instant::now());
                    return Ok(Self { sender, line, kept, generation, port, reused: false });
                }
                Err(_) => vps.lost(place),
            }
        }
    }

    /// Whether it takes a request now. That its server closed it meanwhile shows when one is sent.
    pub fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Reads and writes as far as it goes now.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(line) = &mut self.line
            && let Poll::Ready(ended) = line.as_mut().poll(cx)
        {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to a server ended");
            }
            self.line = None;
        }
    }

    /// Sends a request. A request that no byte of was written comes back with the error. Whoever reads the answer drives
    /// the connection.
    pub async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, (hyper::Error, Option<Request<Upload>>)> {
        let mut sent = pin!(self.sender.try_send_request(request));
        let line = &mut self.line;
        let sent = poll_fn(|cx| {
            if line.as_mut().is_some_and(|line| line.as_mut().poll(cx).is_ready()) {
                *line = None;
            }
            sent.as_mut().poll(cx)
        });
        sent.await.map_err(|mut error| {
            let request = error.take_message();
            (error.into_error(), request)
        })
    }

    /// Lets the connection go on by itself: it becomes another protocol's.
    pub fn release(self) {
        if let Some(line) = self.line {
            tokio::spawn(line);
        }
    }

    /// Keeps the connection for the next request; its answer has been read to the end.
    pub fn keep(mut self, vps: &Arc<Vps>) {
        self.reused = true;
        if self.is_ready() {
            vps.pool.put(self);
        } else if self.line.is_some() && !self.sender.is_closed() {
            // The request is still being sent.
            let vps = vps.clone();
            tokio::spawn(async move {
                let ready = poll_fn(|cx| {
                    self.drive(cx);
                    self.sender.poll_ready(cx)
                });
                if ready.await.is_ok() {
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
            // The gateway's own lack, not the VPS's: it is there as before.
            Ok(Err(error)) if no_room(&error) => {
                tracing::warn!(vps = %vps.name, %error, "a connection waits to be made");
                if Instant::now() + NO_ROOM >= deadline {
                    return Err(NotReached::Deadline);
                }
                tokio::time::sleep(NO_ROOM).await;
                continue;
            }
            Ok(Err(error)) => tracing::debug!(vps = %vps.name, %error, "a connection failed"),
            Err(_) => tracing::debug!(vps = %vps.name, "a connection did not come about in time"),
        }
        vps.lost(place);
    }
}

/// Whether descriptors or memory are missing here.
fn no_room(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let lacks = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|errno| lacks.contains(&errno))
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
