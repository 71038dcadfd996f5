//! Has this VPS's network namespace take what comes in for other VPSs' addresses (ip-rule(8)).

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use ipnet::{Ipv4Net, Ipv6Net};
use rtnetlink::{
    Handle, RouteMessageBuilder, new_connection,
    packet_route::{
        route::{RouteMessage, RouteScope, RouteType},
        rule::RuleAction,
    },
};

/// The table in which VPSs' addresses are this namespace's own.
const TABLE: u32 = 80;
/// After the kernel's `local`, which has this VPS's true address, and before `main`.
const PRIORITY: u32 = 100;
const EEXIST: i32 = -17;

/// What no door listens for is refused by the kernel; pings are not answered, since the answer would not be the VPS's. The
/// rule is about what comes in only: connections to VPSs begin here, and go out.
pub async fn admit(subnet: Ipv4Net, subnet6: Ipv6Net) -> anyhow::Result<()> {
    ignore_pings("ipv4/icmp_echo_ignore_all")?;
    let (connection, handle, _) = new_connection()?;
    let task = tokio::spawn(connection);
    let lo = handle.link().get().match_name("lo".to_owned()).execute().try_next().await?;
    let lo = lo.context("there is no loopback interface")?.header.index;
    let local = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(subnet.network(), subnet.prefix_len());
    own(&handle, local.output_interface(lo).kind(RouteType::Local).scope(RouteScope::Host).table_id(TABLE).build())
        .await?;
    rule(&handle, false).await?;
    if std::path::Path::new("/proc/sys/net/ipv6").exists() {
        ignore_pings("ipv6/icmp/echo_ignore_all")?;
        let local = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(subnet6.network(), subnet6.prefix_len());
        own(&handle, local.output_interface(lo).kind(RouteType::Local).table_id(TABLE).build()).await?;
        rule(&handle, true).await?;
    }
    task.abort();
    Ok(())
}

fn ignore_pings(setting: &str) -> anyhow::Result<()> {
    let path = format!("/proc/sys/net/{setting}");
    std::fs::write(&path, "1").with_context(|| format!("writing 1 to {path}"))
}

async fn own(handle: &Handle, route: RouteMessage) -> anyhow::Result<()> {
    handle.route().add(route).replace().execute().await.context("routing VPSs' addresses to this namespace")
}

async fn rule(handle: &Handle, ipv6: bool) -> anyhow::Result<()> {
    let rule = handle.rule().add().input_interface("eth0").priority(PRIORITY);
    let rule = rule.table_id(TABLE).action(RuleAction::ToTable);
    let added = if ipv6 { rule.v6().execute().await } else { rule.v4().execute().await };
    match added {
        Err(rtnetlink::Error::NetlinkError(message)) if message.code.is_some_and(|code| code.get() == EEXIST) => Ok(()),
        added => added.context("adding the rule for VPSs' addresses"),
    }
}
