//! The `logs` service: sends the lines of all VPSs' logs to the targets that host.toml names.
//!
//! May touch: log files that the host hands over, its own directory, and the targets. Must never: wait for a target while it
//! holds more than a bounded piece of a log, or let what a tenant wrote look like another line, field or tenant.
//!
//! A log's own files are the buffer: while a target is away nothing is read, and what is rotated away before it was sent is
//! lost, counted and said. Flow, for each target by itself: [`watch`] (which logs have more) → [`tap`] (reads one) →
//! [`form`] (writes lines as the target wants them) → [`sink`] (sends) → [`ship`] (notes how far).
#![forbid(unsafe_code)]

mod form;
mod positions;
mod shared;
mod ship;
mod sink;
mod tap;
mod watch;

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use wire::{
    Fault, Peer, Replier, Request,
    logs::{AllTargets, Status},
    varlink::{Method, Service},
};

use shared::Shared;

/// Ships, and serves `io.bailiwick.Logs`, until the end.
pub async fn run(context: service::Context) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for target in &context.config.logs.ship {
        let shared = Arc::new(Shared::open(target.clone(), &context.data));
        tokio::spawn(watch::run(shared.clone(), context.host.clone()));
        tokio::spawn(ship::run(shared.clone(), context.host.clone()));
        all.push(shared);
    }
    let mut ends = signal(SignalKind::terminate())?;
    let saved = all.clone();
    tokio::spawn(async move {
        ends.recv().await;
        saved.iter().for_each(|shared| shared.save());
        std::process::exit(0);
    });
    // What is written from now on is shipped.
    for shared in &all {
        shared.begun.notified().await;
    }
    context.ready();
    context.serve(Arc::new(Logs { all })).await
}

struct Logs {
    all: Vec<Arc<Shared>>,
}

impl Service for Logs {
    async fn call(&self, _peer: &Peer, request: Request, replier: &mut Replier<'_>) -> Result<(), Fault> {
        if request.method != Status::NAME {
            return Err(request.unknown());
        }
        let targets = self.all.iter().map(|shared| shared.status()).collect();
        Ok(replier.done::<Status>(&AllTargets { targets }, &[]).await?)
    }
}
