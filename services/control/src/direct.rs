//! What goes past the gateway: connections to addresses that the network VPS owns, while the VPS that they are for is up.
//!
//! The gateway takes them otherwise, and wakes for them. Before a VPS sleeps its ways are taken back, then it is looked whether
//! somebody still uses it: whoever comes in between waits at the gateway.

use std::{collections::BTreeSet, time::Duration};

use model::{ClientAddress, HostConfig, ListenAddress, Route, Transport, VpsSpec, spec::Idle};
use wire::{
    Fault, host,
    network::{Lead, Use, Used, Way},
};

use crate::{calls::insist, driver::Vps, shared::Control};

/// How long the network service may be away.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a stop waits for ways to be taken back.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// What may go past the gateway. It stays with what the gateway alone can do: to see that connections are silent, to know clients
/// that don't count, to say to a server who its client is.
pub fn ways(config: &HostConfig, spec: &VpsSpec) -> BTreeSet<Way> {
    let watched = matches!(spec.idle, Idle::After { quiet_ms: Some(_), .. }) || !spec.ignore.is_empty();
    let routes = spec.routes.iter().filter(|(_, target)| !watched && target.client == ClientAddress::Transparent);
    let way = |(route, target): (&Route, &model::RouteTarget)| match route {
        Route::Address(address) if config.network.owns(address.0.ip()) => {
            Some(Way { address: *address, port: target.port })
        }
        _ => None,
    };
    routes.filter_map(way).collect()
}

/// Has the network lead these to a VPS, and no others. By IPv6 only to where it listens so: the gateway comes by IPv4 then.
pub async fn lead(control: &Control, vps: &Vps, number: u64, mut ways: BTreeSet<Way>) {
    let limit = if ways.is_empty() { STOP_LIMIT } else { LIMIT };
    if ways.iter().any(|way| way.address.0.is_ipv6()) {
        let open = insist(&control.host, &host::OpenPorts { name: vps.name.clone() }, LIMIT).await.unwrap_or_default();
        ways.retain(|way| match way.address {
            ListenAddress(address, _) if address.is_ipv4() => true,
            ListenAddress(_, Transport::Tcp) => open.tcp6.contains(&way.port),
            ListenAddress(_, Transport::Udp) => open.udp6.contains(&way.port),
        });
    }
    let Some(link) = vps.link() else { return };
    if let Err(fault) = insist(&control.network, &Lead { link: link.name, number, ways }, limit).await {
        tracing::warn!(vps = %vps.name, %fault, "what goes past the gateway is not what it should be");
    }
}

/// How a VPS is used past the gateway.
pub async fn used(control: &Control, vps: &Vps) -> Result<Use, Fault> {
    let Some(link) = vps.link() else { return Ok(Use { open: 0, last_ms: None }) };
    insist(&control.network, &Used { link: link.name }, LIMIT).await
}
