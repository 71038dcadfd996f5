//! A start: steps 1 to 5 of docs/ARCHITECTURE.md.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use isolation::host::{
    BLOCK, Cgroup, HostBind, HostError, IdRange, Linker, Namespaces, ShimStart, begin_namespaces, detached, layer_map,
    make_namespaces, show, spawn_shim,
};
use model::{
    RunSpec,
    api::ErrorKind,
    run::{Link, Root},
    state::StartSteps,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::unix::AsyncFd;
use tracing::info;
use wire::{
    Fault,
    shim::{Bind, Descriptors, FromShim, ToShim, VERSION},
};

use crate::{
    host::{Host, Pinned, lock},
    life::{Life, ShimSocket, Step, Up},
    prepared::Owner,
    record::UpRecord,
    shim::attend,
    table::now_us,
    watch::watch,
};

/// Layers one root may have.
const LAYERS: usize = 64;

/// What is started.
#[derive(Debug)]
pub struct Launch {
    /// What to run.
    pub run: RunSpec,
    /// What it sees of the host.
    pub binds: Vec<HostBind>,
    /// Listening sockets it gets, with their names.
    pub listeners: Vec<(String, OwnedFd)>,
    /// What its secrets say. It passes through, unread.
    pub secrets: Option<OwnedFd>,
    /// Its network namespace.
    pub network: Network,
}

impl Launch {
    /// The outer end of its link.
    pub fn link(&self) -> Option<&str> {
        self.run.link.as_ref().map(|link| link.name.as_str())
    }
}

/// Where a VPS is built.
#[derive(Debug)]
pub(crate) struct Site {
    /// Its cgroup's name.
    pub label: String,
    /// Its directory.
    pub directory: PathBuf,
    /// Its ids.
    pub range: IdRange,
    /// The uid of its shim.
    pub shim: u32,
}

/// What a shim is told first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    /// To build and run.
    Start,
    /// To build all but the program.
    Prepare,
}

/// What was built.
#[derive(Debug)]
pub(crate) struct Built {
    /// The shim's socket.
    pub socket: ShimSocket,
    /// Readable once the shim has ended.
    pub shim: AsyncFd<OwnedFd>,
    /// The cgroup.
    pub cgroup: Cgroup,
}

/// Which network namespace a VPS gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// A fresh one.
    Own,
    /// The one of the network VPS, made once.
    Pinned,
    /// The host's.
    Host,
}

impl From<HostError> for StartError {
    fn from(error: HostError) -> Self {
        Self(error.explain())
    }
}

/// Why a start failed, for a person.
pub(crate) struct StartError(pub String);

impl From<std::io::Error> for StartError {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<rustix::io::Errno> for StartError {
    fn from(error: rustix::io::Errno) -> Self {
        Self(std::io::Error::from(error).to_string())
    }
}

impl Host {
    /// Starts a VPS that has no process; the number of the run.
    pub fn start(self: &Arc<Self>, launch: Launch) -> Result<u64, Fault> {
        let asked_us = now_us();
        let begun_ms = asked_us / 1000;
        let name = launch.run.name.clone();
        if self.is_stopping() {
            return Err(Fault::new(ErrorKind::Unavailable, "the host is being stopped"));
        }
        let site = self.startable(&launch)?;
        let failed = |error: StartError| Fault::new(ErrorKind::Failed, format!("vps \"{name}\": {}", error.0));
        if let Root::Layers(ids) = &launch.run.root {
            crate::layers::started(&self.layers, &self.paths, &name, ids).map_err(|e| failed(e.into()))?;
        }
        let run = self.place.next_run(&name).map_err(|e| failed(e.into()))?;
        let prepared = self.table().get_mut(&name)?.prepared.take();
        let mut steps = StartSteps { asked_us, prepared: prepared.is_some(), ..StartSteps::default() };
        let (grace_ms, link) = (launch.run.stop.grace_ms, launch.link().map(str::to_owned));
        let volumes = launch.run.volumes.keys().cloned().collect();
        let built = match prepared {
            Some(prepared) => self.go_on(prepared, launch.run, launch.secrets),
            None => self.build(launch, &site, Opening::Start),
        };
        let Built { socket, shim, cgroup } = built.map_err(|error| {
            self.unbuild(Owner::Vps(name.clone()), site.label.clone(), link.clone());
            failed(error)
        })?;
        steps.made_us = Some(now_us());
        self.keeper.keep(&format!("shim/{name}"), socket.get_ref()).map_err(|error| failed(error.into()))?;
        let label = cgroup.name().filter(|label| *label != name.as_str()).map(str::to_owned);
        let record = UpRecord { begun_ms, grace_ms, link, cgroup: label, asked: false, pid: None, volumes };
        {
            let mut table = self.table();
            table.note_link(record.link.as_deref(), &name);
            let vps = table.get_mut(&name)?;
            let shim = Some(shim);
            let up = Up {
                step: Step::Starting,
                socket: socket.clone(),
                shim,
                cgroup,
                record,
                execs: [].into(),
                shim_version: 0,
            };
            vps.life = Life::Up(Box::new(up));
            (vps.run, vps.since_ms) = (run, begun_ms);
            vps.steps = Some(Box::new(steps));
            self.changed(&name, vps);
        }
        info!(vps = %name, run, "started");
        tokio::spawn(attend(self.clone(), name, run, socket));
        Ok(run)
    }

    /// Where it is built, if it may be started like that now.
    pub(crate) fn startable(&self, launch: &Launch) -> Result<Site, Fault> {
        let name = &launch.run.name;
        let table = self.table();
        let vps = table.get(name)?;
        if vps.up().is_some() {
            return Err(Fault::new(ErrorKind::Conflict, format!("vps \"{name}\" is up already (run {})", vps.run)));
        }
        if vps.going {
            return Err(Fault::new(ErrorKind::Unavailable, format!("vps \"{name}\" is not quite down yet")));
        }
        if let Root::Layers(layers) = &launch.run.root
            && layers.len() > LAYERS
        {
            return Err(Fault::new(ErrorKind::Invalid, format!("vps \"{name}\": more than {LAYERS} layers")));
        }
        if let Some(link) = &launch.run.link {
            self.check_link(link, vps.designated)?;
            table.check_free(link, Some(name))?;
        }
        Ok(Site {
            label: name.as_str().to_owned(),
            directory: self.place.vps(name),
            range: vps.allocation.range(&self.config.ids),
            shim: vps.allocation.shim(&self.config.ids),
        })
    }

    /// A link is within the subnet, is named after its address, and takes none of the designated VPSs' addresses.
    pub(crate) fn check_link(&self, link: &Link, designated: bool) -> Result<(), Fault> {
        let network = &self.config.network;
        let prefix = network.subnet6.addr();
        let expected = Link::new(link.address, Link::address6_for(prefix, link.address));
        let offset = u32::from(link.address).wrapping_sub(u32::from(network.subnet.network()));
        if *link == expected && network.subnet.contains(&link.address) && (designated || offset >= 16) {
            return Ok(());
        }
        Err(Fault::new(
            ErrorKind::Invalid,
            format!("{} is not the address of a link in {}", link.address, network.subnet),
        ))
    }

    /// The steps. Children make the namespaces and the shim's mounts while this makes the rest.
    pub(crate) fn build(&self, launch: Launch, site: &Site, opening: Opening) -> Result<Built, StartError> {
        let Launch { run, binds, listeners, secrets, network } = launch;
        let Site { label, directory, range, shim } = site;
        let (range, shim) = (*range, *shim);
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let pending = match network {
            Network::Own => Some(begin_namespaces(shim, range, true)?),
            Network::Host => Some(begin_namespaces(shim, range, false)?),
            Network::Pinned => None,
        };
        if let Root::Layers(ids) = &run.root {
            crate::layers::look(&self.layers, ids).map_err(StartError)?;
        }
        let layers: Vec<PathBuf> = match &run.root {
            Root::Layers(ids) => ids.iter().map(|id| crate::layers::path(&self.layers, id)).collect(),
            Root::Bare => Vec::new(),
        };
        let mapped = !layers.is_empty() || binds.iter().any(|bind| bind.layer_map);
        let map = if mapped { Some(self.layer_map(range.first)?) } else { None };
        let cgroup = self.cgroups.create(label, &run.limits, shim)?;
        let shim_cgroup = cgroup.shim_directory()?;
        let shown = |bind: &HostBind| bind.shown.as_ref().map(|how| show(&bind.source, how, bind.writable)).transpose();
        let shown = binds.iter().map(shown).collect::<Result<Vec<_>, _>>()?;
        let start = ShimStart {
            binary: self.shim.as_fd(),
            socket: theirs.as_fd(),
            cgroup: shim_cgroup.as_fd(),
            user: shim,
            first: range.first,
            mount_point: &self.paths.run.join("stage"),
            layers: &layers,
            layer_map: map.as_ref().map(AsFd::as_fd),
            state: &directory.join("state"),
            binds: &binds,
            shown: &shown,
        };
        let child = spawn_shim(&start, |error| {
            let _ = wire::shim::send(theirs.as_fd(), &FromShim::NotStarted { reason: error.explain() }, &[]);
        })?;
        drop(theirs);
        let (birthplace, tasks) = (cgroup.directory()?, cgroup.tasks()?);
        let namespaces = match pending {
            Some(pending) => pending.finish()?,
            None => self.pinned_namespaces(shim, range)?,
        };
        if let Some(link) = &run.link {
            let mut pinned = lock(&self.pinned);
            let pinned =
                pinned.as_mut().ok_or_else(|| StartError("the network VPS has not been started".to_owned()))?;
            let inner = namespaces.network.as_ref().ok_or_else(|| StartError("a link needs a network".to_owned()))?;
            pinned.linker.create(link, inner.as_fd())?;
        }
        let log = detached(&directory.join("log"))?;
        let mut fds = vec![namespaces.user.as_fd()];
        fds.extend(namespaces.network.as_ref().map(AsFd::as_fd));
        fds.push(log.as_fd());
        fds.push(birthplace.as_fd());
        fds.extend(tasks.iter().map(AsFd::as_fd));
        fds.extend(listeners.iter().map(|(_, fd)| fd.as_fd()));
        fds.extend(secrets.iter().map(AsFd::as_fd));
        let descriptors = Descriptors {
            network: namespaces.network.is_some(),
            tasks: tasks.len(),
            listeners: listeners.iter().map(|(name, _)| name.clone()).collect(),
            secrets: secrets.is_some(),
        };
        let seen = |bind: &HostBind| Bind {
            target: bind.target.clone(),
            directory: bind.shown.is_some() || bind.source.is_dir(),
            volume: bind.volume,
        };
        let (run, fds_of, binds) = (Box::new(run), descriptors, binds.iter().map(seen).collect());
        let message = match opening {
            Opening::Start => ToShim::Start { version: VERSION, run, fds: fds_of, binds },
            Opening::Prepare => ToShim::Prepare { version: VERSION, run, fds: fds_of, binds },
        };
        match wire::shim::send(ours.as_fd(), &message, &fds) {
            // It ended already; why is in the socket, and is heard like the end of any run.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            sent => sent?,
        }
        Ok(Built { socket: Arc::new(watch(ours)?), shim: watch(child.pidfd)?, cgroup })
    }

    /// The network VPS's namespaces: made once, then joined.
    fn pinned_namespaces(&self, shim: u32, range: IdRange) -> Result<Namespaces, StartError> {
        let mut pinned = lock(&self.pinned);
        if pinned.is_none() {
            *pinned = Some(self.pin(make_namespaces(shim, range, true)?)?);
        }
        let pinned = pinned.as_ref().ok_or_else(|| StartError("no network namespace".to_owned()))?;
        let network = pinned.namespaces.network.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(Namespaces { user: pinned.namespaces.user.try_clone()?, network })
    }

    /// The id-mapping of layers for the VPS whose first id is `first`, made once.
    fn layer_map(&self, first: u32) -> Result<OwnedFd, StartError> {
        let mut maps = lock(&self.layer_maps);
        if let Some(map) = maps.get(&first) {
            return Ok(map.try_clone()?);
        }
        let map = layer_map(first)?;
        let copy = map.try_clone()?;
        maps.insert(first, map);
        Ok(copy)
    }

    /// Has the network VPS's namespaces outlive it and this daemon.
    fn pin(&self, namespaces: Namespaces) -> Result<Pinned, StartError> {
        let missing = || StartError("the network VPS needs a network namespace".to_owned());
        let network = namespaces.network.as_ref().ok_or_else(missing)?;
        let mut linker = Linker::new(network.as_fd())?;
        if let Some(uplink) = &self.uplink {
            // What there is of that name led to the namespace of a host that crashed.
            uplink.disconnect()?;
            uplink.connect(&mut linker)?;
        }
        if let Some(name) = self.config.vps_of("network") {
            self.keeper.keep(&format!("userns/{name}"), &namespaces.user)?;
            self.keeper.keep(&format!("netns/{name}"), network)?;
        }
        Ok(Pinned { namespaces, linker })
    }
}

/// How many blocks `ids` ids are; they must be whole ones.
pub fn blocks(ids: u32) -> Result<u32, Fault> {
    if ids == 0 || !ids.is_multiple_of(BLOCK) {
        return Err(Fault::new(ErrorKind::Invalid, format!("{ids} ids are not a multiple of {BLOCK}")));
    }
    Ok(ids / BLOCK)
}
