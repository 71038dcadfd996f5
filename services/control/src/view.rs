//! What a person is shown of a VPS.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    Allow, VpsName, VpsStatus,
    api::{State, VpsRow},
    host::Designated,
    limits::show_duration_ms,
    state::Phase,
    story::Story,
};

use crate::{
    clock::{now_ms, unix_ms},
    driver::Vps,
    life::{FOUND_UP, NOT_WOKEN},
    shared::Control,
    story,
};

/// The row of a server VPS; `status` adds what only the host knows.
pub fn row(control: &Control, vps: &Vps, rules: &BTreeSet<Allow>, status: Option<&VpsStatus>) -> VpsRow {
    let spec = vps.spec();
    let (state, since, failure, waits) = {
        let (life, now) = (vps.life(), now_ms());
        (life.state(), now.saturating_sub(life.since()), life.failure(now), life.waits().map(str::to_owned))
    };
    let up = status.filter(|status| status.phase.is_up());
    let internal: BTreeSet<_> = rules.iter().filter(|rule| rule.to == vps.name).map(|rule| rule.port).collect();
    VpsRow {
        name: vps.name.clone(),
        tenant: Some(spec.tenant.to_string()),
        state,
        for_ms: since,
        routes: spec.routes.iter().map(|(route, target)| (route.to_string(), target.port)).collect(),
        internal: internal.into_iter().collect(),
        memory: up.and_then(|status| status.memory),
        memory_limit: spec.limits.memory,
        processes: up.and_then(|status| status.processes),
        address: vps.link().map(|link| link.address.to_string()),
        pid: up.and_then(|status| status.pid),
        prepared: status.is_some_and(|status| status.prepared),
        last_wake: vps.wakes().last,
        failure,
        note: waits.or_else(|| control.jobs.note(vps)),
        services: Vec::new(),
        spec: None,
    }
}

/// The row of a designated VPS.
pub fn designated_row(name: &VpsName, designated: &Designated, status: Option<&VpsStatus>) -> VpsRow {
    let up = status.filter(|status| status.phase.is_up());
    VpsRow {
        name: name.clone(),
        tenant: None,
        state: status.map_or(State::Asleep, |status| state_of(&status.phase)),
        for_ms: status.map_or(0, |status| unix_ms().saturating_sub(status.since_ms)),
        routes: BTreeMap::new(),
        internal: Vec::new(),
        memory: up.and_then(|status| status.memory),
        memory_limit: designated.limits.memory,
        processes: up.and_then(|status| status.processes),
        address: None,
        pid: up.and_then(|status| status.pid),
        prepared: false,
        last_wake: None,
        failure: None,
        note: None,
        services: designated.services.iter().map(ToString::to_string).collect(),
        spec: None,
    }
}

/// The host's word for a designated VPS's phase, as a person reads it: one that is down was to be up.
pub fn state_of(phase: &Phase) -> State {
    match phase {
        Phase::Down { .. } => State::Failed,
        Phase::Starting => State::Starting,
        Phase::Ready => State::Running,
        Phase::Frozen => State::Frozen,
        Phase::Stopping => State::Stopping,
    }
}

/// One sentence: why it is as it is; what this process has not seen itself, its story tells.
pub fn summary(vps: &Vps, row: &VpsRow, last: &Story) -> String {
    let mut because = vps.life().because().to_owned();
    let mut for_ms = row.for_ms;
    let since = |at_ms| unix_ms().saturating_sub(at_ms);
    let failed = last.failure.as_ref().filter(|_| row.state == State::Failed);
    if let Some(failure) = failed.filter(|_| because == NOT_WOKEN) {
        (for_ms, because) = (since(failure.at_ms), failure.what.clone());
    } else if let Some((at_ms, why)) = story::before(last).filter(|_| because == NOT_WOKEN) {
        (for_ms, because) = (since(at_ms), why);
    } else if let Some(start) = last.start.as_ref().filter(|_| because == FOUND_UP) {
        let took = show_duration_ms(start.took_ms);
        (for_ms, because) = (since(start.at_ms + start.took_ms), format!("{}, ready after {took}", start.by));
    }
    let time = show_duration_ms(for_ms);
    let state = match row.state {
        State::Asleep => "asleep for",
        State::Starting => "starting for",
        State::Waiting => {
            let what = row.note.as_deref().unwrap_or("waits for memory");
            return format!("{what}, for {time} already; it is to start: {because}");
        }
        State::Running => "running for",
        State::Frozen => "frozen for",
        State::Stopping => "stopping for",
        State::Failed => return format!("failed {time} ago: {because}"),
    };
    format!("{state} {time}: {because}")
}

/// What to do next.
pub fn next(vps: &Vps, row: &VpsRow) -> Option<String> {
    let name = &row.name;
    match row.state {
        State::Failed => {
            Some(format!("see bailiwick logs {name}; change its spec and apply it, then bailiwick start {name}"))
        }
        State::Frozen if row.failure.is_some() => {
            Some("it goes on by itself when there is room: free some of the disk (bailiwick volume ls)".to_owned())
        }
        State::Frozen => Some(format!("the next request thaws it, or bailiwick thaw {name}")),
        State::Asleep if row.routes.is_empty() && row.internal.is_empty() && vps.spec().jobs.is_empty() => {
            Some(format!("nothing leads to it: bailiwick start {name}"))
        }
        State::Asleep if row.routes.is_empty() && row.internal.is_empty() => {
            Some(format!("its next job starts it (bailiwick jobs {name}), or bailiwick start {name}"))
        }
        State::Asleep if row.routes.is_empty() => {
            Some(format!("a neighbour's next connection starts it, or bailiwick start {name}"))
        }
        State::Asleep => Some(format!("the next request starts it, or bailiwick start {name}")),
        State::Waiting => Some(format!(
            "it starts when others stop; bailiwick ps shows who is up, bailiwick stop {name} ends the wait"
        )),
        State::Starting | State::Running | State::Stopping => None,
    }
}
