//! Keeps the listening sockets the table needs, and serves `io.bailiwick.Gateway`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use model::{ListenAddress, Transport};
use tokio::{
    net::TcpListener,
    sync::{Mutex, watch},
    task::AbortHandle,
    time::{sleep, timeout},
};
use wire::{
    Client, Fault, Method, Peer, Replier, Request,
    gateway::{AllIgnored, Faults, Ignored, Listen, ListenFaults},
    host::{Listening, Unlisten},
    varlink::Service,
};

use crate::{
    accept::{Entrance, Limits, accept},
    follow::Directory,
    udp,
};

/// Pause before addresses that can't be listened on are tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// How long the host daemon may take for one socket.
const ANSWER: Duration = Duration::from_secs(10);
/// Addresses that one call of `Listen` may name.
const ADDRESSES: usize = 1024;

/// All listening sockets.
#[derive(Debug)]
pub struct Listeners {
    host: Client,
    directory: Arc<Directory>,
    limits: Arc<Limits>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// Bound at the host. Those that are not accepted from yet wait for their route.
    sockets: BTreeMap<ListenAddress, Socket>,
    faults: BTreeMap<ListenAddress, String>,
}

#[derive(Debug)]
enum Socket {
    /// Bound by an earlier gateway; its descriptor has not been asked for.
    Bound,
    Waiting(Fetched),
    Accepting(AbortHandle),
}

/// One that the host daemon gave.
#[derive(Debug)]
enum Fetched {
    Tcp(TcpListener),
    Udp(std::net::UdpSocket),
}

impl Listeners {
    /// None yet.
    pub fn new(host: Client, directory: Arc<Directory>, limits: Arc<Limits>) -> Arc<Self> {
        Arc::new(Self { host, directory, limits, held: Mutex::default() })
    }

    /// Listens as the table says, whenever it changes, without an end.
    ///
    /// Calls `ready` once the first table is listened on.
    pub async fn keep(self: Arc<Self>, mut tables: watch::Receiver<()>, ready: impl FnOnce()) {
        let mut ready = Some(ready);
        // Fetched while the table is still on its way: sockets of an earlier gateway have clients waiting.
        match self.host.call(&Listening {}).await {
            Ok(bound) => {
                let mut held = self.held.lock().await;
                for address in bound.addresses {
                    self.open(&mut held, address).await;
                    // Even what can't be fetched is bound, and closed if no route wants it.
                    held.sockets.entry(address).or_insert(Socket::Bound);
                    held.faults.remove(&address);
                }
            }
            Err(fault) => tracing::warn!(%fault, "the host daemon did not say what is listened on"),
        }
        loop {
            self.reconcile().await;
            if self.directory.addresses().is_some()
                && let Some(ready) = ready.take()
            {
                ready();
            }
            let faulty = !self.held.lock().await.faults.is_empty();
            tokio::select! {
                changed = tables.changed() => if changed.is_err() { return },
                () = sleep(AGAIN), if faulty => {}
            }
        }
    }

    async fn reconcile(&self) {
        let Some(addresses) = self.directory.addresses() else { return };
        let wanted: BTreeSet<ListenAddress> = addresses.into_iter().collect();
        let mut held = self.held.lock().await;
        held.faults.retain(|address, _| wanted.contains(address));
        let unused: Vec<ListenAddress> = held.sockets.keys().filter(|a| !wanted.contains(a)).copied().collect();
        for address in unused {
            if let Some(Socket::Accepting(task)) = held.sockets.insert(address, Socket::Bound) {
                task.abort();
            }
            match self.host.call(&Unlisten { address }).await {
                Ok(_) => drop(held.sockets.remove(&address)),
                Err(fault) => tracing::warn!(%address, %fault, "a listening socket was not closed"),
            }
        }
        for address in wanted {
            self.open(&mut held, address).await;
            let (directory, limits) = (self.directory.clone(), self.limits.clone());
            match held.sockets.remove(&address) {
                Some(Socket::Waiting(Fetched::Tcp(listener))) => {
                    let task = tokio::spawn(accept(listener, Entrance::Host(address), directory, limits));
                    held.sockets.insert(address, Socket::Accepting(task.abort_handle()));
                }
                Some(Socket::Waiting(Fetched::Udp(socket))) => {
                    let task = tokio::spawn(udp::serve(socket, address, directory, limits));
                    held.sockets.insert(address, Socket::Accepting(task.abort_handle()));
                }
                Some(other) => drop(held.sockets.insert(address, other)),
                None => {}
            }
        }
    }

    /// Gets the socket of `address` from the host daemon, unless it is there.
    async fn open(&self, held: &mut Held, address: ListenAddress) {
        if matches!(held.sockets.get(&address), Some(Socket::Waiting(_) | Socket::Accepting(_))) {
            return;
        }
        match self.fetch(address).await {
            Ok(listener) => {
                held.faults.remove(&address);
                held.sockets.insert(address, Socket::Waiting(listener));
            }
            Err(reason) => {
                if held.faults.insert(address, reason.clone()).as_ref() != Some(&reason) {
                    tracing::warn!(%address, reason, "can't be listened on");
                }
            }
        }
    }

    async fn fetch(&self, address: ListenAddress) -> Result<Fetched, String> {
        let listen = wire::host::Listen { address };
        let answer = timeout(ANSWER, self.host.call_with_fds(&listen, &[])).await;
        let (_, fds) = answer.map_err(|_| "the host daemon did not answer in time")?.map_err(|f| f.message)?;
        let fd = fds.into_iter().next().ok_or("the host daemon sent no socket")?;
        let failed = |error: std::io::Error| error.to_string();
        if address.1 == Transport::Udp {
            let socket = std::net::UdpSocket::from(fd);
            socket.set_nonblocking(true).map_err(failed)?;
            return Ok(Fetched::Udp(socket));
        }
        let listener = std::net::TcpListener::from(fd);
        listener.set_nonblocking(true).map_err(failed)?;
        TcpListener::from_std(listener).map(Fetched::Tcp).map_err(failed)
    }

    pub(crate) async fn faults(&self) -> BTreeMap<ListenAddress, String> {
        self.held.lock().await.faults.clone()
    }

    /// Lets go of all sockets, as the end of the process does.
    #[cfg(test)]
    pub(crate) async fn forsake(&self) {
        for (_, socket) in std::mem::take(&mut self.held.lock().await.sockets) {
            if let Socket::Accepting(task) = socket {
                task.abort();
            }
        }
    }

    pub(crate) async fn listen(&self, addresses: Vec<ListenAddress>) -> Result<ListenFaults, Fault> {
        if addresses.len() > ADDRESSES {
            let text = format!("{} addresses in one call: at most {ADDRESSES} are taken", addresses.len());
            return Err(Fault::new(model::api::ErrorKind::Invalid, text));
        }
        let wanted: BTreeSet<ListenAddress> = self.directory.addresses().unwrap_or_default().into_iter().collect();
        let mut held = self.held.lock().await;
        let mut faults = Vec::new();
        for address in addresses {
            self.open(&mut held, address).await;
            if let Some(reason) = held.faults.get(&address) {
                faults.push((address, reason.clone()));
            }
            // A fault of what no route needs (yet) is said once and not kept.
            if !wanted.contains(&address) {
                held.faults.remove(&address);
            }
        }
        Ok(ListenFaults { faults })
    }
}

impl Service for Listeners {
    async fn call(&self, peer: &Peer, request: Request, replier: &mut Replier<'_>) -> Result<(), Fault> {
        if !peer.services.iter().any(|service| service == "control") {
            return Err(Fault::denied(format!("{} is not served to {}", request.method, peer.vps)));
        }
        match request.method.as_str() {
            Listen::NAME => {
                let faults = self.listen(request.parse::<Listen>()?.addresses).await?;
                replier.done::<Listen>(&faults, &[]).await?;
            }
            Faults::NAME => {
                let faults = self.faults().await.into_iter().collect();
                replier.done::<Faults>(&ListenFaults { faults }, &[]).await?;
            }
            Ignored::NAME => {
                let vps = self.directory.ignored();
                replier.done::<Ignored>(&AllIgnored { vps }, &[]).await?;
            }
            _ => return Err(request.unknown()),
        }
        Ok(())
    }
}
