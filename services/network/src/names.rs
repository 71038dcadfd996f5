//! Names (RFC 1035): every VPS asks at its gateway's address, and finds the VPSs of its own tenant. Other names are asked of
//! `network.resolvers`, where there are some.

mod answer;
mod cache;
mod forward;
mod opened;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use model::{Egress, TenantName, run::Link};
use simple_dns::RCODE;
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

pub use answer::Subnets;
use answer::{Answer, answer, refuse, unknown};
use cache::Cache;
pub use forward::Resolvers;

use crate::{egress, neighbours::Names, policy::DNS};

/// Bytes of a query at most; a true one is far shorter.
const QUERY: usize = 1024;
/// Queries of one VPS in a second, and at once after a rest.
const RATE: f64 = 200.0;
const BURST: f64 = 400.0;
/// Forwarded queries and TCP connections of one VPS at once.
const AT_ONCE: usize = 16;
/// The same of all together.
const ALL_AT_ONCE: usize = 256;
/// How long a TCP connection may be silent.
const SILENCE: Duration = Duration::from_secs(5);
/// Pause after a fault of a socket.
const PAUSE: Duration = Duration::from_millis(100);

/// The cache of what came as datagrams, and that of TCP.
const DATAGRAM: usize = 0;
const STREAM: usize = 1;

/// Knows what each asker finds at this moment.
pub trait Book: Send + Sync + 'static {
    /// All names.
    fn names(&self) -> Arc<Names>;

    /// Where addresses of names are opened.
    fn egress(&self) -> &egress::Rules;
}

/// The name server.
pub struct Server<B> {
    book: Arc<B>,
    subnets: Subnets,
    resolvers: Resolvers,
    /// What resolvers answered to queries that came as datagrams, and by TCP.
    caches: [Cache<TenantName>; 2],
    askers: Mutex<HashMap<Ipv4Addr, Asker>>,
    places: Arc<Semaphore>,
}

/// What one VPS may ask for.
struct Asker {
    tokens: f64,
    filled: Instant,
    places: Arc<Semaphore>,
}

/// A query that is being forwarded, or a connection.
type Place = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl<B: Book> Server<B> {
    /// For the VPSs in `subnets`.
    pub fn new(book: Arc<B>, subnets: Subnets, resolvers: Resolvers) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(ALL_AT_ONCE));
        let caches = Default::default();
        Arc::new(Self { book, subnets, resolvers, caches, askers: Mutex::default(), places })
    }

    /// Serves until a socket can't be had.
    pub async fn serve(self: Arc<Self>) -> io::Result<()> {
        let udp = UdpSocket::from_std(bound(Type::DGRAM)?.into())?;
        let tcp = bound(Type::STREAM)?;
        tcp.listen(64)?;
        let tcp = TcpListener::from_std(tcp.into())?;
        tokio::join!(self.clone().datagrams(Arc::new(udp)), self.connections(tcp));
        Ok(())
    }

    async fn datagrams(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = [0; QUERY];
        loop {
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    // An answer that could not be delivered may show here; it is no fault of this socket.
                    tracing::debug!(%error, "a query was not received");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let IpAddr::V4(asker) = from.ip() else { continue };
            let query = &buffer[..length];
            match self.answer(asker, query) {
                Answer::Nothing => {}
                Answer::Reply(reply) => drop(socket.try_send_to(&reply, from)),
                Answer::Forward => {
                    let Some(tenant) = self.tenant(asker) else { continue };
                    let only = self.book.names().bounds_of(asker);
                    if only.is_none()
                        && let Some(reply) = self.caches[DATAGRAM].get(&tenant, query)
                    {
                        let _ = socket.try_send_to(&reply, from);
                        continue;
                    }
                    match self.place(asker) {
                        Some(place) if self.resolvers.any() => {
                            let (this, socket, query) = (self.clone(), socket.clone(), query.to_vec());
                            tokio::spawn(async move {
                                let found = this.outside(DATAGRAM, &tenant, asker, only, &query).await;
                                let reply = found.unwrap_or_else(|code| refuse(&query, code));
                                let _ = socket.try_send_to(&reply, from);
                                drop(place);
                            });
                        }
                        _ => drop(socket.try_send_to(&refuse(query, RCODE::Refused), from)),
                    }
                }
            }
        }
    }

    async fn connections(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, SocketAddr::V4(from))) => {
                    let this = self.clone();
                    if let Some(place) = self.place(*from.ip()) {
                        tokio::spawn(async move {
                            let _ = this.converse(stream, *from.ip()).await;
                            drop(place);
                        });
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(%error, "a connection was not accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// One connection, query by query.
    async fn converse(&self, mut stream: TcpStream, asker: Ipv4Addr) -> io::Result<()> {
        loop {
            let query = timeout(SILENCE, read_message(&mut stream, QUERY)).await??;
            let reply = match self.answer(asker, &query) {
                Answer::Nothing => return Ok(()),
                Answer::Reply(reply) => reply,
                Answer::Forward => self.forwarded(asker, &query).await.unwrap_or_else(|code| refuse(&query, code)),
            };
            timeout(SILENCE, write_message(&mut stream, &reply)).await??;
        }
    }

    /// What is found of the outside by TCP, or why nothing is.
    async fn forwarded(&self, asker: Ipv4Addr, query: &[u8]) -> Result<Vec<u8>, RCODE> {
        let tenant = self.tenant(asker).filter(|_| self.resolvers.any()).ok_or(RCODE::Refused)?;
        self.outside(STREAM, &tenant, asker, self.book.names().bounds_of(asker), query).await
    }

    /// What is found of the outside, or why nothing is. Where the VPS may not connect to all, it may not ask for all; and what it
    /// finds is opened before it is told.
    async fn outside(
        &self,
        way: usize,
        tenant: &TenantName,
        asker: Ipv4Addr,
        only: Option<Arc<[Egress]>>,
        query: &[u8],
    ) -> Result<Vec<u8>, RCODE> {
        let name = match &only {
            Some(only) => match opened::asked(query).filter(|name| egress::may_ask(only, name)) {
                None => return Ok(unknown(query)),
                asked => asked,
            },
            None => None,
        };
        let reply = match self.caches[way].get(tenant, query) {
            Some(reply) => reply,
            None => {
                let asked = async {
                    if way == STREAM {
                        self.resolvers.stream(query).await
                    } else {
                        self.resolvers.datagram(query).await
                    }
                };
                let reply = asked.await.ok_or(RCODE::ServerFailure)?;
                self.caches[way].put(tenant, query, &reply);
                reply
            }
        };
        if let Some(name) = name
            && let Err(error) = self.book.egress().open(asker, &name, &opened::addresses(&reply)).await
        {
            tracing::error!(%asker, name, %error, "what a name has is not opened");
            return Err(RCODE::ServerFailure);
        }
        Ok(reply)
    }

    /// The addresses of a name of the outside, asked for as the VPS at `asker` does; nothing: it has none, or may not be asked for.
    pub async fn lookup(&self, asker: Ipv4Addr, name: &str) -> Vec<IpAddr> {
        let mut found = Vec::new();
        for ipv6 in [false, true] {
            if let (Some(query), Some(tenant), true) =
                (opened::query(name, ipv6), self.tenant(asker), self.resolvers.any())
            {
                let only = self.book.names().bounds_of(asker);
                let reply = self.outside(DATAGRAM, &tenant, asker, only, &query).await.unwrap_or_default();
                found.extend(opened::addresses(&reply).into_iter().map(|(address, _)| address));
            }
        }
        found
    }

    /// Asks again for names whose addresses are used, before their time is over; without an end.
    pub async fn keep_open(self: Arc<Self>) {
        loop {
            tokio::time::sleep(egress::SOON / 3).await;
            let due = match self.book.egress().due().await {
                Ok(due) => due,
                Err(error) => {
                    tracing::error!(%error, "which addresses of names are used can't be seen");
                    continue;
                }
            };
            futures_util::stream::iter(due).for_each_concurrent(AT_ONCE, |due| self.ask_again(due)).await;
        }
    }

    async fn ask_again(&self, due: egress::Due) {
        let Some(query) = opened::query(&due.name, due.ipv6) else { return };
        let again = match self.resolvers.datagram(&query).await {
            Some(reply) => opened::again(&reply),
            None => egress::Again::Unknown,
        };
        let name = due.name.clone();
        if let Err(error) = self.book.egress().asked_again(due, again).await {
            tracing::error!(name, %error, "what a name has opened is not kept up");
        }
    }

    fn tenant(&self, asker: Ipv4Addr) -> Option<TenantName> {
        self.book.names().tenant_of(asker).cloned()
    }

    /// What is answered to a VPS. Sources are true: who forges one is not heard here.
    fn answer(&self, asker: Ipv4Addr, query: &[u8]) -> Answer {
        let names = self.book.names();
        let Some(found) = names.of(asker) else { return Answer::Nothing };
        if !self.spend(asker) {
            return Answer::Nothing;
        }
        answer(found, self.subnets, query)
    }

    fn spend(&self, asker: Ipv4Addr) -> bool {
        let now = Instant::now();
        self.asker(asker, |asker| {
            let since = now.saturating_duration_since(asker.filled).as_secs_f64();
            asker.tokens = (asker.tokens + since * RATE).min(BURST);
            asker.filled = now;
            let enough = asker.tokens >= 1.0;
            asker.tokens -= if enough { 1.0 } else { 0.0 };
            enough
        })
    }

    fn place(&self, asker: Ipv4Addr) -> Option<Place> {
        let own = self.asker(asker, |asker| asker.places.clone()).try_acquire_owned().ok()?;
        Some((own, self.places.clone().try_acquire_owned().ok()?))
    }

    fn asker<T>(&self, address: Ipv4Addr, with: impl FnOnce(&mut Asker) -> T) -> T {
        let mut askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
        // As many as there are addresses in the subnet at most: others are not heard.
        let new = || Asker { tokens: BURST, filled: Instant::now(), places: Arc::new(Semaphore::new(AT_ONCE)) };
        with(askers.entry(address).or_insert_with(new))
    }
}

/// A socket at every VPS's gateway address, before there is a link that has it.
fn bound(kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, kind, None)?;
    socket.set_freebind_v4(true)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Link::GATEWAY, DNS)).into())?;
    Ok(socket)
}

/// A message with its length before it (RFC 1035, 4.2.2).
async fn read_message(stream: &mut TcpStream, most: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > most {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}
