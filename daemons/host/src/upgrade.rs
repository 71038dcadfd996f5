//! An upgrade: keeper and daemon become another version, then designated VPSs are restarted with it, one after the other. Shims,
//! and so server VPSs, run on as they are. What goes wrong leads back to the old version.
//!
//! How far it is stands in a file, so that whichever daemon there is goes on from there: the old one writes it and has the keeper
//! become the new version, whose daemon finds it.

mod programs;
mod record;
mod serve;

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use model::{Phase, VpsName, api::ErrorKind, host::Paths};
use rustix::fs::{Mode, OFlags, open};
use tracing::{error, info, warn};
use wire::{
    Fault,
    admin::{Plan, Programs, Step, Upgrading},
    keeper::PREVIOUS,
};

use crate::{config, format, host::Host, serve::open_logs};

pub use programs::own;
pub use record::{note_failure, remove};
pub use serve::listen;

/// How long a designated VPS may take to be ready with the new version.
const READY: Duration = Duration::from_secs(30);
/// So many starts in a row that end before it is ready are enough to go back.
const TRIES: u64 = 3;
/// Which are restarted last, so that who asks for a wake meets a `control` that is there.
const LAST: [&str; 2] = ["control", "gateway"];

/// Whether this version could take the host at `paths` over. Run by another version before it gives way to this one.
pub fn check_here(paths: &Paths) -> anyhow::Result<u8> {
    config::read(paths)?;
    format::check(&paths.state)?;
    for name in ["bailiwick", "bailiwick-shim"] {
        config::sibling(name)?;
    }
    Ok(0)
}

impl Host {
    /// What an upgrade to the programs in `directory` would do.
    async fn plan(&self, directory: &Path, only: Option<&VpsName>) -> Result<Plan, Fault> {
        let to = programs::examine(directory, &self.paths).await?;
        let order = match only {
            None => self.order(),
            Some(name) if self.config.designated.contains_key(name) => vec![name.clone()],
            Some(name) => return Err(Fault::not_found(format!("vps \"{name}\" is no designated VPS"))),
        };
        let table = self.table();
        let moved = |name: &VpsName| table.get(name).is_ok_and(|vps| !vps.runs(&to));
        let restarts = order.into_iter().filter(moved).collect();
        let servers = table.vps.values().filter(|vps| !vps.designated && vps.up().is_some()).count();
        Ok(Plan { from: self.programs.clone(), to, restarts, servers, took_ms: None })
    }

    /// Designated VPSs in the order of their restart: the network's first, as at a start.
    fn order(&self) -> Vec<VpsName> {
        let rank = |name: &VpsName| {
            let services = self.config.designated.get(name).map(|designated| designated.services.as_slice());
            let runs = |service: &str| services.unwrap_or_default().iter().any(|s| s.as_str() == service);
            match LAST.iter().rposition(|service| runs(service)) {
                Some(last) => 2 + last,
                None => usize::from(!runs("network")),
            }
        };
        let mut names: Vec<_> = self.config.designated.keys().cloned().collect();
        names.sort_by_key(rank);
        names
    }

    /// Begins an upgrade of the whole host; does not return when the keeper was told.
    fn begin(&self, plan: &Plan) -> Result<(), Fault> {
        if self.upgrading.borrow().as_ref().is_some_and(|upgrading| !upgrading.step.is_last()) {
            return Err(Fault::new(ErrorKind::Conflict, "an upgrade is going on; wait for its end"));
        }
        let (from, to) = (plan.from.clone(), plan.to.clone());
        let mut upgrading = Upgrading { from, to, step: Step::Daemon, failed: None, said: Vec::new() };
        self.note(&mut upgrading, format!("keeper and daemon: {} follows {}", plan.to.version, plan.from.version));
        let failed = self.give_way(&plan.to);
        upgrading.step = Step::Failed;
        self.note(&mut upgrading, failed.to_string());
        Err(Fault::new(ErrorKind::Failed, format!("{failed:#}")))
    }

    /// Ends this daemon, and has the keeper go on as `programs`. Returns only when that failed.
    fn give_way(&self, programs: &Programs) -> anyhow::Error {
        let path = programs.directory.join("bailiwickd");
        let told = open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(std::io::Error::from)
            .and_then(|program| self.keeper.go_on_as(program));
        match told {
            Ok(()) => {
                info!(%programs, "giving way");
                // All that is to outlive this daemon is the keeper's, or on disk: as after its death.
                std::process::exit(0)
            }
            Err(error) => anyhow::Error::from(error).context(format!("going on as {}", path.display())),
        }
    }

    fn note(&self, upgrading: &mut Upgrading, said: String) {
        info!(said, step = ?upgrading.step, "upgrade");
        upgrading.said.push(said);
        if let Err(error) = record::save(&self.paths, upgrading) {
            warn!(%error, "how far the upgrade is can't be noted");
        }
        self.upgrading.send_replace(Some(upgrading.clone()));
    }

    /// Goes on with an upgrade that an earlier daemon began.
    pub fn resume_upgrade(self: &Arc<Self>) {
        let Some(mut upgrading) = record::load(&self.paths) else { return };
        let (old, new) = (upgrading.from.build == self.programs.build, upgrading.to.build == self.programs.build);
        match upgrading.step {
            Step::Daemon if new => {
                self.keeper.drop(PREVIOUS);
                upgrading.step = Step::Services;
                self.note(&mut upgrading, format!("keeper and daemon: {} is up", self.programs.version));
                tokio::spawn(self.clone().move_services(upgrading));
            }
            Step::Daemon if old => {
                let unsaid = || "the new version's daemon did not come up; the host's log says why".to_owned();
                upgrading.failed = Some(upgrading.failed.take().unwrap_or_else(unsaid));
                upgrading.step = Step::Failed;
                self.note(&mut upgrading, format!("keeper and daemon: {} again", self.programs.version));
            }
            Step::Services if new => drop(tokio::spawn(self.clone().move_services(upgrading))),
            Step::Back if old => drop(tokio::spawn(self.clone().move_services(upgrading))),
            Step::Back if new => drop(tokio::spawn(self.clone().go_back(upgrading))),
            Step::Done | Step::Failed => drop(self.upgrading.send_replace(Some(upgrading))),
            _ => {
                upgrading.step = Step::Failed;
                upgrading.failed = Some(format!("the host was started as {}", self.programs));
                self.note(&mut upgrading, "neither version runs".to_owned());
            }
        }
    }

    /// Restarts designated VPSs that do not run this version, one after the other.
    async fn move_services(self: Arc<Self>, mut upgrading: Upgrading) {
        self.upgrading.send_replace(Some(upgrading.clone()));
        let own = self.programs.clone();
        for name in self.order() {
            if self.table().get(&name).is_ok_and(|vps| vps.runs(&own)) {
                continue;
            }
            match self.restart_with(&name, &own).await {
                Ok(took) => {
                    let said = format!("{name}: {}, ready after {} ms", own.version, took.as_millis());
                    self.note(&mut upgrading, said);
                }
                Err(_) if self.is_stopping() => return,
                Err(reason) if upgrading.step == Step::Services => {
                    upgrading.failed = Some(reason);
                    return self.go_back(upgrading).await;
                }
                Err(reason) => self.note(&mut upgrading, format!("{name}: {reason}")),
            }
        }
        upgrading.step = if upgrading.failed.is_some() { Step::Failed } else { Step::Done };
        self.note(&mut upgrading, format!("the host runs {own}"));
    }

    async fn go_back(self: Arc<Self>, mut upgrading: Upgrading) {
        upgrading.step = Step::Back;
        let said = format!("going back to {}", upgrading.from);
        self.note(&mut upgrading, said);
        let failed = self.give_way(&upgrading.from.clone());
        error!(error = %format!("{failed:#}"), "the upgrade can't be undone");
        upgrading.step = Step::Failed;
        self.note(&mut upgrading, format!("{failed:#}"));
    }

    /// Restarts a designated VPS with `programs`, and waits until it is ready; how long that took.
    async fn restart_with(self: &Arc<Self>, name: &VpsName, programs: &Programs) -> Result<Duration, String> {
        let changes = self.events.follow();
        let begun = Instant::now();
        let before = {
            let mut table = self.table();
            let vps = table.get_mut(name).map_err(|fault| fault.message)?;
            vps.programs = Some(programs.clone());
            vps.run
        };
        self.stop(name, None).map_err(|fault| fault.message)?;
        loop {
            let (run, phase) = match self.table().get(name) {
                Ok(vps) => (vps.run, vps.phase()),
                Err(fault) => return Err(fault.message),
            };
            if run > before && phase == Phase::Ready {
                return Ok(begun.elapsed());
            }
            let down = matches!(phase, Phase::Down { .. });
            let left = READY.saturating_sub(begun.elapsed());
            if left.is_zero() || self.stopping.load(Ordering::Relaxed) || (down && run >= before + TRIES) {
                return Err(format!(
                    "vps \"{name}\" does not become ready with {}{}",
                    programs.version,
                    self.last_words(name)
                ));
            }
            let _ = tokio::time::timeout(left, changes.next()).await;
        }
    }

    /// Restarts one designated VPS with the programs of `plan`, or with those it had when it does not become ready.
    async fn upgrade_one(self: &Arc<Self>, name: &VpsName, plan: &mut Plan) -> Result<(), Fault> {
        if plan.restarts.is_empty() {
            return Ok(());
        }
        let before = self.table().get(name)?.programs.clone().unwrap_or_else(|| self.programs.clone());
        match self.restart_with(name, &plan.to).await {
            Ok(took) => plan.took_ms = Some(took.as_millis() as u64),
            Err(reason) => {
                let back = self.restart_with(name, &before).await;
                let back = back.map_or_else(|reason| reason, |_| format!("it runs {} again", before.version));
                return Err(Fault::new(ErrorKind::Failed, format!("{reason}; {back}")));
            }
        }
        Ok(())
    }

    /// The last line of its log.
    fn last_words(&self, name: &VpsName) -> String {
        let last = || -> anyhow::Result<String> {
            let file = open_logs(&self.place.vps(name))?.pop().context("no log")?;
            let end = rustix::fs::fstat(&file)?.st_size as u64;
            let mut bytes = vec![0; 1000];
            let n = rustix::io::pread(&file, &mut bytes, end.saturating_sub(1000))?;
            let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
            Ok(text.lines().rfind(|line| !line.trim().is_empty()).context("an empty log")?.to_owned())
        };
        last().map_or_else(|_| String::new(), |line| format!("; its log ends: {line}"))
    }
}
