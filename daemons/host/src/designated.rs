//! Designated VPSs: what each is made of, and their start, again and again.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use isolation::host::HostBind;
use model::{
    Phase, RunSpec, Verb, VpsName,
    api::ErrorKind,
    host::{Designated, DesignatedNetwork},
    run::{Link, Ready, Root, Stop},
    state::Ended,
};
use tracing::{error, info, warn};
use wire::Fault;

use crate::{
    grants::Grants,
    host::{Host, lock},
    life::Life,
    listeners::{listen_again, listen_unix, takes_connections},
    programs,
    start::{Launch, Network},
    table::Vps,
};

/// A designated VPS that was up for so long is started again at once.
const SOUND: Duration = Duration::from_secs(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// How long it has after its stop signal.
const GRACE_MS: u64 = 1000;

/// What of the host's programs and their configuration a VPS with `userland` sees. No keys, no logs, no homes.
const USERLAND: [&str; 22] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc/alternatives",
    "/etc/apt",
    "/etc/bash.bashrc",
    "/etc/ca-certificates",
    "/etc/debian_version",
    "/etc/dpkg",
    "/etc/group",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf.d",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/perl",
    "/etc/ssl",
    "/etc/ld.so.conf",
];

impl Host {
    /// Makes the socket of a designated VPS's capability, unless the keeper holds it.
    pub fn make_capability(&self, name: &VpsName) -> anyhow::Result<()> {
        let key = format!("host/{name}");
        if self.held(&key).is_some() {
            return Ok(());
        }
        let owner = self.table().get(name)?.allocation.range(&self.config.ids).first;
        let directory = self.paths.run.join("designated").join(name.as_str());
        make_directory(&directory, 0o711)?;
        Ok(self.hold(key, listen_unix(&directory, "host.sock", owner)?)?)
    }

    /// Makes the listening sockets a designated VPS gets, unless the keeper holds them: one for each service it runs, and
    /// with `control` the API's. One that the VPS shut down, which is for good with unix sockets, is made again.
    pub fn make_listeners(&self, designated: &Designated) -> std::io::Result<()> {
        let services = self.paths.run.join("service");
        for service in &designated.services {
            let mut wanted = vec![(format!("service/{service}"), &services, format!("{service}.sock"))];
            if service.as_str() == "control" {
                wanted.push(("api".to_owned(), &self.paths.run, "api.sock".to_owned()));
            }
            for (key, directory, file) in wanted {
                if self.held(&key).is_none() || !takes_connections(directory, &file) {
                    self.hold(key, listen_unix(directory, &file, 0)?)?;
                }
            }
        }
        Ok(())
    }

    fn launch(&self, name: &VpsName, designated: &Designated) -> Result<Launch, Fault> {
        let unavailable = |error: std::io::Error| Fault::new(ErrorKind::Failed, format!("vps \"{name}\": {error}"));
        self.make_listeners(designated).map_err(unavailable)?;
        let services = || designated.services.iter().map(|s| s.as_str().to_owned());
        let mut listeners = Vec::new();
        for service in services() {
            listeners.extend(self.held(&format!("service/{service}")).map(|fd| Ok((service.clone(), fd?))));
            if service == "control" {
                listeners.extend(self.held("api").map(|fd| Ok(("api".to_owned(), fd?))));
            }
        }
        let listeners = listeners.into_iter().collect::<Result<_, _>>().map_err(unavailable)?;
        let network = match designated.network {
            _ if services().any(|service| service == "network") => Network::Pinned,
            DesignatedNetwork::Host => Network::Host,
            DesignatedNetwork::Link | DesignatedNetwork::None => Network::Own,
        };
        let command = ["/bailiwick", "serve"].map(str::to_owned).into_iter().chain(services()).collect();
        let filter = std::env::var("BAILIWICK_LOG").ok().map(|filter| ("BAILIWICK_LOG".to_owned(), filter));
        let run = RunSpec {
            command,
            env: filter.into_iter().chain(self.names()).collect(),
            limits: designated.limits.clone(),
            link: self.link(name, designated)?,
            resolvers: self.config.network.resolvers.clone(),
            setuid: designated.userland,
            nesting: designated.userland,
            ready: Ready::Notify,
            ready_check: None,
            stop: Stop { signal: 15, grace_ms: GRACE_MS },
            ..RunSpec::empty(name.clone(), Root::Bare)
        };
        let binds = self.binds(name, designated).map_err(unavailable)?;
        Ok(Launch { run, binds, listeners, secrets: None, network })
    }

    /// What this host is called: in the layer store that it may share, and by itself.
    fn names(&self) -> [(String, String); 2] {
        let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
        [("BAILIWICK_HOST".to_owned(), crate::layers::host(&self.paths)), ("BAILIWICK_NODE".to_owned(), node)]
    }

    /// The program that a designated VPS is to run, which is noted as its own. One that is gone gives way to the daemon's.
    fn program_of(&self, name: &VpsName) -> PathBuf {
        let mut table = self.table();
        let Ok(vps) = table.get_mut(name) else { return self.bailiwick.clone() };
        let own = vps.programs.take().map(|programs| (programs.directory.join("bailiwick"), programs));
        let (file, programs) =
            own.filter(|(file, _)| file.is_file()).unwrap_or_else(|| (self.bailiwick.clone(), self.programs.clone()));
        vps.programs = Some(programs);
        file
    }

    fn link(&self, name: &VpsName, designated: &Designated) -> Result<Option<Link>, Fault> {
        if designated.network != DesignatedNetwork::Link {
            return Ok(None);
        }
        let address = self.config.designated_address(name).ok_or_else(|| {
            let message = format!("vps \"{name}\": no address is left; at most 14 designated VPSs can have a link");
            Fault::new(ErrorKind::Invalid, message)
        })?;
        Ok(Some(Link::new(address, Link::address6_for(self.config.network.subnet6.addr(), address))))
    }

    fn binds(&self, name: &VpsName, designated: &Designated) -> std::io::Result<Vec<HostBind>> {
        let owner = self.table().get(name).map_err(std::io::Error::other)?.allocation.range(&self.config.ids).first;
        let program = self.program_of(name);
        let bind = |source: PathBuf, target: &str, writable| HostBind {
            source,
            target: target.to_owned(),
            writable,
            layer_map: false,
            volume: false,
            shown: None,
        };
        let mut binds = vec![
            bind(program, "/bailiwick", false),
            bind(self.paths.run.join("designated").join(name.as_str()), "/run/bailiwick", false),
            bind(self.place.data(name, owner)?, "/data", true),
        ];
        let mut seen = Vec::new();
        if designated.userland {
            seen.extend(USERLAND);
        }
        if designated.network == DesignatedNetwork::Host {
            seen.extend(["/etc/resolv.conf", "/etc/hosts"]);
        }
        // A link such as /bin becomes what it leads to.
        let found = seen.into_iter().filter_map(|path| Some((fs::canonicalize(path).ok()?, path)));
        binds.extend(found.map(|(source, path)| bind(source, path, false)));
        for program in &designated.programs {
            let files = programs::files(program)?;
            if files.is_empty() {
                info!(vps = %name, program, "the host does not have this program of `programs`");
            }
            for file in files {
                let target = file.to_string_lossy().into_owned();
                if !binds.iter().any(|bind| bind.target == target) {
                    binds.push(bind(fs::canonicalize(&file)?, &target, false));
                }
            }
        }
        if designated.grants.iter().any(|grant| grant.allows_any(Verb::Layer)) {
            let layers = bind(self.layers.clone(), "/layers", true);
            binds.push(HostBind { layer_map: true, ..layers });
        }
        Ok(binds)
    }

    /// Starts a designated VPS, and again each time it ends, until the host stops.
    pub async fn supervise(self: Arc<Self>, name: VpsName) {
        let Some(designated) = self.config.designated.get(&name).cloned() else { return };
        let mut pause = MIN_PAUSE;
        loop {
            let changes = self.events.follow();
            let begun = Instant::now();
            self.await_gone(&name).await;
            if self.table().get(&name).is_ok_and(|vps| vps.up().is_none()) {
                let started = self.launch(&name, &designated).and_then(|launch| self.start(launch));
                match started {
                    Ok(_) => self.repair_listeners(&name),
                    Err(fault) if self.is_stopping() => return info!(vps = %name, %fault, "not started"),
                    Err(fault) => error!(vps = %name, %fault, "a designated VPS can't be started"),
                }
            }
            while self.table().get(&name).is_ok_and(|vps| vps.up().is_some()) {
                changes.next().await;
            }
            if self.is_stopping() {
                return;
            }
            let asked = |vps: &Vps| matches!(&vps.life, Life::Down(Some(Ended::Exited { asked: true, .. })));
            let asked = self.table().get(&name).is_ok_and(asked);
            pause = if asked || begun.elapsed() >= SOUND { MIN_PAUSE } else { (pause * 2).min(MAX_PAUSE) };
            tokio::time::sleep(pause).await;
        }
    }

    /// Waits until all designated VPSs have been started.
    pub async fn await_designated(&self) {
        let changes = self.events.follow();
        let ready = |name: &VpsName| self.table().get(name).is_ok_and(|vps| vps.phase() == Phase::Ready);
        while !self.config.designated.keys().all(ready) {
            changes.next().await;
        }
    }

    /// Listens again on all TCP sockets when a VPS that may hold them starts or ends: a holder can shut them down.
    pub fn repair_listeners(&self, name: &VpsName) {
        let Some(designated) = self.config.designated.get(name) else { return };
        if !Grants(designated.grants.clone()).holds(Verb::Listen) {
            return;
        }
        for (key, socket) in lock(&self.sockets).iter().filter(|(key, _)| key.starts_with("listen/")) {
            if let Err(error) = listen_again(socket) {
                warn!(socket = key, %error, "it can't be listened on again");
            }
        }
    }
}

/// Makes a directory that is there for as long as the host runs.
pub fn make_directory(path: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}
