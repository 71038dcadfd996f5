//! Calls `Wake`, `Answered` and `Idle` for one VPS, one after the other: an `Idle` has been answered before the next `Wake` is sent,
//! so `control` never hears them in the wrong order.

use std::{pin::Pin, sync::Arc, time::Duration};

use model::api::ErrorKind;
use tokio::time::{sleep_until, timeout};
use wire::{
    Client, Fault,
    control::{Answered, Idle, Wake},
};

use crate::wake::{Next, Vps};

/// Both are answered at once by a `control` that lives.
const ANSWER: Duration = Duration::from_secs(10);

/// Serves one VPS until there is nothing to call or to wait for.
pub async fn attend(vps: Arc<Vps>, control: Client) {
    loop {
        let next = vps.next();
        match &next {
            Next::Wake { round, by } => {
                let wake = Wake { name: vps.name.clone(), by: by.clone() };
                match answer(Box::pin(control.call(&wake))).await {
                    Ok(state) => vps.answered(*round, state),
                    Err(fault) if fault.kind == ErrorKind::Unavailable => vps.call_again(&next),
                    Err(fault) => {
                        tracing::warn!(vps = %vps.name, %fault, "a wake was refused");
                        vps.refused(*round);
                    }
                }
            }
            Next::Answered { generation, at_us } => {
                let answered = Answered { name: vps.name.clone(), generation: *generation, at_us: *at_us };
                if let Err(fault) = answer(Box::pin(control.call(&answered))).await {
                    tracing::debug!(vps = %vps.name, %fault, "nobody hears of its first byte");
                }
            }
            Next::Idle => match answer(Box::pin(control.call(&Idle { name: vps.name.clone() }))).await {
                Ok(_) => tracing::debug!(vps = %vps.name, "idle"),
                Err(fault) if fault.kind == ErrorKind::Unavailable => vps.call_again(&next),
                Err(fault) => tracing::warn!(vps = %vps.name, %fault, "idle was refused"),
            },
            Next::SleepUntil(at) => tokio::select! {
                () = sleep_until(*at) => {}
                () = vps.work.notified() => {}
            },
            Next::Rest => return,
        }
    }
}

/// The call is boxed: ten thousand VPSs that nobody asks for have no room for one each.
async fn answer<T>(call: Pin<Box<impl Future<Output = Result<T, Fault>>>>) -> Result<T, Fault> {
    let late = |_| Err(Fault::new(ErrorKind::Unavailable, "no answer in time"));
    timeout(ANSWER, call).await.unwrap_or_else(late)
}
