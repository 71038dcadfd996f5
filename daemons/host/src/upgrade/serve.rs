//! Serves `io.bailiwick.Admin` on a socket that only root can open.

use std::sync::Arc;

use model::VpsName;
use tokio::net::UnixListener;
use tracing::{debug, warn};
use wire::{
    Connection, Fault, Method, Peer, Replier, Request,
    admin::{Progress, Upgrade},
    varlink::{MAX_REQUEST, Service, serve_connection},
};

use crate::{host::Host, listeners::listen_unix};

/// The keeper's name for the socket.
const KEY: &str = "admin";
/// Connections served at once.
const CONNECTIONS: usize = 16;

/// Serves from now on.
pub fn listen(host: &Arc<Host>) -> anyhow::Result<()> {
    if host.held(KEY).is_none() {
        host.hold(KEY.to_owned(), listen_unix(&host.paths.run, host.paths.admin_file(), 0)?)?;
    }
    let Some(listener) = host.held(KEY) else { return Ok(()) };
    let listener = UnixListener::from_std(listener?.into())?;
    tokio::spawn(serve(Arc::new(Admin { host: host.clone() }), listener));
    Ok(())
}

struct Admin {
    host: Arc<Host>,
}

async fn serve(admin: Arc<Admin>, listener: UnixListener) {
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "accepting on the socket of the host's root");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let admin = admin.clone();
        tokio::spawn(async move {
            // Nobody's: the host's root is no VPS.
            let peer = "root".parse::<VpsName>().map(|vps| Peer { vps, services: Vec::new() });
            let Ok(peer) = peer else { return };
            let mut connection = Connection::new(stream).bounded(MAX_REQUEST);
            if let Err(error) = serve_connection(&mut connection, &peer, &*admin).await {
                debug!(%error, "a connection of the host's root ended");
            }
            drop(place);
        });
    }
}

impl Admin {
    async fn upgrade(&self, upgrade: Upgrade, replier: &mut Replier<'_>) -> Result<(), Fault> {
        let Upgrade { directory, vps, check } = upgrade;
        let mut plan = self.host.plan(&directory, vps.as_ref()).await?;
        match vps {
            Some(name) if !check => self.host.upgrade_one(&name, &mut plan).await?,
            None if !check && plan.to.build != plan.from.build => {
                // Before, since afterwards nobody answers.
                replier.done::<Upgrade>(&plan, &[]).await?;
                return self.host.begin(&plan);
            }
            _ => {}
        }
        Ok(replier.done::<Upgrade>(&plan, &[]).await?)
    }

    async fn progress(&self, more: bool, replier: &mut Replier<'_>) -> Result<(), Fault> {
        let mut follow = self.host.upgrading.subscribe();
        loop {
            let now = follow.borrow_and_update().clone();
            let now = now.ok_or_else(|| Fault::not_found("there was no upgrade since this host was started"))?;
            if !more || now.step.is_last() {
                return Ok(replier.done::<Progress>(&now, &[]).await?);
            }
            replier.more::<Progress>(&now).await?;
            tokio::select! {
                changed = follow.changed() => if changed.is_err() { return Ok(()) },
                () = replier.gone() => return Ok(()),
            }
        }
    }
}

impl Service for Admin {
    async fn call(&self, _: &Peer, request: Request, replier: &mut Replier<'_>) -> Result<(), Fault> {
        match request.method.as_str() {
            Upgrade::NAME => self.upgrade(request.parse()?, replier).await,
            Progress::NAME => self.progress(request.more, replier).await,
            _ => Err(request.unknown()),
        }
    }
}
