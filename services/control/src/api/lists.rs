//! `/v1/routes`, `/v1/services`, `/v1/events`, `/v1/health`

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json,
    extract::{Query, State},
    response::Response,
};
use model::{
    Allow,
    api::{ErrorKind, Event, RouteRow, ServiceRow, State as VpsState},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{
    broadcast::{self, error::RecvError},
    mpsc,
};
use wire::gateway::Faults;

use super::{error::ApiError, shipping, stream, vps::statuses};
use crate::{
    calls::insist,
    clock::unix_ms,
    history::{Reading, lost_event},
    shared::Control,
    view::state_of,
};

/// How long others are asked for faults.
const FAULTS: Duration = Duration::from_secs(1);

/// `GET /v1/routes`
pub async fn routes(State(control): State<Arc<Control>>) -> Json<Vec<RouteRow>> {
    let faults: BTreeMap<_, _> = match insist(&control.gateway, &Faults {}, FAULTS).await {
        Ok(answer) => answer.faults.into_iter().collect(),
        Err(fault) => {
            let all = control.routes.table().into_iter().map(|entry| entry.listen);
            all.map(|address| (address, format!("the gateway does not answer: {fault}"))).collect()
        }
    };
    let row = |entry: wire::control::RouteEntry| RouteRow {
        route: entry.route.to_string(),
        vps: entry.name,
        port: entry.port,
        listen: entry.listen.to_string(),
        fault: faults.get(&entry.listen).cloned(),
        from: Vec::new(),
    };
    let mut rows: Vec<_> = control.routes.table().into_iter().map(row).collect();
    let mut internal = BTreeMap::<_, BTreeSet<_>>::new();
    let rules = control.routes.rules();
    for Allow { from, to, port } in rules.iter() {
        internal.entry((to, *port)).or_default().insert(from.clone());
    }
    for ((vps, port), from) in internal {
        let listen = control.get(vps).and_then(|vps| vps.link()).map(|link| format!("{}:{port}", link.address));
        rows.push(RouteRow {
            route: format!("(internal) {vps}:{port}"),
            vps: vps.clone(),
            port,
            fault: listen.is_none().then(|| "it has no address yet".to_owned()),
            listen: listen.unwrap_or_else(|| format!("{vps}:{port}")),
            from: from.into_iter().collect(),
        });
    }
    Json(rows)
}

/// `GET /v1/services`
pub async fn services(State(control): State<Arc<Control>>) -> Json<Vec<ServiceRow>> {
    let statuses = statuses(&control).await;
    let mut rows = Vec::new();
    for (name, designated) in &control.config.designated {
        let status = statuses.get(name);
        for service in &designated.services {
            rows.push(ServiceRow {
                service: service.to_string(),
                vps: name.clone(),
                state: status.map_or(VpsState::Asleep, |status| state_of(&status.phase)),
                starts: status.map_or(0, |status| status.run),
                grants: designated.grants.iter().map(ToString::to_string).collect(),
                memory: status.and_then(|status| status.memory),
                pid: status.and_then(|status| status.pid),
            });
        }
    }
    Json(rows)
}

/// Query of events.
#[derive(Debug, Deserialize)]
pub struct EventsQuery {
    #[serde(default)]
    follow: bool,
    since: Option<String>,
}

/// `GET /v1/events`
pub async fn events(
    State(control): State<Arc<Control>>,
    Query(query): Query<EventsQuery>,
) -> Result<Response, ApiError> {
    let since = query.since.as_deref().map(super::since).transpose()?;
    let unreadable = |error| ApiError::new(ErrorKind::Failed, format!("the events can't be read: {error}"));
    let (past, live) = control.history.follow(since).await.map_err(unreadable)?;
    let (sender, receiver) = mpsc::channel(stream::WAITING);
    tokio::spawn(send_events(past, query.follow.then_some(live), sender));
    Ok(stream::lines(receiver))
}

/// Sends events until nobody listens, or that was all.
async fn send_events(mut past: Reading, live: Option<broadcast::Receiver<Event>>, sender: mpsc::Sender<Event>) {
    loop {
        let (rest, events) = match past.next().await {
            Ok(Some(more)) => more,
            Ok(None) => break,
            Err(error) => return tracing::error!(%error, "the events can't be read"),
        };
        for event in events {
            if sender.send(event).await.is_err() {
                return;
            }
        }
        past = rest;
    }
    let Some(mut live) = live else { return };
    loop {
        let event = tokio::select! {
            event = live.recv() => event,
            () = sender.closed() => return,
        };
        let event = match event {
            Ok(event) => event,
            // A reader that is too slow misses some; those that follow are still worth having.
            Err(RecvError::Lagged(missed)) => {
                lost_event(unix_ms(), format!("{missed} missing here: this reader was too slow"))
            }
            Err(RecvError::Closed) => return,
        };
        if sender.send(event).await.is_err() {
            return;
        }
    }
}

/// `GET /v1/health`
#[derive(Debug, Serialize)]
pub struct Health {
    /// Always true: what answers is there.
    pub ok: bool,
    /// The version of this build.
    pub version: &'static str,
    /// How many VPSs are defined.
    pub vps: usize,
    /// What of host.toml is not in force, and what of the stored state can't be read, and why.
    pub faults: Vec<String>,
}

/// `GET /v1/health`
pub async fn health(State(control): State<Arc<Control>>) -> Json<Health> {
    // Asked anew: the daemon may have been started again since.
    let mut faults = match insist(&control.host, &wire::host::Config {}, FAULTS).await {
        Ok(config) => config.faults,
        Err(fault) => vec![format!("the host daemon does not answer: {fault}")],
    };
    if let Ok(directories) = insist(&control.host, &wire::host::Directories {}, FAULTS).await {
        let wire::host::DirectoryFaults { seen, mut written } = directories;
        written.retain(|name, _| !seen.contains_key(name));
        faults.extend(seen.into_values().chain(written.into_values()));
    }
    faults.extend(control.damaged.iter().cloned());
    faults.extend(shipping::faults(&control).await);
    Json(Health { ok: true, version: model::version(), vps: control.all().len(), faults })
}
