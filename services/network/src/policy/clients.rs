//! Ports that the gateway may show its clients' own addresses to.

use std::collections::BTreeSet;

use model::run::Link;
use rtnetlink::Handle;

use super::{ANSWER, ANSWERS, CLIENTS, Layout, MAIN};
use crate::netlink::{self, End, NetlinkError, Rule, Transport};

/// The rules for one port of the VPS at the end of a link.
fn rules(link: &Link, gateway: &Link, port: u16, ipv6: bool) -> Vec<Rule> {
    let answers = Rule {
        ipv6,
        priority: ANSWER,
        input: Some(link.name.clone()),
        source: ipv6.then_some(link.address6.into()),
        port: Some((Transport::Tcp, End::Source, port)),
        table: Some(ANSWERS),
        ..Rule::default()
    };
    if !ipv6 {
        return vec![answers];
    }
    let clients = Rule {
        ipv6,
        priority: CLIENTS,
        input: Some(gateway.name.clone()),
        destination: Some(link.address6.into()),
        port: Some((Transport::Tcp, End::Destination, port)),
        table: Some(MAIN),
        ..Rule::default()
    };
    vec![answers, clients]
}

/// Lets the gateway show clients' addresses to these ports of a VPS, and to no others any more.
pub async fn show_clients(
    handle: &Handle,
    layout: &Layout,
    link: &Link,
    ports: &[u16],
    ipv6: bool,
) -> Result<(), NetlinkError> {
    let Some(gateway) = layout.gateway.map(|address| layout.link(address)) else { return Ok(()) };
    for ipv6 in [false, true].into_iter().filter(|v6| ipv6 || !v6) {
        let wanted: BTreeSet<_> = ports.iter().flat_map(|port| rules(link, &gateway, *port, ipv6)).collect();
        let mut there = BTreeSet::new();
        for message in netlink::rules(handle, ipv6).await? {
            let rule = Rule::read(&message);
            let of_link = match rule.priority {
                ANSWER => rule.input.as_ref() == Some(&link.name),
                CLIENTS => rule.destination == Some(link.address6.into()),
                _ => false,
            };
            if wanted.contains(&rule) {
                there.insert(rule);
            } else if of_link {
                netlink::delete_rule(handle, message).await?;
            }
        }
        for rule in wanted.difference(&there) {
            netlink::add_rule(handle, rule).await?;
        }
    }
    Ok(())
}
