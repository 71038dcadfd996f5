//! Follows the outer ends of links: the host daemon makes them, this configures them.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use futures_util::StreamExt;
use model::run::Link;
use rtnetlink::{
    Handle, MulticastGroup, new_connection, new_multicast_connection,
    packet_core::NetlinkPayload,
    packet_route::{RouteNetlinkMessage, link::LinkMessage},
};
use tokio::sync::{Mutex, mpsc, watch};

use crate::{
    netlink::{self, NetlinkError},
    policy, sysctl,
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

/// All links of the network VPS's namespace.
#[derive(Debug, Clone)]
pub struct Links {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    handle: Handle,
    subnet: ipnet::Ipv4Net,
    prefix6: Ipv6Addr,
    gateway: Option<Ipv4Addr>,
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
    pub async fn start(
        subnet: ipnet::Ipv4Net,
        prefix6: Ipv6Addr,
        gateway: Option<Ipv4Addr>,
    ) -> Result<Self, LinkError> {
        let (connection, handle, _) = new_connection()?;
        tokio::spawn(connection);
        let ipv6 = sysctl::has_ipv6();
        // before the first look, so that nothing is missed between the two
        let events = subscribe()?;
        if let Some(lo) = netlink::index_of(&handle, "lo").await? {
            netlink::up(&handle, lo).await?;
        }
        sysctl::namespace(ipv6)?;
        policy::install(&handle, prefix6, gateway, ipv6).await?;
        let inner = Inner {
            handle,
            subnet,
            prefix6,
            gateway,
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

    /// Completes when the link of that name is there and configured.
    pub async fn attached(&self, name: &str) -> Result<(), LinkError> {
        let mut appeared = self.inner.appeared.subscribe();
        loop {
            appeared.mark_unchanged();
            if let Some(index) = netlink::index_of(&self.inner.handle, name).await?
                && self.ensure(index, name).await?
            {
                return Ok(());
            }
            appeared.changed().await.map_err(|_| LinkError::Ended)?;
        }
    }

    /// Configures all links that are there, and forgets those that are not.
    async fn look(&self) -> Result<(), LinkError> {
        let there = netlink::all_links(&self.inner.handle).await?;
        self.inner.configured.lock().await.retain(|index, _| there.iter().any(|link| link.header.index == *index));
        if self.inner.ipv6 {
            let keep = |name: &str| there.iter().any(|link| netlink::name_of(link) == Some(name));
            policy::sweep6(&self.inner.handle, keep).await?;
        }
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
        if self.inner.ipv6 && !configured.values().any(|other| *other == name) {
            policy::sweep6(&self.inner.handle, |other| *other != *name).await?;
        }
        Ok(())
    }

    /// Configures a link unless it is; false: it went away, or is not a VPS's.
    async fn ensure(&self, index: u32, name: &str) -> Result<bool, LinkError> {
        let Some(address) = Link::address_of(name).filter(|address| self.inner.subnet.contains(address)) else {
            return Ok(false);
        };
        let mut configured = self.inner.configured.lock().await;
        if configured.get(&index).is_some_and(|known| known == name) {
            return Ok(true);
        }
        let link = Link::new(address, Link::address6_for(self.inner.prefix6, address));
        let there = match self.configure(index, &link).await {
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

    async fn configure(&self, index: u32, link: &Link) -> Result<(), LinkError> {
        let handle = &self.inner.handle;
        let is_gateway = self.inner.gateway == Some(link.address);
        sysctl::link(&link.name, self.inner.ipv6)?;
        netlink::up(handle, index).await?;
        let mut ends = vec![(IpAddr::V4(link.address), IpAddr::V4(Link::GATEWAY), 32)];
        if self.inner.ipv6 {
            ends.push((IpAddr::V6(link.address6), IpAddr::V6(Link::GATEWAY6), 64));
        }
        for (inner, outer, length) in ends {
            netlink::address(handle, index, outer, length).await?;
            netlink::neighbour(handle, index, inner, &Link::INNER_MAC).await?;
            netlink::host_route(handle, index, inner, policy::MAIN).await?;
            if is_gateway {
                netlink::host_route(handle, index, inner, policy::TENANTS).await?;
            }
        }
        if self.inner.ipv6 && !is_gateway {
            policy::admit6(handle, link).await?;
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
