//! The host's half of the uplink, as far as links and routes go: the VPSs' subnets lead to the network VPS.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd,
    path::Path,
};

use ipnet::IpNet;
use model::run::Link;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
    },
};
use rustix::fs::{Mode, OFlags, open};
use sys::netlink::Netlink;

use super::{HostError, Linker};

/// The host's own network namespace: the one of the thread that opens this.
#[derive(Debug)]
pub struct HostNetwork {
    netlink: Netlink,
}

impl HostNetwork {
    /// Opens a socket there.
    pub fn open() -> Result<Self, HostError> {
        let netlink = Netlink::open().map_err(|source| HostError::Link { name: "of the host".to_owned(), source })?;
        Ok(Self { netlink })
    }

    /// The index of the interface of that name, if there is one.
    pub fn index(&mut self, name: &str) -> Result<Option<u32>, HostError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.netlink.request(RouteNetlinkMessage::GetLink(message), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(link.header.index),
                _ => None,
            })),
            Err(error) if gone(&error) => Ok(None),
            Err(source) => Err(HostError::Link { name: name.to_owned(), source }),
        }
    }

    /// Where the host already routes a part of `network`, or a network that it is part of; defaults and what leads to the
    /// interface `own` do not count.
    pub fn overlap(&mut self, network: IpNet, own: Option<u32>) -> Result<Option<IpNet>, HostError> {
        let routes = self.routes(network.addr())?;
        let mut overlapping = routes.iter().filter_map(|route| destination(route, own));
        Ok(overlapping.find(|route| route.contains(&network) || network.contains(route)))
    }

    /// What keeps the host from leading the whole of `network` to VPSs: a route of the same or a smaller part, or of a larger one
    /// that is not the network of interface `uplink` itself. There the host can answer for it (`answer_for`); by IPv4.
    pub fn in_the_way(&mut self, network: IpNet, uplink: u32, own: Option<u32>) -> Result<Option<IpNet>, HostError> {
        let around = |route: &RouteMessage, to: IpNet| {
            let beside = network.addr().is_ipv4() && is_of(route, uplink) && to.prefix_len() < network.prefix_len();
            beside && to.contains(&network)
        };
        let mut others = Vec::new();
        for route in self.routes(network.addr())? {
            let Some(to) = destination(&route, own) else { continue };
            // Its broadcast addresses are routes of their own.
            let broadcast =
                route.header.kind == RouteType::Broadcast && is_oif(&route, uplink) && !network.contains(&to);
            if (to.contains(&network) || network.contains(&to)) && !around(&route, to) && !broadcast {
                others.push(to);
            }
        }
        Ok(others.into_iter().next())
    }

    /// Whether `network` is a part of that of interface `uplink`, where others ask by ARP who has an address.
    pub fn is_beside(&mut self, network: IpNet, uplink: u32) -> Result<bool, HostError> {
        let around = |route: &RouteMessage| {
            is_of(route, uplink) && destination(route, None).is_some_and(|to| to.contains(&network) && to != network)
        };
        Ok(network.addr().is_ipv4() && self.routes(network.addr())?.iter().any(around))
    }

    fn routes(&mut self, address: IpAddr) -> Result<Vec<RouteMessage>, HostError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(address);
        let answers = self.netlink.request(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP);
        let answers =
            answers.map_err(|source| HostError::Link { name: "of the host: its routes".to_owned(), source })?;
        let routes = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        });
        Ok(routes.collect())
    }

    /// Has the kernel answer who asks at interface `index` for an address that is led elsewhere (`NTF_PROXY`), or no more.
    pub fn answer_for(&mut self, index: u32, address: Ipv4Addr, answer: bool) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = index;
        message.header.flags = NeighbourFlags::Proxy;
        message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(address))];
        if answer {
            return self.replace(RouteNetlinkMessage::NewNeighbour(message));
        }
        match self.netlink.request(RouteNetlinkMessage::DelNeighbour(message), 0) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOENT.raw_os_error()) || gone(&error) => {
                Ok(())
            }
            done => done.map(drop),
        }
    }

    /// Makes the pair `Link::UPLINK` in the network VPS's namespace and `name` here, unless it is there; `name` is configured,
    /// and leads to `networks`. IPv6 ones are left out where the host has none.
    pub fn connect(&mut self, linker: &mut Linker, name: &str, networks: &[IpNet]) -> Result<(), HostError> {
        let fault = |source: io::Error| HostError::Link { name: name.to_owned(), source };
        if self.index(name)?.is_none() {
            let own = open("/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            linker.create_pair(Link::UPLINK, name, own.map_err(|e| fault(e.into()))?.as_fd())?;
        }
        let index = self.index(name)?.ok_or_else(|| fault(io::ErrorKind::NotFound.into()))?;
        let ipv6 = Path::new("/proc/sys/net/ipv6/conf").join(name).exists();
        self.configure(index, name, networks, ipv6).map_err(fault)
    }

    fn configure(&mut self, index: u32, name: &str, networks: &[IpNet], ipv6: bool) -> io::Result<()> {
        // Before it is up, so that it never has an address or a route that nobody gave it.
        for (key, value) in [("rp_filter", "1"), ("accept_redirects", "0"), ("send_redirects", "0")] {
            fs::write(format!("/proc/sys/net/ipv4/conf/{name}/{key}"), value)?;
        }
        let keys6 = [("disable_ipv6", "0"), ("addr_gen_mode", "1"), ("accept_ra", "0"), ("accept_redirects", "0")];
        for (key, value) in keys6.iter().filter(|_| ipv6) {
            fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{key}"), value)?;
        }
        let mut up = LinkMessage::default();
        up.header.index = index;
        up.header.flags = LinkFlags::Up;
        up.header.change_mask = LinkFlags::Up;
        self.netlink.request(RouteNetlinkMessage::SetLink(up), 0)?;
        self.neighbour(index, Link::GATEWAY.into())?;
        if ipv6 {
            self.address6(index)?;
            self.neighbour(index, Link::GATEWAY6.into())?;
        }
        for network in networks.iter().filter(|network| ipv6 || network.addr().is_ipv4()) {
            self.route(index, *network)?;
        }
        Ok(())
    }

    fn address6(&mut self, index: u32) -> io::Result<()> {
        let mut message = AddressMessage::default();
        (message.header.family, message.header.prefix_len, message.header.index) = (AddressFamily::Inet6, 64, index);
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes = vec![
            AddressAttribute::Address(Link::HOST6.into()),
            AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Permanent),
        ];
        self.replace(RouteNetlinkMessage::NewAddress(message))
    }

    fn neighbour(&mut self, index: u32, address: IpAddr) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        let address = match address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        };
        message.attributes = vec![
            NeighbourAttribute::Destination(address),
            NeighbourAttribute::LinkLayerAddress(Link::OUTER_MAC.to_vec()),
        ];
        self.replace(RouteNetlinkMessage::NewNeighbour(message))
    }

    fn route(&mut self, index: u32, network: IpNet) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(network.addr());
        message.header.destination_prefix_length = network.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        // 169.254.1.1 is on no network of the host's.
        message.header.flags = RouteFlags::Onlink;
        let gateway = if network.addr().is_ipv4() { IpAddr::from(Link::GATEWAY) } else { Link::GATEWAY6.into() };
        message.attributes = vec![
            RouteAttribute::Destination(network.addr().into()),
            RouteAttribute::Gateway(gateway.into()),
            RouteAttribute::Oif(index),
        ];
        self.replace(RouteNetlinkMessage::NewRoute(message))
    }

    fn replace(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.netlink.request(message, NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// Removes the interface of that name, and with it the pair and its routes.
    pub fn disconnect(&mut self, name: &str) -> Result<(), HostError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.netlink.request(RouteNetlinkMessage::DelLink(message), 0) {
            Err(source) if !gone(&source) => Err(HostError::Link { name: name.to_owned(), source }),
            _ => Ok(()),
        }
    }
}

fn gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn is_oif(route: &RouteMessage, index: u32) -> bool {
    route.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Oif(oif) if *oif == index))
}

/// Whether a route is of the network that an interface is in.
fn is_of(route: &RouteMessage, index: u32) -> bool {
    let through = route.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Gateway(_)));
    route.header.kind == RouteType::Unicast && !through && is_oif(route, index)
}

/// Where a route that counts as one leads.
fn destination(route: &RouteMessage, own: Option<u32>) -> Option<IpNet> {
    let leads = matches!(route.header.kind, RouteType::Unicast | RouteType::Local | RouteType::Broadcast);
    let ours = |index: &u32| own == Some(*index);
    if !leads || route.attributes.iter().any(|a| matches!(a, RouteAttribute::Oif(index) if ours(index))) {
        return None;
    }
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    // The default route has no destination; two halves of everything, as some VPNs make them, are one too.
    IpNet::new(address?, route.header.destination_prefix_length).ok().filter(|network| network.prefix_len() > 1)
}
