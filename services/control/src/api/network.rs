//! `/v1/network/…`: what the firewall lets VPSs connect to.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Query, State},
};
use model::{
    Allow, Egress, ListenAddress, VpsName,
    api::{ErrorKind, FirewallRow, FirewallTest, FirewallTested},
    egress::{Outside, Ports},
};
use serde::Deserialize;
use wire::{host, network};

use super::ApiError;
use crate::{
    calls::{PATIENCE, insist},
    driver::Vps,
    neighbours::bounds,
    shared::Control,
};

/// How long a name may take, and a packet.
const TEST: Duration = Duration::from_secs(12);

/// Query of rules.
#[derive(Debug, Deserialize)]
pub struct RulesQuery {
    vps: Option<VpsName>,
}

/// `GET /v1/network/rules`
pub async fn rules(
    State(control): State<Arc<Control>>,
    Query(RulesQuery { vps }): Query<RulesQuery>,
) -> Result<Json<Vec<FirewallRow>>, ApiError> {
    if let Some(vps) = &vps {
        find(&control, vps)?;
    }
    let mut rows = insist(&control.network, &network::Firewall {}, PATIENCE).await?.rows;
    rows.retain(|row| vps.as_ref().is_none_or(|vps| row.vps == *vps) && control.get(&row.vps).is_some());
    Ok(Json(rows))
}

/// `POST /v1/network/test`
pub async fn test(
    State(control): State<Arc<Control>>,
    Json(FirewallTest { vps, to }): Json<FirewallTest>,
) -> Result<Json<FirewallTested>, ApiError> {
    let vps = find(&control, &vps)?;
    let (allowed, rule, address) = match neighbour(&control, &vps, &to)? {
        Some(decided) => decided,
        None => outside(&control, &vps, &to).await?,
    };
    let (mut sent, mut reached) = (None, None);
    if let Some(to) = address.filter(|_| vps.is_up()) {
        let probed = insist(&control.host, &host::Probe { name: vps.name.clone(), to }, TEST).await?;
        reached = Some(probed.error.is_none());
        sent = Some(probed.error.unwrap_or_else(|| "it came there".to_owned()));
    }
    let address = address.map(|address| address.to_string());
    Ok(Json(FirewallTested { allowed, rule, address, sent, reached }))
}

fn find(control: &Control, name: &VpsName) -> Result<Arc<Vps>, ApiError> {
    control.get(name).ok_or_else(|| ApiError::new(ErrorKind::NotFound, format!("there is no vps \"{name}\"")))
}

/// Whether a rule lets it, which one, and the address to try.
type Decided = (bool, String, Option<ListenAddress>);

/// `VPS:PORT`, which no name of the outside looks like. None: it is none.
fn neighbour(control: &Control, vps: &Vps, to: &str) -> Result<Option<Decided>, ApiError> {
    let Some((name, port)) = to.rsplit_once(':') else { return Ok(None) };
    let (Ok(other), Ok(port)) = (name.parse::<VpsName>(), port.parse::<u16>()) else { return Ok(None) };
    let tenant = &vps.spec().tenant;
    let Some(target) = control.get(&other).filter(|other| other.spec().tenant == *tenant) else {
        return Err(ApiError::new(ErrorKind::NotFound, format!("tenant {tenant} has no vps \"{other}\"")));
    };
    let rule = Allow { from: vps.name.clone(), to: other, port };
    let address = target.link().map(|link| ListenAddress::tcp((link.address, port)));
    Ok(Some(match control.routes.rules().contains(&rule) {
        true => (true, format!("\"{rule}\" of `allow` lets it"), address),
        false => (false, format!("no rule lets it; `allow = [\"{rule}\"]` would"), address),
    }))
}

async fn outside(control: &Control, vps: &Vps, to: &str) -> Result<Decided, ApiError> {
    let invalid = |message: String| ApiError::new(ErrorKind::Invalid, message);
    let wanted: Egress = to.parse().map_err(|error: model::egress::EgressError| invalid(error.to_string()))?;
    let Some(Ports { transport, first: port, last }) = wanted.at else {
        return Err(invalid(format!("`{to}` needs a port, such as {to}:443")));
    };
    let addresses: Vec<IpAddr> = match &wanted.to {
        Outside::Net(net) if net.prefix_len() == net.max_prefix_len() && port == last => vec![net.addr()],
        Outside::Name(host) => {
            let lookup = network::Lookup { name: vps.name.clone(), host: host.clone() };
            insist(&control.network, &lookup, TEST).await?.addresses
        }
        _ => return Err(invalid(format!("`{to}` is not one address or name with one port"))),
    };
    let address = addresses.first().map(|address| ListenAddress((*address, port).into(), transport));
    let (spec, name) = (vps.spec(), &vps.name);
    let by =
        if spec.egress.is_some() { format!("{name}'s spec") } else { format!("host.toml for tenant {}", spec.tenant) };
    if control.config.network.uplink.is_none() {
        return Ok((false, "this host has no uplink: no VPS reaches the outside".to_owned(), address));
    }
    let Some(only) = bounds(control, &spec) else {
        return Ok((true, format!("`egress` bounds {name} neither in its spec nor in host.toml"), address));
    };
    // An address may be open for a name's sake too: the packet tells.
    Ok(match only.iter().find(|one| one.covers(&wanted)) {
        Some(one) => (true, format!("\"{one}\" of `egress` in {by} lets it"), address),
        None if only.is_empty() => (false, format!("`egress` in {by} is empty: it reaches nothing outside"), address),
        None => {
            let all: Vec<_> = only.iter().take(8).map(ToString::to_string).collect();
            let more = if only.len() > all.len() { ", …" } else { "" };
            (false, format!("`egress` in {by} lets it connect to no more than {}{more}", all.join(", ")), address)
        }
    })
}
