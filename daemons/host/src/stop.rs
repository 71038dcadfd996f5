//! Stopping, freezing and thawing VPSs, and stopping the host.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use isolation::host::Cgroup;
use model::{VpsName, api::ErrorKind};
use tokio::io::unix::AsyncFd;
use tracing::{info, warn};
use wire::{Fault, shim::ToShim};

use crate::{
    host::{Host, lock},
    life::{Step, Up},
    record::Record,
    shim::await_cgroup,
    table::{Table, Vps, now_ms},
};

/// How long after a stop's grace a shim may take before the daemon kills by itself, and before it gives the shim up.
const SHIM_GRACE: Duration = Duration::from_secs(3);
/// How long processes may take to stand still.
const FREEZE: Duration = Duration::from_secs(2);

impl Host {
    /// Asks a VPS to end. One that is down stays so.
    pub fn stop(self: &Arc<Self>, name: &VpsName, grace_ms: Option<u64>) -> Result<(), Fault> {
        let mut table = self.table();
        let vps = table.get_mut(name)?;
        let Some(up) = vps.up_mut() else { return Ok(()) };
        let grace_ms = grace_ms.unwrap_or(up.record.grace_ms);
        up.record.asked = true;
        let socket = Arc::downgrade(&up.socket);
        // An error means that it is ending already.
        let _ = up.say(&ToShim::Stop { grace_ms }, &[]);
        if up.step == Step::Frozen
            && let Err(error) = up.cgroup.freeze(false)
        {
            warn!(vps = %name, error = error.explain(), "it can't be thawed for its stop");
        }
        if up.step != Step::Stopping {
            up.step = Step::Stopping;
            vps.since_ms = now_ms();
        }
        self.changed(name, vps);
        let (host, name) = (self.clone(), name.clone());
        tokio::spawn(async move { host.kill_late(&name, socket, Duration::from_millis(grace_ms)).await });
        Ok(())
    }

    /// Kills what a shim has not ended in time. The socket is the run's: a VPS that was deleted and made again counts its runs
    /// anew.
    async fn kill_late(&self, name: &VpsName, socket: Weak<AsyncFd<OwnedFd>>, grace: Duration) {
        let same = |up: &&mut Up| Weak::ptr_eq(&Arc::downgrade(&up.socket), &socket);
        tokio::time::sleep(grace + SHIM_GRACE).await;
        let up = |table: &mut Table| {
            table.get_mut(name).ok().and_then(Vps::up_mut).filter(same).map(|up| (up.cgroup.clone(), up.socket.clone()))
        };
        let Some((cgroup, _)) = up(&mut self.table()) else { return };
        warn!(vps = %name, "it did not end in time; killing it");
        let _ = cgroup.kill();
        tokio::time::sleep(SHIM_GRACE).await;
        let still = up(&mut self.table());
        if let Some((_, socket)) = still {
            // Ends the task that hears the shim, and the shim if it still listens.
            let _ = rustix::net::shutdown(socket.get_ref(), rustix::net::Shutdown::Both);
        }
    }

    /// Has all processes of a ready VPS stand still.
    pub async fn freeze(&self, name: &VpsName) -> Result<(), Fault> {
        let (cgroup, run) = {
            let table = self.table();
            let vps = table.get(name)?;
            match vps.up() {
                Some(up) if up.step == Step::Frozen => return Ok(()),
                Some(up) if up.step == Step::Ready => (up.cgroup.clone(), vps.run),
                _ => return Err(not_ready(name, vps)),
            }
        };
        let failed = |message: String| Fault::new(ErrorKind::Failed, format!("vps \"{name}\": {message}"));
        cgroup.freeze(true).map_err(|error| failed(error.explain()))?;
        let frozen = await_cgroup(&cgroup, cgroup.freezes(), Cgroup::is_frozen, FREEZE).await;
        let mut table = self.table();
        match table.run_mut(name, run) {
            Some(vps) if frozen && vps.up().is_some_and(|up| up.step == Step::Ready) => {
                if let Some(up) = vps.up_mut() {
                    up.step = Step::Frozen;
                }
                vps.since_ms = now_ms();
                self.changed(name, vps);
                Ok(())
            }
            other => {
                let _ = cgroup.freeze(false);
                let Some(vps) = other else { return Err(failed("it ended meanwhile".to_owned())) };
                if frozen {
                    Err(not_ready(name, vps))
                } else {
                    Err(failed("its processes do not stand still".to_owned()))
                }
            }
        }
    }

    /// Lets a frozen VPS go on.
    pub fn thaw(&self, name: &VpsName) -> Result<(), Fault> {
        let mut table = self.table();
        let vps = table.get_mut(name)?;
        let Some(up) = vps.up_mut() else { return Err(not_ready(name, vps)) };
        let thawed = up.cgroup.freeze(false);
        thawed.map_err(|error| Fault::new(ErrorKind::Failed, format!("vps \"{name}\": {}", error.explain())))?;
        if up.step == Step::Frozen {
            up.step = Step::Ready;
            vps.since_ms = now_ms();
            self.changed(name, vps);
        }
        Ok(())
    }

    /// Removes a VPS that is down.
    pub async fn delete(&self, name: &VpsName) -> Result<(), Fault> {
        self.discard(name).await;
        let mut table = self.table();
        let vps = table.get(name)?;
        if vps.designated {
            let message = format!("vps \"{name}\" is a designated VPS; it goes when host.toml does not name it");
            return Err(Fault::new(ErrorKind::Conflict, message));
        }
        if vps.up().is_some() || vps.prepared.is_some() || vps.going {
            return Err(Fault::new(ErrorKind::Conflict, format!("vps \"{name}\" is up; stop it first")));
        }
        let removed = self.place.delete(name);
        removed.map_err(|e| Fault::new(ErrorKind::Failed, format!("vps \"{name}\": removing its files: {e}")))?;
        Record::remove(&self.paths.run, name);
        crate::layers::forget(&self.layers, &self.paths, name);
        if let Some(vps) = table.vps.remove(name) {
            lock(&self.layer_maps).remove(&vps.allocation.range(&self.config.ids).first);
            self.events.changed(name, vps.tenant());
        }
        Ok(())
    }

    /// Stops all VPSs, servers first: their links and routes are needed until they have ended.
    pub async fn stop_all(self: &Arc<Self>) {
        self.stopping.store(true, Ordering::Relaxed);
        self.discard_all().await;
        for designated in [false, true] {
            let changes = self.events.follow();
            let names: Vec<_> = {
                let table = self.table();
                let up = table.vps.iter().filter(|(_, vps)| vps.up().is_some() && vps.designated == designated);
                up.map(|(name, _)| name.clone()).collect()
            };
            info!(count = names.len(), designated, "stopping");
            for name in &names {
                let _ = self.stop(name, None);
            }
            while names.iter().any(|name| self.table().get(name).is_ok_and(|vps| vps.up().is_some())) {
                changes.next().await;
            }
        }
    }
}

fn not_ready(name: &VpsName, vps: &Vps) -> Fault {
    use model::Phase::{Down, Frozen, Ready, Starting, Stopping};
    let state = match vps.phase() {
        Down { .. } => "down",
        Starting => "starting",
        Ready => "ready",
        Frozen => "frozen",
        Stopping => "stopping",
    };
    Fault::new(ErrorKind::Conflict, format!("vps \"{name}\" is {state}, not ready"))
}
