//! Doors: what leads to a VPS from its neighbours. They connect to its own address; the network VPS sends that here where a
//! rule allows the pair, and this namespace takes it for its own, whether the VPS is up or not.

mod admit;
mod silence;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::{Ipv4Net, Ipv6Net};
use model::{HostConfig, host::DesignatedNetwork};
use socket2::{Domain, Socket, Type};
use tokio::{net::TcpListener, sync::watch, task::AbortHandle, time::sleep};

use crate::{
    accept::{BACKLOG, Entrance, Limits, accept},
    doors::silence::Silence,
    follow::Directory,
};

/// Pause before a door that could not be opened is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// This VPS's address and where all others are, when it has a link of its own to the network VPS.
pub type Place = (Ipv4Addr, Ipv4Net, Ipv6Net);

/// The same, as the host's configuration says it.
pub fn place(config: &HostConfig) -> Option<Place> {
    let name = config.vps_of("gateway")?;
    let linked = config.designated.get(name)?.network == DesignatedNetwork::Link;
    let own = config.designated_address(name).filter(|_| linked)?;
    Some((own, config.network.subnet, config.network.subnet6))
}

/// Keeps a socket for every door of the table, without an end. Calls `ready` when those of the first one are open.
pub async fn keep(
    directory: Arc<Directory>,
    limits: Arc<Limits>,
    place: Option<Place>,
    mut tables: watch::Receiver<()>,
    ready: impl FnOnce(),
) {
    let mut ready = Some(ready);
    let mut open: HashMap<SocketAddr, AbortHandle> = HashMap::new();
    let mut admitted = None;
    loop {
        let mut faulty = false;
        if let Some(wanted) = directory.doors() {
            let ports = wanted.iter().map(SocketAddr::port).collect();
            reconcile(&mut open, wanted, &directory, &limits, &mut faulty);
            // Sockets first: where none listens yet, nothing answers, and a neighbour's kernel tries again.
            if let Some(place) = place {
                let taken = take_in(&mut admitted, place, ports).await;
                faulty |= taken.inspect_err(|error| tracing::error!(%error, "VPSs can't reach each other")).is_err();
            }
            if let Some(ready) = ready.take() {
                ready();
            }
        }
        tokio::select! {
            changed = tables.changed() => if changed.is_err() { return },
            () = sleep(AGAIN), if faulty => {}
        }
    }
}

/// Takes in what comes for other VPSs, of whose `ports` none is ever refused.
async fn take_in(admitted: &mut Option<Silence>, place: Place, ports: BTreeSet<u16>) -> anyhow::Result<()> {
    let silence = match admitted {
        Some(silence) => silence,
        None => admitted.insert(admit::admit(place).await?),
    };
    silence.keep(ports).await
}

fn reconcile(
    open: &mut HashMap<SocketAddr, AbortHandle>,
    wanted: HashSet<SocketAddr>,
    directory: &Arc<Directory>,
    limits: &Arc<Limits>,
    faulty: &mut bool,
) {
    open.retain(|at, task| {
        let keep = wanted.contains(at);
        if !keep {
            task.abort();
        }
        keep
    });
    for at in wanted {
        if open.contains_key(&at) {
            continue;
        }
        match listen(at) {
            Ok(listener) => {
                let task = tokio::spawn(accept(listener, Entrance::Door(at), directory.clone(), limits.clone()));
                open.insert(at, task.abort_handle());
            }
            // A kernel without IPv6.
            Err(error)
                if at.is_ipv6() && error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => {}
            Err(error) => {
                tracing::warn!(%at, %error, "a door can't be opened");
                *faulty = true;
            }
        }
    }
}

/// A listening socket on an address that is none of this namespace's (IP_TRANSPARENT, ip(7)).
fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
    match at {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_ip_transparent_v6(true)?;
            socket.set_only_v6(true)?;
        }
    }
    socket.set_mark(silence::MARK)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}
