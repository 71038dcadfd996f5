//! The end of a gateway that is asked to end: nothing more is accepted, so that the next one does, and what is under way may
//! finish for a moment.

use std::{sync::LazyLock, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::timeout,
};

use crate::accept::Limits;

/// How long what is under way may take. Who connects meanwhile waits for the next gateway, so this is less than a second.
const FINISH: Duration = Duration::from_millis(500);

/// Whether it has begun. There is one for the process, as there is one SIGTERM.
static BEGUN: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(false));

/// Waits until the end begins.
pub async fn begun() {
    let _ = BEGUN.subscribe().wait_for(|begun| *begun).await;
}

/// Waits for SIGTERM, then until all connections have ended or may not go on any longer.
pub async fn asked_for(limits: &Limits) -> anyhow::Result<()> {
    signal(SignalKind::terminate())?.recv().await;
    BEGUN.send_replace(true);
    let _ = timeout(FINISH, limits.unused()).await;
    Ok(())
}
