//! Spares: prepared VPSs that are nobody's yet. A new VPS takes one with its ids, its link and its mounted layers.

use std::sync::Arc;

use model::{
    LayerId, RunSpec, TenantName, VpsName,
    api::ErrorKind,
    run::{Link, Root},
};
use wire::Fault;

use crate::{
    host::Host,
    ids::Allocation,
    prepared::{Framed, GONE, Owner, Prepared, spare_label, take_down},
    start::{Launch, Network, Site},
    table::Vps,
};

/// A prepared VPS that is nobody's.
#[derive(Debug)]
pub struct Spare {
    /// Its ids.
    pub allocation: Allocation,
    /// What waits for its program; none while it is being taken down.
    pub prepared: Option<Prepared>,
}

impl Host {
    /// Makes a spare with these layers and this link; answers its number.
    pub async fn make_spare(self: &Arc<Self>, layers: Vec<LayerId>, link: Link) -> Result<u64, Fault> {
        if self.is_stopping() {
            return Err(Fault::new(ErrorKind::Unavailable, "the host is being stopped"));
        }
        self.check_link(&link, false)?;
        self.table().check_free(&link, None)?;
        let run = frame_of(layers, link)?;
        let (number, framed) = {
            let mut table = self.table();
            let allocation = table.allocate(&self.config, 1, None).ok_or_else(|| {
                Fault::new(ErrorKind::Lacking, "no ids are free for a spare; raise `blocks` of [ids] in host.toml")
            })?;
            let number = u64::from(allocation.first);
            let label = spare_label(number);
            let made = self.place.make_new(&label, &allocation);
            let directory =
                made.map_err(|e| Fault::new(ErrorKind::Failed, format!("making the directory of a spare: {e}")))?;
            let range = allocation.range(&self.config.ids);
            let site = Site { label, directory, range, shim: allocation.shim(&self.config.ids) };
            let launch = Launch { run, binds: Vec::new(), listeners: Vec::new(), secrets: None, network: Network::Own };
            let link = launch.link().map(str::to_owned);
            let begun = self.begin_frame(launch, &site, Owner::Spare(number));
            let (prepared, framed) =
                begun.map(|(prepared, framed)| (Some(prepared), Ok(framed))).unwrap_or_else(|fault| {
                    self.unbuild(Owner::Spare(number), site.label.clone(), link);
                    (None, Err(fault))
                });
            // Its ids stay taken until all of it is gone.
            table.spares.insert(number, Spare { allocation, prepared });
            let framed = framed?;
            (number, framed)
        };
        match framed.await {
            Ok(Framed::Failed(reason)) => Err(Fault::new(ErrorKind::Failed, format!("preparing a spare: {reason}"))),
            Ok(Framed::Ready) | Err(_) => Ok(number),
        }
    }

    /// Takes a spare down; false when there is none of that number.
    pub async fn drop_spare(&self, number: u64) -> bool {
        let prepared = self.table().spares.get_mut(&number).and_then(|spare| spare.prepared.take());
        let Some(prepared) = prepared else { return false };
        take_down(prepared).await;
        self.forget_spare(number);
        true
    }

    /// Removes the files of a spare that has no process any more, and frees its ids.
    pub(crate) fn forget_spare(&self, number: u64) {
        self.place.forget_new(&spare_label(number));
        // Last, since its ids are free from here on.
        self.table().spares.remove(&number);
        self.taken_down.notify_waiters();
    }

    /// Takes all spares down, until there is none at all: some may be on their way already, or new.
    pub async fn drop_spares(&self) {
        loop {
            let gone = self.taken_down.notified();
            let numbers: Vec<_> = self.table().spares.keys().copied().collect();
            if numbers.is_empty() {
                return;
            }
            let mut dropped = false;
            for number in numbers {
                dropped |= self.drop_spare(number).await;
            }
            // Who does not end is not waited for without an end.
            if !dropped && tokio::time::timeout(GONE, gone).await.is_err() {
                return;
            }
        }
    }

    /// Makes a spare the VPS `name`; none when there is none of that number, or it could not be.
    pub(crate) fn adopt_spare(
        &self,
        spares: &mut std::collections::BTreeMap<u64, Spare>,
        number: u64,
        name: &VpsName,
        tenant: &TenantName,
    ) -> Result<Option<Vps>, Fault> {
        let Some(prepared) = spares.get_mut(&number).and_then(|spare| spare.prepared.take()) else { return Ok(None) };
        let Some(Spare { allocation, .. }) = spares.remove(&number) else { return Ok(None) };
        let allocation = Allocation { tenant: Some(tenant.clone()), ..allocation };
        let adopted = self.place.adopt_new(&spare_label(number), name, &allocation);
        adopted.map_err(|e| Fault::new(ErrorKind::Failed, format!("vps \"{name}\": making its directory: {e}")))?;
        let mut vps = Vps::new(allocation, false, 0);
        vps.prepared = Some(prepared);
        Ok(Some(vps))
    }
}

/// What a spare is built as; what it will run, `Go` says.
fn frame_of(layers: Vec<LayerId>, link: Link) -> Result<RunSpec, Fault> {
    let name = "spare".parse().map_err(|_| Fault::new(ErrorKind::Failed, "no name for a spare"))?;
    Ok(RunSpec { link: Some(link), ..RunSpec::empty(name, Root::Layers(layers)) })
}
