//! Deletion: said once in the store, then carried out until it is done, over restarts too.

use std::{sync::Arc, time::Duration};

use model::{VpsName, api::ErrorKind};
use wire::{Fault, host, network};

use crate::{calls::insist, driver::Vps, life::Input, shared::Control, store::StoreError};

/// How long each part is tried before the whole is tried again.
const LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(1);

/// Goes on with deletions that a former process began.
pub fn resume(control: &Arc<Control>) {
    for vps in control.deleting().values() {
        tokio::spawn(finish(control.clone(), vps.clone(), "control was restarted".to_owned()));
    }
}

/// Deletes a VPS. When this answers, it is deleted for everybody, whatever happens next; the task that comes back
/// ends when nothing is left of it.
pub async fn begin(
    control: &Arc<Control>,
    name: &VpsName,
    by: String,
) -> Result<Option<tokio::task::JoinHandle<()>>, StoreError> {
    let _one_at_a_time = control.changing.lock().await;
    let Some(vps) = control.get(name) else { return Ok(None) };
    let key = name.clone();
    control.store.run(move |store| store.begin_delete(&key)).await?;
    control.all().remove(name);
    control.deleting().insert(name.clone(), vps.clone());
    control.publish_table();
    control.history.record(Some(name), "deleted", "", by.clone());
    Ok(Some(tokio::spawn(finish(control.clone(), vps, by))))
}

async fn finish(control: Arc<Control>, vps: Arc<Vps>, by: String) {
    while let Err(fault) = carry_out(&control, &vps, &by).await {
        tracing::warn!(vps = %vps.name, %fault, "its deletion is not done yet");
        tokio::time::sleep(PAUSE).await;
    }
    loop {
        let name = vps.name.clone();
        match control.store.run(move |store| store.end_delete(&name)).await {
            Ok(()) => break,
            Err(error) => tracing::error!(vps = %vps.name, %error, "its deletion can't be noted"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    vps.end().await;
    control.pool.gone(&vps.name);
    control.routes.forget(&vps.name);
    control.history.forget(&vps.name);
    crate::jobs::forget(&control, &vps.name);
    control.memory.ledger().forget(&vps.name);
    control.deleting().remove(&vps.name);
}

async fn carry_out(control: &Control, vps: &Vps, by: &str) -> Result<(), Fault> {
    let grace = Duration::from_millis(vps.spec().stop.grace_ms);
    vps.ask(Input::Stop(format!("deleted by {by}"))).await;
    if !vps.settled(grace + LIMIT).await {
        return Err(Fault::new(ErrorKind::Unavailable, "it does not stop"));
    }
    let mut place = vps.place.lock().await;
    let name = vps.name.clone();
    gone(insist(&control.host, &host::Delete { name: name.clone() }, LIMIT).await)?;
    gone(insist(&control.network, &network::Release { name }, LIMIT).await)?;
    *place = None;
    Ok(())
}

fn gone<T>(answer: Result<T, Fault>) -> Result<(), Fault> {
    match answer {
        Err(fault) if fault.kind != ErrorKind::NotFound => Err(fault),
        _ => Ok(()),
    }
}
