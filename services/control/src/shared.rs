//! What all parts of this service share.

use std::{
    collections::BTreeMap,
    num::NonZero,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context as _;
use model::{HostConfig, VpsName, VpsSpec, VpsStatus, run::Link};
use tokio::sync::{Semaphore, watch};
use wire::Client;

use crate::{
    driver::Vps,
    history::History,
    images::Images,
    jobs::Jobs,
    machine::Machine,
    memory::Memory,
    neighbours::{Telling, doors, rules},
    pool::Pool,
    routes::{Routes, table},
    secrets::Secrets,
    store::{self, Later, Store, Stored, Wakes},
};

/// Places that are prepared at the same time: what an apply of thousands asks of others at once.
const AHEAD: usize = 16;

/// Whom this service talks to.
#[derive(Debug)]
pub struct Others {
    /// The host daemon.
    pub host: Client,
    /// The service that has addresses and links.
    pub network: Client,
    /// The service that listens.
    pub gateway: Client,
    /// The service that has images.
    pub apps: Client,
    /// The service that ships logs, where there are targets.
    pub logs: Client,
}

/// The service.
#[derive(Debug)]
pub struct Control {
    /// The host daemon.
    pub host: Client,
    /// The service that has addresses and links.
    pub network: Client,
    /// The service that listens.
    pub gateway: Client,
    /// The service that has images.
    pub apps: Client,
    /// The service that ships logs, where there are targets.
    pub logs: Client,
    /// `host.toml`.
    pub config: HostConfig,
    /// Desired state on disk.
    pub store: Store,
    /// What of it could not be read.
    pub damaged: Vec<String>,
    /// What the network service is told of neighbours.
    pub telling: Telling,
    /// What happened.
    pub history: History,
    /// For the gateway.
    pub routes: Routes,
    /// Images that are there.
    pub images: Images,
    /// Secrets that are set.
    pub secrets: Secrets,
    /// What is prepared ahead.
    pub pool: Pool,
    /// What the machine has.
    pub machine: Machine,
    /// Who may be up at once.
    pub memory: Memory,
    /// What is run at certain times.
    pub jobs: Jobs,
    /// Places of those that start again after a boot.
    pub coming_back: Semaphore,
    /// Held by who changes desired state: one at a time.
    pub changing: tokio::sync::Mutex<()>,
    /// Changes when memory was used for a moment, much where there are many VPSs.
    pub grown: watch::Sender<()>,
    /// Held by who prepares a place ahead of its first start.
    pub ahead: Semaphore,
    vps: Mutex<BTreeMap<VpsName, Arc<Vps>>>,
    /// Those that are being deleted: not there for anybody, but their names are not free yet.
    deleting: Mutex<BTreeMap<VpsName, Arc<Vps>>>,
    /// Statuses of the designated VPSs.
    designated: Mutex<BTreeMap<VpsName, VpsStatus>>,
    /// Wakes on their way to the store.
    pub wakes: Arc<Later<Wakes>>,
    /// Places on their way there.
    pub places: Arc<Later<Link>>,
}

impl Control {
    /// Opens the store and starts one driver per VPS.
    pub fn open(context: &service::Context) -> anyhow::Result<Arc<Self>> {
        let others = Others {
            host: context.host.clone(),
            network: context.client("network"),
            gateway: context.client("gateway"),
            apps: context.client("apps"),
            logs: context.client("logs"),
        };
        Self::new(others, context.config.clone(), &context.data)
    }

    /// The same with these to talk to.
    pub fn new(others: Others, config: HostConfig, data: &Path) -> anyhow::Result<Arc<Self>> {
        let path = data.join("state.redb");
        let (store, stored) = store::good::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let Others { host, network, gateway, apps, logs } = others;
        let machine = Machine::read(&config).context("reading the machine's size")?;
        let prepared = config.pool.memory.of(machine.memory);
        let control = Arc::new(Self {
            host,
            network,
            gateway,
            apps,
            logs,
            pool: Pool::new(prepared),
            machine,
            // What is prepared ahead has a budget of its own.
            memory: Memory::new(machine.memory.saturating_sub(prepared)),
            jobs: Jobs::new(stored.jobs.clone()),
            config,
            telling: Telling::default(),
            history: History::open(data),
            routes: Routes::default(),
            images: Images::new(stored.images.clone()),
            secrets: Secrets::new(stored.secrets.clone(), data),
            coming_back: Semaphore::new(2 * std::thread::available_parallelism().map_or(1, NonZero::get)),
            changing: tokio::sync::Mutex::new(()),
            grown: watch::Sender::new(()),
            ahead: Semaphore::new(AHEAD),
            vps: Mutex::default(),
            deleting: Mutex::default(),
            designated: Mutex::default(),
            wakes: Later::start(store.clone(), "last wakes", Store::put_wakes),
            places: Later::start(store.clone(), "places of VPSs", Store::put_places),
            damaged: stored.damaged.clone(),
            store,
        });
        control.fill(stored);
        Ok(control)
    }

    fn fill(self: &Arc<Self>, stored: Stored) {
        for (name, spec) in stored.specs {
            let link = stored.links.get(&name).filter(|_| stored.created.contains(&name)).cloned();
            let wakes = stored.wakes.get(&name).cloned().unwrap_or_default();
            let vps = Vps::spawn(self.clone(), name.clone(), Arc::new(spec), link, wakes);
            let deleted = stored.deleting.contains(&name);
            if deleted { &self.deleting } else { &self.vps }
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(name, vps);
        }
        let known =
            self.all().keys().chain(self.deleting().keys()).chain(self.config.designated.keys()).cloned().collect();
        self.history.forget_all_but(known);
        self.publish_table();
    }

    /// The VPSs that are there.
    pub fn all(&self) -> MutexGuard<'_, BTreeMap<VpsName, Arc<Vps>>> {
        self.vps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One VPS.
    pub fn get(&self, name: &VpsName) -> Option<Arc<Vps>> {
        self.all().get(name).cloned()
    }

    /// The specs of all VPSs.
    pub fn specs(&self) -> BTreeMap<VpsName, Arc<VpsSpec>> {
        self.all().iter().map(|(name, vps)| (name.clone(), vps.spec())).collect()
    }

    /// Makes the table of routes and the rules between VPSs what the specs say.
    pub fn publish_table(&self) {
        let specs = self.specs();
        let rules = rules(&specs);
        let doors = doors(&specs, &rules, |name| self.get(name)?.link());
        self.routes.set_table(table(specs.iter().map(|(name, spec)| (name, &**spec))), doors, rules);
        self.telling.changed();
        self.grown.send_replace(());
    }

    /// The designated VPSs' statuses.
    pub fn designated(&self) -> MutexGuard<'_, BTreeMap<VpsName, VpsStatus>> {
        self.designated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The VPSs that are being deleted.
    pub fn deleting(&self) -> MutexGuard<'_, BTreeMap<VpsName, Arc<Vps>>> {
        self.deleting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
