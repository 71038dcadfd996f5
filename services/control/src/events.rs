//! Follows what the host says, and tells the drivers.

use std::{future::Future, sync::Arc, time::Duration};

use model::VpsStatus;
use wire::{
    Fault,
    host::{Events, Statuses},
    varlink::ReplyStream,
};

use crate::{driver::by_name, life::Input, shared::Control};

/// Pause before the stream is opened again.
const PAUSE: Duration = Duration::from_millis(20);

/// Opens the stream and takes the first snapshot; the future that comes back goes on with it, and opens it again
/// whenever it breaks.
pub async fn follow(control: Arc<Control>) -> impl Future<Output = anyhow::Result<()>> {
    let mut stream = open(&control).await;
    async move {
        loop {
            match stream.next().await {
                Ok(Some(statuses)) => changes(&control, statuses).await,
                Ok(None) => stream = reopen(&control, "it ended").await,
                Err(fault) => stream = reopen(&control, &fault.message).await,
            }
        }
    }
}

async fn reopen(control: &Arc<Control>, reason: &str) -> ReplyStream<Events> {
    tracing::info!(reason, "the host's events broke; opening them again");
    tokio::time::sleep(PAUSE).await;
    open(control).await
}

async fn open(control: &Arc<Control>) -> ReplyStream<Events> {
    loop {
        let opened: Result<_, Fault> = async {
            let mut stream = control.host.stream(&Events {}).await?;
            let first = stream.next().await?;
            Ok((stream, first))
        }
        .await;
        match opened {
            Ok((stream, Some(first))) => {
                snapshot(control, first).await;
                return stream;
            }
            Ok((_, None)) => tracing::warn!("the host's events ended at once"),
            Err(fault) => tracing::warn!(%fault, "the host's events can't be followed"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn snapshot(control: &Arc<Control>, statuses: Statuses) {
    let (designated, tenants): (Vec<_>, Vec<_>) = statuses.vps.into_iter().partition(|status| status.designated);
    *control.designated() = by_name(designated);
    control.pool.found(tenants.iter().filter(|status| status.prepared).map(|status| status.name.clone()));
    let mut tenants = by_name(tenants);
    let there: Vec<_> = control.all().values().chain(control.deleting().values()).cloned().collect();
    for vps in there {
        vps.ask(Input::Snapshot(tenants.remove(&vps.name))).await;
    }
    for name in tenants.keys() {
        tracing::warn!(vps = %name, "the host has a VPS that is not in the store");
    }
}

async fn changes(control: &Arc<Control>, statuses: Statuses) {
    for status in statuses.vps {
        if status.designated {
            designated(control, status);
            continue;
        }
        let vps = control.get(&status.name).or_else(|| control.deleting().get(&status.name).cloned());
        if let Some(vps) = vps {
            vps.feed(Input::Status(status)).await;
        }
    }
}

fn designated(control: &Control, status: VpsStatus) {
    let phase = format!("{:?}", status.phase).to_lowercase();
    let what = phase.split(' ').next().unwrap_or_default().trim_end_matches('{').to_owned();
    let before = control.designated().insert(status.name.clone(), status.clone());
    if before.is_none_or(|before| before.phase != status.phase) {
        control.history.record(Some(&status.name), &what, format!("start {}", status.run), "bailiwickd");
    }
}
