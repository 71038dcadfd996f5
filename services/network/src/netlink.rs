//! The requests to the kernel that this service needs, each idempotent (rtnetlink(7)).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroI32,
};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use model::Transport;
use rtnetlink::{
    Handle, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        AddressFamily, IpProtocol,
        address::{AddressAttribute, AddressFlags},
        link::{LinkAttribute, LinkMessage},
        neighbour::NeighbourState,
        route::{RouteMessage, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange},
    },
};

const EEXIST: i32 = -17;
const ENODEV: i32 = -19;
const ENOENT: i32 = -2;
const EAFNOSUPPORT: i32 = -97;

/// A request that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub struct NetlinkError {
    doing: String,
    source: rtnetlink::Error,
}

impl NetlinkError {
    fn code(error: &rtnetlink::Error) -> Option<i32> {
        match error {
            rtnetlink::Error::NetlinkError(message) => message.code.map(NonZeroI32::get),
            _ => None,
        }
    }

    /// Whether the link it was about is gone.
    pub fn no_device(&self) -> bool {
        Self::code(&self.source) == Some(ENODEV)
    }
}

fn done(
    result: Result<(), rtnetlink::Error>,
    fine: &[i32],
    doing: impl FnOnce() -> String,
) -> Result<(), NetlinkError> {
    match result {
        Err(source) if !NetlinkError::code(&source).is_some_and(|code| fine.contains(&code)) => {
            Err(NetlinkError { doing: doing(), source })
        }
        _ => Ok(()),
    }
}

/// The name of a link.
pub fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

/// The index of the link of that name.
pub async fn index_of(handle: &Handle, name: &str) -> Result<Option<u32>, NetlinkError> {
    match handle.link().get().match_name(name).execute().try_next().await {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(source) if NetlinkError::code(&source) == Some(ENODEV) => Ok(None),
        Err(source) => Err(NetlinkError { doing: format!("looking for link {name}"), source }),
    }
}

/// All links.
pub async fn all_links(handle: &Handle) -> Result<Vec<LinkMessage>, NetlinkError> {
    let links = handle.link().get().execute().try_collect().await;
    links.map_err(|source| NetlinkError { doing: "listing links".to_owned(), source })
}

/// Sets a link up.
pub async fn up(handle: &Handle, index: u32) -> Result<(), NetlinkError> {
    let message = LinkUnspec::new_with_index(index).up().build();
    done(handle.link().set(message).execute().await, &[], || format!("setting link {index} up"))
}

/// Gives a link an address that brings no route for a network with it.
pub async fn address(handle: &Handle, index: u32, address: IpAddr, length: u8) -> Result<(), NetlinkError> {
    let mut request = handle.address().add(index, address, length);
    let mut flags = AddressFlags::Permanent | AddressFlags::Noprefixroute;
    if address.is_ipv6() {
        flags |= AddressFlags::Nodad;
    }
    request.message_mut().attributes.push(AddressAttribute::Flags(flags));
    done(request.execute().await, &[EEXIST], || format!("adding address {address} to link {index}"))
}

/// A permanent neighbour.
pub async fn neighbour(handle: &Handle, index: u32, address: IpAddr, mac: &[u8]) -> Result<(), NetlinkError> {
    let request = handle.neighbours().add(index, address).link_layer_address(mac).state(NeighbourState::Permanent);
    done(request.replace().execute().await, &[], || format!("adding neighbour {address} on link {index}"))
}

async fn route(handle: &Handle, message: RouteMessage, what: impl FnOnce() -> String) -> Result<(), NetlinkError> {
    done(handle.route().add(message).replace().execute().await, &[], what)
}

/// `address` alone is reached through a link.
pub async fn host_route(handle: &Handle, index: u32, address: IpAddr, table: u32) -> Result<(), NetlinkError> {
    let message = match address {
        IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(address, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .table_id(table)
            .build(),
        IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(address, 128)
            .output_interface(index)
            .table_id(table)
            .build(),
    };
    route(handle, message, || format!("routing {address} to link {index}")).await
}

/// What becomes of a packet that no other route is for.
#[derive(Debug, Clone, Copy)]
pub enum Dead {
    /// Its sender is told.
    Unreachable,
    /// Nobody is told: who needs an answer tries again.
    Blackhole,
}

/// `table` has no way to `network`, unless another route is closer or cheaper.
pub async fn close(handle: &Handle, network: IpNet, table: u32, dead: Dead) -> Result<(), NetlinkError> {
    let kind = match dead {
        Dead::Unreachable => RouteType::Unreachable,
        Dead::Blackhole => RouteType::BlackHole,
    };
    let message = match network {
        IpNet::V4(network) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(network.addr(), network.prefix_len())
            .kind(kind)
            .priority(u32::MAX)
            .table_id(table)
            .build(),
        IpNet::V6(network) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(network.addr(), network.prefix_len())
            .kind(kind)
            .priority(u32::MAX)
            .table_id(table)
            .build(),
    };
    route(handle, message, || format!("closing {network} in table {table}")).await
}

/// The kernel gives the loopback interface of every network namespace this index.
const LOOPBACK: u32 = 1;

/// Whoever looks in `table` finds that `network` is here.
pub async fn take_in(handle: &Handle, network: IpNet, table: u32) -> Result<(), NetlinkError> {
    let message = match network {
        IpNet::V4(network) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(network.addr(), network.prefix_len())
            .output_interface(LOOPBACK)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .table_id(table)
            .build(),
        IpNet::V6(network) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(network.addr(), network.prefix_len())
            .output_interface(LOOPBACK)
            .kind(RouteType::Local)
            .table_id(table)
            .build(),
    };
    route(handle, message, || format!("taking in {network} in table {table}")).await
}

/// All else is reached through `hop` on a link.
pub async fn default_route(handle: &Handle, index: u32, hop: IpAddr, table: u32) -> Result<(), NetlinkError> {
    let message = match hop {
        IpAddr::V4(hop) => {
            RouteMessageBuilder::<Ipv4Addr>::new().gateway(hop).onlink().output_interface(index).table_id(table).build()
        }
        IpAddr::V6(hop) => {
            RouteMessageBuilder::<Ipv6Addr>::new().gateway(hop).onlink().output_interface(index).table_id(table).build()
        }
    };
    route(handle, message, || format!("routing to {hop} on link {index}")).await
}

/// One routing rule (ip-rule(8)).
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// IPv6 rather than IPv4.
    pub ipv6: bool,
    /// Rules are tried in this order.
    pub priority: u32,
    /// Only packets that come in here; `lo`: the namespace's own, and reverse-path look-ups.
    pub input: Option<String>,
    /// Only packets to here.
    pub destination: Option<IpAddr>,
    /// Only packets of this protocol, from or to this port.
    pub port: Option<(Transport, End, u16)>,
    /// Only packets with this mark.
    pub mark: Option<u32>,
    /// Where to look; none: refuse.
    pub table: Option<u32>,
}

/// Whose port is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// The sender's.
    Source,
    /// The receiver's.
    Destination,
}

impl Rule {
    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        let whole = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        message.header.family = if self.ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        message.attributes.push(RuleAttribute::Priority(self.priority));
        match self.table {
            Some(table) => {
                message.header.action = RuleAction::ToTable;
                message.attributes.push(RuleAttribute::Table(table));
            }
            None => message.header.action = RuleAction::Unreachable,
        }
        if let Some(input) = &self.input {
            message.attributes.push(RuleAttribute::Iifname(input.clone()));
        }
        if let Some(destination) = self.destination {
            message.header.dst_len = whole(destination);
            message.attributes.push(RuleAttribute::Destination(destination));
        }
        message.attributes.extend(self.mark.map(RuleAttribute::FwMark));
        if let Some((transport, end, port)) = self.port {
            let range = RulePortRange { start: port, end: port };
            message.attributes.push(RuleAttribute::IpProtocol(match transport {
                Transport::Tcp => IpProtocol::Tcp,
                Transport::Udp => IpProtocol::Udp,
            }));
            message.attributes.push(match end {
                End::Source => RuleAttribute::SourcePortRange(range),
                End::Destination => RuleAttribute::DestinationPortRange(range),
            });
        }
        message
    }

    /// A rule as it was listed, as far as it can be one of those that are about addresses and ports.
    pub fn read(message: &RuleMessage) -> Self {
        let mut rule = Self { ipv6: message.header.family == AddressFamily::Inet6, ..Self::default() };
        let (mut transport, mut port) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Iifname(name) => rule.input = Some(name.clone()),
                RuleAttribute::Destination(destination) => rule.destination = Some(*destination),
                RuleAttribute::Table(table) if message.header.action == RuleAction::ToTable => {
                    rule.table = Some(*table)
                }
                RuleAttribute::FwMark(mark) => rule.mark = Some(*mark),
                RuleAttribute::IpProtocol(IpProtocol::Tcp) => transport = Some(Transport::Tcp),
                RuleAttribute::IpProtocol(IpProtocol::Udp) => transport = Some(Transport::Udp),
                RuleAttribute::SourcePortRange(range) => port = Some((End::Source, range.start)),
                RuleAttribute::DestinationPortRange(range) => port = Some((End::Destination, range.start)),
                _ => {}
            }
        }
        rule.port = transport.zip(port).map(|(transport, (end, port))| (transport, end, port));
        rule
    }
}

/// Adds a rule unless it is there.
pub async fn add_rule(handle: &Handle, rule: &Rule) -> Result<(), NetlinkError> {
    let mut request = handle.rule().add();
    *request.message_mut() = rule.message();
    done(request.execute().await, &[EEXIST], || format!("adding the routing rule {rule:?}"))
}

/// All rules of one family.
pub async fn rules(handle: &Handle, ipv6: bool) -> Result<Vec<RuleMessage>, NetlinkError> {
    let version = if ipv6 { rtnetlink::IpVersion::V6 } else { rtnetlink::IpVersion::V4 };
    let rules = handle.rule().get(version).execute().try_collect().await;
    rules.map_err(|source| NetlinkError { doing: "listing routing rules".to_owned(), source })
}

/// Deletes a rule as it was listed.
pub async fn delete_listed(handle: &Handle, rule: RuleMessage) -> Result<(), NetlinkError> {
    done(handle.rule().del(rule).execute().await, &[ENOENT, EAFNOSUPPORT], || "deleting a routing rule".to_owned())
}
