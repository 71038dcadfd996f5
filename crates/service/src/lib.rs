//! What all services share: start-up from the capability socket, listeners, configuration, logs.
//!
//! A service is `pub async fn run(context: Context) -> anyhow::Result<()>`; several may run in one designated VPS, which
//! ends when one of them does (the host daemon starts it again). May touch: its capability, its listeners, `/data`.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    future::Future,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use model::HostConfig;
use tokio::net::UnixListener;
use wire::{Client, varlink::Service};

/// Where the host daemon's socket is inside a designated VPS.
pub const HOST_SOCKET: &str = "/run/bailiwick/host.sock";
/// How long after a peak memory is given back.
const MOMENT: Duration = Duration::from_secs(1);
/// Connections between services that are served at once.
const CONNECTIONS: usize = 1024;

/// What a service starts with.
#[derive(Debug, Clone)]
pub struct Context {
    /// The capability to the host daemon.
    pub host: Client,
    /// `host.toml`.
    pub config: HostConfig,
    /// A directory of its own that outlives it.
    pub data: PathBuf,
    /// Gives memory that is free back to the kernel: worth a call after much of it was used for a moment.
    pub trim: fn(),
    name: String,
    listeners: Arc<Mutex<BTreeMap<String, OwnedFd>>>,
    unready: Arc<Unready>,
}

/// How many services of this VPS are not ready yet.
#[derive(Debug)]
pub struct Unready(AtomicUsize);

impl Unready {
    /// `services` have to become ready.
    pub fn new(services: usize) -> Arc<Self> {
        Arc::new(Self(AtomicUsize::new(services)))
    }

    /// One has; with the last, the host is told (sd_notify(3)).
    fn one_less(&self) {
        if self.0.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
        let say = || UnixDatagram::unbound()?.send_to(b"READY=1", &path);
        if let Err(error) = say() {
            tracing::warn!(%error, "the host could not be told that this VPS is ready");
        }
    }
}

impl Context {
    /// Connects to the host daemon and makes the data directory of the service `name`. `listeners` are the sockets that
    /// came with the process (sd_listen_fds(3)).
    pub async fn start(
        name: &str,
        listeners: Arc<Mutex<BTreeMap<String, OwnedFd>>>,
        unready: Arc<Unready>,
        trim: fn(),
    ) -> anyhow::Result<Self> {
        let host = Client::host(HOST_SOCKET);
        let config = host.call(&wire::host::Config {}).await.context("asking the host daemon for its configuration")?;
        let data = PathBuf::from("/data").join(name);
        std::fs::create_dir_all(&data).with_context(|| format!("making {}", data.display()))?;
        Ok(Self { host, config, data, trim, name: name.to_owned(), listeners, unready })
    }

    /// A client of another service.
    pub fn client(&self, service: &str) -> Client {
        Client::service(&self.host, service)
    }

    /// The listening socket of that name: the service's own name, or `api`.
    pub fn listener(&self, name: &str) -> anyhow::Result<UnixListener> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let fd = listeners.remove(name).with_context(|| format!("no listening socket `{name}` was passed"))?;
        let listener = std::os::unix::net::UnixListener::from(fd);
        listener.set_nonblocking(true)?;
        Ok(UnixListener::from_std(listener)?)
    }

    /// Says that this service does its job from now on. Once.
    pub fn ready(&self) {
        self.unready.one_less();
    }

    /// Serves this service's own interface until the end.
    pub async fn serve<S: Service>(&self, service: Arc<S>) -> anyhow::Result<()> {
        let listener = self.listener(&self.name)?;
        Ok(wire::varlink::serve_listener(listener, service, CONNECTIONS).await?)
    }
}

/// Calls `trim` a moment after each change of `grown`; many in a row are one.
pub async fn keep_trimmed(mut grown: tokio::sync::watch::Receiver<()>, trim: fn()) {
    while grown.changed().await.is_ok() {
        tokio::time::sleep(MOMENT).await;
        grown.mark_unchanged();
        trim();
    }
}

/// Logs go to standard error, which is the VPS's log. `BAILIWICK_LOG` filters them (tracing's `EnvFilter`).
pub fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BAILIWICK_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .init();
}

/// Runs `futures`, named, until one ends; that is always a failure of the whole VPS.
pub async fn first_to_end<F>(services: Vec<(String, F)>) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let mut set = tokio::task::JoinSet::new();
    for (name, service) in services {
        set.spawn(async move { (name, service.await) });
    }
    match set.join_next().await {
        Some(Ok((name, Ok(())))) => anyhow::bail!("service {name} ended"),
        Some(Ok((name, Err(error)))) => Err(error.context(format!("service {name}"))),
        Some(Err(error)) => Err(error.into()),
        None => anyhow::bail!("no service to run"),
    }
}
