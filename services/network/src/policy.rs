//! Who reaches whom, as routing rules: a packet is looked up in the table of the link it came from.
//!
//! | order | packets | are looked up in |
//! |---|---|---|
//! | 10 | the namespace's own | `local`, `main` |
//! | 20 | from the gateway's link | `main`: every link |
//! | 30 | from any other link | `TENANTS`: the gateway's address, and nothing else |
//! | 40 | others | refused |
//!
//! `local` is only for the namespace's own packets, so nothing that listens here can be reached from a link.
//!
//! Forged sources. IPv4: `rp_filter` looks the way back up as if the packet came from where it is going to, so from the
//! gateway's link for a tenant's packet: `main` has the true link. IPv6 has no such filter, so rules 20 and 30 name the source
//! too, one rule per link.

use std::net::{Ipv4Addr, Ipv6Addr};

use model::run::Link;
use rtnetlink::Handle;

use crate::netlink::{self, NetlinkError, Rule};

/// The kernel's table of its own addresses.
const LOCAL: u32 = 255;
/// The kernel's main table; holds a route to every link.
pub const MAIN: u32 = 254;
/// What tenants reach.
pub const TENANTS: u32 = 80;

const OWN: u32 = 10;
const OWN_MAIN: u32 = 11;
const GATEWAY: u32 = 20;
const LINK: u32 = 30;
const REST: u32 = 40;

/// Makes the rules that do not depend on which links are there.
pub async fn install(
    handle: &Handle,
    prefix6: Ipv6Addr,
    gateway: Option<Ipv4Addr>,
    ipv6: bool,
) -> Result<(), NetlinkError> {
    for ipv6 in [false, true].into_iter().filter(|v6| ipv6 || !v6) {
        netlink::unreachable_default(handle, ipv6, TENANTS).await?;
        let rule = |priority, input: Option<&str>, table| Rule {
            ipv6,
            priority,
            input: input.map(str::to_owned),
            source: None,
            table,
        };
        netlink::add_rule(handle, &rule(OWN, Some("lo"), Some(LOCAL))).await?;
        netlink::add_rule(handle, &rule(OWN_MAIN, Some("lo"), Some(MAIN))).await?;
        if let Some(address) = gateway {
            let name = Link::new(address, prefix6).name;
            let source = ipv6.then(|| Link::address6_for(prefix6, address));
            netlink::add_rule(handle, &Rule { source, ..rule(GATEWAY, Some(&name), Some(MAIN)) }).await?;
        }
        if !ipv6 {
            netlink::add_rule(handle, &rule(LINK, None, Some(TENANTS))).await?;
        }
        netlink::add_rule(handle, &rule(REST, None, None)).await?;
        // the kernel's own rules (local for everyone, main, default) go last, when ours are in force
        for old in netlink::rules(handle, ipv6).await? {
            let (priority, input) = netlink::rule_key(&old);
            if input.is_none() && matches!(priority, 0 | 32766 | 32767) {
                netlink::delete_rule(handle, old).await?;
            }
        }
    }
    Ok(())
}

/// Lets a tenant's link use IPv6, from its own address only.
pub async fn admit6(handle: &Handle, link: &Link) -> Result<(), NetlinkError> {
    let rule = Rule {
        ipv6: true,
        priority: LINK,
        input: Some(link.name.clone()),
        source: Some(link.address6),
        table: Some(TENANTS),
    };
    netlink::add_rule(handle, &rule).await
}

/// Removes the rules of links that `keep` does not name.
pub async fn sweep6(handle: &Handle, keep: impl Fn(&str) -> bool) -> Result<(), NetlinkError> {
    for rule in netlink::rules(handle, true).await? {
        if let (LINK, Some(name)) = netlink::rule_key(&rule)
            && !keep(name)
        {
            netlink::delete_rule(handle, rule).await?;
        }
    }
    Ok(())
}
