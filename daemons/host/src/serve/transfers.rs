//! Calls that move a volume's content: `ImportVolume`, `ExportVolume` and `CopyVolume`.

use std::{os::fd::AsFd, path::Path};

use model::{TenantName, Verb, VolumeName, api::ErrorKind, disk::Disk, limits::show_bytes};
use tracing::warn;
use wire::{
    Fault, Replier, Request,
    host::{CopyVolume, ExportVolume, ImportVolume, Moved},
};

use super::Capability;
use crate::{
    host::{Host, lock},
    table::Vps,
    transfer::{Transfer, Way},
};

/// Volumes that are moved at once.
const MOVING: usize = 16;

/// As long as it lives, its volume is being moved, and by nobody else.
struct Moving<'a> {
    host: &'a Host,
    tenant: TenantName,
    name: VolumeName,
    /// Whether a new directory has to go.
    new: bool,
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        if self.new
            && let Err(error) = self.host.place.drop_new_volume(&self.tenant, &self.name)
        {
            warn!(tenant = %self.tenant, volume = %self.name, %error, "what was imported in part stays until the next start");
        }
        lock(&self.host.moving).remove(&(self.tenant.clone(), self.name.clone()));
    }
}

impl Host {
    /// Refuses what a volume can't have while its content is being moved.
    pub fn check_not_moving(&self, tenant: &TenantName, name: &VolumeName) -> Result<(), Fault> {
        if lock(&self.moving).contains(&(tenant.clone(), name.clone())) {
            return Err(conflict(tenant, name, "is being imported or exported"));
        }
        Ok(())
    }

    fn begin_moving(&self, tenant: &TenantName, name: &VolumeName) -> Result<Moving<'_>, Fault> {
        self.check_not_moving(tenant, name)?;
        let mut moving = lock(&self.moving);
        if moving.len() >= MOVING {
            return Err(Fault::new(ErrorKind::Unavailable, format!("{MOVING} volumes are being moved already")));
        }
        moving.insert((tenant.clone(), name.clone()));
        Ok(Moving { host: self, tenant: tenant.clone(), name: name.clone(), new: false })
    }

    fn check_unused(&self, tenant: &TenantName, name: &VolumeName) -> Result<(), Fault> {
        let uses =
            |vps: &Vps| vps.tenant() == Some(tenant) && vps.up().is_some_and(|up| up.record.volumes.contains(name));
        match self.table().vps.iter().find(|(_, vps)| uses(vps)) {
            Some((vps, _)) => {
                Err(conflict(tenant, name, &format!("is used by vps \"{vps}\", which is up; stop it first")))
            }
            None => Ok(()),
        }
    }

    fn check_data(&self, tenant: &TenantName, name: &VolumeName) -> Result<(), Fault> {
        if self.place.has_data(tenant, name) {
            return Ok(());
        }
        Err(Fault::not_found(format!("there is no volume `{tenant}/{name}`, or nothing was ever in it")))
    }

    fn begin_transfer(&self, way: Way<'_>, directory: &Path) -> Result<Transfer, Fault> {
        Transfer::begin(way, directory, &self.paths.run.join("stage"))
    }

    /// The disk that VPSs write to.
    pub fn disk(&self) -> Result<Disk, Fault> {
        let failed = |error| Fault::new(ErrorKind::Failed, format!("looking at the disk: {error}"));
        let stat = rustix::fs::statvfs(&self.paths.state).map_err(failed)?;
        let (blocks, files) = ([stat.f_blocks, stat.f_bavail], [stat.f_files, stat.f_favail]);
        Ok(Disk::of_fragments(stat.f_frsize, blocks, files))
    }

    /// Refuses what would take of what is reserved.
    pub fn check_room(&self) -> Result<(), Fault> {
        match self.disk()?.lacks(self.config.reserve.disk_percent) {
            Some(lacking) => Err(Fault::new(ErrorKind::Lacking, lacking)),
            None => Ok(()),
        }
    }
}

fn conflict(tenant: &TenantName, name: &VolumeName, what: &str) -> Fault {
    Fault::new(ErrorKind::Conflict, format!("volume `{tenant}/{name}` {what}"))
}

/// Says of which volume a fault is.
fn of<'a>(tenant: &'a TenantName, name: &'a VolumeName) -> impl Fn(Fault) -> Fault + 'a {
    move |fault| Fault::new(fault.kind, format!("volume `{tenant}/{name}`: {}", fault.message))
}

impl Capability {
    fn check_volume(&self, verb: Verb, word: &str, tenant: &TenantName, name: &VolumeName) -> Result<(), Fault> {
        if self.may(verb, tenant) {
            return Ok(());
        }
        Err(Fault::denied(format!("volume `{tenant}/{name}`: no grant for `{word}`; host.toml gives grants")))
    }

    pub(super) async fn import_volume(&self, request: &Request, replier: &mut Replier<'_>) -> Result<(), Fault> {
        let ImportVolume { tenant, name, owner, replace, size, mark } = request.parse()?;
        self.check_volume(Verb::Create, "create", &tenant, &name)?;
        if replace {
            self.check_volume(Verb::Delete, "delete", &tenant, &name)?;
        }
        let [stream] = request.fds.as_slice() else {
            return Err(Fault::new(ErrorKind::Invalid, "an import needs one descriptor, the archive"));
        };
        let host = &self.host;
        let of = of(&tenant, &name);
        let mut moving = host.begin_moving(&tenant, &name)?;
        host.check_unused(&tenant, &name)?;
        host.check_room().map_err(&of)?;
        if !replace && host.place.has_data(&tenant, &name) {
            return Err(conflict(&tenant, &name, "has something in it; only an import that replaces it may go on"));
        }
        let failed = |error: std::io::Error| of(Fault::new(ErrorKind::Failed, error.to_string()));
        let directory = host.place.new_volume(&tenant, &name).map_err(failed)?;
        moving.new = true;
        host.place.limit(&directory, size);
        if let Some(mark) = mark {
            host.place.mark(&directory, mark).map_err(failed)?;
        }
        let transfer = host.begin_transfer(Way::In(stream, owner), &directory).map_err(&of)?;
        // The kernel's words for a volume and for a disk that is full may be the same.
        let too_large = |fault: Fault| match size {
            Some(size) if fault.kind == ErrorKind::Lacking && host.place.uncounted().is_none() => {
                Fault::new(fault.kind, format!("{}; its size is {}", fault.message, show_bytes(size)))
            }
            _ => fault,
        };
        let moved: Moved = tokio::select! {
            moved = transfer.finish(|| host.check_room()) => moved.map_err(|fault| of(too_large(fault)))?,
            () = replier.gone() => return Ok(()),
        };
        host.place.take_volume(&tenant, &name).map_err(failed)?;
        moving.new = false;
        drop(moving);
        Ok(replier.done::<ImportVolume>(&moved, &[]).await?)
    }

    pub(super) async fn export_volume(&self, request: &Request, replier: &mut Replier<'_>) -> Result<(), Fault> {
        let ExportVolume { tenant, name } = request.parse()?;
        self.check_volume(Verb::Exec, "exec", &tenant, &name)?;
        let [stream] = request.fds.as_slice() else {
            return Err(Fault::new(ErrorKind::Invalid, "an export needs one descriptor, where the archive goes"));
        };
        let host = &self.host;
        let of = of(&tenant, &name);
        let moving = host.begin_moving(&tenant, &name)?;
        host.check_data(&tenant, &name)?;
        let directory = host.place.volume_path(&tenant, &name);
        let transfer = host.begin_transfer(Way::Out(stream), &directory).map_err(&of)?;
        let moved = tokio::select! {
            moved = transfer.finish(|| Ok(())) => moved.map_err(&of)?,
            () = replier.gone() => return Ok(()),
        };
        drop(moving);
        Ok(replier.done::<ExportVolume>(&moved, &[]).await?)
    }

    pub(super) async fn copy_volume(&self, request: &Request, replier: &mut Replier<'_>) -> Result<(), Fault> {
        let CopyVolume { tenant, name } = request.parse()?;
        self.check_volume(Verb::Exec, "exec", &tenant, &name)?;
        let host = &self.host;
        let of = of(&tenant, &name);
        let moving = host.begin_moving(&tenant, &name)?;
        host.check_room().map_err(&of)?;
        host.check_data(&tenant, &name)?;
        let failed = |error: std::io::Error| of(Fault::new(ErrorKind::Failed, format!("copying it: {error}")));
        let (files, [log, content]) = host.place.copy_files().map_err(failed)?;
        let directory = host.place.volume_path(&tenant, &name);
        let transfer = host.begin_transfer(Way::Copy(&files), &directory).map_err(&of)?;
        let moved = tokio::select! {
            moved = transfer.finish(|| host.check_room()) => moved.map_err(&of)?,
            () = replier.gone() => return Ok(()),
        };
        drop(moving);
        Ok(replier.done::<CopyVolume>(&moved, &[log.as_fd(), content.as_fd()]).await?)
    }
}
