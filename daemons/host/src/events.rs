//! Who follows changes. A follower that is slow gets each VPS's newest state once: its memory is bounded by the number of
//! VPSs, not of changes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use model::{TenantName, VpsName};
use tokio::sync::Notify;

/// VPSs that changed, with their tenants (a deleted one can't be looked up any more).
pub type Changed = BTreeMap<VpsName, Option<TenantName>>;

/// One follower's backlog.
#[derive(Debug, Default)]
pub struct Follower {
    changed: Mutex<Changed>,
    notify: Notify,
}

impl Follower {
    /// Waits for changes, and takes all there are.
    pub async fn next(&self) -> Changed {
        loop {
            let changed = std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner));
            if !changed.is_empty() {
                return changed;
            }
            self.notify.notified().await;
        }
    }
}

/// All followers.
#[derive(Debug, Default)]
pub struct Events {
    followers: Mutex<Vec<Weak<Follower>>>,
}

impl Events {
    /// A new follower; it gets changes from now on, until it is dropped.
    pub fn follow(&self) -> Arc<Follower> {
        let follower = Arc::new(Follower::default());
        self.lock().push(Arc::downgrade(&follower));
        follower
    }

    /// Says that a VPS changed.
    pub fn changed(&self, name: &VpsName, tenant: Option<&TenantName>) {
        self.lock().retain(|follower| {
            let Some(follower) = follower.upgrade() else { return false };
            let mut changed = follower.changed.lock().unwrap_or_else(PoisonError::into_inner);
            changed.insert(name.clone(), tenant.cloned());
            follower.notify.notify_one();
            true
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Follower>>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_changes_of_one_vps_are_one_for_who_is_slow() {
        let events = Events::default();
        let slow = events.follow();
        drop(events.follow());
        let (a, b): (VpsName, VpsName) = ("a".parse().unwrap(), "b".parse().unwrap());
        for _ in 0..1000 {
            events.changed(&a, None);
        }
        events.changed(&b, None);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let changed = runtime.block_on(slow.next());
        assert_eq!(changed.into_keys().collect::<Vec<_>>(), [a, b]);
        assert_eq!(events.lock().len(), 1, "a follower that is gone is forgotten");
    }
}
