//! The daemon: takes up what an earlier one left, serves, and stops the host when asked.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use isolation::host::{Cgroup, Hierarchies, HostError, Linker, Namespaces};
use model::{HostConfig, ListenAddress, VpsName, host::Paths};
use rustix::{
    fs::{Mode, OFlags, open},
    process::{WaitOptions, umask, wait},
};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
};
use tracing::{error, info, warn};
use wire::shim::ToShim;

use crate::{
    config,
    designated::make_directory,
    format,
    held::Keeper,
    host::{Host, Pinned, lock},
    ids::Allocation,
    life::{Life, Step, Up},
    place::{Place, open_layers},
    record::Record,
    serve::serve,
    shim::{attend, await_cgroup},
    table::{Table, Vps, now_ms},
    upgrade,
    uplink::{self, CHILD, Uplink},
    watch::watch,
};

/// Directories under `run` that are there while a host is.
const DIRECTORIES: [(&str, u32); 4] = [("designated", 0o711), ("service", 0o700), ("stage", 0o700), ("vps", 0o700)];

/// How long what a crash left may take to be gone.
const LEFTOVER: Duration = Duration::from_secs(10);
/// How long a daemon whose keeper died may take to stop its VPSs, before a new host on its root gives up.
const PREDECESSOR: Duration = Duration::from_secs(30);
/// How long it may take to end once its directories are gone.
const PREDECESSOR_END: Duration = Duration::from_secs(2);
/// Name of the descriptor that claims the cgroup.
const CLAIM: &str = "lock";

/// Runs the daemon; the exit code.
pub fn run(paths: Paths) -> anyhow::Result<u8> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("BAILIWICK_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    umask(Mode::from(0o022));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        // First, so that a signal that comes early stops the host in order.
        let mut stop = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn(reap(signal(SignalKind::child())?));
        let (keeper, mut held) = Keeper::connect().context("the daemon is started by the keeper: run `bailiwickd`")?;
        let keeper_end = watch(keeper.end()?)?;
        let mut config = config::read_or_last(&paths)?;
        // Before anything is made. A daemon that takes up a host that runs has no choice.
        if held.is_empty() {
            uplink::check_nft().await?;
            if let Err(error) = uplink::check(&config.network, &paths).await {
                without_uplink(&mut config, &paths, error)?;
            }
        }
        for fault in &config.faults {
            error!(fault, "not all of host.toml is in force");
        }
        let cgroups = claim(&config, &paths, &keeper, &mut held).await?;
        let fresh = held.len() == 1;
        // Of a host that was killed with its daemon: this one runs its own programs, and goes on with nobody's upgrade.
        if fresh {
            remove_directories(&paths);
        }
        let host = match start(paths.clone(), config, cgroups, keeper, held).await {
            Ok(host) => host,
            Err(error) => {
                if fresh {
                    remove_uplink(&paths).await;
                    remove_directories(&paths);
                }
                return Err(error);
            }
        };
        tokio::select! {
            _ = stop.0.recv() => {}
            _ = stop.1.recv() => {}
            _ = keeper_end.readable() => warn!("the keeper is gone"),
        }
        info!("stopping the host");
        host.stop_all().await;
        leave_nothing(&host).await;
        host.keeper.stop();
        Ok(0)
    })
}

/// A host that has come up before does so without its uplink too: its VPSs are worth more than their way out.
fn without_uplink(config: &mut HostConfig, paths: &Paths, error: anyhow::Error) -> anyhow::Result<()> {
    if !config::has_come_up(paths) {
        return Err(error);
    }
    config.network.uplink = None;
    config.faults.push(format!("{error:#}; VPSs do not reach the outside. next: put it right, then restart the host"));
    Ok(())
}

/// Reaps shims and other children.
async fn reap(mut ended: tokio::signal::unix::Signal) {
    while ended.recv().await.is_some() {
        let _others = CHILD.lock().await;
        while matches!(wait(WaitOptions::NOHANG), Ok(Some(_))) {}
    }
}

/// Makes this host's cgroups, and claims them: two hosts with one cgroup would take each other's VPSs for leftovers.
async fn claim(
    config: &HostConfig,
    paths: &Paths,
    keeper: &Keeper,
    held: &mut BTreeMap<String, OwnedFd>,
) -> anyhow::Result<Hierarchies> {
    let cgroups = Hierarchies::find(&config::cgroup_name(config, paths)).map_err(explained)?;
    cgroups.prepare().map_err(explained)?;
    // Where its directories are there, the claim may be that of a daemon whose keeper died: it is stopping its VPSs.
    let deadline = Instant::now() + if paths.run.join("vps").exists() { PREDECESSOR } else { PREDECESSOR_END };
    while !held.contains_key(CLAIM) {
        match cgroups.lock() {
            Ok(lock) => {
                keeper.keep(CLAIM, &lock)?;
                // Held here too: without its keeper this daemon still has to stop its VPSs.
                held.insert(CLAIM.to_owned(), lock);
            }
            Err(HostError::CgroupTaken(_)) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                cgroups.prepare().map_err(explained)?;
            }
            Err(error) => return Err(explained(error)),
        }
    }
    Ok(cgroups)
}

async fn start(
    paths: Paths,
    config: HostConfig,
    cgroups: Hierarchies,
    keeper: Keeper,
    mut held: BTreeMap<String, OwnedFd>,
) -> anyhow::Result<Arc<Host>> {
    let bailiwick = config::sibling("bailiwick")?;
    let shim = config::sibling("bailiwick-shim")?;
    let shim = open(&shim, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context("opening bailiwick-shim")?;
    for (name, mode) in DIRECTORIES {
        make_directory(&paths.run.join(name), mode)
            .with_context(|| format!("making {name} under the run directory"))?;
    }
    format::migrate(&paths.state)?;
    cgroups.bound(config.reserve.memory).map_err(explained)?;
    let place = Place::open(&paths, config.ids)?;
    let store = config::layer_store(&config, &paths);
    open_layers(&store)?;
    crate::layers::open(&store, &paths).context("saying in the layer store that it is used")?;
    let table = load(&config, &place)?;
    let uplink = Uplink::of(&config, &paths);
    match uplink::prepare(&config, &paths).await {
        Err(error) if held.len() > 1 => warn!(error = %format!("{error:#}"), "the uplink can't be looked after"),
        prepared => prepared?,
    }
    let mut take = |prefix: &str| -> BTreeMap<String, OwnedFd> {
        let names: Vec<_> = held.keys().filter(|name| name.starts_with(prefix)).cloned().collect();
        names.into_iter().filter_map(|name| held.remove_entry(&name)).collect()
    };
    let (shims, userns, netns) = (take("shim/"), take("userns/"), take("netns/"));
    let host = Arc::new(Host::new(
        config,
        paths,
        place,
        cgroups,
        keeper,
        (shim, bailiwick, upgrade::own()?),
        table,
        held,
        uplink,
    ));
    let namespaces = userns.into_values().next().zip(netns.into_values().next());
    if let Some((user, network)) = namespaces {
        let mut linker = Linker::new(network.as_fd()).map_err(explained)?;
        if let Some(uplink) = &host.uplink {
            uplink.connect(&mut linker).map_err(explained)?;
        }
        *lock(&host.pinned) = Some(Pinned { namespaces: Namespaces { user, network: Some(network) }, linker });
    }
    listen_as_before(&host);
    adopt(&host, shims)?;
    let leftovers = kill_leftovers(&host);
    // Who is needed again waits for them; nobody else does, since the kernel may take long for a mount's last writes.
    let later = host.clone();
    tokio::spawn(async move { remove_leftovers(&later, leftovers).await });
    serve_designated(&host)?;
    upgrade::listen(&host).context("making the socket of the host's root")?;
    host.resume_upgrade();
    Ok(host)
}

fn explained(error: HostError) -> anyhow::Error {
    anyhow::anyhow!(error.explain())
}

/// All VPSs on disk; designated ones are made where missing.
fn load(config: &HostConfig, place: &Place) -> anyhow::Result<Table> {
    let mut table = Table::default();
    for (name, allocation) in place.load()? {
        let designated = config.designated.contains_key(&name);
        let run = place.runs(&name);
        table.vps.insert(name, Vps::new(allocation, designated, run));
    }
    for name in config.designated.keys() {
        if !table.vps.contains_key(name) {
            let allocation = table.allocate(config, 1, None).context("no ids are free; raise `blocks` of [ids]")?;
            place.create(name, &allocation).with_context(|| format!("making the directory of vps \"{name}\""))?;
            table.vps.insert(name.clone(), Vps::new(allocation, true, 0));
        } else if let Some(Vps { allocation: Allocation { tenant: Some(tenant), .. }, .. }) = table.vps.get(name) {
            anyhow::bail!("vps \"{name}\" is tenant {tenant}'s; name the designated VPS in host.toml otherwise");
        }
    }
    Ok(table)
}

/// After a reboot or a crash of the whole host: connections wait from now on, not only when a gateway has asked.
fn listen_as_before(host: &Host) {
    let listening = host.listening();
    let grants = || host.config.designated.values().flat_map(|designated| &designated.grants);
    let granted = |address: &ListenAddress| grants().any(|grant| grant.allows_listen(address));
    let before = host.place.listening();
    // Where the network VPS has the address, the gateway asks again.
    let here = |address: &ListenAddress| !host.config.network.owns(address.0.ip()) || lock(&host.pinned).is_some();
    let wanted = |address: &ListenAddress| granted(address) && here(address) && !listening.contains(address);
    for address in before.into_iter().filter(wanted) {
        match host.listen(&address) {
            Ok(socket) => {
                if let Err(error) = host.hold(format!("listen/{address}"), socket) {
                    warn!(%address, %error, "its socket can't be kept");
                }
            }
            Err(fault) => warn!(%fault, "an address can't be listened on as before"),
        }
    }
}

/// Takes up the VPSs whose shims' sockets the keeper held.
fn adopt(host: &Arc<Host>, shims: BTreeMap<String, OwnedFd>) -> anyhow::Result<()> {
    let mut table = host.table();
    for (name, vps) in &mut table.vps {
        let Some(record) = Record::load(&host.paths.run, name) else { continue };
        (vps.run, vps.since_ms, vps.start_ms) = (record.run.max(vps.run), record.since_ms, record.start_ms);
        vps.programs = record.programs;
        if let model::Phase::Down { ended } = record.phase {
            vps.life = Life::Down(ended);
        }
    }
    for (key, socket) in shims {
        let Some(name) = key.strip_prefix("shim/").and_then(|name| name.parse::<VpsName>().ok()) else { continue };
        let record = Record::load(&host.paths.run, &name);
        let (Some(vps), Some(record)) = (table.vps.get_mut(&name), record) else {
            host.keeper.drop(&key);
            continue;
        };
        // An earlier daemon died between spawning the shim and recording it: the shim ends when its socket is closed.
        let Some(up) = record.up else {
            host.keeper.drop(&key);
            continue;
        };
        let cgroup = host.cgroups.of(up.cgroup.as_deref().unwrap_or(name.as_str()));
        let step = if cgroup.is_frozen() { Step::Frozen } else { Step::of(&record.phase) };
        let socket = Arc::new(watch(socket)?);
        let up = Up { step, socket: socket.clone(), shim: None, cgroup, record: up, execs: [].into(), shim_version: 0 };
        // An error means that it has ended; its last words wait in the socket.
        let _ = up.say(&ToShim::Report, &[]);
        let (run, link) = (vps.run, up.record.link.clone());
        vps.life = Life::Up(Box::new(up));
        table.note_link(link.as_deref(), &name);
        info!(vps = %name, run, "adopted");
        tokio::spawn(attend(host.clone(), name, run, socket));
    }
    Ok(())
}

/// Kills what a crashed host, or what a crashed daemon had prepared, left in cgroups of ours. Their names and ids are nobody's
/// until they have been removed.
fn kill_leftovers(host: &Host) -> Vec<String> {
    let mut leftovers = host.cgroups.names();
    let mut table = host.table();
    leftovers.retain(|name| {
        let cgroup = host.cgroups.of(name);
        !table.vps.values().any(|vps| vps.up().is_some_and(|up| up.cgroup == cgroup))
    });
    for name in &leftovers {
        let _ = host.cgroups.of(name).kill();
        table.mark_leftover(name);
    }
    leftovers
}

/// Waits until they are gone, and removes their cgroups.
async fn remove_leftovers(host: &Host, leftovers: Vec<String>) {
    for name in leftovers {
        let cgroup = host.cgroups.of(&name);
        await_cgroup(&cgroup, cgroup.ends(), Cgroup::is_empty, LEFTOVER).await;
        match cgroup.remove() {
            Ok(()) => info!(name, "removed a leftover cgroup"),
            Err(error) => warn!(error = error.explain(), "a leftover cgroup stays"),
        }
        host.table().forget_leftover(&name);
        host.taken_down.notify_waiters();
    }
}

/// Serves designated VPSs' capabilities, and starts them: the one where links end first.
fn serve_designated(host: &Arc<Host>) -> anyhow::Result<()> {
    // All before any starts: a service may connect to any other at once.
    for designated in host.config.designated.values() {
        host.make_listeners(designated).context("making the sockets of services")?;
    }
    for name in host.config.designated.keys() {
        host.make_capability(name).with_context(|| format!("making the capability of vps \"{name}\""))?;
        let listener = host.held(&format!("host/{name}")).context("a capability's socket")??;
        let listener = UnixListener::from_std(listener.into())?;
        tokio::spawn(serve(host.clone(), name.clone(), listener));
    }
    let network = host.config.vps_of("network").cloned();
    let others = host.config.designated.keys().filter(|name| Some(*name) != network.as_ref()).cloned();
    for name in network.iter().cloned().chain(others) {
        tokio::spawn(host.clone().supervise(name));
    }
    let host = host.clone();
    tokio::spawn(async move {
        let since = now_ms();
        host.await_designated().await;
        info!(ms = now_ms() - since, "all designated VPSs have been started");
        if let Err(error) = config::keep_good(&host.paths, &host.config) {
            warn!(%error, "host.toml, with which the host came up, can't be kept");
        }
        notify_ready();
    });
    Ok(())
}

/// sd_notify(3), for who started the keeper.
fn notify_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let send = || -> std::io::Result<()> {
        use std::os::{linux::net::SocketAddrExt, unix::net::SocketAddr, unix::net::UnixDatagram};
        let bytes = path.as_encoded_bytes();
        let address = match bytes.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        UnixDatagram::unbound()?.send_to_addr(b"READY=1\n", &address).map(drop)
    };
    if let Err(error) = send() {
        warn!(%error, "saying READY=1");
    }
}

/// Removes all that a host has while it runs.
async fn leave_nothing(host: &Host) {
    remove_leftovers(host, kill_leftovers(host)).await;
    remove_uplink(&host.paths).await;
    remove_directories(&host.paths);
    // Where the keeper is gone a new host waits for the cgroup: from its removal on all that is under the root is that one's.
    // Until then it stays claimed.
    lock(&host.sockets).retain(|name, _| name == CLAIM);
    if let Err(error) = host.cgroups.remove() {
        warn!(error = error.explain(), "a cgroup stays");
    }
}

async fn remove_uplink(paths: &Paths) {
    if let Err(error) = uplink::remove(paths).await {
        warn!(error = %format!("{:#}", anyhow::Error::from(error)), "the uplink's changes of the host's network stay");
    }
}

fn remove_directories(paths: &Paths) {
    for (name, _) in DIRECTORIES {
        match fs::remove_dir_all(paths.run.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => warn!(name, %error, "a directory stays"),
            _ => {}
        }
    }
    for file in [paths.api(), paths.run.join(paths.admin_file())] {
        let _ = fs::remove_file(file);
    }
    upgrade::remove(paths);
}
