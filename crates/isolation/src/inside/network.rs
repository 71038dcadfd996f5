//! `lo` and `eth0` of a VPS (rtnetlink(7)).

use std::{io, net::IpAddr};

use model::run::Link;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{LinkFlags, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
    },
};
use rustix::net::{AddressFamily as Family, SocketFlags, SocketType, netdevice::name_to_index, socket_with};
use sys::netlink::Netlink;

/// The kernel gives the loopback interface of every network namespace this index.
const LOOPBACK: u32 = 1;

/// Sets `lo` up.
pub(super) fn loopback() -> io::Result<()> {
    up(&mut Netlink::open()?, LOOPBACK)
}

/// Sets `eth0` up as the inner end of `link`. A restart that finds it done does no harm.
pub(super) fn ethernet(link: &Link) -> io::Result<()> {
    let socket = socket_with(Family::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let index = name_to_index(&socket, "eth0")?;
    let mut netlink = Netlink::open()?;
    up(&mut netlink, index)?;
    for (own, gateway) in
        [(IpAddr::V4(link.address), IpAddr::V4(Link::GATEWAY)), (IpAddr::V6(link.address6), IpAddr::V6(Link::GATEWAY6))]
    {
        match reach(&mut netlink, index, own, gateway) {
            // A host without IPv6.
            Err(error) if own.is_ipv6() && lacks_ipv6(&error) => {}
            done => done?,
        }
    }
    Ok(())
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EACCES))
}

fn up(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    netlink.request(RouteNetlinkMessage::SetLink(message), 0).map(drop)
}

fn reach(netlink: &mut Netlink, index: u32, own: IpAddr, gateway: IpAddr) -> io::Result<()> {
    let (family, length) = match own {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    let mut address = AddressMessage::default();
    address.header.family = family;
    address.header.prefix_len = length;
    address.header.index = index;
    // Nobody else is on the link, so a look for duplicates would only delay the first packet.
    address.attributes = vec![
        AddressAttribute::Address(own),
        AddressAttribute::Local(own),
        AddressAttribute::Flags(AddressFlags::Permanent | AddressFlags::Nodad),
    ];
    let put = NLM_F_CREATE | NLM_F_REPLACE;
    netlink.request(RouteNetlinkMessage::NewAddress(address), put)?;

    let mut neighbour = NeighbourMessage::default();
    neighbour.header.family = family;
    neighbour.header.ifindex = index;
    neighbour.header.state = NeighbourState::Permanent;
    let at = match gateway {
        IpAddr::V4(gateway) => NeighbourAddress::Inet(gateway),
        IpAddr::V6(gateway) => NeighbourAddress::Inet6(gateway),
    };
    neighbour.attributes =
        vec![NeighbourAttribute::Destination(at), NeighbourAttribute::LinkLayerAddress(Link::OUTER_MAC.to_vec())];
    netlink.request(RouteNetlinkMessage::NewNeighbour(neighbour), put)?;

    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: family,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        flags: RouteFlags::Onlink,
        ..RouteHeader::default()
    };
    let via = match gateway {
        IpAddr::V4(gateway) => RouteAddress::Inet(gateway),
        IpAddr::V6(gateway) => RouteAddress::Inet6(gateway),
    };
    route.attributes = vec![RouteAttribute::Gateway(via), RouteAttribute::Oif(index)];
    netlink.request(RouteNetlinkMessage::NewRoute(route), put).map(drop)
}
