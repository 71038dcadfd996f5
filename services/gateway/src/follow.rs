//! Follows `control`'s routes and states; what is known stays in force while `control` is away.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use model::{Ignore, ListenAddress, VpsName, api::Ignored};
use tokio::{sync::watch, time::sleep};
use wire::{
    Client, Fault,
    control::{RouteUpdate, Routes},
};

use crate::{
    cache::Cache,
    route::{Site, Table, Target},
    wake::{IdleTimes, Use, Vps},
};

/// Pause before asking again for a stream that ended: the first, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// The table in force and every VPS in it.
#[derive(Debug)]
pub struct Directory {
    control: Client,
    table: RwLock<Option<Table>>,
    known: Mutex<HashMap<VpsName, Arc<Vps>>>,
    /// Changes with the table.
    swapped: watch::Sender<()>,
    /// What servers last answered.
    pub cache: Arc<Cache>,
}

impl Directory {
    /// Knows nothing yet.
    pub fn new(control: Client) -> Arc<Self> {
        let (table, known, cache) = (RwLock::default(), Mutex::default(), Arc::default());
        Arc::new(Self { control, table, known, swapped: watch::Sender::new(()), cache })
    }

    /// The target that `select` finds on the site of `listen`, and a use of it, which begins before the table can change;
    /// no use for a client that `ignored` says the VPS ignores.
    pub fn find(
        &self,
        listen: ListenAddress,
        select: impl FnOnce(&Site) -> Option<&Target>,
        ignored: impl FnOnce(&Ignore) -> bool,
    ) -> Option<(Target, Option<Use>)> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let target = select(table.as_ref()?.site(listen)?)?;
        let counts = !target.ignore.as_deref().is_some_and(ignored);
        Some((target.clone(), counts.then(|| target.vps.enter())))
    }

    /// The VPS that `select` finds, without a use.
    #[cfg(test)]
    pub(crate) fn look(
        &self,
        listen: ListenAddress,
        select: impl FnOnce(&Site) -> Option<&Target>,
    ) -> Option<Arc<Vps>> {
        self.find(listen, select, |_| false).map(|(target, _)| target.vps)
    }

    /// Where `peer` is let in at `door`, a use of it, and who that is.
    pub fn door(&self, door: SocketAddr, peer: IpAddr) -> Option<(Arc<Vps>, u16, Use, VpsName)> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let (target, from) = table.as_ref()?.door(door, peer)?;
        Some((target.vps.clone(), target.port, target.vps.enter(), from.clone()))
    }

    /// Waits until `peer` would not be let in at `door` any more.
    pub async fn shut(&self, door: SocketAddr, peer: IpAddr) {
        let open = || {
            let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
            table.as_ref().is_some_and(|table| table.door(door, peer).is_some())
        };
        let mut swapped = self.swapped.subscribe();
        while open() {
            // The sender lives as long as this.
            let _ = swapped.changed().await;
        }
    }

    /// All doors of the table; none as long as there is no table.
    pub fn doors(&self) -> Option<HashSet<SocketAddr>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        Some(table.as_ref()?.doors().collect())
    }

    /// The addresses of the table; none as long as there is no table.
    pub fn addresses(&self) -> Option<Vec<ListenAddress>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        Some(table.as_ref()?.addresses().collect())
    }

    /// How clients were served that wake nobody, of VPSs that had some.
    pub fn ignored(&self) -> Vec<(VpsName, Ignored)> {
        self.known().iter().filter_map(|(name, vps)| Some((name.clone(), vps.ignored.read()?))).collect()
    }

    /// Follows without an end; sends on `changed` whenever there is another table.
    pub async fn follow(self: &Arc<Self>, changed: watch::Sender<()>) {
        let mut pause = PAUSE.0;
        loop {
            let mut first = true;
            if let Err(fault) = self.follow_once(&changed, &mut first).await {
                tracing::warn!(%fault, "the stream of routes ended");
            }
            pause = if first { (pause * 2).min(PAUSE.1) } else { PAUSE.0 };
            sleep(pause).await;
        }
    }

    async fn follow_once(self: &Arc<Self>, changed: &watch::Sender<()>, first: &mut bool) -> Result<(), Fault> {
        let mut stream = self.control.stream(&Routes {}).await?;
        while let Some(update) = stream.next().await? {
            let swapped = update.table.is_some();
            self.apply(update, *first);
            *first = false;
            if swapped {
                changed.send_replace(());
            }
        }
        Ok(())
    }

    /// Puts an update in force. States come first, so that the first request by a new table finds them.
    fn apply(self: &Arc<Self>, update: RouteUpdate, first: bool) {
        for state in update.states {
            let vps = self.vps(&mut self.known(), &state.name);
            vps.hear(state, first);
        }
        let Some(entries) = update.table else { return };
        let mut known = self.known();
        let mut led_to: HashMap<&VpsName, IdleTimes> = HashMap::new();
        let of_routes = entries.iter().map(|entry| (&entry.name, entry.idle_after_ms, entry.quiet_ms));
        let of_doors = update.doors.iter().map(|door| (&door.name, door.idle_after_ms, door.quiet_ms));
        for (name, after, quiet) in of_routes.chain(of_doors) {
            let times = IdleTimes { after: after.map(Duration::from_millis), quiet: quiet.map(Duration::from_millis) };
            // Each route of a VPS carries the same times; should they differ, the longer ones count, and never is longest.
            let longest = led_to.entry(name).or_insert(times);
            longest.after = longest.after.zip(times.after).map(|(a, b)| a.max(b));
            longest.quiet = longest.quiet.zip(times.quiet).map(|(a, b)| a.max(b));
        }
        let table = Table::new(&entries, &update.doors, |name| self.vps(&mut known, name));
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Some(table);
        self.swapped.send_replace(());
        known.retain(|name, vps| {
            vps.configure(led_to.get(name).copied());
            let kept = !vps.retire();
            if !kept {
                self.cache.clear(name);
            }
            kept
        });
    }

    fn known(&self) -> MutexGuard<'_, HashMap<VpsName, Arc<Vps>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vps(&self, known: &mut HashMap<VpsName, Arc<Vps>>, name: &VpsName) -> Arc<Vps> {
        if let Some(vps) = known.get(name) {
            return vps.clone();
        }
        let vps = Vps::new(name.clone(), Some(self.control.clone()));
        known.insert(name.clone(), vps.clone());
        vps
    }
}
