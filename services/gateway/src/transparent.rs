//! Connections to VPSs that come from their client's own address (`IP_TRANSPARENT` in ip(7)).
//!
//! A VPS answers to that address; the network VPS leads answers from the routed port back to the gateway's link, and
//! here they are taken in as if the address were this namespace's own. Nothing listens here, so whatever else arrives
//! is refused.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use model::{host::NetworkConfig, run::Link};
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        IpProtocol,
        route::{RouteMessage, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute},
    },
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

/// The table of addresses that are taken in, and the place of the rule that leads to it: after the kernel's `local`.
const TABLE: u32 = 100;
/// The kernel gives the loopback interface of every network namespace this index.
const LOOPBACK: u32 = 1;
const EEXIST: i32 = -17;

/// Why clients' addresses can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum TransparentError {
    /// No netlink socket.
    #[error("opening a netlink socket: {0}")]
    Socket(#[from] io::Error),
    /// The kernel refused a rule or route.
    #[error("taking in answers to clients' addresses: {0}")]
    Netlink(#[from] rtnetlink::Error),
}

/// Connections from clients' addresses are possible.
#[derive(Debug, Clone)]
pub struct Transparent {
    subnet: Ipv4Net,
    subnet6: Ipv6Net,
}

impl Transparent {
    /// Makes this namespace take in answers to any address. Doing it again changes nothing.
    pub async fn prepare(network: &NetworkConfig) -> Result<Self, TransparentError> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let connection = tokio::spawn(connection);
        // Without the right to do that here a connection would get as far as the VPS and no answer.
        socket(false)?;
        take_in(&handle, false).await?;
        if std::path::Path::new("/proc/sys/net/ipv6").exists() {
            take_in(&handle, true).await?;
        }
        connection.abort();
        Ok(Self { subnet: network.subnet, subnet6: network.subnet6 })
    }

    /// Whether VPSs have a way back to `client`, as they would to no address of their own.
    fn kept(&self, client: IpAddr) -> bool {
        match client {
            IpAddr::V4(ip) => {
                let special = ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || ip.is_multicast();
                !special && !ip.is_broadcast() && !self.subnet.contains(&ip)
            }
            IpAddr::V6(ip) => {
                let special = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast();
                !special && !ip.is_unicast_link_local() && !self.subnet6.contains(&ip)
            }
        }
    }

    /// Where a connection for `client` goes and comes from: a VPS at `address`, by IPv6 for a client that uses it.
    pub fn ends(&self, client: IpAddr, address: IpAddr) -> Option<(IpAddr, IpAddr)> {
        let client = client.to_canonical();
        let to = match (client, address) {
            (IpAddr::V6(_), IpAddr::V4(address)) => Link::address6_for(self.subnet6.addr(), address).into(),
            (IpAddr::V4(_), IpAddr::V6(_)) => return None,
            _ => address,
        };
        self.kept(client).then_some((client, to))
    }
}

/// Connects to `to`, from the address `from` and a port of the kernel's choice.
pub async fn connect(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(from.is_ipv6())?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

/// A socket that sends datagrams from an address.
pub fn datagrams(from: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket_of(from.is_ipv6(), Type::DGRAM, Protocol::UDP)?;
    // Several flows of one client may go to several VPSs.
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    UdpSocket::from_std(socket.into())
}

fn socket(ipv6: bool) -> io::Result<Socket> {
    socket_of(ipv6, Type::STREAM, Protocol::TCP)
}

fn socket_of(ipv6: bool, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, kind.nonblocking().cloexec(), Some(protocol))?;
    if ipv6 {
        socket.set_ip_transparent_v6(true)?
    } else {
        socket.set_ip_transparent_v4(true)?
    }
    Ok(socket)
}

async fn take_in(handle: &Handle, ipv6: bool) -> Result<(), rtnetlink::Error> {
    let mut route: RouteMessage = match ipv6 {
        false => RouteMessageBuilder::<std::net::Ipv4Addr>::new().output_interface(LOOPBACK).table_id(TABLE).build(),
        true => RouteMessageBuilder::<std::net::Ipv6Addr>::new().output_interface(LOOPBACK).table_id(TABLE).build(),
    };
    (route.header.kind, route.header.scope) = (RouteType::Local, RouteScope::Host);
    handle.route().add(route).replace().execute().await?;
    for protocol in [IpProtocol::Tcp, IpProtocol::Udp] {
        let mut rule =
            handle.rule().add().priority(TABLE).table_id(TABLE).action(RuleAction::ToTable).input_interface("eth0");
        rule.message_mut().attributes.push(RuleAttribute::IpProtocol(protocol));
        match if ipv6 { rule.v6().execute().await } else { rule.v4().execute().await } {
            Err(rtnetlink::Error::NetlinkError(message)) if message.code.is_some_and(|code| code.get() == EEXIST) => {}
            added => added?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_with_a_way_back_are_kept() {
        let (subnet, subnet6) = ("10.80.0.0/16".parse().unwrap(), "fd80:ba11::/96".parse().unwrap());
        let transparent = Transparent { subnet, subnet6 };
        let ends = |client: &str| {
            let ends = transparent.ends(client.parse().unwrap(), "10.80.0.17".parse().unwrap());
            ends.map(|(from, to)| format!("{from} {to}"))
        };
        assert_eq!(ends("203.0.113.9").as_deref(), Some("203.0.113.9 10.80.0.17"));
        assert_eq!(ends("::ffff:203.0.113.9").as_deref(), Some("203.0.113.9 10.80.0.17"));
        assert_eq!(ends("2001:db8::9").as_deref(), Some("2001:db8::9 fd80:ba11::a50:11"));
        for client in
            ["127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.1.1", "10.80.3.4", "fe80::1", "fd80:ba11::1", "0.0.0.0"]
        {
            assert_eq!(ends(client), None, "{client}");
        }
    }
}
