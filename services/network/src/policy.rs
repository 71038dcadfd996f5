//! Who reaches whom, as routing rules: a packet is looked up in the table of the link it came from.
//!
//! | order | packets | are looked up in |
//! |---|---|---|
//! | 10 | the namespace's own | `local`, `main` |
//! | 15 | to port 53 of every VPS's gateway address; from the resolvers | `local`: names are served here, and nothing else |
//! | 20 | from the gateway's link, or the uplink | `main`: every link, the uplink |
//! | 21 | IPv6: from the gateway's link to a port that is shown its clients' addresses | `main` |
//! | 24 | of connections that are led straight to a VPS | `main` |
//! | 25 | of two VPSs that may reach each other, one rule a pair | `NEIGHBOURS`: by way of the gateway |
//! | 26 | from a port that is shown its clients' addresses | `ANSWERS`: the gateway |
//! | 30 | from any other link | `TENANTS`: the gateway's address and the uplink, but no other VPS |
//! | 40 | others | refused |
//!
//! Apart from port 53, `local` is only for the namespace's own packets, so nothing that listens here can be reached from a link.
//! Addresses that this VPS owns are in `main` too, for the uplink and the gateway: there listen the gateway's sockets.
//!
//! Forged sources. IPv4: `rp_filter` looks the way back up as if the packet came from where it is going to, so from the
//! gateway's link for a tenant's packet: `main` has the true link. IPv6 has no such filter, so rules 20 and 30 name the source
//! too, one rule per link. The gateway answers a neighbour in the name of the VPS that was asked: for IPv6 a rule per pair
//! lets it; for IPv4 the pair's own rule does, since the way back is looked up.
//!
//! Connections that are led straight to a VPS (`ways`). The kernel knows to which one a packet belongs; `rp_filter` looks the way back up
//! with the packet's mark, so a tenant can send into such a connection only as the VPS that it was led to.
//!
//! Clients' addresses (`clients`). The gateway may send from any address outside the subnets, but only to TCP ports that routes
//! say so of; answers from such a port go back to it, whatever their destination. For IPv4 both follow from rule 26: `rp_filter`
//! looks the way back up with the ports swapped.

mod clients;
mod rules;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::{Transport, run::Link};
use rtnetlink::Handle;

use crate::netlink::{self, Dead, End, NetlinkError, Rule};

pub use clients::show_clients;
pub use rules::Rules;

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
const CLIENTS: u32 = 21;
const LED: u32 = 24;
const PAIR: u32 = 25;
const ANSWER: u32 = 26;
const LINK: u32 = 30;
const REST: u32 = 40;

/// What packets bear that belong to a connection which was led straight to a VPS (`ways`), in either direction.
pub const LED_MARK: u32 = 1;

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

/// Makes the rules that do not depend on which links are there; all that there are then.
pub async fn install(handle: &Handle, layout: &Layout, ipv6: bool) -> Result<Rules, NetlinkError> {
    let rules = Rules::list(handle.clone(), ipv6).await?;
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
        let rule = |priority, input: Option<&str>, table| Rule {
            ipv6,
            priority,
            input: input.map(str::to_owned),
            table,
            ..Rule::default()
        };
        rules.add(rule(OWN, Some("lo"), Some(LOCAL))).await?;
        rules.add(rule(OWN_MAIN, Some("lo"), Some(MAIN))).await?;
        for transport in [Transport::Tcp, Transport::Udp] {
            let names = |input, destination: IpAddr, end| Rule {
                destination: Some(destination),
                port: Some((transport, end, DNS)),
                ..rule(NAMES, input, Some(LOCAL))
            };
            if !ipv6 {
                rules.add(names(None, Link::GATEWAY.into(), End::Destination)).await?;
            }
            if layout.resolves {
                let (v4, v6) = layout.translated;
                let own = if ipv6 { IpAddr::from(v6) } else { v4.into() };
                rules.add(names(Some(Link::UPLINK), own, End::Source)).await?;
            }
        }
        if let Some(gateway) = layout.gateway.map(|address| layout.link(address)) {
            let source = ipv6.then_some(gateway.address6.into());
            rules.add(Rule { source, ..rule(GATEWAY, Some(&gateway.name), Some(MAIN)) }).await?;
        }
        if layout.uplink {
            rules.add(rule(GATEWAY, Some(Link::UPLINK), Some(MAIN))).await?;
        }
        if !ipv6 && !layout.owned.is_empty() {
            rules.add(Rule { mark: Some(LED_MARK), ..rule(LED, None, Some(MAIN)) }).await?;
        }
        if !ipv6 {
            rules.add(rule(LINK, None, Some(TENANTS))).await?;
        }
        rules.add(rule(REST, None, None)).await?;
        // the kernel's own rules (local for everyone, main, default) go last, when ours are in force
        for listed in netlink::rules(handle, ipv6).await? {
            let old = Rule::read(&listed);
            if old.input.is_none() && matches!(old.priority, 0 | 32766 | 32767) {
                netlink::delete_listed(handle, listed).await?;
            }
        }
    }
    Ok(rules)
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

/// Lets a tenant's link use IPv6, from its own address only.
pub async fn admit6(rules: &Rules, link: &Link) -> Result<(), NetlinkError> {
    let rule = Rule {
        ipv6: true,
        priority: LINK,
        input: Some(link.name.clone()),
        source: Some(link.address6.into()),
        table: Some(TENANTS),
        ..Rule::default()
    };
    rules.add(rule).await
}

/// Lets a VPS's answers in connections that are led straight to it out by IPv6, from its own address only; by IPv4 one rule is
/// enough for all. It goes with the link.
pub async fn admit_led6(rules: &Rules, link: &Link) -> Result<(), NetlinkError> {
    let rule = Rule {
        ipv6: true,
        priority: LED,
        input: Some(link.name.clone()),
        source: Some(link.address6.into()),
        mark: Some(LED_MARK),
        table: Some(MAIN),
        ..Rule::default()
    };
    rules.add(rule).await
}

/// The rules of a pair: the first may connect to the second.
fn pair(from: &Link, to: &Link, gateway: &Link, ipv6: bool) -> Vec<Rule> {
    let there = Rule { ipv6, priority: PAIR, table: Some(NEIGHBOURS), ..Rule::default() };
    if !ipv6 {
        return vec![Rule { source: Some(from.address.into()), destination: Some(to.address.into()), ..there }];
    }
    let (from6, to6) = (Some(from.address6.into()), Some(to.address6.into()));
    let there = Rule { input: Some(from.name.clone()), source: from6, destination: to6, ..there };
    let input = Some(gateway.name.clone());
    let back = Rule { input, source: to6, destination: from6, table: Some(MAIN), ..there.clone() };
    vec![there, back]
}

/// Makes the pairs that may reach each other those of `pairs`; the others' first.
pub async fn allow(rules: &Rules, layout: &Layout, ipv6: bool, pairs: &[(Link, Link)]) -> Result<(), NetlinkError> {
    let Some(gateway) = layout.gateway.map(|address| layout.link(address)) else { return Ok(()) };
    let of_pair =
        |(from, to): &(Link, Link)| families(ipv6).flat_map(|ipv6| pair(from, to, &gateway, ipv6)).collect::<Vec<_>>();
    rules.set(|rule| rule.priority == PAIR, &pairs.iter().flat_map(of_pair).collect()).await
}

/// Removes the rules of links that `keep` does not name.
pub async fn sweep(rules: &Rules, layout: &Layout, keep: impl Fn(&str) -> bool) -> Result<(), NetlinkError> {
    let gone = |rule: &Rule| match (rule.priority, &rule.input, rule.destination) {
        (LED | LINK | ANSWER, Some(name), _) => !keep(name),
        (CLIENTS, _, Some(IpAddr::V6(address))) => !keep(&layout.link(low(address)).name),
        _ => false,
    };
    rules.set(gone, &BTreeSet::new()).await
}

/// The IPv4 address in a VPS's IPv6 address.
pub fn low(address: Ipv6Addr) -> Ipv4Addr {
    (address.to_bits() as u32).into()
}
