//! Directories of this host's that a start mounts. host.toml says which there are and who may see them; whoever asks, it
//! is looked at here, at each start.

use std::path::Path;

use isolation::host::{Found, HostBind, Shown, find};
use model::{
    DirectoryName, RunSpec, TenantName,
    api::ErrorKind,
    host::AllowedDirectory,
    run::{Directory, Root},
};
use wire::{Fault, host::DirectoryFaults};

use super::Capability;
use crate::host::Host;

impl Capability {
    /// What a start mounts of them.
    pub(super) fn directories(&self, run: &RunSpec) -> Result<Vec<HostBind>, Fault> {
        if run.directories.is_empty() {
            return Ok(Vec::new());
        }
        let name = &run.name;
        let table = self.host.table();
        let vps = table.get(name)?;
        let (Some(tenant), Root::Layers(_)) = (vps.tenant(), &run.root) else {
            return Err(Fault::new(ErrorKind::Invalid, format!("vps \"{name}\" can see no directory of the host")));
        };
        let range = vps.allocation.range(&self.host.config.ids);
        let one = |(directory, wanted): (&DirectoryName, &Directory)| {
            let (allowed, found) = self
                .host
                .shown_to(directory, tenant, wanted.write)
                .map_err(|what| Fault::new(ErrorKind::Denied, format!("vps \"{name}\": {what}")))?;
            let (user, group) = wanted.owner;
            if user.max(group) >= range.count {
                let message = format!("vps \"{name}\": {user}:{group} are none of its {} ids", range.count);
                return Err(Fault::new(ErrorKind::Invalid, message));
            }
            let seen_as = (range.first + user, range.first + group);
            Ok(HostBind {
                source: allowed.path.clone(),
                target: wanted.path.clone(),
                writable: wanted.write,
                layer_map: false,
                volume: false,
                shown: Some(Shown { found, seen_as, programs: allowed.programs }),
            })
        };
        run.directories.iter().map(one).collect()
    }
}

impl Host {
    /// What host.toml has under that name, and what is there now, if that tenant may see it so.
    fn shown_to(
        &self,
        name: &DirectoryName,
        tenant: &TenantName,
        write: bool,
    ) -> Result<(&AllowedDirectory, Found), String> {
        let say = |(what, next): (String, String)| format!("{what}; {next}");
        let allowed = self.config.directories.get(name).ok_or_else(|| say(AllowedDirectory::unknown(name)))?;
        match allowed.refuses(name, tenant, write) {
            Some(refusal) => Err(say(refusal)),
            None => Ok((allowed, self.look(name, allowed, write)?)),
        }
    }

    /// What is there, if it can be shown at all.
    fn look(&self, name: &DirectoryName, allowed: &AllowedDirectory, write: bool) -> Result<Found, String> {
        let path = &allowed.path;
        let wrong =
            |what: String| format!("the host's directory `{name}`: {what}; see [directory.{name}] in host.toml");
        let own = |place: &Path| path.starts_with(place) || place.starts_with(path);
        let places = [&self.paths.state, &self.paths.run, &self.layers];
        if let Some(place) = places.into_iter().find(|place| own(place)) {
            return Err(wrong(format!("{} holds, or is part of, this host's own {}", path.display(), place.display())));
        }
        let found = find(path).map_err(|error| wrong(error.explain()))?;
        if write && !allowed.root && (found.user == 0 || found.group == 0) {
            let what = format!("{} belongs to root (user {}, group {})", path.display(), found.user, found.group);
            let next = format!("give it to another user and group, or put root = true into [directory.{name}]");
            return Err(format!(
                "the host's directory `{name}`: {what}, and what VPSs write there would too; {next} in host.toml"
            ));
        }
        Ok(found)
    }

    /// Which of them can't be shown as they are now.
    pub(super) fn directory_faults(&self) -> DirectoryFaults {
        let all = || self.config.directories.iter();
        let fault = |name: &DirectoryName, allowed: &AllowedDirectory, write| {
            Some((name.clone(), self.look(name, allowed, write).err()?))
        };
        DirectoryFaults {
            seen: all().filter_map(|(name, allowed)| fault(name, allowed, false)).collect(),
            written: all().filter(|(_, allowed)| allowed.write).filter_map(|(n, a)| fault(n, a, true)).collect(),
        }
    }
}
