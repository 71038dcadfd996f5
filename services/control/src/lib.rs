//! The `control` service: desired state, the decision to start and stop, the HTTP API.
//!
//! May touch: `/data/control`, its two listeners, the host daemon within its grants, and the services `apps`, `network`
//! and `gateway`. Must never: read what a tenant wrote other than its log, wait for a disk while somebody waits for a
//! wake, or tell a stranger more than that a VPS did not start.
//!
//! Flow A: [`api`] → [`apply`] → [`store`] → [`driver`]. Flow C: [`varlink`] (a wake) → [`driver`] → [`life`] (decides) →
//! [`launch`] → [`routes`] (says where it is).
#![forbid(unsafe_code)]

mod api;
mod apply;
mod bundle;
mod busy;
mod calls;
mod clock;
mod delete;
mod diff;
mod direct;
mod disk;
mod driver;
mod events;
mod history;
mod images;
mod inbox;
mod inside;
mod jobs;
mod launch;
mod life;
mod locate;
mod logs;
mod machine;
mod memory;
mod neighbours;
mod pool;
mod routes;
mod run_spec;
mod secrets;
mod shared;
mod state;
mod store;
mod story;
mod transfer;
mod varlink;
mod view;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;

pub use api::openapi::document as openapi_document;

use std::sync::Arc;

use anyhow::Context as _;

/// Runs the service until it fails.
pub async fn run(context: service::Context) -> anyhow::Result<()> {
    let control = shared::Control::open(&context)?;
    // Requests wait in the listeners until it is known what is up: a wake must not start what runs already.
    let events = events::follow(control.clone()).await;
    delete::resume(&control);
    bundle::resume(&control);
    tokio::spawn(state::sweep(control.clone()));
    let mut grown = control.grown.subscribe();
    grown.mark_changed();
    tokio::spawn(service::keep_trimmed(grown, context.trim));
    tokio::spawn(images::watch(control.clone()));
    tokio::spawn(disk::watch(control.clone()));
    tokio::spawn(neighbours::tell(control.clone()));
    tokio::spawn(pool::keep(control.clone()));
    tokio::spawn(jobs::keep(control.clone()));
    tokio::spawn(driver::measure(control.clone()));
    let api = api::serve(context.listener("api")?, control.clone());
    context.ready();
    let varlink = context.serve(Arc::new(varlink::Server::new(control)));
    tokio::select! {
        ended = api => ended.context("serving the HTTP API"),
        ended = varlink => ended.context("serving io.bailiwick.Control"),
        ended = events => ended.context("following the host's events"),
    }
}
