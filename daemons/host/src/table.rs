//! All VPSs of the host.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use model::{HostConfig, Phase, TenantName, VpsName, VpsStatus};
use wire::{Fault, admin::Programs};

use crate::{
    ids::{Allocation, lowest_free},
    life::{Life, Up},
    record::Record,
};

/// Unix time in milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// One VPS.
#[derive(Debug)]
pub struct Vps {
    /// Its ids, and whose it is.
    pub allocation: Allocation,
    /// Whether it is a designated one.
    pub designated: bool,
    /// Where it is in its life.
    pub life: Life,
    /// The number of its last run.
    pub run: u64,
    /// Since when it is in its phase.
    pub since_ms: u64,
    /// How long its last start took.
    pub start_ms: Option<u64>,
    /// What a designated VPS runs, or is to run next; none: what the daemon is of.
    pub programs: Option<Programs>,
}

impl Vps {
    /// One that is down.
    pub fn new(allocation: Allocation, designated: bool, run: u64) -> Self {
        Self { allocation, designated, life: Life::Down(None), run, since_ms: now_ms(), start_ms: None, programs: None }
    }

    /// Whose it is.
    pub fn tenant(&self) -> Option<&TenantName> {
        self.allocation.tenant.as_ref()
    }

    /// Whether it runs these programs.
    pub fn runs(&self, programs: &Programs) -> bool {
        self.programs.as_ref().is_some_and(|own| own.build == programs.build)
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        match &self.life {
            Life::Down(ended) => Phase::Down { ended: ended.clone() },
            Life::Up(up) => up.step.into(),
        }
    }

    /// Its run, if it is up.
    pub fn up(&self) -> Option<&Up> {
        match &self.life {
            Life::Up(up) => Some(up),
            Life::Down(_) => None,
        }
    }

    /// Its run, if it is up.
    pub fn up_mut(&mut self) -> Option<&mut Up> {
        match &mut self.life {
            Life::Up(up) => Some(up),
            Life::Down(_) => None,
        }
    }

    /// What a new daemon must know.
    pub fn record(&self) -> Record {
        let up = self.up().map(|up| up.record.clone());
        let (phase, programs) = (self.phase(), self.programs.clone());
        Record { phase, run: self.run, since_ms: self.since_ms, start_ms: self.start_ms, up, programs }
    }

    /// For who asks; with `figures` what it uses too.
    pub fn status(&self, name: &VpsName, figures: bool) -> VpsStatus {
        let usage = self.up().filter(|_| figures).map(|up| up.cgroup.usage()).unwrap_or_default();
        VpsStatus {
            name: name.clone(),
            phase: self.phase(),
            run: self.run,
            designated: self.designated,
            pid: self.up().and_then(|up| up.record.pid),
            since_ms: self.since_ms,
            start_ms: self.start_ms,
            memory: usage.memory,
            processes: usage.processes,
            cpu_us: usage.cpu_us,
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Table {
    /// By name.
    pub vps: BTreeMap<VpsName, Vps>,
}

impl Table {
    /// One of them.
    pub fn get(&self, name: &VpsName) -> Result<&Vps, Fault> {
        self.vps.get(name).ok_or_else(|| missing(name))
    }

    /// One of them.
    pub fn get_mut(&mut self, name: &VpsName) -> Result<&mut Vps, Fault> {
        self.vps.get_mut(name).ok_or_else(|| missing(name))
    }

    /// The run of that number, if it is still going on.
    pub fn run_mut(&mut self, name: &VpsName, run: u64) -> Option<&mut Vps> {
        self.vps.get_mut(name).filter(|vps| vps.run == run && vps.up().is_some())
    }

    /// Free ids for a VPS.
    pub fn allocate(&self, config: &HostConfig, blocks: u32, tenant: Option<TenantName>) -> Option<Allocation> {
        let taken = self.vps.values().map(|vps| (vps.allocation.first, vps.allocation.blocks));
        let first = lowest_free(taken, blocks, config.ids.blocks)?;
        Some(Allocation { first, blocks, tenant })
    }
}

fn missing(name: &VpsName) -> Fault {
    Fault::not_found(format!("vps \"{name}\" does not exist on this host"))
}
