//! VPSs that are prepared: all of a start is done but its program, which `Start` then only has to name.
//!
//! A prepared VPS is down for everybody. It ends with the daemon that made it: the keeper does not hold its shim's socket.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use isolation::host::{Cgroup, HostBind};
use model::{
    Limits, RunSpec, VpsName,
    api::ErrorKind,
    run::{Link, Root},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::{sync::oneshot, task::AbortHandle};
use tracing::{debug, warn};
use wire::{
    Fault,
    shim::{FromShim, ShimState, ToShim},
};

use crate::{
    host::{Host, lock},
    life::ShimSocket,
    shim::{await_cgroup, receive},
    start::{Built, Launch, Network, Opening, Site},
    table::Vps,
};

/// How long the shim may take to build the frame.
const FRAME: Duration = Duration::from_secs(10);
/// How long what is taken down may take to be gone.
pub(crate) const GONE: Duration = Duration::from_secs(5);

/// What the frame of a VPS was made of. Only a start with an equal one can use it.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    root: Root,
    /// The directories that the layers were: one that was damaged is replaced by another of the same name.
    layers: Vec<Option<(u64, u64)>>,
    link: Option<Link>,
    nesting: bool,
    network: Network,
    /// With the file system and file that each source was, so that a volume that was replaced is known as another one.
    binds: Vec<(HostBind, Option<(u64, u64)>)>,
}

impl Frame {
    fn of(launch: &Launch, store: &Path) -> Self {
        let run = &launch.run;
        let identity = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        let identified = |bind: &HostBind| {
            let source = if bind.volume { bind.source.join("data") } else { bind.source.clone() };
            (bind.clone(), identity(&source))
        };
        let layers = match &run.root {
            Root::Layers(ids) => ids.iter().map(|id| identity(&crate::layers::path(store, id))).collect(),
            Root::Bare => Vec::new(),
        };
        Self {
            root: run.root.clone(),
            layers,
            link: run.link.clone(),
            nesting: run.nesting,
            network: launch.network,
            binds: launch.binds.iter().map(identified).collect(),
        }
    }
}

/// A VPS that waits for what is to run in it.
#[derive(Debug)]
pub struct Prepared {
    frame: Frame,
    limits: Limits,
    built: Built,
    watcher: AbortHandle,
    /// Whether its frame is there; a start need not wait for that.
    pub framed: bool,
}

impl Prepared {
    /// Whether this start can go on from here.
    fn serves(&self, launch: &Launch, store: &Path) -> bool {
        let limits = self.limits == launch.run.limits || self.limits == Limits::default();
        launch.listeners.is_empty() && limits && !self.ended() && self.frame == Frame::of(launch, store)
    }

    /// Whether its shim is gone, which is heard a moment later.
    fn ended(&self) -> bool {
        let mut fds = [PollFd::new(self.built.shim.get_ref(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// The outer end of its link.
    pub fn link(&self) -> Option<&str> {
        self.frame.link.as_ref().map(|link| link.name.as_str())
    }
}

impl Host {
    /// Prepares a VPS that has no process for its next start. One that is prepared like that already stays so.
    pub async fn prepare(self: &Arc<Self>, launch: Launch) -> Result<(), Fault> {
        let name = launch.run.name.clone();
        self.make_way(&launch).await?;
        if self.is_stopping() {
            return Err(Fault::new(ErrorKind::Unavailable, "the host is being stopped"));
        }
        if self.table().get(&name)?.prepared.is_some() {
            return Ok(());
        }
        let site = self.startable(&launch)?;
        if let Root::Layers(ids) = &launch.run.root {
            let noted = crate::layers::started(&self.layers, &self.paths, &name, ids);
            noted.map_err(|e| Fault::new(ErrorKind::Failed, format!("vps \"{name}\": {e}")))?;
        }
        let link = launch.link().map(str::to_owned);
        let (prepared, framed) = self
            .begin_frame(launch, &site, Owner::Vps(name.clone()))
            .inspect_err(|_| self.unbuild(Owner::Vps(name.clone()), site.label.clone(), link))?;
        {
            let mut table = self.table();
            table.note_link(prepared.link(), &name);
            table.get_mut(&name)?.prepared = Some(prepared);
        }
        match framed.await {
            Ok(Framed::Failed(reason)) => Err(Fault::new(ErrorKind::Failed, format!("vps \"{name}\": {reason}"))),
            // Without a word it was taken down, as something else was needed.
            Ok(Framed::Ready) | Err(_) => Ok(()),
        }
    }

    /// Takes down what is prepared for a VPS unless `launch` can go on from it.
    pub async fn make_way(self: &Arc<Self>, launch: &Launch) -> Result<(), Fault> {
        let name = &launch.run.name;
        let spare = launch.link().and_then(|link| self.table().spare_with(link));
        if let Some(number) = spare {
            // Its address was given to somebody else, since who keeps addresses was restarted.
            self.drop_spare(number).await;
        }
        loop {
            self.await_gone(name).await;
            let changed = self.taken_down.notified();
            let (framed, serves) = match &self.table().get(name)?.prepared {
                None => return Ok(()),
                Some(prepared) => (prepared.framed, prepared.serves(launch, &self.layers)),
            };
            match (framed, serves) {
                (true, true) => return Ok(()),
                // What the shim says of a frame that fails, its watcher alone hears.
                (false, true) => changed.await,
                (_, false) => {
                    debug!(vps = %name, "what was prepared is not what is needed");
                    self.discard(name).await;
                }
            }
        }
    }

    /// Waits until nothing of an earlier run or of what was prepared is left of a VPS.
    pub async fn await_gone(&self, name: &VpsName) {
        loop {
            let gone = self.taken_down.notified();
            if !self.table().get(name).is_ok_and(|vps| vps.going) {
                return;
            }
            gone.await;
        }
    }

    /// Takes down what is prepared for a VPS, if anything is. Its files and ids stay.
    pub async fn discard(&self, name: &VpsName) {
        let take = |vps: &mut Vps| {
            let prepared = vps.prepared.take();
            vps.going |= prepared.is_some();
            prepared
        };
        let prepared = self.table().get_mut(name).ok().and_then(take);
        if let Some(prepared) = prepared {
            take_down(prepared).await;
            if let Ok(vps) = self.table().get_mut(name) {
                vps.going = false;
            }
            self.taken_down.notify_waiters();
        }
    }

    /// Takes away what a build that failed has made: killed processes take a moment to be gone, and until then nothing else is
    /// built there.
    pub(crate) fn unbuild(self: &Arc<Self>, owner: Owner, label: String, link: Option<String>) {
        if let Owner::Vps(name) = &owner
            && let Ok(vps) = self.table().get_mut(name)
        {
            vps.going = true;
        }
        let host = self.clone();
        tokio::spawn(async move {
            remove_killed(&host.cgroups.of(&label)).await;
            if let (Some(link), Some(pinned)) = (link, lock(&host.pinned).as_mut()) {
                let _ = pinned.linker.delete(&link);
            }
            match &owner {
                Owner::Vps(name) => {
                    if let Ok(vps) = host.table().get_mut(name) {
                        vps.going = false;
                    }
                }
                Owner::Spare(number) => host.forget_spare(*number),
            }
            host.taken_down.notify_waiters();
        });
    }

    /// A frame is there.
    fn mark_framed(&self, owner: &Owner) {
        let mut table = self.table();
        let prepared = match owner {
            Owner::Vps(name) => table.get_mut(name).ok().and_then(|vps| vps.prepared.as_mut()),
            Owner::Spare(number) => table.spares.get_mut(number).and_then(|spare| spare.prepared.as_mut()),
        };
        if let Some(prepared) = prepared {
            prepared.framed = true;
        }
        self.taken_down.notify_waiters();
    }

    /// Takes down all that is prepared.
    pub async fn discard_all(self: &Arc<Self>) {
        let mut all = tokio::task::JoinSet::new();
        let names: Vec<_> = self.table().vps.keys().cloned().collect();
        for name in names {
            let host = self.clone();
            all.spawn(async move { host.discard(&name).await });
        }
        let host = self.clone();
        all.spawn(async move { host.drop_spares().await });
        all.join_all().await;
    }

    /// Has a prepared VPS run `launch`, for which `make_way` made sure that it can. The limits it lacks are set.
    pub(crate) fn go_on(
        &self,
        prepared: Prepared,
        run: RunSpec,
        secrets: Option<OwnedFd>,
    ) -> Result<Built, crate::start::StartError> {
        let Prepared { limits, built, watcher, .. } = prepared;
        watcher.abort();
        if limits != run.limits {
            built.cgroup.set_limits(&run.limits)?;
        }
        let go = ToShim::Go { run: Box::new(run) };
        match wire::shim::send(
            built.socket.get_ref().as_fd(),
            &go,
            &secrets.iter().map(AsFd::as_fd).collect::<Vec<_>>(),
        ) {
            // It ended a moment ago, and is heard like the end of any run.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            sent => sent?,
        }
        Ok(built)
    }

    /// Builds all but the program, and watches it until it is used. What comes back says when the frame is there.
    pub(crate) fn begin_frame(
        self: &Arc<Self>,
        launch: Launch,
        site: &Site,
        owner: Owner,
    ) -> Result<(Prepared, oneshot::Receiver<Framed>), Fault> {
        let (frame, limits) = (Frame::of(&launch, &self.layers), launch.run.limits.clone());
        let built = self
            .build(launch, site, Opening::Prepare)
            .map_err(|error| Fault::new(ErrorKind::Failed, format!("preparing {}: {}", site.label, error.0)))?;
        let (said, framed) = oneshot::channel();
        let watcher = tokio::spawn(watch(self.clone(), owner, built.socket.clone(), said)).abort_handle();
        Ok((Prepared { frame, limits, built, watcher, framed: false }, framed))
    }
}

/// What became of a frame.
pub(crate) enum Framed {
    /// It waits.
    Ready,
    /// It could not be built.
    Failed(String),
}

/// Whose a prepared VPS is.
pub(crate) enum Owner {
    /// A VPS that is down.
    Vps(VpsName),
    /// Nobody's.
    Spare(u64),
}

/// The directory and cgroup of a spare; no VPS can have this name.
pub(crate) fn spare_label(number: u64) -> String {
    format!("spare_{number}")
}

/// The number in a label, which is that of its first block of ids.
pub(crate) fn spare_number(label: &str) -> Option<u32> {
    label.strip_prefix("spare_")?.parse().ok()
}

/// Hears a shim until it is used or ends by itself, as when somebody killed it.
async fn watch(host: Arc<Host>, owner: Owner, socket: ShimSocket, said: oneshot::Sender<Framed>) {
    let mut said = Some(said);
    let mut tell = |framed| drop(said.take().map(|said| said.send(framed)));
    let mut reason = "its shim ended".to_owned();
    let framed = tokio::time::timeout(FRAME, async {
        loop {
            match receive(&socket).await {
                Ok(Some(FromShim::State { state: ShimState::Prepared, .. })) => return true,
                Ok(Some(FromShim::NotStarted { reason: why })) => reason = why,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return false,
            }
        }
    });
    if framed.await == Ok(true) {
        host.mark_framed(&owner);
        tell(Framed::Ready);
        while matches!(receive(&socket).await, Ok(Some(_))) {}
    } else {
        warn!(reason, "a VPS can't be prepared");
        tell(Framed::Failed(reason));
    }
    // On a task of its own: taking it down aborts this one.
    tokio::spawn(async move {
        match owner {
            Owner::Vps(name) => host.discard(&name).await,
            Owner::Spare(number) => drop(host.drop_spare(number).await),
        }
    });
}

/// Ends the processes of a prepared VPS, and removes its cgroup. Its link goes with its network namespace.
pub(crate) async fn take_down(prepared: Prepared) {
    let Prepared { built, watcher, .. } = prepared;
    watcher.abort();
    if let Err(error) = built.cgroup.kill() {
        warn!(error = error.explain(), "a prepared VPS can't be killed");
    }
    drop(built.socket);
    let _ = tokio::time::timeout(GONE, built.shim.readable()).await;
    remove_killed(&built.cgroup).await;
}

/// Kills what is left in a group, and removes it.
async fn remove_killed(cgroup: &Cgroup) {
    if !cgroup.is_empty() {
        let _ = cgroup.kill();
    }
    if !await_cgroup(cgroup, cgroup.ends(), Cgroup::is_empty, GONE).await {
        warn!("processes are left after SIGKILL");
    }
    if let Err(error) = cgroup.remove() {
        warn!(error = error.explain(), "a cgroup stays");
    }
}
