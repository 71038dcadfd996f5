//! `/v1/vps`: rows, specs, reasons, logs, actions, deletion.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, Query, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use model::{
    VpsName, VpsStatus,
    api::{ErrorKind, Ignored, State as VpsState, VpsRow, Why},
    log::SOURCES,
};
use serde::Deserialize;
use tokio::sync::mpsc;
use wire::{gateway, host};

use super::{
    ACTOR,
    error::{ApiError, vps_name},
    stream,
};
use crate::{
    calls::insist,
    delete,
    driver::{Vps, by_name},
    history::Chapters,
    life::{ENDED, Input},
    logs,
    shared::Control,
    view,
};

/// How long the host is asked for numbers that only it knows.
const NUMBERS: Duration = Duration::from_secs(1);
/// Time that an action may take beyond what the spec says.
const MARGIN: Duration = Duration::from_secs(15);
/// Lines of a log that `why` shows.
const WHY_LINES: usize = 20;
/// Lines of a log that are shown where no number is given, and at most.
const LINES: usize = 100;
const MOST_LINES: usize = 10_000;

/// Query of a list.
#[derive(Debug, Deserialize)]
pub struct ListQuery {
    #[serde(default)]
    all: bool,
}

/// What the host says of VPSs that it has figures of; nothing when it does not answer: a list without memory is better than none.
pub async fn statuses(control: &Control) -> BTreeMap<VpsName, VpsStatus> {
    match insist(&control.host, &host::List { up: true, prepared: true }, NUMBERS).await {
        Ok(list) => by_name(list.vps),
        Err(fault) => {
            tracing::warn!(%fault, "the host daemon did not say how much memory is in use");
            control.designated().clone()
        }
    }
}

/// `GET /v1/vps`
pub async fn list(State(control): State<Arc<Control>>, Query(query): Query<ListQuery>) -> Json<Vec<VpsRow>> {
    let statuses = statuses(&control).await;
    let mut rows = Vec::new();
    if query.all {
        let designated = control.config.designated.iter();
        rows.extend(designated.map(|(name, d)| view::designated_row(name, d, statuses.get(name))));
    }
    let all: Vec<_> = control.all().values().cloned().collect();
    let rules = control.routes.rules();
    rows.extend(all.iter().map(|vps| view::row(&control, vps, &rules, statuses.get(&vps.name))));
    control.grown.send_replace(());
    Json(rows)
}

async fn one(control: &Control, name: &VpsName) -> Result<(VpsRow, Option<Arc<Vps>>), ApiError> {
    let statuses = statuses(control).await;
    if let Some(vps) = control.get(name) {
        return Ok((view::row(control, &vps, &control.routes.rules(), statuses.get(name)), Some(vps)));
    }
    let designated = control.config.designated.get(name).ok_or_else(|| ApiError::no_vps(control, name))?;
    Ok((view::designated_row(name, designated, statuses.get(name)), None))
}

/// `GET /v1/vps/{name}`
pub async fn get(State(control): State<Arc<Control>>, Path(name): Path<String>) -> Result<Json<VpsRow>, ApiError> {
    let (mut row, vps) = one(&control, &vps_name(&name)?).await?;
    row.spec = vps.map(|vps| model::spec::render(&vps.name, &vps.spec()));
    Ok(Json(row))
}

/// `GET /v1/vps/{name}/spec`
pub async fn spec(State(control): State<Arc<Control>>, Path(name): Path<String>) -> Result<Response, ApiError> {
    let vps = server_vps(&control, &vps_name(&name)?)?;
    let text = model::spec::render(&vps.name, &vps.spec());
    Ok(([(CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}

/// `GET /v1/vps/{name}/why`
pub async fn why(State(control): State<Arc<Control>>, Path(name): Path<String>) -> Result<Json<Why>, ApiError> {
    let name = vps_name(&name)?;
    let (row, vps) = one(&control, &name).await?;
    let lines = match logs::open(&control, &name).await {
        Ok(files) => {
            logs::last(files, WHY_LINES, logs::Wanted::default()).await.map(|(_, lines)| lines).unwrap_or_default()
        }
        Err(fault) => {
            tracing::warn!(vps = %name, %fault, "its log can't be read");
            Vec::new()
        }
    };
    let log = lines.into_iter().map(|line| format!("{} {} {}", line.at, line.stream, line.shown())).collect();
    let ignored = ignored(&control, &name, vps.as_deref()).await;
    let Chapters { events, last, .. } = control.history.of(&name).await;
    let (summary, next) = match &vps {
        Some(vps) => (view::summary(vps, &row, &last), view::next(vps, &row)),
        None => (format!("{name} is a designated VPS of host.toml; the host keeps it running"), None),
    };
    Ok(Json(Why { vps: row, summary, ignored, last, story: events.into(), log, next }))
}

/// How clients were served that a VPS is not woken for.
async fn ignored(control: &Control, name: &VpsName, vps: Option<&Vps>) -> Option<Ignored> {
    if vps?.spec().ignore.is_empty() {
        return None;
    }
    match insist(&control.gateway, &gateway::Ignored {}, NUMBERS).await {
        Ok(all) => all.vps.into_iter().find(|(known, _)| known == name).map(|(_, ignored)| ignored),
        Err(fault) => {
            tracing::warn!(%fault, "the gateway did not say whom it ignored");
            None
        }
    }
}

/// Query of a log.
#[derive(Debug, Deserialize)]
pub struct LogsQuery {
    lines: Option<usize>,
    #[serde(default)]
    follow: bool,
    source: Option<String>,
    since: Option<String>,
}

/// `GET /v1/vps/{name}/logs`
pub async fn logs(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, ApiError> {
    let name = vps_name(&name)?;
    if control.get(&name).is_none() && !control.config.designated.contains_key(&name) {
        return Err(ApiError::no_vps(&control, &name));
    }
    let usual = if query.since.is_some() { MOST_LINES } else { LINES };
    let count = query.lines.unwrap_or(usual).min(MOST_LINES);
    let wanted = wanted(query.source.as_deref(), query.since)?;
    let (sender, receiver) = mpsc::channel(stream::WAITING);
    if query.follow {
        tokio::spawn(logs::follow(control, name, count, wanted, sender));
        return Ok(stream::lines(receiver));
    }
    let files = logs::open(&control, &name).await?;
    let lines = logs::last(files, count, wanted).await;
    let (_, lines) =
        lines.map_err(|error| ApiError::new(ErrorKind::Failed, format!("reading the log of {name}: {error}")))?;
    tokio::spawn(async move {
        for line in lines {
            if sender.send(line).await.is_err() {
                return;
            }
        }
    });
    Ok(stream::lines(receiver))
}

fn wanted(source: Option<&str>, since: Option<String>) -> Result<logs::Wanted, ApiError> {
    let sources: Vec<_> = source.into_iter().flat_map(|list| list.split(',')).map(str::to_owned).collect();
    if let Some(unknown) = sources.iter().find(|source| !SOURCES.contains(&source.as_str()) && !source.starts_with('/'))
    {
        let message = format!("`{unknown}` is no source of lines");
        let next = format!("there are {}, and files by their paths", SOURCES.join(", "));
        return Err(ApiError::new(ErrorKind::Invalid, message).next(next));
    }
    let since = since.as_deref().map(super::since).transpose()?;
    Ok(logs::Wanted { sources, since, until: None })
}

/// A VPS that a person may act on.
pub fn server_vps(control: &Control, name: &VpsName) -> Result<Arc<Vps>, ApiError> {
    if control.config.designated.contains_key(name) {
        let message = format!("vps \"{name}\" is a designated VPS: host.toml says what it does");
        return Err(ApiError::new(ErrorKind::Conflict, message).next("change host.toml and start the host again"));
    }
    control.get(name).ok_or_else(|| ApiError::no_vps(control, name))
}

/// `POST /v1/vps/{name}/{start,stop,restart,freeze,thaw}`
pub async fn act(
    State(control): State<Arc<Control>>,
    Path((name, action)): Path<(String, String)>,
) -> Result<Json<VpsRow>, ApiError> {
    let name = vps_name(&name)?;
    let vps = server_vps(&control, &name)?;
    let by = format!("{action} by {ACTOR}");
    let state = vps.life().state();
    let wrong = |next: String| {
        let word = format!("{state:?}").to_lowercase();
        Err(ApiError::new(ErrorKind::Conflict, format!("vps \"{name}\" is {word}")).next(next))
    };
    let (input, wanted) = match action.as_str() {
        "start" => (Input::Start(by), VpsState::Running),
        "restart" => (Input::Restart(by), VpsState::Running),
        "stop" => (Input::Stop(by), VpsState::Asleep),
        "freeze" if !matches!(state, VpsState::Running | VpsState::Frozen) => {
            return wrong(format!("bailiwick start {name}"));
        }
        "freeze" => (Input::Freeze(by), VpsState::Frozen),
        "thaw" if !matches!(state, VpsState::Running | VpsState::Frozen) => {
            return wrong(format!("bailiwick start {name}"));
        }
        "thaw" => (Input::Thaw(by), VpsState::Running),
        _ => return Err(ApiError::new(ErrorKind::NotFound, format!("a vps can't {action}"))),
    };
    reach(&vps, input, wanted).await?;
    // That a failure was seen to is known from its story alone.
    control.history.written().await;
    // Whether it was up is what a start of the host goes by.
    if matches!(action.as_str(), "start" | "restart" | "stop") && !control.wakes.written().await {
        let message = format!(
            "{action} of vps \"{name}\" was carried out, but could not be stored: a host that starts now does not know of it"
        );
        let next = format!(
            "make room on the disk of the host's root (`bailiwick doctor` shows it), then bailiwick {action} {name}"
        );
        return Err(ApiError::new(ErrorKind::Failed, message).next(next));
    }
    let status = statuses(&control).await.remove(&name);
    Ok(Json(view::row(&control, &vps, &control.routes.rules(), status.as_ref())))
}

/// Gives an input and waits for what comes of it.
pub async fn reach(vps: &Vps, input: Input, wanted: VpsState) -> Result<(), ApiError> {
    let spec = vps.spec();
    vps.ask(input).await;
    // It may have to wait for memory as long as its start may take.
    let most = spec.start_deadline_ms.saturating_mul(2).saturating_add(spec.stop.grace_ms);
    let limit = Duration::from_millis(most) + MARGIN;
    let why = format!("bailiwick why {}", vps.name);
    if !vps.settled(limit).await {
        return Err(ApiError::new(ErrorKind::Unavailable, format!("vps \"{}\" does not get on", vps.name)).next(why));
    }
    let life = vps.life();
    match life.state() {
        now if now == wanted => Ok(()),
        VpsState::Failed => {
            let failure = life.failure(crate::clock::now_ms()).unwrap_or_default();
            let kind = if life.is_refused() { ErrorKind::Lacking } else { ErrorKind::Failed };
            Err(ApiError::new(kind, format!("vps \"{}\" failed: {failure}", vps.name)).next(why))
        }
        VpsState::Asleep if life.because() != ENDED => {
            let message = format!("vps \"{}\" is asleep again: {}", vps.name, life.because());
            Err(ApiError::new(ErrorKind::Conflict, message).next(why))
        }
        // Its program had little to do, or a request woke it: what was asked for has been done.
        _ if wanted != VpsState::Frozen => Ok(()),
        _ => Err(ApiError::new(ErrorKind::Conflict, format!("vps \"{}\" was woken at once", vps.name)).next(why)),
    }
}

/// `DELETE /v1/vps/{name}`
pub async fn delete(State(control): State<Arc<Control>>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    let name = vps_name(&name)?;
    let vps = server_vps(&control, &name)?;
    let grace = Duration::from_millis(vps.spec().stop.grace_ms);
    let task =
        delete::begin(&control, &name, ACTOR.to_owned()).await?.ok_or_else(|| ApiError::no_vps(&control, &name))?;
    match tokio::time::timeout(grace + MARGIN, task).await {
        Ok(_) => Ok(StatusCode::NO_CONTENT),
        // It is deleted for everybody; what is left of it goes on going.
        Err(_) => Ok(StatusCode::ACCEPTED),
    }
}
