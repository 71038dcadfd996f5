//! Ports that the gateway may show its clients' own addresses to.

use model::{Transport, run::Link};

use super::{ANSWER, ANSWERS, CLIENTS, Layout, MAIN, Rules, families};
use crate::netlink::{End, NetlinkError, Rule};

/// The rules for one port of the VPS at the end of a link.
fn of_port(link: &Link, gateway: &Link, (transport, port): (Transport, u16), ipv6: bool) -> Vec<Rule> {
    let answers = Rule {
        ipv6,
        priority: ANSWER,
        input: Some(link.name.clone()),
        source: ipv6.then_some(link.address6.into()),
        port: Some((transport, End::Source, port)),
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
        port: Some((transport, End::Destination, port)),
        table: Some(MAIN),
        ..Rule::default()
    };
    vec![answers, clients]
}

/// Lets the gateway show clients' addresses to these ports of a VPS, and to no others any more.
pub async fn show_clients(
    rules: &Rules,
    layout: &Layout,
    link: &Link,
    ports: &[(Transport, u16)],
    ipv6: bool,
) -> Result<(), NetlinkError> {
    let Some(gateway) = layout.gateway.map(|address| layout.link(address)) else { return Ok(()) };
    let of_port = |port: &(Transport, u16)| {
        families(ipv6).flat_map(|ipv6| of_port(link, &gateway, *port, ipv6)).collect::<Vec<_>>()
    };
    let wanted = ports.iter().flat_map(of_port).collect();
    let of_link = |rule: &Rule| match rule.priority {
        ANSWER => rule.input.as_ref() == Some(&link.name),
        CLIENTS => rule.destination == Some(link.address6.into()),
        _ => false,
    };
    rules.set(of_link, &wanted).await
}
