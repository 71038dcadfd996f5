//! The table of routes and the states of the VPSs in it, for the gateway: versions, so that a slow follower gets
//! the last state instead of a queue of old ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use model::{Allow, VpsName, VpsSpec};
use tokio::sync::watch;
use wire::control::{Door, Reachable, RouteEntry, RouteUpdate, VpsState};

use crate::{clock::now_ms, life::Reach, neighbours::idle_times};

/// The table and the states.
#[derive(Debug)]
pub struct Routes {
    inner: Mutex<Inner>,
    version: watch::Sender<u64>,
    /// Changes whenever a follower has been sent something.
    sent: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Inner {
    version: u64,
    table: Vec<RouteEntry>,
    doors: Vec<Door>,
    rules: Arc<BTreeSet<Allow>>,
    /// The VPSs that the table and the doors lead to.
    led_to: BTreeSet<VpsName>,
    table_version: u64,
    states: BTreeMap<VpsName, Known>,
    /// The same by the version that said each last, so that one change is found among ten thousand.
    changes: BTreeMap<u64, VpsName>,
    followers: BTreeMap<u64, u64>,
    next_follower: u64,
}

#[derive(Debug)]
struct Known {
    version: u64,
    generation: u64,
    reach: Reach,
    address: Option<IpAddr>,
}

impl Known {
    fn say(&self, name: &VpsName) -> VpsState {
        let state = match (&self.reach, self.address) {
            (Reach::Yes, Some(address)) => Reachable::At(address),
            (Reach::Failed(public, until), _) => {
                Reachable::Failed { public: (*public).to_owned(), retry_after_ms: until.saturating_sub(now_ms()) }
            }
            _ => Reachable::No,
        };
        VpsState { name: name.clone(), generation: self.generation, state }
    }
}

/// The entries that `specs` say, in order.
pub fn table<'a>(specs: impl IntoIterator<Item = (&'a VpsName, &'a VpsSpec)>) -> Vec<RouteEntry> {
    let mut entries = Vec::new();
    for (name, spec) in specs {
        let (idle_after_ms, quiet_ms) = idle_times(&spec.idle);
        for (route, target) in &spec.routes {
            entries.push(RouteEntry {
                route: route.clone(),
                listen: route.listen(),
                name: name.clone(),
                port: target.port,
                idle_after_ms,
                quiet_ms,
                client: target.client,
                ignore: spec.ignore.clone(),
            });
        }
    }
    entries
}

impl Default for Routes {
    fn default() -> Self {
        Self { inner: Mutex::default(), version: watch::Sender::new(0), sent: watch::Sender::new(()) }
    }
}

impl Routes {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Inner, u64)) -> u64 {
        let mut inner = self.lock();
        inner.version += 1;
        let version = inner.version;
        change(&mut inner, version);
        self.version.send_replace(version);
        version
    }

    /// Sets the table; also when nothing in it changed, since the gateway closes what it was asked to listen on for an
    /// apply that failed when the next table comes.
    pub fn set_table(&self, table: Vec<RouteEntry>, doors: Vec<Door>, rules: BTreeSet<Allow>) {
        let led_to = table.iter().map(|entry| &entry.name).chain(doors.iter().map(|door| &door.name));
        let led_to = led_to.cloned().collect();
        self.change(|inner, version| {
            inner.table = table;
            inner.doors = doors;
            inner.rules = Arc::new(rules);
            inner.led_to = led_to;
            inner.table_version = version;
        });
    }

    /// The table as it is.
    pub fn table(&self) -> Vec<RouteEntry> {
        self.lock().table.clone()
    }

    /// Whether a route or a neighbour's rule leads to a VPS.
    pub fn is_led_to(&self, name: &VpsName) -> bool {
        self.lock().led_to.contains(name)
    }

    /// The rules between VPSs, as they are.
    pub fn rules(&self) -> Arc<BTreeSet<Allow>> {
        self.lock().rules.clone()
    }

    /// Whether a rule is about that VPS.
    pub fn is_in_a_rule(&self, name: &VpsName) -> bool {
        self.rules().iter().any(|rule| rule.from == *name || rule.to == *name)
    }

    /// The version of all that was set so far.
    pub fn version(&self) -> u64 {
        self.lock().version
    }

    /// Sets one VPS's state; answers the version that says so.
    pub fn set_state(&self, name: &VpsName, generation: u64, reach: Reach, address: Option<IpAddr>) -> u64 {
        self.change(|inner, version| {
            let known = Known { version, generation, reach, address };
            if let Some(before) = inner.states.insert(name.clone(), known) {
                inner.changes.remove(&before.version);
            }
            inner.changes.insert(version, name.clone());
        })
    }

    /// Forgets a VPS that was deleted.
    pub fn forget(&self, name: &VpsName) {
        self.change(|inner, _| {
            if let Some(before) = inner.states.remove(name) {
                inner.changes.remove(&before.version);
            }
        });
    }

    /// One VPS's state.
    pub fn state(&self, name: &VpsName) -> Option<VpsState> {
        self.lock().states.get(name).map(|known| known.say(name))
    }

    /// Follows the table and the states.
    pub fn follow(&self) -> Follower<'_> {
        let mut inner = self.lock();
        inner.next_follower += 1;
        let id = inner.next_follower;
        inner.followers.insert(id, 0);
        Follower { routes: self, id, first: true, seen: 0, changed: self.version.subscribe() }
    }

    /// Waits until every follower has been sent `version`, or for `limit`.
    pub async fn flushed(&self, version: u64, limit: Duration) {
        let mut sent = self.sent.subscribe();
        let all = async {
            while self.lock().followers.values().any(|seen| *seen < version) {
                if sent.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!("a follower of the routes did not take a change in time");
        }
    }
}

/// One who follows; it sees the last state of everything, not each step.
#[derive(Debug)]
pub struct Follower<'a> {
    routes: &'a Routes,
    id: u64,
    first: bool,
    seen: u64,
    changed: watch::Receiver<u64>,
}

impl Follower<'_> {
    /// What changed since the last call; waits until something did. The first one says everything.
    pub async fn next(&mut self) -> RouteUpdate {
        loop {
            self.changed.borrow_and_update();
            let update = self.take();
            if let Some(update) = update {
                return update;
            }
            // The sender lives as long as the table this borrows.
            let _ = self.changed.changed().await;
        }
    }

    fn take(&mut self) -> Option<RouteUpdate> {
        let mut inner = self.routes.lock();
        let first = std::mem::take(&mut self.first);
        let table = (first || inner.table_version > self.seen).then(|| inner.table.clone());
        let doors = if table.is_some() { inner.doors.clone() } else { Vec::new() };
        // A VPS may have come into the table without having changed.
        let from = if table.is_some() { 0 } else { self.seen + 1 };
        let news = inner.changes.range(from..).map(|(_, name)| name).filter(|name| inner.led_to.contains(*name));
        let states: Vec<_> = news.filter_map(|name| Some(inner.states.get(name)?.say(name))).collect();
        let version = inner.version;
        self.seen = version;
        if table.is_none() && states.is_empty() {
            inner.followers.insert(self.id, version);
            self.routes.sent.send_replace(());
            return None;
        }
        Some(RouteUpdate { table, doors, states })
    }

    /// Says that the update that `next` gave has been sent.
    pub fn sent(&self) {
        self.routes.lock().followers.insert(self.id, self.seen);
        self.routes.sent.send_replace(());
    }
}

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        self.routes.lock().followers.remove(&self.id);
        self.routes.sent.send_replace(());
    }
}

#[cfg(test)]
mod tests;
