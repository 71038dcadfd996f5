//! The gateway: the way from a client's connection to a VPS, which is woken for it.
//!
//! Reads like its flow: `accept` → `detect` → `route` → `wake` → `http` and `backend`, or `splice`; `idle` says when a VPS
//! is not needed any more. `follow` and `listen` keep routes and listeners as `control` wants them.
//! May touch: listening sockets the host daemon gives it, the addresses of VPSs, `control`. Must never: decide on a start or
//! a stop, send to a VPS that has not been said to be reachable, trust a byte of what a client sends.
#![forbid(unsafe_code)]

mod accept;
mod backend;
mod detect;
mod follow;
mod forward;
mod http;
mod idle;
mod listen;
mod page;
mod route;
mod splice;
#[cfg(test)]
mod tests;
mod wake;

use std::sync::Arc;

use accept::Limits;
use follow::Directory;
use listen::Listeners;

/// Serves until the end of the designated VPS.
pub async fn run(context: service::Context) -> anyhow::Result<()> {
    let directory = Directory::new(context.client("control"));
    let limits = Arc::new(Limits::of_this_process());
    let listeners = Listeners::new(context.host.clone(), directory.clone(), limits);
    let (table_changed, tables) = tokio::sync::watch::channel(());
    tokio::select! {
        () = directory.follow(table_changed) => anyhow::bail!("following the routes ended"),
        () = listeners.clone().keep(tables, || context.ready()) => anyhow::bail!("keeping the listeners ended"),
        served = context.serve(listeners.clone()) => served,
    }
}
