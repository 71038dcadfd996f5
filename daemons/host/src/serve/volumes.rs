//! Calls about volumes, and the volumes of a start.

use isolation::host::HostBind;
use model::{RunSpec, TenantName, Verb, VolumeName, VpsName, api::ErrorKind, run::Root};
use wire::{
    Fault,
    host::{AllVolumes, DeleteVolume, DiskStatus, VolumeStatus},
};

use super::Capability;
use crate::table::Vps;

impl Capability {
    /// The volumes that a start mounts.
    pub(super) fn volumes(&self, run: &RunSpec) -> Result<Vec<HostBind>, Fault> {
        let name = &run.name;
        if run.volumes.is_empty() {
            return Ok(Vec::new());
        }
        let tenant = self.host.table().get(name)?.tenant().cloned();
        let (Some(tenant), Root::Layers(_)) = (tenant, &run.root) else {
            return Err(Fault::new(ErrorKind::Invalid, format!("vps \"{name}\" can have no volumes")));
        };
        let mut binds = Vec::new();
        for (volume, at) in &run.volumes {
            // It is asked again for as long as it may take.
            let later = |fault: Fault| Fault::new(ErrorKind::Unavailable, fault.message);
            self.host.check_not_moving(&tenant, volume).map_err(later)?;
            let place = &self.host.place;
            let source = place.volume(&tenant, volume).and_then(|source| place.unmark(&source).map(|()| source));
            let source = source.map_err(|error| {
                Fault::new(ErrorKind::Failed, format!("vps \"{name}\": volume `{tenant}/{volume}`: {error}"))
            })?;
            self.host.place.limit(&source, at.size);
            binds.push(HostBind {
                source,
                target: at.path.clone(),
                writable: true,
                layer_map: true,
                volume: true,
                shown: None,
            });
        }
        Ok(binds)
    }

    pub(super) fn may(&self, verb: Verb, tenant: &TenantName) -> bool {
        self.grants.allows_tenant(verb, tenant)
    }

    /// What is left of the disk, and who writes.
    pub(super) fn disk(&self) -> Result<DiskStatus, Fault> {
        self.grants.check_any(Verb::Watch)?;
        let (disk, percent) = (self.host.disk()?, self.host.config.reserve.disk_percent);
        let up: Vec<_> = {
            let table = self.host.table();
            let seen = |(name, vps): &(&VpsName, &Vps)| self.grants.allows(Verb::Watch, name, vps.tenant());
            let up = table.vps.iter().filter(seen).filter(|(_, vps)| !vps.designated);
            up.filter_map(|(name, vps)| Some((name.clone(), vps.up()?.cgroup.clone()))).collect()
        };
        Ok(DiskStatus {
            lacks: disk.lacks(percent),
            uncounted: self.host.place.uncounted().map(str::to_owned),
            free: disk.free,
            room: disk.room(percent),
            // A little more than at the limit, so that it is not met again at once.
            ample: percent == 0 || disk.lacks(percent + 1).is_none(),
            wrote: up.into_iter().map(|(name, cgroup)| (name, cgroup.written())).collect(),
        })
    }

    /// All volumes that the grants show.
    pub(super) fn all_volumes(&self) -> Result<AllVolumes, Fault> {
        self.grants.check_any(Verb::Watch)?;
        let all = self.host.place.volumes();
        let all = all.map_err(|error| Fault::new(ErrorKind::Failed, format!("listing volumes: {error}")))?;
        let seen = all.into_iter().filter(|(tenant, _)| self.may(Verb::Watch, tenant));
        let status = |(tenant, name): (TenantName, VolumeName)| {
            let used = self.host.place.used(&self.host.place.volume_path(&tenant, &name));
            VolumeStatus { tenant, name, used }
        };
        let volumes = seen.map(status).collect();
        Ok(AllVolumes { volumes })
    }

    pub(super) fn delete_volume(&self, request: &DeleteVolume) -> Result<(), Fault> {
        let DeleteVolume { tenant, name, mark } = request;
        if !self.may(Verb::Delete, tenant) {
            return Err(Fault::denied(format!(
                "volume `{tenant}/{name}`: no grant for `delete`; host.toml gives grants"
            )));
        }
        // An import whose caller is gone may still be ending: who undoes it asks again.
        let moving = |fault: Fault| match mark {
            Some(_) => Fault::new(ErrorKind::Unavailable, fault.message),
            None => fault,
        };
        self.host.check_not_moving(tenant, name).map_err(moving)?;
        let missing = || Fault::not_found(format!("there is no volume `{tenant}/{name}`"));
        if mark.is_some_and(|mark| !self.host.place.is_marked(tenant, name, mark)) {
            return Err(missing());
        }
        self.host.place.delete_volume(tenant, name).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => missing(),
            _ => Fault::new(ErrorKind::Failed, format!("volume `{tenant}/{name}`: {error}")),
        })
    }
}
