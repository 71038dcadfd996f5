//! The gateway: the way from a client's connection to a VPS, which is woken for it.
//!
//! Reads like its flow: `accept` → `detect` → `route` → `wake` → `http` and `backend`, or `splice`; `idle` says when a VPS
//! is not needed any more, and `quiet` which connections count. `doors` are what VPSs of a tenant reach each other by. `follow` and
//! `listen` keep routes and listeners as `control` wants them. What a server sees of a client: `dial` → `transparent` or `proxy`.
//! Clients that wake nobody get what `cache` has.
//! May touch: listening sockets the host daemon gives it, the addresses of VPSs, `control`. Must never: decide on a start or
//! a stop, send to a VPS that has not been said to be reachable, trust a byte of what a client sends.
#![forbid(unsafe_code)]

mod accept;
mod backend;
mod cache;
mod detect;
mod dial;
mod doors;
mod end;
mod follow;
mod forward;
mod http;
mod idle;
mod listen;
mod page;
mod proxy;
mod quiet;
mod route;
mod socket;
mod splice;
#[cfg(test)]
mod tests;
mod transparent;
mod udp;
mod wake;

use std::sync::Arc;

use accept::Limits;
use follow::Directory;
use listen::Listeners;
use tokio::sync::Notify;
use transparent::Transparent;

/// Serves until the end of the designated VPS.
pub async fn run(context: service::Context) -> anyhow::Result<()> {
    let directory = Directory::new(context.client("control"));
    let transparent = match Transparent::prepare(&context.config.network).await {
        Ok(transparent) => Some(transparent),
        Err(error) => {
            tracing::warn!(%error, "servers will see the gateway's address instead of their clients'");
            None
        }
    };
    let limits = Arc::new(Limits::of_this_process(transparent));
    let listeners = Listeners::new(context.host.clone(), directory.clone(), limits.clone());
    let (table_changed, tables) = tokio::sync::watch::channel(());
    tokio::spawn(service::keep_trimmed(tables.clone(), context.trim));
    let (doors_open, listening) = (Notify::new(), Notify::new());
    let doors = doors::keep(directory.clone(), limits.clone(), doors::place(&context.config), tables.clone(), || {
        doors_open.notify_one()
    });
    let ready = async {
        doors_open.notified().await;
        listening.notified().await;
        context.ready();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = directory.follow(table_changed) => anyhow::bail!("following the routes ended"),
        () = listeners.clone().keep(tables, || listening.notify_one()) => anyhow::bail!("keeping the listeners ended"),
        () = doors => anyhow::bail!("keeping the doors ended"),
        () = ready => unreachable!("it pends"),
        served = context.serve(listeners.clone()) => served,
        ended = end::asked_for(&limits) => ended.map(|()| std::process::exit(0)),
    }
}
