//! `io.bailiwick.Host`: each call is checked against the grants of the capability it came on, then done.

use std::{os::fd::OwnedFd, pin::Pin, sync::Arc};

use model::{RunSpec, Verb, VpsName, api::ErrorKind};
use tokio::{
    net::UnixListener,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tracing::{debug, warn};
use wire::{
    Connection, Fault, Method, Peer, Replier, Request, host,
    host::{
        Config, Connect, CopyVolume, Create, Delete, DeleteVolume, Directories, Discard, Disk, DropSpare, Events, Exec,
        ExportVolume, Freeze, ImportVolume, List, Listen, Listening, Logs, MakeSpare, Narrow, OpenPorts, OpenTarget,
        Prepare, Probe, Probed, Start, Statuses, Stop, Thaw, Unlisten, Volumes,
    },
    varlink::{Empty, MAX_REQUEST, Service, serve_connection},
};

use crate::{
    events::Changed,
    grants::Grants,
    host::Host,
    prepared::Prepared,
    start::{Launch, Network, blocks},
    table::{Table, Vps},
};

mod directories;
mod inside;
mod sockets;
mod targets;
mod transfers;
mod volumes;

pub use inside::open_logs;

/// Connections of one designated VPS at once, those of capabilities that it made narrower included.
const CONNECTIONS: usize = 256;

/// A capability: a connected socket, bound to grants.
#[derive(Debug)]
pub struct Capability {
    host: Arc<Host>,
    grants: Grants,
    peer: Peer,
    /// Connections that its VPS may have more.
    places: Arc<Semaphore>,
}

/// Accepts connections of one designated VPS, which are its capabilities.
pub async fn serve(host: Arc<Host>, name: VpsName, listener: UnixListener) {
    let Some(designated) = host.config.designated.get(&name) else { return };
    let services = designated.services.iter().map(|s| s.as_str().to_owned()).collect();
    let peer = Peer { vps: name.clone(), services };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let grants = Grants(designated.grants.clone());
    let capability = Arc::new(Capability { grants, peer, host, places: places.clone() });
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let capability = capability.clone();
                tokio::spawn(async move {
                    capability.attend(Connection::new(stream), place).await;
                });
            }
            Err(error) => {
                warn!(vps = %name, %error, "accepting on its capability");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

impl Capability {
    /// Serves one connection. Boxed, since a call may make another capability that is served like this one.
    fn attend(
        self: Arc<Self>,
        connection: Connection,
        place: OwnedSemaphorePermit,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let mut connection = connection.bounded(MAX_REQUEST);
            if let Err(error) = serve_connection(&mut connection, &self.peer, &*self).await {
                debug!(vps = %self.peer.vps, %error, "a connection ended");
            }
            drop(place);
        })
    }

    /// A VPS that exists and that the grants hold `verb` for. Who may see nothing learns nothing of what exists.
    fn check(&self, verb: Verb, name: &VpsName) -> Result<(), Fault> {
        let table = self.host.table();
        let tenant = table.get(name).ok().and_then(Vps::tenant).cloned();
        self.grants.check(verb, name, tenant.as_ref())?;
        table.get(name).map(drop)
    }

    fn statuses(&self, table: &Table, figures: bool, wanted: impl Fn(&Vps) -> bool) -> Statuses {
        let seen = |(name, vps): &(&VpsName, &Vps)| wanted(vps) && self.grants.allows(Verb::Watch, name, vps.tenant());
        let vps = table.vps.iter().filter(seen).map(|(name, vps)| vps.status(name, figures)).collect();
        Statuses { vps, gone: Vec::new() }
    }

    /// Makes a VPS. Spares give way to who needs their ids.
    async fn create(&self, create: Create) -> Result<(), Fault> {
        match self.try_create(&create) {
            Err(fault) if fault.kind == ErrorKind::Lacking && !self.host.table().spares.is_empty() => {
                self.host.drop_spares().await;
                self.try_create(&create)
            }
            made => made,
        }
    }

    fn try_create(&self, create: &Create) -> Result<(), Fault> {
        let Create { name, tenant, ids, spare } = create.clone();
        self.grants.check(Verb::Create, &name, Some(&tenant))?;
        let blocks = blocks(ids)?;
        let mut table = self.host.table();
        if let Some(vps) = table.vps.get(&name) {
            if vps.tenant() == Some(&tenant) && vps.allocation.blocks == blocks {
                return Ok(());
            }
            return Err(Fault::new(ErrorKind::Conflict, format!("vps \"{name}\" is there already, another one")));
        }
        if let Some(number) = spare.filter(|_| blocks == 1)
            && let Some(vps) = self.host.adopt_spare(&mut table.spares, number, &name, &tenant)?
        {
            self.host.changed(&name, &vps);
            table.note_link(vps.prepared.as_ref().and_then(Prepared::link), &name);
            table.vps.insert(name, vps);
            return Ok(());
        }
        let Some(allocation) = table.allocate(&self.host.config, blocks, Some(tenant)) else {
            let message =
                format!("vps \"{name}\": no {ids} ids in a row are free; raise `blocks` of [ids] in host.toml");
            return Err(Fault::new(ErrorKind::Lacking, message));
        };
        let made = self.host.place.create(&name, &allocation);
        made.map_err(|e| Fault::new(ErrorKind::Failed, format!("vps \"{name}\": making its directory: {e}")))?;
        let vps = Vps::new(allocation, false, 0);
        self.host.changed(&name, &vps);
        table.vps.insert(name, vps);
        Ok(())
    }

    async fn start(&self, start: Start, fds: Vec<OwnedFd>) -> Result<host::Started, Fault> {
        let launch = self.launch(start.run)?;
        let launch = Launch { secrets: secrets(&launch.run, fds)?, ..launch };
        self.host.make_way(&launch).await?;
        Ok(host::Started { run: self.host.start(launch)? })
    }

    /// What `run` becomes, if it may be started.
    fn launch(&self, run: RunSpec) -> Result<Launch, Fault> {
        self.check(Verb::Start, &run.name)?;
        if self.host.config.designated.contains_key(&run.name) {
            let message = format!("vps \"{}\" is a designated VPS; the host starts it", run.name);
            return Err(Fault::new(ErrorKind::Conflict, message));
        }
        let lacking = |fault: Fault| Fault::new(fault.kind, format!("vps \"{}\": {}", run.name, fault.message));
        self.host.check_room().map_err(lacking)?;
        // The outer before what is in it.
        let mut binds = self.volumes(&run)?;
        binds.extend(self.directories(&run)?);
        binds.sort_by(|a, b| a.target.cmp(&b.target));
        let state = self.host.place.vps(&run.name).join("state");
        self.host.place.limit(&state, run.limits.disk);
        Ok(Launch { run, binds, listeners: Vec::new(), secrets: None, network: Network::Own })
    }

    async fn events(&self, more: bool, replier: &mut Replier<'_>) -> Result<(), Fault> {
        self.grants.check_any(Verb::Watch)?;
        let changes = self.host.events.follow();
        let all = self.statuses(&self.host.table(), false, |_| true);
        if !more {
            return Ok(replier.done::<Events>(&all, &[]).await?);
        }
        replier.more::<Events>(&all).await?;
        loop {
            let changed = tokio::select! {
                changed = changes.next() => changed,
                () = replier.gone() => return Ok(()),
            };
            let changed = self.visible(changed);
            if !changed.vps.is_empty() || !changed.gone.is_empty() {
                replier.more::<Events>(&changed).await?;
            }
        }
    }

    fn visible(&self, changed: Changed) -> Statuses {
        let table = self.host.table();
        let mut statuses = Statuses { vps: Vec::new(), gone: Vec::new() };
        for (name, tenant) in changed {
            if !self.grants.allows(Verb::Watch, &name, tenant.as_ref()) {
                continue;
            }
            match table.vps.get(&name) {
                Some(vps) => statuses.vps.push(vps.status(&name, false)),
                None => statuses.gone.push(name),
            }
        }
        statuses
    }
}

/// What secrets of a start say: in one descriptor, which is checked in kind and passed on.
fn secrets(run: &RunSpec, mut fds: Vec<OwnedFd>) -> Result<Option<OwnedFd>, Fault> {
    let wrong = |what: String| Fault::new(ErrorKind::Invalid, format!("vps \"{}\": {what}", run.name));
    match (run.secrets.len(), fds.pop(), fds.len()) {
        (0, None, 0) => Ok(None),
        (count @ 1.., Some(file), 0) => {
            wire::secrets::ranges(&file, count).map_err(|error| wrong(error.to_string()))?;
            Ok(Some(file))
        }
        _ => Err(wrong("a start takes one descriptor if it has secrets, and none otherwise".to_owned())),
    }
}

impl Service for Capability {
    async fn call(&self, _: &Peer, request: Request, replier: &mut Replier<'_>) -> Result<(), Fault> {
        let empty = Empty {};
        match request.method.as_str() {
            Config::NAME => replier.done::<Config>(&self.host.config, &[]).await?,
            Create::NAME => {
                self.create(request.parse()?).await?;
                replier.done::<Create>(&empty, &[]).await?;
            }
            Start::NAME => {
                let start = request.parse()?;
                let started = self.start(start, request.fds).await?;
                replier.done::<Start>(&started, &[]).await?;
            }
            Prepare::NAME => {
                let launch = self.launch(request.parse::<Prepare>()?.run)?;
                self.host.prepare(launch).await?;
                replier.done::<Prepare>(&empty, &[]).await?;
            }
            Discard::NAME => {
                let Discard { name } = request.parse()?;
                self.check(Verb::Start, &name)?;
                self.host.discard(&name).await;
                replier.done::<Discard>(&empty, &[]).await?;
            }
            MakeSpare::NAME => {
                let MakeSpare { layers, link } = request.parse()?;
                self.grants.check_all(Verb::Create)?;
                let spare = self.host.make_spare(layers, link).await?;
                replier.done::<MakeSpare>(&host::SpareMade { spare }, &[]).await?;
            }
            DropSpare::NAME => {
                self.grants.check_all(Verb::Create)?;
                match request.parse::<DropSpare>()?.spare {
                    Some(number) => drop(self.host.drop_spare(number).await),
                    None => self.host.drop_spares().await,
                }
                replier.done::<DropSpare>(&empty, &[]).await?;
            }
            Stop::NAME => {
                let Stop { name, grace_ms } = request.parse()?;
                self.check(Verb::Stop, &name)?;
                self.host.stop(&name, grace_ms)?;
                replier.done::<Stop>(&empty, &[]).await?;
            }
            Freeze::NAME => {
                let Freeze { name } = request.parse()?;
                self.check(Verb::Freeze, &name)?;
                self.host.freeze(&name).await?;
                replier.done::<Freeze>(&empty, &[]).await?;
            }
            Thaw::NAME => {
                let Thaw { name } = request.parse()?;
                self.check(Verb::Freeze, &name)?;
                self.host.thaw(&name)?;
                replier.done::<Thaw>(&empty, &[]).await?;
            }
            Delete::NAME => {
                let Delete { name } = request.parse()?;
                self.check(Verb::Delete, &name)?;
                self.host.delete(&name).await?;
                replier.done::<Delete>(&empty, &[]).await?;
            }
            Volumes::NAME => {
                let volumes = self.all_volumes()?;
                replier.done::<Volumes>(&volumes, &[]).await?;
            }
            DeleteVolume::NAME => {
                self.delete_volume(&request.parse()?)?;
                replier.done::<DeleteVolume>(&empty, &[]).await?;
            }
            ImportVolume::NAME => self.import_volume(&request, replier).await?,
            ExportVolume::NAME => self.export_volume(&request, replier).await?,
            CopyVolume::NAME => self.copy_volume(&request, replier).await?,
            Directories::NAME => {
                self.grants.check_any(Verb::Watch)?;
                replier.done::<Directories>(&self.host.directory_faults(), &[]).await?;
            }
            OpenPorts::NAME => {
                let ports = self.open_ports(&request.parse::<OpenPorts>()?.name)?;
                replier.done::<OpenPorts>(&ports, &[]).await?;
            }
            Probe::NAME => {
                let Probe { name, to } = request.parse()?;
                let error = self.probe(&name, to).await?;
                replier.done::<Probe>(&Probed { error }, &[]).await?;
            }
            Disk::NAME => {
                let disk = self.disk()?;
                replier.done::<Disk>(&disk, &[]).await?;
            }
            List::NAME => {
                self.grants.check_any(Verb::Watch)?;
                let List { up, prepared } = request.parse()?;
                let all = self.statuses(&self.host.table(), true, |vps| {
                    !up || vps.designated || vps.phase().is_up() || (prepared && vps.prepared.is_some())
                });
                replier.done::<List>(&all, &[]).await?;
            }
            Events::NAME => self.events(request.more, replier).await?,
            Exec::NAME => self.exec(request, replier).await?,
            Logs::NAME => self.logs(request.parse()?, replier).await?,
            OpenTarget::NAME => self.open_target(&request.parse::<OpenTarget>()?.target, replier).await?,
            Listen::NAME => self.listen(request.parse()?, replier).await?,
            Unlisten::NAME => self.unlisten(request.parse()?, replier).await?,
            Listening::NAME => self.listening(replier).await?,
            Connect::NAME => self.connect(request.parse()?, replier).await?,
            Narrow::NAME => self.narrow(request.parse()?, replier).await?,
            _ => return Err(request.unknown()),
        }
        Ok(())
    }
}
