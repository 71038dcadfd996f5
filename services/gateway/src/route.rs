//! The table of routes: made once from what `control` says, never changed, swapped whole.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use model::{ClientAddress, Ignore, ListenAddress, Route, VpsName};
use wire::control::{Door, RouteEntry};

use crate::wake::Vps;

/// Where a route leads.
#[derive(Debug, Clone)]
pub struct Target {
    /// The VPS.
    pub vps: Arc<Vps>,
    /// The port inside.
    pub port: u16,
    /// What an address route shows of its clients.
    pub client: ClientAddress,
    /// Clients that don't count; none: all count.
    pub ignore: Option<Arc<Ignore>>,
}

/// What is done with connections to one address.
#[derive(Debug)]
pub enum Site {
    /// All are relayed to one port.
    Address(Target),
    /// They speak HTTP.
    Content(Hosts),
}

impl Site {
    /// The target of all connections.
    pub fn address(&self) -> Option<&Target> {
        match self {
            Self::Address(target) => Some(target),
            Self::Content(_) => None,
        }
    }

    /// The target of a request for `path` on `host`.
    pub fn content(&self, host: &str, path: &str) -> Option<&Target> {
        match self {
            Self::Address(_) => None,
            Self::Content(hosts) => hosts.find(host, path),
        }
    }
}

/// Routes by host name, in lower case; each host's by prefix, the longest first.
#[derive(Debug, Default)]
pub struct Hosts(HashMap<Box<str>, Vec<(Box<str>, Target)>>);

/// Where a door leads, and whom it lets in.
#[derive(Debug)]
struct Entry {
    target: Target,
    from: HashMap<IpAddr, VpsName>,
}

/// All routes, and all doors.
#[derive(Debug, Default)]
pub struct Table {
    sites: HashMap<ListenAddress, Site>,
    doors: HashMap<SocketAddr, Entry>,
}

impl Table {
    /// The table of `entries` and `doors`. On an address with a route of its own, others don't count.
    pub fn new(entries: &[RouteEntry], doors: &[Door], mut vps: impl FnMut(&VpsName) -> Arc<Vps>) -> Self {
        let mut sites: HashMap<ListenAddress, Site> = HashMap::new();
        for entry in entries {
            let ignore = (!entry.ignore.is_empty()).then(|| Arc::new(entry.ignore.clone()));
            let target = Target { vps: vps(&entry.name), port: entry.port, client: entry.client, ignore };
            match &entry.route {
                Route::Address(_) => {
                    sites.insert(entry.listen, Site::Address(target));
                }
                Route::Http { host, prefix, .. } => {
                    let site = sites.entry(entry.listen).or_insert_with(|| Site::Content(Hosts::default()));
                    if let Site::Content(hosts) = site {
                        hosts.add(host, prefix, target);
                    }
                }
            }
        }
        let mut table = Self { sites, doors: HashMap::new() };
        for door in doors {
            let (port, client) = (door.port, ClientAddress::Gateway);
            let target = Target { vps: vps(&door.name), port, client, ignore: None };
            for (at, family) in door.at.both().into_iter().zip(0..) {
                let from = door.from.iter().map(|(name, addresses)| (addresses.both()[family], name.clone())).collect();
                table.doors.insert((at, door.port).into(), Entry { target: target.clone(), from });
            }
        }
        table
    }

    /// Where `peer` is let in at `door`, and who that is.
    pub fn door(&self, door: SocketAddr, peer: IpAddr) -> Option<(&Target, &VpsName)> {
        let door = self.doors.get(&door)?;
        Some((&door.target, door.from.get(&peer)?))
    }

    /// All doors.
    pub fn doors(&self) -> impl Iterator<Item = SocketAddr> {
        self.doors.keys().copied()
    }

    /// What is done with connections to `address`.
    pub fn site(&self, address: ListenAddress) -> Option<&Site> {
        self.sites.get(&address)
    }

    /// All addresses that have to be listened on.
    pub fn addresses(&self) -> impl Iterator<Item = ListenAddress> {
        self.sites.keys().copied()
    }
}

impl Hosts {
    fn add(&mut self, host: &str, prefix: &str, target: Target) {
        let routes = self.0.entry(host.into()).or_default();
        routes.reserve_exact(1);
        let at = routes.partition_point(|(other, _)| other.len() >= prefix.len());
        routes.insert(at, (prefix.into(), target));
    }

    /// The route of a request for `path` on `host` (in lower case, without port).
    pub fn find(&self, host: &str, path: &str) -> Option<&Target> {
        let routes = self.0.get(host)?;
        routes.iter().find(|(prefix, _)| covers(prefix, path)).map(|(_, target)| target)
    }
}

/// Whether `path` is `prefix` or lies under it. Only whole segments count, and as they were written: what a
/// server makes of `..` or `%2e` behind its own prefix is its own affair.
fn covers(prefix: &str, path: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    match path.strip_prefix(prefix) {
        Some(rest) => prefix.is_empty() || rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}
