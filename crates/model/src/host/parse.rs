//! host.toml, parsed: everything that is wrong is told at once.

use std::{collections::BTreeMap, ops::Range};

use ipnet::IpNet;
use toml::de::DeTable;

use super::{
    AllowedDirectory, AllowedTenants, Designated, DesignatedNetwork, HostConfig, Ids, ImageLimits, NetworkConfig,
    Reserve, Share, TenantConfig, fields,
};
use crate::{
    Egress, VpsName,
    document::{Get, Problems, Source, check},
    limits::parse_bytes,
    spec::{Problem, read_limits},
};

/// The ids that image layers have on disk.
const LAYER_IDS: Range<u64> = 700_000..765_536;

/// Parses the text of a host.toml; `file` is its name for messages. What is not written is as in `default_config`.
///
/// # Errors
/// All problems that were found, in the order of the file.
pub fn parse(file: &str, text: &str) -> Result<HostConfig, Vec<Problem>> {
    let source = Source { file, text };
    let document = source.parse()?;
    let root = document.get_ref();
    let mut problems = Problems::new(&source);
    check(&mut problems, root, &fields::FILE);
    let config = read(root);
    services(&mut problems, root);
    ids(&mut problems, root, &config.ids);
    addresses(&mut problems, root, &config.network);
    problems.or(|| Some(config))
}

/// Each service must be run once; the VPS whose service makes the network has no link to it, and so can't have the gateway.
fn services(problems: &mut Problems<'_>, root: &DeTable<'_>) {
    let Some((key, designated)) = root.get_key_value("designated") else { return };
    let mut runs = Vec::<(usize, Range<usize>, &str, &str)>::new();
    for (name, vps) in designated.get_ref().as_table().into_iter().flatten() {
        let Some(vps) = vps.get_ref().as_table() else { continue };
        let list = vps.get("services").and_then(|list| list.get_ref().as_array());
        for service in list.into_iter().flat_map(|list| list.iter()) {
            let span = service.span();
            runs.push((span.start, span, service.get_ref().as_str().unwrap_or_default(), name.get_ref().as_ref()));
        }
        if list.is_some_and(|list| list.is_empty()) {
            let hint = format!("there are {}", fields::SERVICES.join(", "));
            problems.tell(name.span(), format!("vps \"{}\" runs no service", name.get_ref()), Some(hint));
        }
        let makes = vps.texts("services").is_some_and(|list| list.iter().any(|service| service == "network"));
        if let Some((_, network)) =
            vps.get_key_value("network").filter(|(_, v)| makes && v.get_ref().as_str() != Some("none"))
        {
            let message = "the VPS that runs `network` can have no other network";
            problems.tell(network.span(), message, Some("write: network = \"none\"".to_owned()));
        }
    }
    runs.sort_by_key(|(at, ..)| *at);
    let of = |service: &str| runs.iter().find(|(_, _, found, _)| *found == service);
    if let (Some((.., network)), Some((_, span, _, gateway))) = (of("network"), of("gateway"))
        && network == gateway
    {
        let message =
            "`gateway` can't run in the VPS of `network`: that one has no link, by which VPSs would reach the gateway";
        problems.tell(span.clone(), message, Some("write a [designated.NAME] for each".to_owned()));
    }
    let mut owners = BTreeMap::<&str, &str>::new();
    for (_, span, service, name) in runs {
        match owners.get(service) {
            Some(owner) => {
                let message = format!("service `{service}` runs in vps \"{owner}\" already");
                problems.tell(span, message, Some("each service runs once".to_owned()));
            }
            None => drop(owners.insert(service, name)),
        }
    }
    // The one that ships logs gets this name where none is named for it.
    let ships = root.table("logs").and_then(|logs| logs.get("ship")).is_some();
    if let Some((name, _)) = designated.get_ref().as_table().and_then(|all| all.get_key_value(fields::SHIPPER))
        && ships
        && !owners.contains_key(fields::SHIPPER)
    {
        let message = "with `ship` in [logs] this is the name of the VPS that ships";
        let hint = format!("give this one another name, or add \"{}\" to its services", fields::SHIPPER);
        problems.tell(name.span(), message, Some(hint));
    }
    for service in fields::SERVICES.iter().filter(|s| !owners.contains_key(**s) && **s != fields::SHIPPER) {
        let hint = format!("write: [designated.{service}] and services = [\"{service}\"]");
        problems.tell(key.span(), format!("no designated VPS runs `{service}`"), Some(hint));
    }
}

/// What is routed to this host comes by the uplink, and is nobody else's.
fn addresses(problems: &mut Problems<'_>, root: &DeTable<'_>, network: &NetworkConfig) {
    let Some((key, _)) = root.table("network").and_then(|table| table.get_key_value("addresses")) else { return };
    if network.uplink.is_none() && !network.addresses.is_empty() {
        let hint = "write the interface that they are routed to: uplink = \"eth0\"".to_owned();
        problems.tell(key.span(), "`addresses` are reached through an uplink", Some(hint));
    }
    for (n, net) in network.addresses.iter().enumerate() {
        let own = [IpNet::from(network.subnet), network.subnet6.into()];
        let others = own.iter().chain(&network.addresses[..n]);
        if let Some(other) = others.into_iter().find(|other| other.contains(net) || net.contains(*other)) {
            problems.tell(key.span(), format!("{net} overlaps {other}"), None);
        }
    }
}

/// The three ranges of ids must not touch each other.
fn ids(problems: &mut Problems<'_>, root: &DeTable<'_>, ids: &Ids) {
    let span = root.get_key_value("ids").map_or(0..0, |(key, _)| key.span());
    let vps = u64::from(ids.first)..u64::from(ids.first) + u64::from(ids.blocks) * 65_536;
    let shims = u64::from(ids.shims)..u64::from(ids.shims) + u64::from(ids.blocks);
    // The last two ids mean "none" and "all" to the kernel.
    for (what, range) in [("VPSs", &vps), ("shims", &shims)] {
        if range.end > u64::from(u32::MAX) - 1 {
            let message = format!("the ids of {what} would end at {}, past the last there is", range.end - 1);
            problems.tell(span.clone(), message, Some("write fewer blocks".to_owned()));
        }
    }
    let ranges = [("VPSs", &vps), ("shims", &shims), ("image layers", &LAYER_IDS)];
    for (i, (what, a)) in ranges.iter().enumerate() {
        for (other, b) in &ranges[i + 1..] {
            if a.start < b.end && b.start < a.end {
                let (first, last) = (a.start.max(b.start), a.end.min(b.end) - 1);
                let message = format!("ids {first} to {last} would belong to {what} and to {other}");
                let hint = "leave `ids` out, or write ranges that do not overlap".to_owned();
                problems.tell(span.clone(), message, Some(hint));
            }
        }
    }
}

fn read(root: &DeTable<'_>) -> HostConfig {
    let mut config = super::default_config();
    if let Some(reserve) = root.table("reserve") {
        let memory = reserve.text("memory").and_then(|text| parse_bytes(text).ok());
        let disk_percent = reserve.text("disk").and_then(super::per_cent);
        let default = &config.reserve;
        config.reserve = Reserve {
            memory: memory.unwrap_or(default.memory),
            disk_percent: disk_percent.unwrap_or(default.disk_percent),
        };
    }
    if let Some(memory) = root.table("pool").and_then(|pool| pool.text("memory")) {
        config.pool.memory = Share::parse(memory).unwrap_or(config.pool.memory);
    }
    if let Some(network) = root.table("network") {
        let resolvers = network.texts("resolvers").unwrap_or_default();
        config.network = NetworkConfig {
            uplink: network.text("uplink").map(str::to_owned),
            addresses: network
                .texts("addresses")
                .unwrap_or_default()
                .iter()
                .filter_map(|text| super::owned(text))
                .collect(),
            subnet: network.parsed("subnet").unwrap_or(config.network.subnet),
            subnet6: network.parsed("subnet6").unwrap_or(config.network.subnet6),
            resolvers: resolvers.iter().filter_map(|address| address.parse().ok()).collect(),
            egress: egress(network),
        };
    }
    if let Some(ids) = root.table("ids") {
        let number = |name: &str, default: u32| ids.integer(name).and_then(|n| n.try_into().ok()).unwrap_or(default);
        config.ids = Ids {
            first: number("first", config.ids.first),
            blocks: number("blocks", config.ids.blocks),
            shims: number("shims", config.ids.shims),
        };
    }
    config.cgroup = root.text("cgroup").map(str::to_owned);
    config.layers = root.text("layers").map(Into::into);
    if let Some(images) = root.table("images") {
        let default = &config.images;
        config.images = ImageLimits {
            size: images.text("size").and_then(|text| parse_bytes(text).ok()).unwrap_or(default.size),
            files: images.integer("files").and_then(|n| n.try_into().ok()).unwrap_or(default.files),
        };
    }
    let directories = root.table("directory").into_iter().flatten();
    let one = |(name, value): (&toml::Spanned<toml::de::DeString<'_>>, &crate::document::Value<'_>)| {
        Some((name.get_ref().parse().ok()?, read_directory(value.get_ref().as_table()?)?))
    };
    config.directories = directories.filter_map(one).collect();
    for (name, tenant) in root.table("tenant").into_iter().flatten() {
        if let (Ok(name), Some(tenant)) = (name.get_ref().parse(), tenant.get_ref().as_table()) {
            config.tenants.insert(name, TenantConfig { egress: egress(tenant) });
        }
    }
    if let Some(designated) = root.table("designated") {
        let one = |(name, vps): (&toml::Spanned<toml::de::DeString<'_>>, &crate::document::Value<'_>)| {
            Some((name.get_ref().parse::<VpsName>().ok()?, read_designated(vps.get_ref().as_table()?)))
        };
        config.designated = designated.iter().filter_map(one).collect();
    }
    if let Some(ship) = root.table("logs").and_then(|logs| logs.texts("ship")) {
        config.logs.ship = ship.iter().filter_map(|target| target.parse().ok()).collect();
    }
    if !config.logs.ship.is_empty() && config.vps_of(fields::SHIPPER).is_none() {
        let name = fields::SHIPPER.parse().expect("a name");
        config.designated.insert(name, config.logs.shipper());
    }
    config
}

fn egress(table: &DeTable<'_>) -> Option<Vec<Egress>> {
    Some(table.texts("egress")?.iter().filter_map(|one| one.parse().ok()).collect())
}

fn read_directory(table: &DeTable<'_>) -> Option<AllowedDirectory> {
    let tenants = table.texts("tenants")?;
    Some(AllowedDirectory {
        path: table.text("path")?.into(),
        tenants: match tenants.iter().any(|tenant| tenant == "*") {
            true => AllowedTenants::All,
            false => AllowedTenants::Some(tenants.iter().filter_map(|tenant| tenant.parse().ok()).collect()),
        },
        write: table.boolean("write").unwrap_or(false),
        programs: table.boolean("programs").unwrap_or(true),
        root: table.boolean("root").unwrap_or(false),
    })
}

fn read_designated(table: &DeTable<'_>) -> Designated {
    fn list<T: std::str::FromStr>(table: &DeTable<'_>, name: &str) -> Vec<T> {
        let texts = table.texts(name).unwrap_or_default();
        texts.iter().filter_map(|text| text.parse().ok()).collect()
    }
    let services: Vec<crate::ServiceName> = list(table, "services");
    let network = match table.text("network") {
        Some("host") => DesignatedNetwork::Host,
        Some("none") => DesignatedNetwork::None,
        None if services.iter().any(|service| service.as_str() == "network") => DesignatedNetwork::None,
        _ => DesignatedNetwork::Link,
    };
    Designated {
        services,
        grants: list(table, "grants"),
        limits: table.table("limits").map(read_limits).unwrap_or_default(),
        network,
        userland: table.boolean("userland").unwrap_or(false),
        programs: list(table, "programs"),
    }
}
