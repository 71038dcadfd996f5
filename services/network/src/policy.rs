//! Who reaches whom, as routing rules: a packet is looked up in the table of the link it came from.
//!
//! | order | packets | are looked up in |
//! |---|---|---|
//! | 10 | the namespace's own | `local`, `main` |
//! | 15 | to port 53 of every VPS's gateway address; from the resolvers | `local`: names are served here, and nothing else |
//! | 20 | from the gateway's link, or the uplink | `main`: every link, the uplink |
//! | 24 | of connections that are led straight to a VPS (`LED_MARK`) | `main` |
//! | 25 | of two VPSs that may reach each other (`PAIR_MARK`) | `NEIGHBOURS`: by way of the gateway |
//! | 26 | from a port that is shown its clients' addresses (`ANSWER_MARK`) | `ANSWERS`: the gateway |
//! | 30 | from any other link | `TENANTS`: the gateway's address and the uplink, but no other VPS |
//! | 40 | others | refused |
//!
//! Apart from port 53, `local` is only for the namespace's own packets, so nothing that listens here can be reached from a link.
//! Addresses that this VPS owns are in `main` too, for the uplink and the gateway: there listen the gateway's sockets.
//!
//! The marks are the [`firewall`](crate::firewall)'s, which looks in sets what a packet is. So there are as many rules as above, however
//! many VPSs there are. Without the firewall no packet has a mark, and nobody reaches a neighbour.
//!
//! Forged sources. IPv4: `rp_filter` looks the way back up as if the packet came from where it is going to, with the packet's mark: so
//! from the gateway's link for a tenant's packet, and `main` has the true link. What the gateway sends in a client's or a neighbour's
//! name bears the mark of the answer to it, and that one's way leads to the gateway. IPv6 has no such filter; the firewall does the same.
//!
//! Connections that are led straight to a VPS (`ways`). The kernel knows to which one a packet belongs, so a tenant can send into such a
//! connection only as the VPS that it was led to.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::{Transport, run::Link};
use rtnetlink::Handle;

use crate::netlink::{self, Dead, End, NetlinkError, Rule};

/// The kernel's table of its own addresses. Packets from here are sent only from addresses in it.
const LOCAL: u32 = 255;
/// The kernel's main table; holds a route to every link.
pub const MAIN: u32 = 254;
/// What tenants reach.
pub const TENANTS: u32 = 80;
/// The way to a neighbour: the gateway.
pub const NEIGHBOURS: u32 = 81;
/// The way of answers to clients whose address was kept: the gateway.
pub const ANSWERS: u32 = 82;

const OWN: u32 = 10;
const OWN_MAIN: u32 = 11;
const NAMES: u32 = 15;
const GATEWAY: u32 = 20;
const LED: u32 = 24;
const PAIR: u32 = 25;
const ANSWER: u32 = 26;
const LINK: u32 = 30;
const REST: u32 = 40;

/// What packets bear that belong to a connection which was led straight to a VPS (`ways`), in either direction.
pub const LED_MARK: u32 = 1;
/// Between two VPSs that may reach each other, in either direction.
pub const PAIR_MARK: u32 = 2;
/// To and from ports that are shown their clients' addresses.
pub const ANSWER_MARK: u32 = 3;

/// The port of names.
pub const DNS: u16 = 53;

const LINK_LOCAL6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);

/// What the rules depend on.
#[derive(Debug, Clone)]
pub struct Layout {
    /// VPSs' IPv4 addresses.
    pub subnet: Ipv4Net,
    /// VPSs' IPv6 addresses.
    pub subnet6: Ipv6Net,
    /// The gateway's VPS.
    pub gateway: Option<Ipv4Addr>,
    /// Whether VPSs reach the outside through `Link::UPLINK`.
    pub uplink: bool,
    /// What VPSs' addresses become on their way to the outside; where names are asked for there, this is who asks.
    pub translated: (Ipv4Addr, Ipv6Addr),
    /// Whether names of the outside are asked for.
    pub resolves: bool,
    /// Networks that are routed here through the uplink: sockets listen at their addresses for those that are asleep.
    pub owned: Vec<IpNet>,
}

impl Layout {
    /// The link of an address.
    pub fn link(&self, address: Ipv4Addr) -> Link {
        Link::new(address, Link::address6_for(self.subnet6.addr(), address))
    }
}

/// Whether IPv6, for each family that there is.
fn families(ipv6: bool) -> impl Iterator<Item = bool> {
    [false, true].into_iter().filter(move |v6| ipv6 || !v6)
}

/// Makes these the namespace's rules.
pub async fn install(handle: &Handle, layout: &Layout, ipv6: bool) -> Result<(), NetlinkError> {
    for ipv6 in families(ipv6) {
        close_tenants(handle, layout, ipv6).await?;
        let subnet = if ipv6 { IpNet::from(layout.subnet6) } else { layout.subnet.into() };
        // An address that no VPS has is not the outside's: the host would send it back, again and again.
        netlink::close(handle, subnet.trunc(), MAIN, Dead::Unreachable).await?;
        // While the gateway is away, so that a neighbour's kernel tries again instead of giving up.
        for net in layout.owned.iter().filter(|net| net.addr().is_ipv6() == ipv6) {
            netlink::take_in(handle, *net, LOCAL).await?;
            netlink::take_in(handle, *net, MAIN).await?;
        }
        let all = if ipv6 { IpNet::from(Ipv6Net::default()) } else { Ipv4Net::default().into() };
        netlink::close(handle, all, NEIGHBOURS, Dead::Blackhole).await?;
        let wanted = rules(layout, ipv6);
        let mut others = Vec::new();
        let mut there = BTreeSet::new();
        for listed in netlink::rules(handle, ipv6).await? {
            let rule = Rule::read(&listed);
            if !wanted.contains(&rule) || !there.insert(rule) {
                others.push(listed);
            }
        }
        for rule in wanted.difference(&there) {
            netlink::add_rule(handle, rule).await?;
        }
        // The kernel's own (local for everyone, main, default) go last, when these are in force.
        for listed in others {
            netlink::delete_listed(handle, listed).await?;
        }
    }
    Ok(())
}

fn rules(layout: &Layout, ipv6: bool) -> BTreeSet<Rule> {
    let rule = |priority, input: Option<&str>, table| Rule {
        ipv6,
        priority,
        input: input.map(str::to_owned),
        table,
        ..Rule::default()
    };
    let mut rules = BTreeSet::from([
        rule(OWN, Some("lo"), Some(LOCAL)),
        rule(OWN_MAIN, Some("lo"), Some(MAIN)),
        rule(LINK, None, Some(TENANTS)),
        rule(REST, None, None),
    ]);
    for transport in [Transport::Tcp, Transport::Udp] {
        let names = |input, destination: IpAddr, end| Rule {
            destination: Some(destination),
            port: Some((transport, end, DNS)),
            ..rule(NAMES, input, Some(LOCAL))
        };
        if !ipv6 {
            rules.insert(names(None, Link::GATEWAY.into(), End::Destination));
        }
        if layout.resolves {
            let (v4, v6) = layout.translated;
            let own = if ipv6 { IpAddr::from(v6) } else { v4.into() };
            rules.insert(names(Some(Link::UPLINK), own, End::Source));
        }
    }
    if let Some(gateway) = layout.gateway.map(|address| layout.link(address)) {
        rules.insert(rule(GATEWAY, Some(&gateway.name), Some(MAIN)));
        rules.insert(Rule { mark: Some(PAIR_MARK), ..rule(PAIR, None, Some(NEIGHBOURS)) });
        rules.insert(Rule { mark: Some(ANSWER_MARK), ..rule(ANSWER, None, Some(ANSWERS)) });
    }
    if layout.uplink {
        rules.insert(rule(GATEWAY, Some(Link::UPLINK), Some(MAIN)));
    }
    if !layout.owned.is_empty() {
        rules.insert(Rule { mark: Some(LED_MARK), ..rule(LED, None, Some(MAIN)) });
    }
    rules
}

/// Refuses, in the tenants' table, what the uplink's default route must not lead to: other VPSs (the host would send the
/// packet back to them), and link-local addresses, where clouds have their metadata servers.
async fn close_tenants(handle: &Handle, layout: &Layout, ipv6: bool) -> Result<(), NetlinkError> {
    let closed = match ipv6 {
        false => {
            [Ipv4Net::default(), layout.subnet, Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16)].map(IpNet::from)
        }
        true => [Ipv6Net::default(), layout.subnet6, Ipv6Net::new_assert(LINK_LOCAL6, 10)].map(IpNet::from),
    };
    for network in closed {
        netlink::close(handle, network.trunc(), TENANTS, Dead::Unreachable).await?;
        // Nor do answers go out when the gateway is not there.
        netlink::close(handle, network.trunc(), ANSWERS, Dead::Unreachable).await?;
    }
    Ok(())
}

/// The IPv4 address in a VPS's IPv6 address.
pub fn low(address: Ipv6Addr) -> Ipv4Addr {
    (address.to_bits() as u32).into()
}

/// The IPv4 address of the VPS that has `address`.
pub fn low_of(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => low(address),
    }
}
