//! Has this VPS's network namespace take what comes in for other VPSs' addresses, and refuse in their names what no door
//! listens for (ip-rule(8)).
//!
//! The kernel answers in the name of an address only where its table `local` has it. So all VPSs' addresses are in there, and
//! what begins here, such as connections to those VPSs, is looked up in another table, which has this VPS's own alone. With
//! IPv6 it answers for any address that comes in, so a rule for that will do.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use ipnet::Ipv4Net;
use model::run::Link;
use rtnetlink::{
    Handle, IpVersion, RouteMessageBuilder, new_connection,
    packet_route::{
        route::{RouteMessage, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute},
    },
};

use super::{Place, silence::Silence};

/// The kernel's table of addresses that are this namespace's.
const LOCAL: u32 = 255;
/// Those of them that are truly this VPS's.
const OWN: u32 = 80;
/// VPSs' IPv6 addresses.
const VPSS: u32 = 81;
const EEXIST: i32 = -17;

/// Pings are not answered, since the answer would not be the VPS's. What comes back is what keeps doors' ports from being
/// refused.
pub async fn admit((own, subnet, subnet6): Place) -> anyhow::Result<Silence> {
    ignore_pings("ipv4/icmp_echo_ignore_all")?;
    let (connection, handle, _) = new_connection()?;
    tokio::spawn(connection);
    let lo = handle.link().get().match_name("lo".to_owned()).execute().try_next().await?;
    let lo = lo.context("there is no loopback interface")?.header.index;
    let loopback = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
    for network in [Ipv4Net::from(own), loopback] {
        route(&handle, local(network, lo, OWN)).await?;
    }
    rule(&handle, false, "lo", OWN, 1).await?;
    rule(&handle, false, "eth0", LOCAL, 2).await?;
    // The kernel's own rule sends everybody to `local`.
    for old in handle.rule().get(IpVersion::V4).execute().try_collect::<Vec<_>>().await? {
        if !old.attributes.iter().any(|a| matches!(a, RuleAttribute::Priority(priority) if *priority > 0)) {
            handle.rule().del(old).execute().await.context("deleting the kernel's rule for local addresses")?;
        }
    }
    let mut silence = Silence::new(handle.clone());
    silence.add(own.into(), subnet.into()).await?;
    route(&handle, local(subnet, lo, LOCAL)).await?;
    if std::path::Path::new("/proc/sys/net/ipv6").exists() {
        ignore_pings("ipv6/icmp/echo_ignore_all")?;
        let vpss = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(subnet6.network(), subnet6.prefix_len());
        route(&handle, vpss.output_interface(lo).kind(RouteType::Local).table_id(VPSS).build()).await?;
        silence.add(Link::address6_for(subnet6.addr(), own).into(), subnet6.into()).await?;
        rule(&handle, true, "eth0", VPSS, 100).await?;
    }
    Ok(silence)
}

fn ignore_pings(setting: &str) -> anyhow::Result<()> {
    let path = format!("/proc/sys/net/{setting}");
    std::fs::write(&path, "1").with_context(|| format!("writing 1 to {path}"))
}

fn local(network: Ipv4Net, lo: u32, table: u32) -> RouteMessage {
    let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(network.network(), network.prefix_len());
    route.output_interface(lo).kind(RouteType::Local).scope(RouteScope::Host).table_id(table).build()
}

async fn route(handle: &Handle, route: RouteMessage) -> anyhow::Result<()> {
    handle.route().add(route).replace().execute().await.context("routing VPSs' addresses to this namespace")
}

/// What comes in at `input` (`lo`: what begins here) is looked up in `table`.
async fn rule(handle: &Handle, ipv6: bool, input: &str, table: u32, priority: u32) -> anyhow::Result<()> {
    let rule = handle.rule().add().input_interface(input).priority(priority);
    let rule = rule.table_id(table).action(RuleAction::ToTable);
    let added = if ipv6 { rule.v6().execute().await } else { rule.v4().execute().await };
    match added {
        Err(rtnetlink::Error::NetlinkError(message)) if message.code.is_some_and(|code| code.get() == EEXIST) => Ok(()),
        added => added.context("adding a rule for VPSs' addresses"),
    }
}
