//! What VPSs of one tenant have among each other: who may connect to whom, said to the gateway as doors and to the
//! network service as pairs and names.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use model::{Allow, Egress, LabelName, Party, TenantName, VpsName, VpsSpec, run::Link, spec::Idle};
use tokio::{sync::watch, time::timeout};
use wire::{
    Fault,
    control::{Addresses, Door},
    network::{Neighbours, Said},
};

use crate::{calls::insist, launch, shared::Control};

/// Bytes after which a part of what is told ends; a request may have twice as many.
const PART: usize = 32 << 10;
/// Entries of `egress` in one item, of a few hundred bytes at most.
const OF_ITEM: usize = 32;
/// How long one try to tell the network service takes.
const TRY: Duration = Duration::from_secs(10);
/// Pause after a try that was refused.
const PAUSE: Duration = Duration::from_secs(1);
/// How long an apply waits until its rules are in force; they come into force later too.
const IN_FORCE: Duration = Duration::from_secs(5);

/// The specs that rules are read from.
pub type Specs = BTreeMap<VpsName, Arc<VpsSpec>>;

/// The rules in effect: both VPSs are there and belong to one tenant.
pub fn rules(specs: &Specs) -> BTreeSet<Allow> {
    let labelled = labelled(specs);
    let mut rules = BTreeSet::new();
    for (name, spec) in specs.iter().filter(|(_, spec)| !(spec.admits.is_empty() && spec.reaches.is_empty())) {
        let others = |party| members(specs, &labelled, &spec.tenant, party).filter(|other| *other != name).cloned();
        for (party, ports) in &spec.admits {
            let one = |from: VpsName| {
                ports.iter().map(move |port| Allow { from: from.clone(), to: name.clone(), port: *port })
            };
            rules.extend(others(party).flat_map(one));
        }
        for (party, ports) in &spec.reaches {
            let one =
                |to: VpsName| ports.iter().map(move |port| Allow { from: name.clone(), to: to.clone(), port: *port });
            rules.extend(others(party).flat_map(one));
        }
    }
    rules
}

/// How many rules between VPSs those of a tenant make, without making them: labels can make very many.
pub fn count<'a>(specs: &'a Specs, tenant: &'a TenantName) -> usize {
    let labelled = labelled(specs);
    let parties = |spec: &'a VpsSpec| spec.admits.iter().chain(&spec.reaches);
    let of_one =
        |(party, ports): (&Party, &BTreeSet<u16>)| members(specs, &labelled, tenant, party).count() * ports.len();
    specs.values().filter(|spec| spec.tenant == *tenant).flat_map(|spec| parties(spec)).map(of_one).sum()
}

/// The VPSs of each label.
type Labelled<'a> = BTreeMap<(&'a TenantName, &'a LabelName), Vec<&'a VpsName>>;

fn labelled(specs: &Specs) -> Labelled<'_> {
    let mut labelled = Labelled::new();
    for (name, spec) in specs {
        for label in &spec.labels {
            labelled.entry((&spec.tenant, label)).or_default().push(name);
        }
    }
    labelled
}

/// Whom of a tenant's VPSs a rule is about.
fn members<'a>(
    specs: &'a Specs,
    labelled: &'a Labelled<'a>,
    tenant: &'a TenantName,
    party: &'a Party,
) -> impl Iterator<Item = &'a VpsName> {
    let (one, several) = match party {
        Party::Vps(name) => {
            (specs.get_key_value(name).filter(|(_, spec)| spec.tenant == *tenant).map(|(name, _)| name), None)
        }
        Party::Label(label) => (None, labelled.get(&(tenant, label))),
    };
    one.into_iter().chain(several.into_iter().flatten().copied())
}

/// The doors of `rules`, as far as VPSs have addresses.
pub fn doors(specs: &Specs, rules: &BTreeSet<Allow>, link: impl Fn(&VpsName) -> Option<Link>) -> Vec<Door> {
    let addresses = |name: &VpsName| link(name).map(|link| Addresses { v4: link.address, v6: link.address6 });
    let mut doors = BTreeMap::<(&VpsName, u16), Vec<(VpsName, Addresses)>>::new();
    for Allow { from, to, port } in rules {
        if let Some(at) = addresses(from) {
            doors.entry((to, *port)).or_default().push((from.clone(), at));
        }
    }
    let door = |((name, port), from): ((&VpsName, u16), Vec<_>)| {
        let (idle_after_ms, quiet_ms) = idle_times(&specs.get(name)?.idle);
        Some(Door { name: name.clone(), at: addresses(name)?, port, from, idle_after_ms, quiet_ms })
    };
    doors.into_iter().filter_map(door).collect()
}

/// The times that the gateway goes by: without use, and of silence.
pub fn idle_times(idle: &Idle) -> (Option<u64>, Option<u64>) {
    match idle {
        Idle::Never => (None, None),
        Idle::After { after_ms, quiet_ms, .. } => (Some(*after_ms), *quiet_ms),
    }
}

/// What the network service is told.
fn said(control: &Control) -> Vec<Said> {
    let mut said = Vec::new();
    for (name, vps) in control.all().iter() {
        let spec = vps.spec();
        said.push(Said::Vps(spec.tenant.clone(), name.clone()));
        if let Some(only) = bounds(control, &spec) {
            said.push(Said::Bounds(name.clone(), Vec::new()));
            said.extend(only.chunks(OF_ITEM).map(|some| Said::Bounds(name.clone(), some.to_vec())));
        }
    }
    let rules = control.routes.rules();
    said.extend(rules.iter().map(|rule| Said::Allow(rule.from.clone(), rule.to.clone(), rule.port)));
    said
}

/// Tells it, in parts.
async fn tell_once(control: &Control) -> Result<(), Fault> {
    let mut rest = said(control).into_iter().peekable();
    let mut first = true;
    loop {
        let (mut part, mut bytes) = (Vec::new(), 0);
        while let Some(item) = rest.next_if(|_| bytes < PART) {
            bytes += serde_json::to_string(&item).map_or(0, |text| text.len() + 1);
            part.push(item);
        }
        let last = rest.peek().is_none();
        insist(&control.network, &Neighbours { first, last, said: part }, TRY).await?;
        if last {
            return Ok(());
        }
        first = false;
    }
}

/// What of the outside alone a VPS may connect to; none: all.
pub fn bounds(control: &Control, spec: &VpsSpec) -> Option<Vec<Egress>> {
    Egress::effective(spec.egress.as_deref(), control.config.egress_of(&spec.tenant))
}

/// Waits until what a VPS may not connect to is known where that is seen to: before, it must not run. False: not in time.
pub async fn bounded(control: &Control, spec: &VpsSpec, limit: Duration) -> bool {
    bounds(control, spec).is_none() || timeout(limit, control.telling.done()).await.is_ok()
}

/// Counts what there is to say, and what has been said.
#[derive(Debug)]
pub struct Telling {
    wanted: watch::Sender<u64>,
    told: watch::Sender<u64>,
}

impl Default for Telling {
    fn default() -> Self {
        Self { wanted: watch::Sender::new(0), told: watch::Sender::new(0) }
    }
}

impl Telling {
    /// Something changed.
    pub fn changed(&self) {
        self.wanted.send_modify(|version| *version += 1);
    }

    /// Waits until all that changed so far has been told.
    async fn done(&self) {
        let wanted = *self.wanted.borrow();
        // The sender lives as long as this.
        let _ = self.told.subscribe().wait_for(|told| *told >= wanted).await;
    }
}

/// Tells the network service whenever something changed, without an end.
pub async fn tell(control: Arc<Control>) {
    let mut wanted = control.telling.wanted.subscribe();
    wanted.mark_changed();
    while wanted.changed().await.is_ok() {
        loop {
            let version = *wanted.borrow_and_update();
            match tell_once(&control).await {
                Ok(_) => {
                    control.telling.told.send_replace(version);
                    break;
                }
                Err(fault) => tracing::warn!(%fault, "the network service was not told of neighbours; trying again"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Waits until the rules about `names` are in force, since their programs may connect at once.
pub async fn in_force(control: &Arc<Control>, names: impl Iterator<Item = VpsName>) {
    let about: BTreeSet<_> = names.collect();
    let rules = control.routes.rules();
    let mut concerned = BTreeSet::new();
    for Allow { from, to, .. } in rules.iter().filter(|rule| about.contains(&rule.from) || about.contains(&rule.to)) {
        concerned.extend([from, to]);
    }
    let is_bounded = |name: &VpsName| control.get(name).is_some_and(|vps| bounds(control, &vps.spec()).is_some());
    if concerned.is_empty() && !about.iter().any(is_bounded) {
        return;
    }
    let all = async {
        let vpss = concerned.into_iter().filter_map(|name| control.get(name));
        join_all(vpss.map(|vps| launch::prepare(control.clone(), vps))).await;
        control.telling.done().await;
        control.routes.flushed(control.routes.version(), IN_FORCE).await;
    };
    if timeout(IN_FORCE, all).await.is_err() {
        tracing::warn!("rules between VPSs are stored and not in force yet: network or gateway do not answer");
    }
}
