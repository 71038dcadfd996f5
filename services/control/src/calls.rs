//! Calls to others that may be down for a moment: law 3 has them back within a second, so it pays to ask again.

use std::{os::fd::BorrowedFd, time::Duration};

use model::api::ErrorKind;
use tokio::time::{Instant, sleep, timeout_at};
use wire::{Client, Fault, Method};

/// Time for a call that somebody waits for.
pub const PATIENCE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Calls until there is an answer other than "not there", or until `limit` is over.
pub async fn insist<M: Method>(client: &Client, method: &M, limit: Duration) -> Result<M::Reply, Fault> {
    insist_with(client, method, &[], limit).await
}

/// The same with descriptors beside it.
pub async fn insist_with<M: Method>(
    client: &Client,
    method: &M,
    fds: &[BorrowedFd<'_>],
    limit: Duration,
) -> Result<M::Reply, Fault> {
    let end = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        let silent = |_| Fault::new(ErrorKind::Unavailable, format!("{} did not answer in time", whose(M::NAME)));
        match timeout_at(end, client.call_with_fds(method, fds)).await.map_err(silent)? {
            Err(fault) if fault.kind == ErrorKind::Unavailable && Instant::now() + pause < end => {
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            answer => return answer.map(|(reply, _)| reply),
        }
    }
}

/// Who serves a method, in a person's words.
fn whose(method: &str) -> String {
    match method.split('.').nth(2) {
        Some("Host") | None => "the host daemon".to_owned(),
        Some(service) => format!("the service {}", service.to_lowercase()),
    }
}
