//! Facts that are written a moment after they came about, the newest of each VPS and many with one commit: who decides does
//! not wait for the disk. None is dropped while the disk is slow or full. Who answers a person waits until it is there.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use model::VpsName;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use super::{Store, StoreError};

/// How long they are collected while nobody waits.
const COLLECT: Duration = Duration::from_millis(20);
/// Pause after a failure.
const AGAIN: Duration = Duration::from_secs(1);

/// Writes facts of one kind.
type Put<T> = fn(&Store, &BTreeMap<VpsName, T>) -> Result<(), StoreError>;

/// Facts of one kind, on their way to the store.
#[derive(Debug)]
pub struct Later<T> {
    due: Mutex<Due<T>>,
    came: Notify,
    awaited: Notify,
    tried: watch::Sender<Tried>,
}

#[derive(Debug)]
struct Due<T> {
    newest: BTreeMap<VpsName, T>,
    /// How many came so far.
    count: u64,
}

/// What became of the tries to write.
#[derive(Debug, Default)]
struct Tried {
    /// How many of those that came have been written.
    written: u64,
    /// How many the last failure was about, and how many failures there were.
    failed: u64,
    failures: u64,
}

impl<T: Clone + Send + Sync + 'static> Later<T> {
    /// Writes with `put`, from now on. `what` they are: for the log.
    pub fn start(store: Store, what: &'static str, put: Put<T>) -> Arc<Self> {
        let due = Mutex::new(Due { newest: BTreeMap::new(), count: 0 });
        let later =
            Arc::new(Self { due, came: Notify::new(), awaited: Notify::new(), tried: watch::Sender::default() });
        tokio::spawn(later.clone().write(store, what, put));
        later
    }

    fn due(&self) -> MutexGuard<'_, Due<T>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a fact written.
    pub fn put(&self, name: VpsName, fact: T) {
        let mut due = self.due();
        due.newest.insert(name, fact);
        due.count += 1;
        drop(due);
        self.came.notify_one();
    }

    /// Waits until all that came before has been written; false: the store can't be written now.
    pub async fn written(&self) -> bool {
        let count = self.due().count;
        let mut tried = self.tried.subscribe();
        let failures = tried.borrow().failures;
        self.awaited.notify_one();
        let is_known = |tried: &Tried| tried.written >= count || (tried.failed >= count && tried.failures > failures);
        // The sender lives as long as this.
        tried.wait_for(is_known).await.is_ok_and(|tried| tried.written >= count)
    }

    async fn write(self: Arc<Self>, store: Store, what: &'static str, put: Put<T>) {
        loop {
            self.came.notified().await;
            self.pause(COLLECT).await;
            while let Err(error) = self.write_once(&store, put).await {
                tracing::error!(error = ?error, "{what} could not be kept; trying again");
                self.pause(AGAIN).await;
            }
        }
    }

    async fn write_once(&self, store: &Store, put: Put<T>) -> Result<(), StoreError> {
        let (batch, count) = {
            let mut due = self.due();
            (Arc::new(std::mem::take(&mut due.newest)), due.count)
        };
        let these = batch.clone();
        let written = if batch.is_empty() { Ok(()) } else { store.run(move |store| put(store, &these)).await };
        if written.is_err() {
            let mut due = self.due();
            for (name, fact) in &*batch {
                due.newest.entry(name.clone()).or_insert_with(|| fact.clone());
            }
        }
        self.tried.send_modify(|tried| match &written {
            Ok(()) => tried.written = count,
            Err(_) => (tried.failed, tried.failures) = (count, tried.failures + 1),
        });
        written
    }

    /// Waits for so long, or until somebody waits for what is to be written.
    async fn pause(&self, time: Duration) {
        tokio::select! {
            () = sleep(time) => {}
            () = self.awaited.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::{fixtures::spec, store::Wakes};

    static FULL: AtomicBool = AtomicBool::new(false);

    fn put(store: &Store, wakes: &BTreeMap<VpsName, Wakes>) -> Result<(), StoreError> {
        if FULL.load(Ordering::Relaxed) {
            let full = std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
            return Err(redb::StorageError::Io(full).into());
        }
        store.put_wakes(wakes)
    }

    #[tokio::test]
    async fn what_a_full_disk_did_not_take_is_written_when_there_is_room() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.redb")).unwrap();
        let names = ["a", "b"].map(|name| name.parse::<VpsName>().unwrap());
        let specs = names.clone().map(|name| (name, spec("acme", &[])));
        store.put_specs(&specs.into(), &Default::default()).unwrap();
        let later = Later::start(store.clone(), "wakes", put);
        let [a, b] = names;
        let starts = |starts| Wakes { starts, ..Wakes::default() };
        later.put(a.clone(), starts(1));
        assert!(later.written().await);
        assert_eq!(store.load().unwrap().wakes[&a].starts, 1);

        FULL.store(true, Ordering::Relaxed);
        later.put(a.clone(), starts(2));
        later.put(b.clone(), starts(7));
        assert!(!later.written().await);
        // The newer one counts, and the other is not forgotten.
        later.put(a.clone(), starts(3));
        FULL.store(false, Ordering::Relaxed);
        assert!(later.written().await);
        let wakes = store.load().unwrap().wakes;
        assert_eq!((wakes[&a].starts, wakes[&b].starts), (3, 7));
        // Nothing is due.
        assert!(later.written().await);
    }
}
