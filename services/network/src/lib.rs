//! Every VPS's link ends here: gives out addresses and names, configures links, and keeps VPSs apart.
//!
//! Runs in the network VPS's namespace, as root of its user namespace. May touch: links, routes and rules of that
//! namespace, and its own directory. Must never: touch the host's network, or open a path between two tenants, or between two VPSs
//! whose tenant did not say so.
#![forbid(unsafe_code)]

mod addresses;
mod conntrack;
mod egress;
mod firewall;
mod links;
mod names;
mod nat;
mod neighbours;
mod netlink;
mod nfnetlink;
mod nft;
mod policy;
mod sysctl;
mod ways;

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use model::{
    ListenAddress, Transport, VpsName,
    api::{ErrorKind, FirewallKind, FirewallRow},
    host::FIRST_TENANT,
    run::Link,
};
use wire::{
    Fault, Peer, Replier, Request,
    network::{
        Addresses, AllAddresses, Allocate, Allocated, Attach, Firewall, FirewallRows, Found, Lead, Lookup, Neighbours,
        Release, Reserve, Unreserve, Used,
    },
    varlink::{Empty, Method, Service},
};

use firewall::{Element, FirewallError, Set};
use names::{Resolvers, Subnets};
use neighbours::{Names, Said};
use ways::WayError;

pub use addresses::{AddressBook, AddressError};
pub use links::{LinkError, Links};
pub use netlink::NetlinkError;
pub use nft::NftError;
pub use policy::Layout;

/// Ports of one VPS that are shown clients' addresses; a spec has at most so many routes.
const PORTS: usize = 64;
/// How long `Attach` waits for a link.
const ATTACH: Duration = Duration::from_secs(10);

/// Serves `io.bailiwick.Network` and follows the links until the end.
pub async fn run(context: service::Context) -> anyhow::Result<()> {
    let config = &context.config;
    let layout = Layout {
        subnet: config.network.subnet,
        subnet6: config.network.subnet6,
        gateway: config.vps_of("gateway").and_then(|vps| config.designated_address(vps)),
        uplink: config.network.uplink.is_some(),
        translated: config.network.translated(),
        resolves: config.network.uplink.is_some() && !config.network.resolvers.is_empty(),
        owned: config.network.addresses.clone(),
    };
    let path = context.data.join("addresses.json");
    let book = AddressBook::open(&path, layout.subnet, layout.subnet6.addr(), FIRST_TENANT)?;
    let subnets = Subnets(layout.subnet, layout.subnet6);
    let resolvers = if layout.resolves { config.network.resolvers.clone() } else { Vec::new() };
    let resolvers = Resolvers::new(resolvers, layout.translated);
    let links = Links::start(layout.clone()).await.context("preparing links")?;
    let egress = egress::Rules::prepare(layout, links.firewall().clone()).await?;
    let said = Said::open(context.data.join("neighbours.json"));
    let state = Mutex::new(State { book, said, version: 0, names: None });
    let network = Arc::new(Network {
        state,
        links: links.clone(),
        egress,
        server: OnceLock::new(),
        told: tokio::sync::Mutex::default(),
    });
    network.in_force().await?;
    let names = names::Server::new(network.clone(), subnets, resolvers);
    let _ = network.server.set(names.clone());
    let again = names.clone().keep_open();
    context.ready();
    tokio::select! {
        served = names.serve() => served.context("serving names"),
        served = context.serve(network) => served,
        () = again => unreachable!("it has no end"),
        followed = links.follow() => Err(followed.into()),
        () = links.ways().watch() => unreachable!("it has no end"),
    }
}

struct Network {
    state: Mutex<State>,
    links: Links,
    egress: egress::Rules,
    /// Where VPSs ask for names.
    server: OnceLock<Arc<names::Server<Network>>>,
    /// The version of what the kernel was told last of who may reach whom. Held while it is being told.
    told: tokio::sync::Mutex<Option<u64>>,
}

struct State {
    book: AddressBook,
    said: Said,
    /// Counts changes of the two.
    version: u64,
    /// None: something changed since they were looked up.
    names: Option<Arc<Names>>,
}

impl State {
    fn changed(&mut self) {
        self.version += 1;
        self.names = None;
    }
}

impl Network {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the kernel let those reach each other who may. Who asks while it is being told is told of together.
    async fn in_force(&self) -> Result<(), FirewallError> {
        let wanted = self.state().version;
        let mut told = self.told.lock().await;
        if told.is_some_and(|told| told >= wanted) {
            return Ok(());
        }
        let (version, elements, bounds) = {
            let state = self.state();
            (state.version, state.said.elements(&state.book), state.said.bounds(&state.book))
        };
        self.egress.set(bounds).await?;
        self.links.firewall().set(Element::NEIGHBOURS, elements).await?;
        *told = Some(version);
        Ok(())
    }

    /// The same after an address was given out or back: only where a rule is about it.
    async fn readdressed(&self, name: &VpsName) -> Result<(), Fault> {
        let concerned = {
            let mut state = self.state();
            state.changed();
            state.said.is_about(name)
        };
        if concerned { self.in_force().await.map_err(failed) } else { Ok(()) }
    }
}

impl Network {
    /// What VPSs may connect to.
    async fn rows(&self) -> Result<Vec<FirewallRow>, FirewallError> {
        let names: HashMap<Ipv4Addr, VpsName> =
            self.state().book.links().into_iter().map(|(name, link)| (link.address, name)).collect();
        let name_of = |address: IpAddr| names.get(&policy::low_of(address)).cloned();
        let mut rows = Vec::new();
        let mut pairs = BTreeMap::<_, firewall::Count>::new();
        for (element, about) in self.links.firewall().list(Set::Allowed).await? {
            if let Element::Allowed(from, to, port) = element
                && let (Some(from), Some(to)) = (name_of(from), name_of(to))
            {
                // Of both families.
                let count = pairs.entry((from, format!("{to}:{port}"))).or_default();
                count.packets += about.count.packets;
                count.bytes += about.count.bytes;
            }
        }
        let row = |vps, kind, to, count: Option<firewall::Count>| FirewallRow {
            vps,
            kind,
            to,
            name: None,
            packets: count.map(|count| count.packets),
            bytes: count.map(|count| count.bytes),
            left_ms: None,
        };
        rows.extend(pairs.into_iter().map(|((from, to), count)| row(from, FirewallKind::Allow, to, Some(count))));
        for egress::Counted { vps, to, count, about } in self.egress.rows().await? {
            let Some(vps) = names.get(&vps).cloned() else { continue };
            let kind = if about.is_some() { FirewallKind::Opened } else { FirewallKind::Egress };
            let left_ms = about.as_ref().and_then(|about| about.left?.as_millis().try_into().ok());
            rows.push(FirewallRow { name: about.and_then(|about| about.name), left_ms, ..row(vps, kind, to, count) });
        }
        for (element, about) in self.links.firewall().list(Set::Refused).await? {
            if let Element::Refused(from, to, protocol, port) = element
                && let Some(vps) = name_of(from)
            {
                let transport = if protocol == firewall::UDP { Transport::Udp } else { Transport::Tcp };
                let to = ListenAddress((to, port).into(), transport).to_string();
                let left_ms = about.left.and_then(|left| left.as_millis().try_into().ok());
                rows.push(FirewallRow { left_ms, ..row(vps, FirewallKind::Refused, to, Some(about.count)) });
            }
        }
        rows.sort_by(|one, other| (&one.vps, one.kind).cmp(&(&other.vps, other.kind)));
        Ok(rows)
    }

    /// The addresses of a name of the outside, asked for as that VPS does.
    async fn lookup(&self, name: &VpsName, host: &str) -> Result<Vec<IpAddr>, Fault> {
        let link = self.state().book.link_of(name);
        let (Some(link), Some(server)) = (link, self.server.get()) else {
            return Err(Fault::new(ErrorKind::NotFound, format!("vps \"{name}\" has no address yet")));
        };
        Ok(server.lookup(link.address, &host.to_ascii_lowercase()).await)
    }
}

impl names::Book for Network {
    fn names(&self) -> Arc<Names> {
        let State { book, said, names, .. } = &mut *self.state();
        names.get_or_insert_with(|| Arc::new(said.names(book))).clone()
    }

    fn egress(&self) -> &egress::Rules {
        &self.egress
    }
}

fn failed(error: FirewallError) -> Fault {
    Fault::new(ErrorKind::Failed, error.to_string())
}

impl Service for Network {
    async fn call(&self, _peer: &Peer, request: Request, replier: &mut Replier<'_>) -> Result<(), Fault> {
        match request.method.as_str() {
            Allocate::NAME => {
                let Allocate { name, reserved, wanted } = request.parse()?;
                let link = self.state().book.give(&name, reserved, wanted)?;
                // Who asks at the same time is written with it.
                tokio::task::yield_now().await;
                self.state().book.keep(&name)?;
                self.readdressed(&name).await?;
                replier.done::<Allocate>(&Allocated { link }, &[]).await?;
            }
            Reserve::NAME => {
                let link = self.state().book.reserve()?;
                replier.done::<Reserve>(&Allocated { link }, &[]).await?;
            }
            Unreserve::NAME => {
                let address = request.parse::<Unreserve>()?.address;
                self.state().book.unreserve(address);
                replier.done::<Unreserve>(&Empty {}, &[]).await?;
            }
            Release::NAME => {
                let name = request.parse::<Release>()?.name;
                self.state().book.release(&name)?;
                self.readdressed(&name).await?;
                replier.done::<Release>(&Empty {}, &[]).await?;
            }
            Attach::NAME => {
                let Attach { link, transparent, transparent_udp } = request.parse()?;
                let of = |transport, ports: Vec<u16>| ports.into_iter().map(move |port| (transport, port));
                let shown =
                    of(Transport::Tcp, transparent).chain(of(Transport::Udp, transparent_udp)).collect::<Vec<_>>();
                tokio::select! {
                    attached = attach(&self.links, &link, &shown) => attached?,
                    () = replier.gone() => return Ok(()),
                }
                replier.done::<Attach>(&Empty {}, &[]).await?;
            }
            Lead::NAME => {
                let Lead { link, number, ways } = request.parse()?;
                self.links.lead(&link, number, &ways).await?;
                replier.done::<Lead>(&Empty {}, &[]).await?;
            }
            Used::NAME => {
                let used = self.links.ways().used(&request.parse::<Used>()?.link).await?;
                replier.done::<Used>(&used, &[]).await?;
            }
            Addresses::NAME => {
                let links = self.state().book.links();
                replier.done::<Addresses>(&AllAddresses { links }, &[]).await?;
            }
            Neighbours::NAME => {
                let part = request.parse::<Neighbours>()?;
                let last = part.last;
                {
                    let mut state = self.state();
                    if state.said.hear(part)? {
                        state.changed();
                    }
                }
                // Also what was said before, and could not be carried out.
                if last {
                    self.in_force().await.map_err(failed)?;
                }
                replier.done::<Neighbours>(&Empty {}, &[]).await?;
            }
            Firewall::NAME => {
                let rows = self.rows().await.map_err(failed)?;
                replier.done::<Firewall>(&FirewallRows { rows }, &[]).await?;
            }
            Lookup::NAME => {
                let Lookup { name, host } = request.parse()?;
                let addresses = self.lookup(&name, &host).await?;
                replier.done::<Lookup>(&Found { addresses }, &[]).await?;
            }
            _ => return Err(request.unknown()),
        }
        Ok(())
    }
}

async fn attach(links: &Links, name: &str, shown: &[(Transport, u16)]) -> Result<(), Fault> {
    if Link::address_of(name).is_none() {
        return Err(Fault::new(
            ErrorKind::Invalid,
            format!("`{name}` is no link's name: `v` and 8 hexadecimal digits"),
        ));
    }
    if shown.len() > PORTS {
        return Err(Fault::new(ErrorKind::Invalid, format!("{} ports: at most {PORTS} are taken", shown.len())));
    }
    match tokio::time::timeout(ATTACH, links.attached(name, shown)).await {
        Ok(attached) => attached.map_err(|error| Fault::new(ErrorKind::Failed, error.to_string())),
        Err(_) => Err(Fault::new(
            ErrorKind::Unavailable,
            format!(
                "link {name} did not appear within {} s; the host daemon makes it when the VPS starts",
                ATTACH.as_secs()
            ),
        )),
    }
}

impl From<AddressError> for Fault {
    fn from(error: AddressError) -> Self {
        let kind = match error {
            AddressError::Exhausted { .. } => ErrorKind::Lacking,
            _ => ErrorKind::Failed,
        };
        Fault::new(kind, error.to_string())
    }
}

impl From<WayError> for Fault {
    fn from(error: WayError) -> Self {
        let kind = match error {
            WayError::Foreign(_) | WayError::NoLink(_) => ErrorKind::Invalid,
            _ => ErrorKind::Failed,
        };
        Fault::new(kind, error.to_string())
    }
}
