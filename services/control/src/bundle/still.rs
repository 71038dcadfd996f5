//! VPSs that stand still for as long as somebody reads what they write to.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use model::{
    VpsName, VpsSpec,
    api::{ErrorKind, State},
};
use tokio::sync::OwnedMutexGuard;
use wire::Fault;

use crate::{
    driver::Vps,
    life::{Holder, Input},
    shared::Control,
};

/// How long a VPS may take to come to rest.
const REST: Duration = Duration::from_secs(60);
const REASON: &str = "it is being exported";

/// The VPSs that write to a VPS's volumes.
pub(super) fn users(control: &Control, spec: &VpsSpec) -> Vec<Arc<Vps>> {
    let shares = |other: &VpsSpec| {
        other.tenant == spec.tenant && other.volumes.keys().any(|volume| spec.volumes.contains_key(volume))
    };
    control.all().values().filter(|vps| shares(&vps.spec())).cloned().collect()
}

/// VPSs that do not write, for as long as this is there: those that were up stand still, the others sleep.
pub(super) struct Still {
    control: Arc<Control>,
    all: Vec<(Arc<Vps>, u64)>,
    held: Vec<VpsName>,
    up: bool,
    since: Instant,
    /// Another export waits until they have gone on.
    guards: Vec<OwnedMutexGuard<()>>,
}

impl Still {
    /// Has all stand still, who are in the order of their names, for a moment.
    pub async fn hold(control: &Arc<Control>, all: Vec<Arc<Vps>>) -> Result<Self, Fault> {
        let mut guards = Vec::new();
        for vps in &all {
            guards.push(vps.still.clone().lock_owned().await);
        }
        let names: Vec<_> = all.iter().map(|vps| vps.name.clone()).collect();
        let (control, held, up) = (control.clone(), names.clone(), all.iter().any(|vps| vps.is_up()));
        let mut still = Self { control, all: Vec::new(), held, up, since: Instant::now(), guards };
        // Noted before: who stands still when this process dies is let go by the next one.
        let noted = still.control.store.run(move |store| store.note_exporting(&names, true)).await;
        noted.map_err(|error| Fault::new(ErrorKind::Failed, error.to_string()))?;
        for vps in all {
            let busy = |what: &str| Fault::new(ErrorKind::Conflict, format!("vps \"{}\" {what}", vps.name));
            if !vps.settled(REST).await {
                return Err(busy("does not come to rest; try again"));
            }
            vps.ask(Input::Hold(Holder::Copy, REASON.to_owned())).await;
            if !vps.settled(REST).await || vps.life().state() == State::Running {
                return Err(busy("could not be frozen; try again"));
            }
            let generation = vps.life().generation();
            still.all.push((vps, generation));
        }
        Ok(still)
    }

    /// Has them stand still for longer than a moment: who asks for one meanwhile is not kept waiting.
    pub async fn keep(&self) {
        for (vps, _) in &self.all {
            vps.ask(Input::Hold(Holder::Export, REASON.to_owned())).await;
        }
    }

    /// For how long, in milliseconds; none: nobody was up.
    pub fn stood_ms(&self) -> Option<u64> {
        self.up.then(|| u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Whether nobody went on meanwhile.
    pub fn check(&self) -> Result<(), Fault> {
        let moved = |(vps, generation): &&(Arc<Vps>, u64)| {
            let life = vps.life();
            life.generation() != *generation || matches!(life.state(), State::Running | State::Starting)
        };
        match self.all.iter().find(moved) {
            None => Ok(()),
            Some((vps, _)) => {
                let message = format!("vps \"{}\" went on while it was exported; export it again", vps.name);
                Err(Fault::new(ErrorKind::Conflict, message))
            }
        }
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        let (control, held) = (self.control.clone(), std::mem::take(&mut self.held));
        let guards = std::mem::take(&mut self.guards);
        tokio::spawn(async move {
            for vps in held.iter().filter_map(|name| control.get(name)) {
                for holder in [Holder::Export, Holder::Copy] {
                    vps.feed(Input::Release(holder, "it was exported".to_owned())).await;
                }
            }
            if let Err(error) = control.store.run(move |store| store.note_exporting(&held, false)).await {
                tracing::error!(%error, "that an export has ended could not be noted");
            }
            drop(guards);
        });
    }
}
