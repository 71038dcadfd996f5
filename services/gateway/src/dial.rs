//! The server's end of an address route's connection: the VPS is woken, and the server is shown the client as the
//! route wants it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use model::ClientAddress;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::Instant};

use crate::{
    backend::{connect, connect_by, open, prepare},
    proxy::{self, Version},
    route::Target,
    transparent::{self, Transparent},
    wake::{DEADLINE, NotReached, Place, Vps},
};

/// Connects to the server that `client`, who came from `peer`, is for. It is woken `by` somebody or not at all.
pub async fn dial(
    client: &TcpStream,
    peer: SocketAddr,
    target: &Target,
    transparent: Option<&Transparent>,
    by: impl Fn() -> Option<String>,
) -> Result<(TcpStream, Place), NotReached> {
    let header = match target.client {
        ClientAddress::ProxyV1 => header(Version::V1, client, peer),
        ClientAddress::ProxyV2 => header(Version::V2, client, peer),
        ClientAddress::Transparent | ClientAddress::Gateway => Vec::new(),
    };
    let transparent = transparent.filter(|_| target.client == ClientAddress::Transparent);
    let open = async |address: IpAddr| {
        if let Some(stream) = from_client(transparent, peer.ip(), address, target).await? {
            return Ok(stream);
        }
        let mut stream = open((address, target.port).into()).await?;
        // A new socket takes so little at once.
        stream.write_all(&header).await?;
        Ok(stream)
    };
    connect_by(&target.vps, by, Instant::now() + DEADLINE, open).await
}

/// Connects from the gateway's own address, and says nothing.
pub async fn plain(vps: &Vps, port: u16, by: impl Fn() -> Option<String>) -> Result<(TcpStream, Place), NotReached> {
    connect(vps, port, by, Instant::now() + DEADLINE).await
}

/// A server that awaits a header takes what comes first for one: it gets one also where the address is not known any more.
fn header(version: Version, client: &TcpStream, peer: SocketAddr) -> Vec<u8> {
    let unknown = if peer.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    proxy::header(version, peer, client.local_addr().unwrap_or((unknown, 0).into()))
}

/// A connection from the client's own address; none where it has to be the gateway's: the VPS has no way back to that
/// address, or the client uses IPv6 and the server does not.
async fn from_client(
    transparent: Option<&Transparent>,
    client: IpAddr,
    address: IpAddr,
    target: &Target,
) -> io::Result<Option<TcpStream>> {
    let Some((from, to)) = transparent.and_then(|transparent| transparent.ends(client, address)) else {
        return Ok(None);
    };
    match transparent::connect(from, (to, target.port).into()).await {
        Ok(stream) => {
            prepare(&stream)?;
            Ok(Some(stream))
        }
        Err(error) if to != address && error.kind() == io::ErrorKind::ConnectionRefused => Ok(None),
        Err(error) => Err(error),
    }
}
