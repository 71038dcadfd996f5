//! What happened lately: a bounded ring for the host and one per VPS, and a live feed.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use model::{VpsName, api::Event};
use tokio::sync::broadcast;

/// Events kept of all VPSs together.
const ALL: usize = 1024;
/// Events kept of one VPS.
const EACH: usize = 64;
/// Events a slow reader may lag behind.
const LAG: usize = 256;

/// The records.
#[derive(Debug)]
pub struct History {
    rings: Mutex<Rings>,
    live: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct Rings {
    all: VecDeque<Event>,
    each: BTreeMap<VpsName, VecDeque<Event>>,
}

impl Default for History {
    fn default() -> Self {
        Self { rings: Mutex::default(), live: broadcast::Sender::new(LAG) }
    }
}

fn push(ring: &mut VecDeque<Event>, event: Event, limit: usize) {
    if ring.len() == limit {
        ring.pop_front();
    }
    ring.push_back(event);
}

impl History {
    fn rings(&self) -> MutexGuard<'_, Rings> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps one event, and tells who follows.
    pub fn record(&self, vps: Option<&VpsName>, what: &str, detail: impl Into<String>, actor: impl Into<String>) {
        let at_ms = crate::clock::unix_ms();
        let (detail, actor) = (detail.into(), actor.into());
        let event = Event { at_ms, vps: vps.cloned(), what: what.to_owned(), detail, actor };
        let name = vps.map_or("", VpsName::as_str);
        tracing::info!(vps = name, what, detail = event.detail, actor = event.actor, "event");
        let mut rings = self.rings();
        if let Some(name) = vps {
            push(rings.each.entry(name.clone()).or_default(), event.clone(), EACH);
        }
        push(&mut rings.all, event.clone(), ALL);
        // Under the lock, so that `follow` neither misses an event nor gets one twice. Nobody listening is no fault.
        let _ = self.live.send(event);
    }

    /// What happened to one VPS, oldest first.
    pub fn of(&self, vps: &VpsName) -> Vec<Event> {
        self.rings().each.get(vps).map(|ring| ring.iter().cloned().collect()).unwrap_or_default()
    }

    /// Everything, oldest first, and what will happen from then on.
    pub fn follow(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let rings = self.rings();
        (rings.all.iter().cloned().collect(), self.live.subscribe())
    }

    /// Drops the ring of a VPS that was deleted; the common one keeps its events.
    pub fn forget(&self, vps: &VpsName) {
        self.rings().each.remove(vps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rings_are_bounded_and_followers_miss_nothing() {
        let history = History::default();
        let name: VpsName = "blog".parse().unwrap();
        for n in 0..ALL + 10 {
            history.record(Some(&name), "ready", n.to_string(), "");
        }
        assert_eq!(history.of(&name).len(), EACH);
        let (past, mut live) = history.follow();
        assert_eq!((past.len(), past[0].detail.as_str()), (ALL, "10"));
        history.record(None, "applied", "x", "root");
        assert_eq!(live.recv().await.unwrap().detail, "x");
        history.forget(&name);
        assert!(history.of(&name).is_empty());
    }
}
