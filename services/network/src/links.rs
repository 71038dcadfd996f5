//! Follows the outer ends of links: the host daemon makes them, this configures them.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use futures_util::StreamExt;
use model::{Transport, run::Link};
use rtnetlink::{
    Handle, MulticastGroup, new_connection, new_multicast_connection,
    packet_core::NetlinkPayload,
    packet_route::{RouteNetlinkMessage, link::LinkMessage},
};
use tokio::sync::{Mutex, mpsc, watch};
use wire::network::Way;

use crate::{
    firewall::{Element, Firewall, FirewallError},
    netlink::{self, NetlinkError},
    nft::NftError,
    policy::{self, Layout},
    sysctl,
    ways::{WayError, Ways},
};

/// Why links cannot be looked after.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No netlink socket.
    #[error("opening a netlink socket: {0}")]
    Socket(#[from] std::io::Error),
    /// The kernel refused something.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A kernel setting was not taken.
    #[error(transparent)]
    Sysctl(#[from] sysctl::SysctlError),
    /// Rules that nft makes.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Who may reach whom.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// No more events will come.
    #[error("the kernel's link events ended")]
    Ended,
}

enum Event {
    New(LinkMessage),
    Gone(LinkMessage),
    /// The kernel dropped events: look at everything again.
    Lost,
}

/// What is at the other end of a link.
enum End {
    Vps(Link),
    Host,
}

/// All links of the network VPS's namespace.
#[derive(Debug, Clone)]
pub struct Links {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    handle: Handle,
    firewall: Firewall,
    ways: Ways,
    layout: Layout,
    ipv6: bool,
    /// Those that are configured: index and name. Held while one is being configured.
    configured: Mutex<HashMap<u32, String>>,
    /// Changes when a link appeared.
    appeared: watch::Sender<u64>,
    events: Mutex<mpsc::Receiver<Event>>,
}

impl Links {
    /// Prepares the namespace and configures all links that are there. What is in force already stays untouched, so a
    /// restart does not disturb traffic.
    pub async fn start(layout: Layout) -> Result<Self, LinkError> {
        let (connection, handle, _) = new_connection()?;
        tokio::spawn(connection);
        let ipv6 = sysctl::has_ipv6();
        // before the first look, so that nothing is missed between the two
        let events = subscribe()?;
        if let Some(lo) = netlink::index_of(&handle, "lo").await? {
            netlink::up(&handle, lo).await?;
            if layout.resolves {
                let (v4, v6) = layout.translated;
                netlink::address(&handle, lo, v4.into(), 32).await?;
                if ipv6 {
                    netlink::address(&handle, lo, v6.into(), 128).await?;
                }
            }
        }
        sysctl::namespace(ipv6)?;
        // Before the routing rules that go by its marks.
        let firewall = Firewall::prepare(&layout).await?;
        policy::install(&handle, &layout, ipv6).await?;
        let inner = Inner {
            ways: Ways::prepare(handle.clone(), layout.clone()).await?,
            handle,
            firewall,
            layout,
            ipv6,
            configured: Mutex::default(),
            appeared: watch::Sender::new(0),
            events: Mutex::new(events),
        };
        let links = Self { inner: Arc::new(inner) };
        links.look().await?;
        sysctl::forward(ipv6)?;
        Ok(links)
    }

    /// Configures links as they appear. Returns only when that is no longer possible.
    pub async fn follow(&self) -> LinkError {
        let mut events = self.inner.events.lock().await;
        while let Some(event) = events.recv().await {
            let handled = match event {
                Event::New(link) => self.appeared(&link).await,
                Event::Gone(link) => self.gone(&link).await,
                Event::Lost => self.look().await,
            };
            if let Err(error) = handled {
                tracing::error!(%error, "a link could not be configured");
            }
        }
        LinkError::Ended
    }

    /// Completes when the link of that name is there and configured, and the gateway can show clients' addresses to
    /// the `shown` ports of the VPS at its end.
    pub async fn attached(&self, name: &str, shown: &[(Transport, u16)]) -> Result<(), LinkError> {
        let mut appeared = self.inner.appeared.subscribe();
        loop {
            appeared.mark_unchanged();
            if let Some(index) = netlink::index_of(&self.inner.handle, name).await?
                && self.ensure(index, name).await?
            {
                self.inner.show_clients(name, shown).await?;
                return Ok(());
            }
            appeared.changed().await.map_err(|_| LinkError::Ended)?;
        }
    }

    /// What leads past the gateway.
    pub fn ways(&self) -> &Ways {
        &self.inner.ways
    }

    /// Leads these past the gateway to the VPS at the end of a link, and no others any more.
    pub async fn lead(&self, link: &str, number: u64, ways: &BTreeSet<Way>) -> Result<(), WayError> {
        self.inner.ways.lead(link, number, ways).await
    }

    /// Who may do what.
    pub fn firewall(&self) -> &Firewall {
        &self.inner.firewall
    }

    /// Configures all links that are there, and forgets those that are not.
    async fn look(&self) -> Result<(), LinkError> {
        let there = netlink::all_links(&self.inner.handle).await?;
        self.inner.configured.lock().await.retain(|index, _| there.iter().any(|link| link.header.index == *index));
        let keep = |name: &str| there.iter().any(|link| netlink::name_of(link) == Some(name));
        self.inner.firewall.sweep(|address| keep(&self.inner.layout.link(address).name)).await?;
        self.inner.ways.sweep(keep).await;
        for link in &there {
            self.appeared(link).await?;
        }
        Ok(())
    }

    async fn appeared(&self, link: &LinkMessage) -> Result<(), LinkError> {
        if let Some(name) = netlink::name_of(link) {
            self.ensure(link.header.index, name).await?;
            self.inner.appeared.send_modify(|n| *n += 1);
        }
        Ok(())
    }

    async fn gone(&self, link: &LinkMessage) -> Result<(), LinkError> {
        let mut configured = self.inner.configured.lock().await;
        let Some(name) = configured.remove(&link.header.index) else { return Ok(()) };
        // its successor may be there already
        if !configured.values().any(|other| *other == name) {
            self.inner.show_clients(&name, &[]).await?;
            drop(configured);
            self.inner.ways.gone(&name).await;
        }
        Ok(())
    }

    /// Configures a link unless it is; false: it went away, or is not a VPS's.
    async fn ensure(&self, index: u32, name: &str) -> Result<bool, LinkError> {
        let layout = &self.inner.layout;
        let end = match Link::address_of(name).filter(|address| layout.subnet.contains(address)) {
            Some(address) => End::Vps(layout.link(address)),
            None if layout.uplink && name == Link::UPLINK => End::Host,
            None => return Ok(false),
        };
        let mut configured = self.inner.configured.lock().await;
        if configured.get(&index).is_some_and(|known| known == name) {
            return Ok(true);
        }
        let there = match self.configure(index, name, &end).await {
            Ok(()) => true,
            Err(LinkError::Netlink(error)) if error.no_device() => false,
            // its settings vanish with it
            Err(error) => match netlink::index_of(&self.inner.handle, name).await? {
                Some(now) if now == index => return Err(error),
                _ => false,
            },
        };
        if there {
            configured.insert(index, name.to_owned());
            tracing::debug!(link = name, "configured");
        }
        Ok(there)
    }

    async fn configure(&self, index: u32, name: &str, end: &End) -> Result<(), LinkError> {
        let Inner { handle, layout, ipv6, .. } = &*self.inner;
        sysctl::link(name, *ipv6)?;
        netlink::up(handle, index).await?;
        let (far, far6) = match end {
            End::Vps(link) => (link.address, link.address6),
            End::Host => (Link::HOST, Link::HOST6),
        };
        let mut pairs = vec![(IpAddr::V4(far), IpAddr::V4(Link::GATEWAY), 32)];
        if *ipv6 {
            pairs.push((IpAddr::V6(far6), IpAddr::V6(Link::GATEWAY6), 64));
        }
        for (far, near, length) in pairs {
            netlink::address(handle, index, near, length).await?;
            netlink::neighbour(handle, index, far, &Link::INNER_MAC).await?;
            match end {
                End::Vps(link) => {
                    netlink::host_route(handle, index, far, policy::MAIN).await?;
                    if layout.gateway == Some(link.address) {
                        netlink::host_route(handle, index, far, policy::TENANTS).await?;
                        netlink::default_route(handle, index, far, policy::NEIGHBOURS).await?;
                        netlink::host_route(handle, index, far, policy::ANSWERS).await?;
                        netlink::default_route(handle, index, far, policy::ANSWERS).await?;
                    }
                }
                End::Host => {
                    netlink::default_route(handle, index, far, policy::MAIN).await?;
                    netlink::default_route(handle, index, far, policy::TENANTS).await?;
                }
            }
        }
        Ok(())
    }
}

impl Inner {
    /// Lets the gateway show clients' addresses to these ports of the VPS at the end of a link, and to no others any more.
    async fn show_clients(&self, link: &str, ports: &[(Transport, u16)]) -> Result<(), FirewallError> {
        let Some(link) = Link::address_of(link).map(|address| self.layout.link(address)) else { return Ok(()) };
        for address in [IpAddr::V4(link.address), link.address6.into()] {
            let of = |(transport, port): &(Transport, u16)| Element::Shown(address, *transport, *port);
            self.firewall.set(Element::shown_of(address), ports.iter().map(of).collect()).await?;
        }
        Ok(())
    }
}

/// The kernel's link events, in order.
fn subscribe() -> Result<mpsc::Receiver<Event>, LinkError> {
    let (connection, _, mut messages) = new_multicast_connection(&[MulticastGroup::Link])?;
    tokio::spawn(connection);
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Some((message, _)) = messages.next().await {
            let event = match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Event::New(link),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) => Event::Gone(link),
                NetlinkPayload::Overrun(_) => Event::Lost,
                _ => continue,
            };
            if sender.send(event).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}
