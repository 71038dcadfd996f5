//! The host: what all parts of the daemon share.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use isolation::host::{Hierarchies, Linker, Namespaces};
use model::{HostConfig, ListenAddress, TenantName, VolumeName, VpsName, host::Paths};
use tokio::sync::watch;
use tracing::warn;
use wire::admin::{Programs, Upgrading};

use crate::{
    events::Events,
    held::Keeper,
    place::Place,
    table::{Table, Vps},
    uplink::Uplink,
};

/// One host. Locks are held for single steps, never while waiting.
#[derive(Debug)]
pub struct Host {
    /// `host.toml`.
    pub config: HostConfig,
    /// Where its files are.
    pub paths: Paths,
    /// What VPSs have on disk.
    pub place: Place,
    /// Its cgroups.
    pub cgroups: Hierarchies,
    /// Who holds what outlives this daemon.
    pub keeper: Keeper,
    /// Who follows changes.
    pub events: Events,
    /// The layer store.
    pub layers: PathBuf,
    /// The program `bailiwick-shim`.
    pub shim: OwnedFd,
    /// The program `bailiwick`, which all services are.
    pub bailiwick: PathBuf,
    /// The version that this daemon is of.
    pub programs: Programs,
    /// The last upgrade.
    pub upgrading: watch::Sender<Option<Upgrading>>,
    /// Whether it is being stopped: nothing starts any more.
    pub stopping: AtomicBool,
    /// The network VPS's namespaces and a socket in them, once it was started.
    pub pinned: Mutex<Option<Pinned>>,
    /// How VPSs reach the outside, if they do.
    pub uplink: Option<Uplink>,
    /// Id-mappings of layers by the first id of the VPS they are for.
    pub layer_maps: Mutex<BTreeMap<u32, OwnedFd>>,
    /// Volumes whose content is being moved in or out.
    pub moving: Mutex<BTreeSet<(TenantName, VolumeName)>>,
    /// Listening sockets by the keeper's name for them: `listen/…`, `service/…`, `host/…`, `api`.
    pub sockets: Mutex<BTreeMap<String, OwnedFd>>,
    /// Told whenever something prepared is there or gone.
    pub taken_down: tokio::sync::Notify,
    table: Mutex<Table>,
    exec_id: AtomicU64,
}

/// What is kept of the network VPS while it is being restarted.
#[derive(Debug)]
pub struct Pinned {
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// Makes links there.
    pub linker: Linker,
}

/// Locks, whatever a panic in another task left behind: each change of what is locked is one step.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Host {
    /// Puts the parts together.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        config: HostConfig,
        paths: Paths,
        place: Place,
        cgroups: Hierarchies,
        keeper: Keeper,
        (shim, bailiwick, programs): (OwnedFd, PathBuf, Programs),
        table: Table,
        sockets: BTreeMap<String, OwnedFd>,
        uplink: Option<Uplink>,
    ) -> Self {
        let layers = crate::config::layer_store(&config, &paths);
        Self {
            config,
            paths,
            place,
            cgroups,
            keeper,
            events: Events::default(),
            layers,
            shim,
            bailiwick,
            programs,
            upgrading: watch::Sender::new(None),
            stopping: AtomicBool::new(false),
            pinned: Mutex::new(None),
            uplink,
            layer_maps: Mutex::new(BTreeMap::new()),
            moving: Mutex::default(),
            sockets: Mutex::new(sockets),
            taken_down: tokio::sync::Notify::new(),
            table: Mutex::new(table),
            // Ids of programs that an earlier daemon started must not be met again.
            exec_id: AtomicU64::new(crate::table::now_ms() << 16),
        }
    }

    /// All VPSs.
    pub fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// Whether nothing may start any more.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// A number for a program that is started inside a VPS.
    pub fn next_exec(&self) -> u64 {
        self.exec_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Says that a VPS changed: to followers, and to the daemon after this one.
    pub fn changed(&self, name: &VpsName, vps: &Vps) {
        if let Err(error) = vps.record().save(&self.paths.run, name) {
            warn!(vps = %name, %error, "the record of its state can't be written");
        }
        self.events.changed(name, vps.tenant());
    }

    /// Has a listening socket held.
    pub fn hold(&self, name: String, socket: OwnedFd) -> std::io::Result<()> {
        self.keeper.keep(&name, socket.as_fd())?;
        lock(&self.sockets).insert(name, socket);
        Ok(())
    }

    /// A copy of a listening socket that is held.
    pub fn held(&self, name: &str) -> Option<std::io::Result<OwnedFd>> {
        lock(&self.sockets).get(name).map(OwnedFd::try_clone)
    }
    /// The addresses that are listened on.
    pub fn listening(&self) -> Vec<ListenAddress> {
        let address = |key: &String| key.strip_prefix("listen/")?.parse().ok();
        lock(&self.sockets).keys().filter_map(address).collect()
    }

    /// Notes a change of those, for the next host.
    pub fn note_listening(&self) {
        if let Err(error) = self.place.note_listening(&self.listening()) {
            warn!(%error, "the addresses listened on can't be noted");
        }
    }
}
