//! Every VPS's link ends here: gives out addresses, configures links, and keeps tenants apart.
//!
//! Runs in the network VPS's namespace, as root of its user namespace. May touch: links, routes and rules of that
//! namespace, and its own directory. Must never: touch the host's network, or open a path between two tenants.
#![forbid(unsafe_code)]

mod addresses;
mod links;
mod nat;
mod netlink;
mod policy;
mod sysctl;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use model::{api::ErrorKind, host::FIRST_TENANT, run::Link};
use wire::{
    Fault, Peer, Replier, Request,
    network::{Addresses, AllAddresses, Allocate, Allocated, Attach, Release},
    varlink::{Empty, Method, Service},
};

pub use addresses::{AddressBook, AddressError};
pub use links::{LinkError, Links};
pub use nat::NatError;
pub use netlink::NetlinkError;
pub use policy::Layout;

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
    };
    if layout.uplink {
        nat::install(&layout).await?;
    }
    let path = context.data.join("addresses.json");
    let book = AddressBook::open(&path, layout.subnet, layout.subnet6.addr(), FIRST_TENANT)?;
    let links = Links::start(layout).await.context("preparing links")?;
    context.ready();
    let network = Arc::new(Network { book: Mutex::new(book), links: links.clone() });
    tokio::select! {
        served = context.serve(network) => served,
        followed = links.follow() => Err(followed.into()),
    }
}

struct Network {
    book: Mutex<AddressBook>,
    links: Links,
}

impl Network {
    fn book(&self) -> std::sync::MutexGuard<'_, AddressBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service for Network {
    async fn call(&self, _peer: &Peer, request: Request, replier: &mut Replier<'_>) -> Result<(), Fault> {
        match request.method.as_str() {
            Allocate::NAME => {
                let link = self.book().allocate(&request.parse::<Allocate>()?.name)?;
                replier.done::<Allocate>(&Allocated { link }, &[]).await?;
            }
            Release::NAME => {
                self.book().release(&request.parse::<Release>()?.name)?;
                replier.done::<Release>(&Empty {}, &[]).await?;
            }
            Attach::NAME => {
                let link = request.parse::<Attach>()?.link;
                tokio::select! {
                    attached = attach(&self.links, &link) => attached?,
                    () = replier.gone() => return Ok(()),
                }
                replier.done::<Attach>(&Empty {}, &[]).await?;
            }
            Addresses::NAME => {
                let links = self.book().links();
                replier.done::<Addresses>(&AllAddresses { links }, &[]).await?;
            }
            _ => return Err(request.unknown()),
        }
        Ok(())
    }
}

async fn attach(links: &Links, name: &str) -> Result<(), Fault> {
    if Link::address_of(name).is_none() {
        return Err(Fault::new(
            ErrorKind::Invalid,
            format!("`{name}` is no link's name: `v` and 8 hexadecimal digits"),
        ));
    }
    match tokio::time::timeout(ATTACH, links.attached(name)).await {
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
