//! What shims say, and what follows from it until a VPS has no process any more.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use isolation::host::{Cgroup, HostError};
use model::{ExitStatus, VpsName, state::Ended};
use tokio::io::Interest;
use tracing::{info, warn};
use wire::{
    host::ExecEnded,
    shim::{FromShim, recv},
};

use crate::{
    host::Host,
    life::{Life, ShimSocket, Step},
    table::{Vps, now_ms},
    watch::watch_for,
};

/// How long a shim that closed its socket may take to end.
const SHIM_END: Duration = Duration::from_secs(1);
/// How long killed processes may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// How a run ended, as its shim said it.
enum Said {
    Ended(ExitStatus),
    NotStarted(String),
}

/// Hears a shim out, then takes away what its VPS had.
pub async fn attend(host: Arc<Host>, name: VpsName, run: u64, socket: ShimSocket) {
    let mut said = None;
    loop {
        match receive(&socket).await {
            Ok(Some(FromShim::Ended { status })) => said = Some(Said::Ended(status)),
            Ok(Some(FromShim::NotStarted { reason })) => said = Some(Said::NotStarted(reason)),
            Ok(Some(message)) => host.heard(&name, run, message),
            Ok(None) => break,
            Err(error) => {
                warn!(vps = %name, %error, "its shim can't be understood");
                break;
            }
        }
    }
    host.finish(&name, run, said).await;
}

pub async fn receive(socket: &ShimSocket) -> io::Result<Option<FromShim>> {
    loop {
        let mut guard = socket.readable().await?;
        match guard.try_io(|socket| recv::<FromShim>(socket.as_fd())) {
            Ok(Ok(message)) => return Ok(message.map(|(message, _)| message)),
            // It ended with messages of ours unread. This is said once, before its last words.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => {}
        }
    }
}

/// Waits until `reached`, which a change of the group's `cgroup.events` can bring.
pub async fn await_cgroup(
    cgroup: &Cgroup,
    events: Result<OwnedFd, HostError>,
    reached: impl Fn(&Cgroup) -> bool,
    limit: Duration,
) -> bool {
    let Ok(events) = events else { return reached(cgroup) };
    let Ok(events) = watch_for(events, Interest::PRIORITY) else { return reached(cgroup) };
    let wait = async {
        while !reached(cgroup) {
            match events.ready(Interest::PRIORITY).await {
                Ok(mut guard) => guard.clear_ready(),
                Err(_) => return,
            }
        }
    };
    let _ = tokio::time::timeout(limit, wait).await;
    reached(cgroup)
}

impl Host {
    fn heard(&self, name: &VpsName, run: u64, message: FromShim) {
        let mut table = self.table();
        let Some(vps) = table.run_mut(name, run) else { return };
        let Life::Up(up) = &mut vps.life else { return };
        match message {
            FromShim::State { version, state, pid, times } => {
                up.shim_version = version;
                if let Some(steps) = &mut vps.steps {
                    steps.shim = times;
                }
                let step = up.step.heard(state);
                if (step, pid) == (up.step, up.record.pid) {
                    return;
                }
                let now = now_ms();
                if step == Step::Ready && up.step == Step::Starting {
                    vps.start_ms = Some(now.saturating_sub(up.record.begun_ms));
                }
                if step != up.step {
                    vps.since_ms = now;
                }
                (up.step, up.record.pid) = (step, pid);
                self.changed(name, vps);
            }
            FromShim::ExecEnded { id, status, error } => {
                if let Some(waits) = up.execs.remove(&id) {
                    let _ = waits.send(ExecEnded { status, error });
                }
            }
            FromShim::Ended { .. } | FromShim::NotStarted { .. } => {}
        }
    }

    /// Removes what the overlay of a VPS that is down left, which its next mount would have to.
    fn tidy(&self, name: &VpsName) {
        // The table stays locked, so that it does not start meanwhile.
        let mut table = self.table();
        if table.get_mut(name).is_ok_and(|vps| vps.up().is_none()) {
            let _ = std::fs::remove_dir(self.place.vps(name).join("state/work/work"));
        }
    }

    async fn finish(self: &Arc<Self>, name: &VpsName, run: u64, said: Option<Said>) {
        let Some(cgroup) = self.table().run_mut(name, run).and_then(|vps| vps.up().map(|up| up.cgroup.clone())) else {
            return;
        };
        // The socket closes a moment before its holder is gone. Of that moment the cgroup would tell up to 10 ms late.
        let shim = self.table().run_mut(name, run).and_then(Vps::up_mut).and_then(|up| up.shim.take());
        if let Some(shim) = shim {
            let _ = tokio::time::timeout(SHIM_END, shim.readable()).await;
        }
        if !cgroup.is_empty() {
            // Frozen processes die too.
            if let Err(error) = cgroup.kill() {
                warn!(vps = %name, error = error.explain(), "its processes can't be killed");
            }
            if !await_cgroup(&cgroup, cgroup.ends(), Cgroup::is_empty, GONE).await {
                warn!(vps = %name, "processes are left after SIGKILL");
            }
        }
        let oom = cgroup.oom_kills() > 0;
        if let Err(error) = cgroup.remove() {
            warn!(vps = %name, error = error.explain(), "its cgroup can't be removed");
        }
        // Its link goes with its network namespace: the kernel takes tens of milliseconds for it, which nobody waits for.
        self.keeper.drop(&format!("shim/{name}"));
        let mut table = self.table();
        let Some(vps) = table.run_mut(name, run) else { return };
        // Asked for between the two locks counts too.
        let asked = vps.up().is_some_and(|up| up.record.asked);
        let ended = match said {
            Some(Said::Ended(status)) => Ended::Exited { status, oom, asked },
            Some(Said::NotStarted(reason)) => Ended::NotStarted { reason },
            None if asked => Ended::Exited { status: ExitStatus::Signal(9), oom, asked },
            None => Ended::ShimLost,
        };
        info!(vps = %name, run, ?ended, "down");
        // How far a start came tells why it failed; of others nobody asks any more.
        vps.steps = vps.steps.take().filter(|_| !matches!(ended, Ended::Exited { asked: true, .. }));
        vps.life = Life::Down(Some(ended));
        vps.since_ms = now_ms();
        self.changed(name, vps);
        let (host, gone) = (self.clone(), name.clone());
        // Later than who waits for the end hears of it.
        tokio::spawn(async move { host.tidy(&gone) });
        if vps.designated {
            drop(table);
            self.repair_listeners(name);
        }
    }
}
