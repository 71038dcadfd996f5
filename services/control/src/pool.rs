//! What is prepared ahead of its start, within the memory that host.toml gives for it: VPSs that sleep, those that slept last
//! before others, and a few spares for the images that new VPSs were made of lately.
//!
//! [`shelf`] decides; this asks the host, one thing after the other, and not while VPSs are being started.

mod shelf;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use model::{ImageRef, LayerId, VpsName, VpsSpec, api::ErrorKind, run::Link};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use wire::{Fault, host, network};

use crate::{calls::insist, driver::Vps, images, launch, run_spec::run_spec, shared::Control};
use shelf::{Job, Shelf};

/// Memory of one prepared VPS: two processes, a network namespace, mounts and cgroups. Measured: 0.25 MiB of processes' own,
/// 0.5 of the kernel's.
const COST: u64 = 768 << 10;
/// Prepared VPSs at most, whatever memory there is: of each the host daemon holds a few descriptors.
const MOST: usize = 1024;
/// How long the host may take for one.
const LIMIT: Duration = Duration::from_secs(20);
/// Pause after something went wrong.
const PAUSE: Duration = Duration::from_secs(5);
/// For so long no VPS is to have been started before something is prepared.
const QUIET: Duration = Duration::from_millis(20);
/// How long that is waited for: where VPSs are started all the time, what is prepared helps them too.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is prepared, and what is to be.
#[derive(Debug)]
pub struct Pool {
    shelf: Mutex<Shelf>,
    changed: Notify,
    /// How many VPSs are being started.
    launches: watch::Sender<usize>,
}

/// A VPS is being started as long as this lives.
#[derive(Debug)]
pub struct Launching<'a>(&'a Pool);

impl Drop for Launching<'_> {
    fn drop(&mut self) {
        self.0.launches.send_modify(|launches| *launches -= 1);
    }
}

/// A spare that a new VPS takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spare {
    /// The host's number for it.
    pub number: u64,
    /// The layers it has mounted.
    pub layers: Vec<LayerId>,
    /// Its link.
    pub link: Link,
}

impl Pool {
    /// An empty one that may take `memory` bytes.
    pub fn new(memory: u64) -> Self {
        // One place is for who is just being prepared.
        let places = usize::try_from(memory / COST).unwrap_or(usize::MAX).saturating_sub(1).min(MOST);
        Self { shelf: Mutex::new(Shelf::new(places)), changed: Notify::new(), launches: watch::Sender::new(0) }
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Shelf)) {
        change(&mut self.shelf());
        self.changed.notify_one();
    }

    /// A VPS sleeps, and may be woken again.
    pub fn sleeps(&self, name: &VpsName) {
        self.change(|shelf| shelf.sleeps(name));
    }

    /// A VPS is new, and may be woken.
    pub fn is_new(&self, name: &VpsName) {
        self.change(|shelf| shelf.is_new(name));
    }

    /// A VPS is being started: what was prepared is used up.
    pub fn starts(&self, name: &VpsName) {
        self.change(|shelf| shelf.starts(name));
    }

    /// What is to be prepared waits as long as the answer lives.
    pub fn launching(&self) -> Launching<'_> {
        self.launches.send_modify(|launches| *launches += 1);
        Launching(self)
    }

    /// Waits until nothing is being started, for a moment.
    async fn quiet(&self) {
        let mut launches = self.launches.subscribe();
        let quiet = async {
            while launches.wait_for(|launches| *launches == 0).await.is_ok()
                && timeout(QUIET, launches.wait_for(|launches| *launches > 0)).await.is_ok()
            {}
        };
        let _ = timeout(PATIENCE, quiet).await;
    }

    /// A VPS was deleted.
    pub fn gone(&self, name: &VpsName) {
        self.change(|shelf| shelf.gone(name));
    }

    /// What the host has prepared, when the stream of its events began.
    pub fn found(&self, prepared: impl Iterator<Item = VpsName>) {
        self.change(|shelf| shelf.found(prepared));
    }

    /// A spare for a new VPS, if there is one that fits; another one is made then.
    pub fn take_spare(&self, spec: &VpsSpec) -> Option<Spare> {
        // A spare has one block of ids, and nothing mounted but the image.
        if spec.ids != 65_536 || spec.nesting || !spec.volumes.is_empty() {
            return None;
        }
        let mut spare = None;
        self.change(|shelf| spare = shelf.take_spare(&spec.image));
        spare
    }
}

/// Takes down the spares of images that are to go, or to change. One that is just being made goes when it is there.
pub async fn forget(control: &Arc<Control>, which: impl Fn(&ImageRef) -> bool) -> Result<(), Fault> {
    let mut spares = Vec::new();
    control.pool.change(|shelf| spares = shelf.forget(which));
    while let Some(spare) = spares.last() {
        if let Err(fault) = drop_spare(control, spare).await {
            control.pool.change(|shelf| shelf.unwanted.append(&mut spares));
            return Err(fault);
        }
        spares.pop();
    }
    Ok(())
}

/// Takes down what stands on `layers`, which were made anew: it has those mounted that there were before.
pub async fn renew(control: &Arc<Control>, layers: &[LayerId]) -> Result<(), Fault> {
    let has = |image: &ImageRef| {
        control.images.layers_of(image).is_some_and(|all| all.iter().any(|layer| layers.contains(layer)))
    };
    forget(control, has).await?;
    let all: Vec<_> = control.all().values().cloned().collect();
    for name in all.iter().filter(|vps| has(&vps.spec().image)).map(|vps| &vps.name) {
        if control.pool.shelf().is_prepared(name) {
            discard(control, name.clone()).await?;
            control.pool.change(|shelf| shelf.unprepared(name));
        }
    }
    Ok(())
}

/// Prepares what is to be, without an end.
pub async fn keep(control: Arc<Control>) {
    // Spares that a former process asked for, with addresses that nobody knows any more.
    let _ = insist(&control.host, &host::DropSpare { spare: None }, LIMIT).await;
    let _ = insist(&control.network, &network::Unreserve { address: None }, LIMIT).await;
    loop {
        control.pool.quiet().await;
        let job = control.pool.shelf().job();
        let done = match job {
            None => {
                control.pool.changed.notified().await;
                continue;
            }
            Some(Job::Prepare(name)) => prepare(&control, &name).await,
            Some(Job::Discard(name)) => discard(&control, name).await,
            Some(Job::Make(image)) => make(&control, image).await,
            Some(Job::Drop(spare)) => drop_spare(&control, &spare).await,
        };
        if let Err(fault) = done {
            tracing::warn!(%fault, "nothing is prepared for a moment");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn prepare(control: &Arc<Control>, name: &VpsName) -> Result<(), Fault> {
    let Some(vps) = control.get(name) else {
        control.pool.gone(name);
        return Ok(());
    };
    let asked = ask(control, &vps).await;
    match asked {
        Ok(()) => control.pool.change(|shelf| shelf.prepared(name)),
        // It is up, or its start fails just as well: that start says so.
        Err(_) => control.pool.gone(name),
    }
    asked.or_else(|fault| if fault.kind == ErrorKind::Unavailable { Err(fault) } else { Ok(()) })
}

async fn ask(control: &Arc<Control>, vps: &Arc<Vps>) -> Result<(), Fault> {
    let link = launch::place(control, vps, LIMIT).await?;
    let spec = vps.spec();
    let layers = images::layers(control, &spec.image, LIMIT).await?;
    let run = run_spec(&vps.name, &spec, &layers, &link);
    insist(&control.host, &host::Prepare { run }, LIMIT).await.map(drop)
}

async fn discard(control: &Arc<Control>, name: VpsName) -> Result<(), Fault> {
    match insist(&control.host, &host::Discard { name }, LIMIT).await {
        Err(fault) if fault.kind != ErrorKind::NotFound => Err(fault),
        _ => Ok(()),
    }
}

async fn make(control: &Arc<Control>, image: ImageRef) -> Result<(), Fault> {
    let made = async {
        let layers = images::layers(control, &image, LIMIT).await?;
        let link = insist(&control.network, &network::Reserve {}, LIMIT).await?.link;
        let made = host::MakeSpare { layers: layers.clone(), link: link.clone() };
        match insist(&control.host, &made, LIMIT).await {
            Ok(host::SpareMade { spare }) => Ok(Spare { number: spare, layers, link }),
            Err(fault) => {
                unreserve(control, &link).await;
                Err(fault)
            }
        }
    };
    let made: Result<Spare, Fault> = made.await;
    let answer = made.as_ref().map(drop).map_err(Clone::clone);
    control.pool.change(|shelf| shelf.made(&image, made.ok()));
    answer
}

/// Takes a spare down that no VPS was made of.
pub async fn drop_spare(control: &Arc<Control>, spare: &Spare) -> Result<(), Fault> {
    insist(&control.host, &host::DropSpare { spare: Some(spare.number) }, LIMIT).await?;
    unreserve(control, &spare.link).await;
    Ok(())
}

async fn unreserve(control: &Arc<Control>, link: &Link) {
    // A network service that does not answer is one that forgets it.
    let _ = insist(&control.network, &network::Unreserve { address: Some(link.address) }, LIMIT).await;
}
