//! All VPSs of the host.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use model::{HostConfig, Phase, TenantName, VpsName, VpsStatus, api::ErrorKind, run::Link, state::StartSteps};
use wire::{Fault, admin::Programs};

use crate::{
    ids::{Allocation, lowest_free},
    life::{Life, Up},
    prepared::{Prepared, spare_number},
    record::Record,
    spares::Spare,
};

/// Unix time in microseconds.
pub fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

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
    /// When what belongs to its start was done, of the run that goes on, or of the last one if that failed.
    pub steps: Option<Box<StartSteps>>,
    /// What a designated VPS runs, or is to run next; none: what the daemon is of.
    pub programs: Option<Programs>,
    /// While it is down: what its next start can go on from.
    pub prepared: Option<Prepared>,
    /// Whether what was prepared is being taken down.
    pub going: bool,
}

impl Vps {
    /// One that is down.
    pub fn new(allocation: Allocation, designated: bool, run: u64) -> Self {
        Self {
            allocation,
            designated,
            life: Life::Down(None),
            run,
            since_ms: now_ms(),
            start_ms: None,
            steps: None,
            prepared: None,
            going: false,
            programs: None,
        }
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
            tenant: self.tenant().cloned(),
            pid: self.up().and_then(|up| up.record.pid),
            since_ms: self.since_ms,
            start_ms: self.start_ms,
            memory: usage.memory,
            processes: usage.processes,
            cpu_us: usage.cpu_us,
            prepared: self.prepared.as_ref().is_some_and(|prepared| prepared.framed),
            steps: self.steps.as_deref().copied(),
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Table {
    /// By name.
    pub vps: BTreeMap<VpsName, Vps>,
    /// Those that are nobody's yet, by number.
    pub spares: BTreeMap<u64, Spare>,
    /// Who had each link last: as long as it has it, nobody else gets it.
    links: BTreeMap<String, VpsName>,
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

    /// Whether a link is nobody's but `own`'s, or the refusal.
    pub fn check_free(&self, link: &Link, own: Option<&VpsName>) -> Result<(), Fault> {
        let up = |vps: &Vps| vps.up().is_some_and(|up| up.record.link.as_ref() == Some(&link.name));
        let prepared = |prepared: &Option<Prepared>| prepared.as_ref().is_some_and(|p| p.link() == Some(&link.name));
        let has = |name: &VpsName, vps: &Vps| up(vps) || (own != Some(name) && prepared(&vps.prepared));
        let conflict = |whose: String| {
            let message = format!("address {} is in use by {whose}", link.address);
            Err(Fault::new(ErrorKind::Conflict, own.map_or(message.clone(), |own| format!("vps \"{own}\": {message}"))))
        };
        if let Some(name) = self.links.get(&link.name)
            && self.vps.get(name).is_some_and(|vps| has(name, vps))
        {
            return conflict(format!("vps \"{name}\""));
        }
        match self.spare_with(&link.name) {
            Some(number) => conflict(format!("spare {number}")),
            None => Ok(()),
        }
    }

    /// Notes who has a link now.
    pub fn note_link(&mut self, link: Option<&str>, name: &VpsName) {
        if let Some(link) = link
            && self.links.get(link) != Some(name)
        {
            self.links.insert(link.to_owned(), name.clone());
        }
    }

    /// Notes that a cgroup of this name, with the processes in it, is on its way out.
    pub fn mark_leftover(&mut self, cgroup: &str) {
        if let Some(vps) = self.owner_mut(cgroup) {
            vps.going = true;
        } else if let Some(number) = spare_number(cgroup) {
            let allocation = Allocation { first: number, blocks: 1, tenant: None };
            self.spares.insert(number.into(), Spare { allocation, prepared: None });
        }
    }

    /// Notes that it is gone.
    pub fn forget_leftover(&mut self, cgroup: &str) {
        if let Some(vps) = self.owner_mut(cgroup) {
            vps.going = false;
        } else if let Some(number) = spare_number(cgroup) {
            self.spares.remove(&number.into());
        }
    }

    /// The VPS whose cgroup has this name: its own, or that of the spare it was.
    fn owner_mut(&mut self, cgroup: &str) -> Option<&mut Vps> {
        match spare_number(cgroup) {
            Some(number) => self.vps.values_mut().find(|vps| vps.allocation.first == number),
            None => self.vps.get_mut(&cgroup.parse::<VpsName>().ok()?),
        }
    }

    /// The spare that has the link of this name.
    pub fn spare_with(&self, link: &str) -> Option<u64> {
        let has = |spare: &Spare| spare.prepared.as_ref().and_then(Prepared::link) == Some(link);
        self.spares.iter().find(|(_, spare)| has(spare)).map(|(number, _)| *number)
    }

    /// Free ids for a VPS.
    pub fn allocate(&self, config: &HostConfig, blocks: u32, tenant: Option<TenantName>) -> Option<Allocation> {
        let spares = self.spares.values().map(|spare| &spare.allocation);
        let taken = self.vps.values().map(|vps| &vps.allocation).chain(spares).map(|a| (a.first, a.blocks));
        let first = lowest_free(taken, blocks, config.ids.blocks)?;
        Some(Allocation { first, blocks, tenant })
    }
}

fn missing(name: &VpsName) -> Fault {
    Fault::not_found(format!("vps \"{name}\" does not exist on this host"))
}
