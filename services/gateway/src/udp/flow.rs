//! One flow: the VPS is woken, and datagrams go both ways until there have been none for a while.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use model::ClientAddress;
use tokio::{
    net::UdpSocket,
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, timeout_at},
};

use super::{Ends, Flows, Front};
use crate::{
    accept::Limits,
    route::Target,
    transparent,
    wake::{DEADLINE, NotReached, Place, Use},
};

/// How long a flow goes on without a datagram: at first, and once it was answered more than once. As the kernel's connection
/// tracking has it (nf_conntrack_udp_timeout).
const TIMES: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(120));
/// Bytes of a datagram at most.
const LARGEST: usize = 65_535;

/// What one flow has to do with.
pub(super) struct Flow {
    pub front: Arc<Front>,
    pub flows: Arc<Flows>,
    pub ends: Ends,
    pub number: u64,
    pub target: Target,
    pub limits: Arc<Limits>,
    pub _place: OwnedSemaphorePermit,
}

impl Flow {
    /// Goes on until its end; `in_use`: it counts.
    pub async fn run(self, first: Bytes, mut datagrams: mpsc::Receiver<Bytes>, in_use: Option<Use>) {
        let mut last = Instant::now();
        let counts = in_use.is_some();
        if let Err(reason) = self.relay(first, &mut datagrams, counts, &mut last).await {
            tracing::debug!(vps = %self.target.vps.name, client = %self.ends.client, reason, "a flow ended");
        }
        if let Some(in_use) = in_use {
            in_use.end(last);
        }
        self.flows.end(&self.ends, self.number);
    }

    async fn relay(
        &self,
        first: Bytes,
        datagrams: &mut mpsc::Receiver<Bytes>,
        counts: bool,
        last: &mut Instant,
    ) -> Result<(), String> {
        let failed = |error: io::Error| error.to_string();
        let mut place = self.reach(counts).await.map_err(|reason| reason.to_string())?;
        let mut server = self.open(place.address).await.map_err(failed)?;
        self.send(&server, place, &first).await;
        let (mut answers, mut buffer) = (0_u32, vec![0; LARGEST]);
        *last = Instant::now();
        loop {
            let end = *last + if answers > 1 { TIMES.1 } else { TIMES.0 };
            let next = async {
                tokio::select! {
                    datagram = datagrams.recv() => Next::Client(datagram),
                    answer = server.recv_from(&mut buffer) => Next::Server(answer),
                }
            };
            match timeout_at(end, next).await {
                Err(_) | Ok(Next::Client(None)) => return Ok(()),
                Ok(Next::Client(Some(datagram))) => {
                    if !self.target.vps.is_up(place.generation) {
                        place = self.reach(counts).await.map_err(|reason| reason.to_string())?;
                        server = self.open(place.address).await.map_err(failed)?;
                    }
                    self.send(&server, place, &datagram).await;
                }
                Ok(Next::Server(Ok((length, from)))) => {
                    // Its socket is bound to nobody: others may send there.
                    if from != SocketAddr::new(place.address, self.target.port) {
                        continue;
                    }
                    if answers == 0 {
                        self.flows.answered(&self.ends, self.number);
                        self.target.vps.sent();
                    }
                    answers = answers.saturating_add(1);
                    let _ = self.front.answer(&self.ends, &buffer[..length]);
                }
                // Nobody is bound to its port, for now.
                Ok(Next::Server(Err(error))) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Ok(Next::Server(Err(error))) => return Err(error.to_string()),
            }
            *last = Instant::now();
        }
    }

    async fn reach(&self, counts: bool) -> Result<Place, NotReached> {
        let by = format!("datagram from {}", self.ends.client.ip().to_canonical());
        self.target.vps.reach(|| counts.then_some(by), Instant::now() + DEADLINE).await
    }

    /// A socket towards the VPS: with the client's own address and port where it may be shown and has a way back.
    async fn open(&self, address: IpAddr) -> io::Result<UdpSocket> {
        let client = SocketAddr::new(self.ends.client.ip().to_canonical(), self.ends.client.port());
        let shown = self.limits.transparent.as_ref().filter(|_| self.target.client == ClientAddress::Transparent);
        // By IPv4 alone: nobody tells whether it is bound by IPv6 too.
        if let Some((from, to)) = shown.filter(|_| client.is_ipv4()).and_then(|shown| shown.ends(client.ip(), address))
        {
            let to = SocketAddr::new(to, self.target.port);
            let socket = transparent::datagrams(SocketAddr::new(from, client.port()))
                .or_else(|_| transparent::datagrams(SocketAddr::new(from, 0)))?;
            socket.connect(to).await?;
            return Ok(socket);
        }
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        socket.connect((address, self.target.port)).await?;
        Ok(socket)
    }

    /// What can't be sent is lost.
    async fn send(&self, server: &UdpSocket, place: Place, datagram: &Bytes) {
        if let Err(error) = server.send(datagram).await {
            let (vps, address) = (&self.target.vps.name, place.address);
            tracing::debug!(%vps, %address, %error, "a datagram was not sent");
        }
    }
}

enum Next {
    Client(Option<Bytes>),
    Server(io::Result<(usize, SocketAddr)>),
}
