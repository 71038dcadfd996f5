//! Sends what logs have, and notes how far.

use std::{io, sync::Arc, time::Duration};

use tokio::time::sleep;
use wire::Client;

use crate::{shared::Shared, sink::Sink};

/// Pauses between tries to connect: the first one, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(15));
/// How soon it is looked again whether what was sent has arrived, while nothing more is sent.
const ARRIVAL: Duration = Duration::from_millis(100);
/// The least time between two stores of positions.
const STORE: Duration = Duration::from_secs(1);

/// Ships until the end.
pub async fn run(shared: Arc<Shared>, host: Client) {
    tokio::spawn(keep(shared.clone()));
    let mut pause = PAUSES.0;
    loop {
        let (error, some) = match Sink::open(&shared.target, &host).await {
            Ok(sink) => {
                shared.here();
                pump(&shared, &host, sink).await
            }
            Err(error) => (error, false),
        };
        shared.away(error.to_string());
        if some {
            pause = PAUSES.0;
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Sends until that fails; the reason, and whether something arrived.
async fn pump(shared: &Shared, host: &Client, mut sink: Sink) -> (io::Error, bool) {
    let (mut buffer, mut some) = (Vec::new(), false);
    loop {
        if let Some(chunk) = shared.next(&mut buffer) {
            if let Err(error) = sink.send(shared, host, &chunk).await {
                return (error, some);
            }
            shared.count(chunk.lines.len());
        } else {
            let waits = shared.is_unconfirmed() && !sink.arrived();
            tokio::select! {
                () = shared.work.notified() => {}
                error = sink.broken() => return (error, some),
                () = sleep(ARRIVAL), if waits => {}
            }
        }
        if shared.is_unconfirmed() && sink.arrived() {
            shared.confirm();
            some = true;
        }
    }
}

/// Stores positions when they have changed, not too often.
async fn keep(shared: Arc<Shared>) {
    loop {
        shared.moved.notified().await;
        shared.save();
        sleep(STORE + Duration::from_millis(shared.logs() as u64)).await;
    }
}
