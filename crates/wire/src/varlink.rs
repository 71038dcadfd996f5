//! Varlink over unix sockets: NUL-terminated JSON objects, with descriptors beside them (SCM_RIGHTS).
//!
//! Our own transport for two reasons: a peer is hostile, so size and number of descriptors must be bounded before
//! anything is parsed; and calls of different connections must be served side by side (a wake may take seconds).
//! The wire format is varlink's (<https://varlink.org/Method-Call>), so `varlinkctl` can speak to any service.
//!
//! Calls may be sent again when a connection broke before its answer: every method is idempotent, but those that say that
//! they are to be called once.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use model::{VpsName, api::ErrorKind};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
};

use crate::seqpacket::{recv_with_fds, send_with_fds};

/// Bytes of one message at most.
pub const MAX_MESSAGE: usize = 4 << 20;
/// Bytes of one request at most, where it is served: half of one may wait on each of many connections.
pub const MAX_REQUEST: usize = 512 << 10;
/// Bytes of one request between services at most.
const MAX_SERVICE_REQUEST: usize = 64 << 10;
/// Descriptors beside one message at most.
pub const MAX_FDS: usize = 16;
/// Bytes that are read at once.
const CHUNK: usize = 16 << 10;
/// Pause before the next try when there is no room for a connection.
const NO_ROOM: Duration = Duration::from_millis(50);
/// Connections kept open between calls, per client.
const POOL: usize = 8;

/// One method of an interface: the type is its parameters.
pub trait Method: Serialize + DeserializeOwned + Send + Sync {
    /// `io.bailiwick.Interface.Method`
    const NAME: &'static str;
    /// What it answers; a method called with `more` answers several.
    type Reply: Serialize + DeserializeOwned + Send + Sync;
}

/// Why a call failed.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// Its kind.
    pub kind: ErrorKind,
    /// For a person.
    pub message: String,
}

impl Fault {
    /// A fault of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The caller's capability does not hold `what`.
    pub fn denied(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Denied, what)
    }

    /// Nothing of that name.
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, what)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::new(ErrorKind::Unavailable, error.to_string())
    }
}

/// Who is at the other end of a connection between services; the host daemon wrote it before it handed the
/// connection over, so it is true.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The designated VPS.
    pub vps: VpsName,
    /// The services it runs.
    pub services: Vec<String>,
}

#[derive(Serialize)]
struct CallOut<'a, M> {
    method: &'static str,
    parameters: &'a M,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    more: bool,
}

#[derive(Deserialize)]
struct CallIn {
    method: String,
    /// As text until the method is known: a tree of it would be many times as large, and a call may be served for long.
    #[serde(default)]
    parameters: Option<Box<RawValue>>,
    #[serde(default)]
    more: bool,
}

#[derive(Serialize, Deserialize)]
struct ReplyFrame<T> {
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    parameters: Option<T>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    continues: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

fn none<T>() -> Option<T> {
    None
}

/// One connection, either side.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
    scanned: usize,
    max: usize,
    fds: VecDeque<OwnedFd>,
}

impl Connection {
    /// Wraps a connected stream.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: Vec::new(), scanned: 0, max: MAX_MESSAGE, fds: VecDeque::new() }
    }

    /// Takes messages of at most `max` bytes from now on.
    pub fn bounded(self, max: usize) -> Self {
        Self { max, ..self }
    }

    /// Wraps a connected stream socket that came as a descriptor.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let stream = std::os::unix::net::UnixStream::from(fd);
        stream.set_nonblocking(true)?;
        Ok(Self::new(UnixStream::from_std(stream)?))
    }

    /// Sends one message with descriptors.
    pub async fn send<T: Serialize>(&mut self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
        if bytes.len() >= MAX_MESSAGE || fds.len() > MAX_FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too large"));
        }
        bytes.push(0);
        let mut sent = 0;
        while sent < bytes.len() {
            let now = if sent == 0 { fds } else { &[] };
            let send = || send_with_fds(self.stream.as_fd(), &bytes[sent..], now);
            self.stream.writable().await?;
            match self.stream.try_io(Interest::WRITABLE, send) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Receives one message and the descriptors that came with it; `None` at the end of the stream.
    pub async fn recv<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        loop {
            if let Some(end) = self.buffer[self.scanned..].iter().position(|b| *b == 0) {
                let end = self.scanned + end;
                let message = serde_json::from_slice(&self.buffer[..end])
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
                self.buffer.drain(..=end);
                if self.buffer.is_empty() {
                    // Connections wait for hours with what their largest message needed otherwise.
                    self.buffer.shrink_to(CHUNK);
                }
                self.scanned = 0;
                return Ok(Some((message?, self.fds.drain(..).collect())));
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() > self.max {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "message too large"));
            }
            self.stream.readable().await?;
            let mut chunk = [0; CHUNK];
            let recv = || recv_with_fds(self.stream.as_fd(), &mut chunk);
            match self.stream.try_io(Interest::READABLE, recv) {
                Ok((0, _)) if self.buffer.is_empty() => return Ok(None),
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((n, fds)) => {
                    self.buffer.extend_from_slice(&chunk[..n]);
                    self.fds.extend(fds);
                    if self.fds.len() > MAX_FDS {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many descriptors"));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Completes when the other end has closed (used while a call is being served). Input that comes meanwhile stays.
    pub async fn closed(&self) {
        loop {
            match self.stream.ready(Interest::READABLE).await {
                Ok(ready) if ready.is_read_closed() => return,
                Err(_) => return,
                Ok(_) => {
                    let peek = || {
                        let flags = rustix::net::RecvFlags::PEEK;
                        let mut byte = [0u8; 1];
                        rustix::net::recv(self.stream.as_fd(), &mut byte[..], flags).map_err(io::Error::from)
                    };
                    match self.stream.try_io(Interest::READABLE, peek) {
                        Ok((0, _)) => return,
                        Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(_) => return,
                    }
                }
            }
        }
    }
}

/// One call that came in.
#[derive(Debug)]
pub struct Request {
    /// Its method's full name.
    pub method: String,
    /// Whether the caller takes several replies.
    pub more: bool,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
    parameters: Option<Box<RawValue>>,
}

impl Request {
    /// The parameters as `M`'s.
    pub fn parse<M: Method>(&self) -> Result<M, Fault> {
        let parameters = self.parameters.as_ref().map_or("{}", |parameters| parameters.get());
        serde_json::from_str(if parameters == "null" { "{}" } else { parameters })
            .map_err(|error| Fault::new(ErrorKind::Invalid, format!("{}: {error}", self.method)))
    }

    /// The fault to answer when no method has that name.
    pub fn unknown(&self) -> Fault {
        Fault::new(ErrorKind::Invalid, format!("no method {}", self.method))
    }
}

/// The way back to who called.
#[derive(Debug)]
pub struct Replier<'a> {
    connection: &'a mut Connection,
}

impl Replier<'_> {
    /// The last (or only) reply to a call of `M`.
    pub async fn done<M: Method>(&mut self, reply: &M::Reply, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.connection.send(&ReplyFrame { parameters: Some(reply), continues: false, error: None }, fds).await
    }

    /// One of several replies.
    pub async fn more<M: Method>(&mut self, reply: &M::Reply) -> io::Result<()> {
        self.connection.send(&ReplyFrame { parameters: Some(reply), continues: true, error: None }, &[]).await
    }

    /// A fault instead of a reply.
    pub async fn fault(&mut self, fault: &Fault) -> io::Result<()> {
        let error = Some("io.bailiwick.Fault".to_owned());
        self.connection.send(&ReplyFrame { parameters: Some(fault), continues: false, error }, &[]).await
    }

    /// Completes when the caller is gone.
    pub async fn gone(&self) {
        self.connection.closed().await;
    }
}

/// What serves an interface. `call` answers through `replier`; a returned `Fault` is sent as the answer.
pub trait Service: Send + Sync + 'static {
    /// Serves one call.
    fn call(
        &self,
        peer: &Peer,
        request: Request,
        replier: &mut Replier<'_>,
    ) -> impl Future<Output = Result<(), Fault>> + Send;
}

/// Serves one connection until its end.
pub async fn serve_connection<S: Service>(connection: &mut Connection, peer: &Peer, service: &S) -> io::Result<()> {
    while let Some((call, fds)) = connection.recv::<CallIn>().await? {
        let request = Request { method: call.method, more: call.more, fds, parameters: call.parameters };
        let mut replier = Replier { connection };
        if let Err(fault) = service.call(peer, request, &mut replier).await {
            replier.fault(&fault).await?;
        }
        // Who always has a next call ready would otherwise be served alone: input that is there is not waited for.
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Accepts connections that the host daemon made for other services (each begins with its `Peer`), and serves them
/// side by side, at most `limit` at once.
pub async fn serve_listener<S: Service>(listener: UnixListener, service: Arc<S>, limit: usize) -> io::Result<()> {
    let places = Arc::new(tokio::sync::Semaphore::new(limit));
    loop {
        let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            // No descriptors or no memory are left: whoever waits does so until there are.
            Err(error) if no_room(&error) => {
                tracing::warn!(%error, "a connection waits to be accepted");
                tokio::time::sleep(NO_ROOM).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let service = service.clone();
        tokio::spawn(async move {
            let mut connection = Connection::new(stream).bounded(MAX_SERVICE_REQUEST);
            let served = async {
                let Some((peer, fds)) = connection.recv::<Peer>().await? else { return Ok(()) };
                // the kernel may give what came with the first call together with this
                connection.fds.extend(fds);
                serve_connection(&mut connection, &peer, &*service).await
            };
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection ended");
            }
            drop(place);
        });
    }
}

fn no_room(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}

/// How a client gets a connection.
#[derive(Debug, Clone)]
pub enum Dial {
    /// The host daemon's socket of this VPS.
    Path(PathBuf),
    /// Another service, through the host daemon.
    Service {
        /// The capability that asks for it.
        host: Client,
        /// Its name.
        service: String,
    },
}

/// Calls methods; keeps a few connections. Calls made at once run side by side, each on a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<ClientInner>,
}

#[derive(Debug)]
struct ClientInner {
    dial: Dial,
    idle: Mutex<Vec<Connection>>,
}

impl Client {
    /// A client of the host daemon at `path`.
    pub fn host(path: impl Into<PathBuf>) -> Self {
        Self::new(Dial::Path(path.into()))
    }

    /// A client of `service`, reached through `host`.
    pub fn service(host: &Client, service: &str) -> Self {
        Self::new(Dial::Service { host: host.clone(), service: service.to_owned() })
    }

    fn new(dial: Dial) -> Self {
        Self { inner: Arc::new(ClientInner { dial, idle: Mutex::new(Vec::new()) }) }
    }

    async fn dial(&self) -> Result<Connection, Fault> {
        match &self.inner.dial {
            Dial::Path(path) => Ok(Connection::new(UnixStream::connect(path).await?)),
            Dial::Service { host, service } => {
                let connect = crate::host::Connect { service: service.clone() };
                let (_, fds) = Box::pin(host.call_with_fds(&connect, &[])).await?;
                let missing = || Fault::new(ErrorKind::Failed, "the host daemon sent no connection");
                Ok(Connection::from_fd(fds.into_iter().next().ok_or_else(missing)?)?)
            }
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `method` and waits for its reply.
    pub async fn call<M: Method>(&self, method: &M) -> Result<M::Reply, Fault> {
        Ok(self.call_with_fds(method, &[]).await?.0)
    }

    /// Calls `method` with descriptors, and gets the reply's.
    pub async fn call_with_fds<M: Method>(
        &self,
        method: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(M::Reply, Vec<OwnedFd>), Fault> {
        loop {
            let pooled = self.idle().pop();
            let again = pooled.is_some();
            let mut connection = match pooled {
                Some(connection) => connection,
                None => self.dial().await?,
            };
            let exchange = async {
                connection.send(&CallOut { method: M::NAME, parameters: method, more: false }, fds).await?;
                connection.recv::<ReplyFrame<Value>>().await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            };
            match exchange.await {
                Ok((frame, fds)) => {
                    let reply = reply_of::<M>(frame);
                    let mut idle = self.idle();
                    if idle.len() < POOL {
                        idle.push(connection);
                    }
                    return reply.map(|reply| (reply, fds));
                }
                // The other end was restarted since this connection was used last: try a fresh one.
                Err(error) if again && broken(&error) => continue,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Calls `method` with descriptors, once: on a connection of its own, and never again.
    pub async fn call_once<M: Method>(&self, method: &M, fds: &[BorrowedFd<'_>]) -> Result<M::Reply, Fault> {
        let mut connection = self.dial().await?;
        connection.send(&CallOut { method: M::NAME, parameters: method, more: false }, fds).await?;
        match connection.recv::<ReplyFrame<Value>>().await? {
            Some((frame, _)) => reply_of::<M>(frame),
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    }

    /// Calls `method` with `more` on a connection of its own.
    pub async fn stream<M: Method>(&self, method: &M) -> Result<ReplyStream<M>, Fault> {
        self.stream_with_fds(method, &[]).await
    }

    /// The same, with descriptors.
    pub async fn stream_with_fds<M: Method>(
        &self,
        method: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Result<ReplyStream<M>, Fault> {
        let mut connection = self.dial().await?;
        connection.send(&CallOut { method: M::NAME, parameters: method, more: true }, fds).await?;
        Ok(ReplyStream { connection, ended: false, method: std::marker::PhantomData })
    }
}

fn broken(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

fn reply_of<M: Method>(frame: ReplyFrame<Value>) -> Result<M::Reply, Fault> {
    let parameters = frame.parameters.unwrap_or(Value::Object(Default::default()));
    if let Some(error) = frame.error {
        let unknown = |_| Fault::new(ErrorKind::Failed, error);
        return Err(serde_json::from_value(parameters).unwrap_or_else(unknown));
    }
    serde_json::from_value(parameters).map_err(|e| Fault::new(ErrorKind::Failed, format!("{}: {e}", M::NAME)))
}

/// The replies of a call with `more`.
#[derive(Debug)]
pub struct ReplyStream<M> {
    connection: Connection,
    ended: bool,
    method: std::marker::PhantomData<fn() -> M>,
}

impl<M: Method> ReplyStream<M> {
    /// The next reply; `None` after the last one. An error also ends the stream.
    pub async fn next(&mut self) -> Result<Option<M::Reply>, Fault> {
        if self.ended {
            return Ok(None);
        }
        let Some((frame, _)) = self.connection.recv::<ReplyFrame<Value>>().await? else {
            self.ended = true;
            return Err(Fault::new(ErrorKind::Unavailable, "the connection ended"));
        };
        self.ended = !frame.continues;
        reply_of::<M>(frame).map(Some)
    }
}

/// Declares a method: its parameters, its full name, its reply.
#[macro_export]
macro_rules! method {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident : $type:ty),* $(,)? } = $full:literal -> $reply:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
        pub struct $name { $($(#[$fdoc])* pub $field: $type),* }
        impl $crate::varlink::Method for $name {
            const NAME: &'static str = $full;
            type Reply = $reply;
        }
    };
}

/// A reply without content.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Empty {}
