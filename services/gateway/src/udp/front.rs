//! The socket that clients send to: each datagram with the address that it was sent to, so that its answer comes from there.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    sync::Mutex,
};

use bytes::Bytes;
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover};
use tokio::{io::Interest, net::UdpSocket};

use super::Ends;

/// Bytes of a datagram at most, or of several that the kernel hands over as one.
const LARGEST: usize = 65_535;

/// A socket that takes and sends many datagrams at once.
pub struct Front {
    io: UdpSocket,
    state: UdpSocketState,
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.io.fmt(f)
    }
}

impl Front {
    /// Prepares it.
    pub fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let ipv6 = socket.local_addr()?.is_ipv6();
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // An answer that is too long for a way is cut in parts, as the server's own would be.
        set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DONT)?;
        if ipv6 {
            set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DONT)?;
        }
        let buffers = Mutex::new(vec![vec![0; LARGEST]; BATCH_SIZE]);
        Ok(Self { io: UdpSocket::from_std(socket)?, state, buffers })
    }

    /// Waits for datagrams and adds them to `came`.
    pub async fn receive(&self, came: &mut Vec<(Ends, Bytes)>) -> io::Result<()> {
        self.io.readable().await?;
        let mut buffers = self.buffers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let count = {
            let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
            let receive = || self.state.recv(UdpSockRef::from(&self.io), &mut slices, &mut metas);
            match self.io.try_io(Interest::READABLE, receive) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                received => received?,
            }
        };
        for (meta, buffer) in metas.iter().zip(buffers.iter()).take(count) {
            let ends = Ends { client: meta.addr, asked: meta.dst_ip };
            // Several of one length may come as one.
            for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                came.push((ends, Bytes::copy_from_slice(datagram)));
            }
            if meta.len == 0 {
                came.push((ends, Bytes::new()));
            }
        }
        Ok(())
    }

    /// Sends an answer, from the address that was asked. What finds no room is lost.
    pub fn answer(&self, Ends { client, asked }: &Ends, contents: &[u8]) -> io::Result<()> {
        let (destination, src_ip): (SocketAddr, Option<IpAddr>) = (*client, *asked);
        let transmit = Transmit { destination, ecn: None, contents, segment_size: None, src_ip };
        let send = || self.state.try_send(UdpSockRef::from(&self.io), &transmit);
        match self.io.try_io(Interest::WRITABLE, send) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            sent => sent,
        }
    }
}
