//! What came about on a host, beside what it was told: each VPS's address, its last wake, and what its jobs did.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use model::{JobName, VpsName};
use serde::{Deserialize, Serialize};
use wire::network;

use crate::{api::error::ApiError, calls::insist, jobs::Kept, shared::Control, store::Wakes};

/// How long the network may take for one address.
const LIMIT: Duration = Duration::from_secs(30);
/// Addresses that are asked for at the same time: they are written together.
const AT_ONCE: usize = 64;

/// Of one VPS.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Past {
    /// Its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<Ipv4Addr>,
    /// Its wakes, if it had some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wakes: Option<Wakes>,
    /// What became of its jobs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    jobs: BTreeMap<JobName, Kept>,
}

/// Of all VPSs that have one.
pub type Pasts = BTreeMap<VpsName, Past>;

/// The pasts of this host's VPSs.
pub fn of(control: &Control) -> Pasts {
    let mut pasts = Pasts::new();
    for (name, vps) in &*control.all() {
        let wakes = Some(vps.wakes()).filter(|wakes| wakes.starts > 0);
        pasts.insert(name.clone(), Past { address: vps.link().map(|link| link.address), wakes, jobs: BTreeMap::new() });
    }
    for ((name, job), kept) in control.jobs.all() {
        if let Some(past) = pasts.get_mut(&name) {
            past.jobs.insert(job, kept);
        }
    }
    pasts
}

/// Addresses that VPSs of an import got before they are there.
#[derive(Debug, Default)]
pub struct Addressed(Vec<VpsName>);

impl Addressed {
    /// Has the network give each its address, where that is nobody's here. The VPSs that get another one.
    pub async fn new(control: &Control, pasts: &Pasts) -> Result<(Self, Vec<VpsName>), ApiError> {
        let wanted: Vec<_> = pasts.iter().filter_map(|(name, past)| Some((name.clone(), past.address?))).collect();
        let ask = |(name, address): &(VpsName, Ipv4Addr)| {
            let ask = network::Allocate { name: name.clone(), reserved: None, wanted: Some(*address) };
            async move { insist(&control.network, &ask, LIMIT).await }
        };
        let answers: Vec<_> = stream::iter(wanted.iter().map(ask)).buffered(AT_ONCE).collect().await;
        let (mut given, mut moved, mut failed) = (Self::default(), Vec::new(), None);
        for ((name, wanted), answer) in wanted.into_iter().zip(answers) {
            match answer {
                Ok(network::Allocated { link }) => {
                    given.0.push(name.clone());
                    if link.address != wanted {
                        moved.push(name);
                    }
                }
                Err(fault) => failed = Some(fault),
            }
        }
        if let Some(fault) = failed {
            given.give_back(control).await;
            return Err(fault.into());
        }
        Ok((given, moved))
    }

    /// Those VPSs will not be there after all.
    pub async fn give_back(self, control: &Control) {
        for name in self.0 {
            if let Err(fault) = insist(&control.network, &network::Release { name: name.clone() }, LIMIT).await {
                tracing::warn!(vps = %name, %fault, "its address is given back with the next start of this service");
            }
        }
    }
}

/// Gives VPSs that are new here their pasts.
pub async fn remember(control: &Arc<Control>, pasts: Pasts) -> Result<(), ApiError> {
    let mut jobs = BTreeMap::new();
    for (name, past) in pasts {
        let Some(vps) = control.get(&name) else { continue };
        if let Some(wakes) = past.wakes {
            control.wakes.put(name.clone(), vps.had(wakes));
        }
        let spec = vps.spec();
        let kept = past.jobs.into_iter().filter(|(job, _)| spec.jobs.contains_key(job));
        jobs.extend(kept.map(|(job, kept)| ((name.clone(), job), kept)));
    }
    control.jobs.remember(jobs.clone());
    control.store.run(move |store| store.put_jobs(&jobs)).await?;
    // What a full disk does not take is kept when there is room.
    control.wakes.written().await;
    Ok(())
}

/// Gives back addresses of VPSs that never came to be: an import was killed in between.
pub async fn sweep(control: Arc<Control>) {
    let given = match insist(&control.network, &network::Addresses {}, LIMIT).await {
        Ok(given) => given,
        Err(fault) => return tracing::warn!(%fault, "the network does not say which addresses are given out"),
    };
    let _one_at_a_time = control.changing.lock().await;
    let nobodys = |name: &VpsName| control.get(name).is_none() && !control.deleting().contains_key(name);
    let names = given.links.into_iter().map(|(name, _)| name).filter(nobodys).collect();
    Addressed(names).give_back(&control).await;
}
