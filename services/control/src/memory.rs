//! Who may be up at once: memory is given to starts in a fair order, or they wait. Pure.
//!
//! A VPS with a limit counts with the whole of it as long as it is up, since it was promised that; one without counts
//! with what it was last seen to use. Who is asleep counts nothing. A start that fits goes at once, also past a larger
//! one that waits: otherwise one tenant's large VPS would keep everybody else's asleep. Of those that wait and fit, the
//! tenant comes first that was given memory longest ago, and of one tenant who came first.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use model::{TenantName, VpsName, limits::show_bytes};
use tokio::sync::Notify;

/// What a VPS without a limit that was never seen up counts with.
const UNKNOWN: u64 = 32 << 20;

/// Why a start has to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Short {
    need: u64,
    used: u64,
    total: u64,
}

impl Short {
    /// Bytes that have to become free.
    pub fn missing(&self) -> u64 {
        (self.used.saturating_add(self.need)).saturating_sub(self.total)
    }
}

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [need, used, total] = [self.need, self.used, self.total].map(show_bytes);
        write!(f, "waits for {need}: {used} of {total} are in use")
    }
}

#[derive(Debug)]
struct Held {
    bytes: u64,
    limited: bool,
}

#[derive(Debug)]
struct Waiting {
    name: VpsName,
    tenant: TenantName,
    limit: Option<u64>,
}

/// Who has memory, and who waits for some.
#[derive(Debug)]
pub struct Ledger {
    total: u64,
    /// What designated VPSs use.
    others: u64,
    held: BTreeMap<VpsName, Held>,
    waiting: Vec<Waiting>,
    /// What VPSs without a limit were last seen to use.
    seen: BTreeMap<VpsName, u64>,
    /// When each tenant was last given some, counted in gifts.
    given: BTreeMap<TenantName, u64>,
    gifts: u64,
}

impl Ledger {
    /// Nobody has any of `total`.
    pub fn new(total: u64) -> Self {
        Self {
            total,
            others: 0,
            held: BTreeMap::new(),
            waiting: Vec::new(),
            seen: BTreeMap::new(),
            given: BTreeMap::new(),
            gifts: 0,
        }
    }

    /// Bytes that one counts with.
    pub fn held(&self, name: &VpsName) -> u64 {
        self.held.get(name).map_or(0, |held| held.bytes)
    }

    fn used(&self) -> u64 {
        self.held.values().fold(self.others, |sum, held| sum.saturating_add(held.bytes))
    }

    fn need(&self, name: &VpsName, limit: Option<u64>) -> u64 {
        limit.or_else(|| self.seen.get(name).copied()).unwrap_or(UNKNOWN)
    }

    fn fits(&self, need: u64) -> bool {
        self.used().saturating_add(need) <= self.total
    }

    /// It is up already, or may start whatever there is.
    pub fn hold(&mut self, name: &VpsName, tenant: &TenantName, limit: Option<u64>) {
        let bytes = self.need(name, limit);
        self.waiting.retain(|waiting| waiting.name != *name);
        self.held.insert(name.clone(), Held { bytes, limited: limit.is_some() });
        self.gifts += 1;
        self.given.insert(tenant.clone(), self.gifts);
    }

    /// It wants to start. An error puts it among those that wait: `leave` or `measure` names it when it may.
    pub fn enter(&mut self, name: &VpsName, tenant: &TenantName, limit: Option<u64>) -> Result<(), Short> {
        if self.held.contains_key(name) {
            return Ok(());
        }
        let need = self.need(name, limit);
        if self.fits(need) {
            self.hold(name, tenant, limit);
            return Ok(());
        }
        if !self.waiting.iter().any(|waiting| waiting.name == *name) {
            self.waiting.push(Waiting { name: name.clone(), tenant: tenant.clone(), limit });
        }
        Err(Short { need, used: self.used(), total: self.total })
    }

    /// It is down, or does not wait any more; answers who may start now.
    pub fn leave(&mut self, name: &VpsName) -> Vec<VpsName> {
        self.held.remove(name);
        self.waiting.retain(|waiting| waiting.name != *name);
        self.admit()
    }

    /// What is used in truth; answers who may start now.
    pub fn measure(&mut self, tenants: &BTreeMap<VpsName, u64>, others: u64) -> Vec<VpsName> {
        self.others = others;
        for (name, held) in self.held.iter_mut().filter(|(_, held)| !held.limited) {
            if let Some(bytes) = tenants.get(name) {
                held.bytes = *bytes;
                self.seen.insert(name.clone(), *bytes);
            }
        }
        self.admit()
    }

    /// It was deleted.
    pub fn forget(&mut self, name: &VpsName) {
        self.seen.remove(name);
    }

    fn admit(&mut self) -> Vec<VpsName> {
        let mut admitted = Vec::new();
        loop {
            let fitting = self.waiting.iter().filter(|waiting| self.fits(self.need(&waiting.name, waiting.limit)));
            // The first of those with the least number: `min_by_key` keeps the order of arrival.
            let next = fitting.min_by_key(|waiting| self.given.get(&waiting.tenant).copied().unwrap_or(0));
            let Some(Waiting { name, tenant, limit }) = next else { return admitted };
            let (name, tenant, limit) = (name.clone(), tenant.clone(), *limit);
            self.hold(&name, &tenant, limit);
            admitted.push(name);
        }
    }

    /// Whether what is used in truth makes a difference soon: 2: now, 1: before long, 0: not.
    fn urgency(&self) -> u8 {
        let unlimited = self.held.values().any(|held| !held.limited);
        match (self.waiting.is_empty(), unlimited && self.used() > self.total / 2) {
            (false, _) => 2,
            (true, true) => 1,
            (true, false) => 0,
        }
    }
}

/// The ledger, and who is told that it changed.
#[derive(Debug)]
pub struct Memory {
    ledger: Mutex<Ledger>,
    changed: Notify,
}

impl Memory {
    /// Nobody has any of `total`.
    pub fn new(total: u64) -> Self {
        Self { ledger: Mutex::new(Ledger::new(total)), changed: Notify::new() }
    }

    /// The ledger. Who changes it so that others may start tells them.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody waits, or somebody without a limit came up.
    pub fn changed(&self) {
        self.changed.notify_one();
    }

    /// Waits until it is worth while to look what is used.
    pub async fn worth_measuring(&self) {
        use std::time::Duration;
        loop {
            let pause = match self.ledger().urgency() {
                2 => Duration::from_secs(1),
                1 => Duration::from_secs(5),
                _ => Duration::MAX,
            };
            match tokio::time::timeout(pause, self.changed.notified()).await {
                Ok(()) => {}
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn name(text: &str) -> VpsName {
        text.parse().unwrap()
    }

    fn tenant(text: &str) -> TenantName {
        text.parse().unwrap()
    }

    fn enter(ledger: &mut Ledger, vps: &str, mib: u64) -> Result<(), Short> {
        let owner = tenant(&vps[..1]);
        ledger.enter(&name(vps), &owner, Some(mib * MIB))
    }

    #[test]
    fn limits_are_kept_for_who_is_up_and_sleepers_hold_none() {
        let mut ledger = Ledger::new(1024 * MIB);
        enter(&mut ledger, "a1", 512).unwrap();
        enter(&mut ledger, "b1", 512).unwrap();
        let short = enter(&mut ledger, "c1", 512).unwrap_err();
        assert_eq!(short.to_string(), "waits for 512 MiB: 1.0 GiB of 1.0 GiB are in use");
        assert_eq!(short.missing(), 512 * MIB);
        assert_eq!(ledger.leave(&name("a1")), [name("c1")]);
        assert!(enter(&mut ledger, "c1", 512).is_ok(), "it was given some");
        assert!(ledger.leave(&name("b1")).is_empty());
    }

    #[test]
    fn tenants_take_turns_and_each_one_s_vpss_come_in_order() {
        let mut ledger = Ledger::new(100 * MIB);
        enter(&mut ledger, "a0", 100).unwrap();
        for vps in ["a1", "a2", "a3", "b1", "b2"] {
            enter(&mut ledger, vps, 100).unwrap_err();
        }
        let mut order = Vec::new();
        let mut last = name("a0");
        for _ in 0..5 {
            let next = ledger.leave(&last);
            assert_eq!(next.len(), 1);
            last = next[0].clone();
            order.push(last.to_string());
        }
        assert_eq!(order, ["b1", "a1", "b2", "a2", "a3"]);
    }

    #[test]
    fn a_large_one_that_waits_does_not_hold_up_small_ones() {
        let mut ledger = Ledger::new(100 * MIB);
        enter(&mut ledger, "a1", 50).unwrap();
        enter(&mut ledger, "a2", 100).unwrap_err();
        enter(&mut ledger, "b1", 50).unwrap();
        assert!(ledger.leave(&name("a1")).is_empty());
        assert_eq!(ledger.leave(&name("b1")), [name("a2")]);
    }

    #[test]
    fn who_gave_up_waiting_is_given_nothing() {
        let mut ledger = Ledger::new(100 * MIB);
        enter(&mut ledger, "a1", 100).unwrap();
        enter(&mut ledger, "b1", 10).unwrap_err();
        assert!(ledger.leave(&name("b1")).is_empty());
        assert!(ledger.leave(&name("a1")).is_empty());
        assert_eq!(ledger.used(), 0);
    }

    #[test]
    fn one_without_a_limit_counts_with_what_it_uses() {
        let mut ledger = Ledger::new(100 * MIB);
        ledger.enter(&name("a1"), &tenant("a"), None).unwrap();
        enter(&mut ledger, "b1", 80).unwrap_err();
        assert_eq!(ledger.measure(&BTreeMap::from([(name("a1"), 5 * MIB)]), 10 * MIB), [name("b1")]);
        assert!(ledger.leave(&name("a1")).is_empty());
        ledger.enter(&name("a1"), &tenant("a"), None).expect("it was seen to use 5 MiB");
        ledger.measure(&BTreeMap::from([(name("b1"), 1)]), 10 * MIB);
        assert_eq!(ledger.used(), 95 * MIB, "a limit is kept whatever is used of it");
    }
}
