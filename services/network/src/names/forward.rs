//! Names of the outside, asked of `network.resolvers` one after the other.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::{TcpSocket, UdpSocket},
    time::timeout,
};

use super::{read_message, write_message};
use crate::policy::DNS;

/// How long one resolver may take before the next is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of an answer at most.
const ANSWER: usize = 65_535;

/// Who is asked, and as whom: answers come back to this namespace's own address.
#[derive(Debug)]
pub struct Resolvers {
    all: Vec<IpAddr>,
    own: (Ipv4Addr, Ipv6Addr),
}

impl Resolvers {
    /// Asks `all`; nobody when it is empty.
    pub fn new(all: Vec<IpAddr>, own: (Ipv4Addr, Ipv6Addr)) -> Self {
        Self { all, own }
    }

    /// Whether there is one.
    pub fn any(&self) -> bool {
        !self.all.is_empty()
    }

    fn pair(&self, resolver: IpAddr) -> (SocketAddr, SocketAddr) {
        let own = if resolver.is_ipv4() { IpAddr::from(self.own.0) } else { self.own.1.into() };
        ((own, 0).into(), (resolver, DNS).into())
    }

    /// The first answer to a query that came as a datagram.
    pub async fn datagram(&self, query: &[u8]) -> Option<Vec<u8>> {
        for resolver in &self.all {
            match timeout(PATIENCE, self.ask(*resolver, query)).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%resolver, %error, "a resolver was not asked"),
                Err(_) => tracing::debug!(%resolver, "a resolver did not answer in time"),
            }
        }
        None
    }

    /// A fresh port and number for each, so that nobody else can guess what an answer has to look like.
    async fn ask(&self, resolver: IpAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let (own, there) = self.pair(resolver);
        let socket = UdpSocket::bind(own).await?;
        socket.connect(there).await?;
        let mut number = [0; 2];
        rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty())?;
        socket.send(&[&number, &query[2..]].concat()).await?;
        let mut buffer = vec![0; ANSWER];
        loop {
            let length = socket.recv(&mut buffer).await?;
            let answer = &buffer[..length];
            if length >= 12 && answer[..2] == number && answer[2] & 0x80 != 0 {
                return Ok([&query[..2], &answer[2..]].concat());
            }
        }
    }

    /// The first answer to a query that came by TCP.
    pub async fn stream(&self, query: &[u8]) -> Option<Vec<u8>> {
        for resolver in &self.all {
            let asked = async {
                let (own, there) = self.pair(*resolver);
                let socket = if own.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
                socket.bind(own)?;
                let mut stream = socket.connect(there).await?;
                write_message(&mut stream, query).await?;
                read_message(&mut stream, ANSWER).await
            };
            if let Ok(Ok(answer)) = timeout(PATIENCE, asked).await {
                return Some(answer);
            }
        }
        None
    }
}
