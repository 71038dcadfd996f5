//! The chapters of a VPS's story: its last start, stop and failure, from what its driver and the host saw.

use std::sync::Arc;

use model::{
    ExitStatus, VpsName,
    limits::show_duration_ms,
    state::{Ended, Phase, StartSteps, VpsStatus},
    story::{Failure, Start, Step, Stop, Story, Wait},
};

use crate::{
    clock::{Since, rfc3339, unix_ms, unix_us},
    driver::Vps,
    history::{Line, cut},
    life::Input,
    logs,
    shared::Control,
};

/// Lines of its log that are kept with a failure.
const LINES: usize = 20;
/// Characters of such a line that are kept.
const WIDTH: usize = 300;
/// Waits of one start that are kept.
const WAITS: usize = 16;

/// A start that goes on, and the run it leads to.
#[derive(Debug)]
pub struct Beginning {
    /// When it was asked for, Unix microseconds.
    asked_us: u64,
    by: String,
    thawed: bool,
    steps: Vec<(u64, &'static str)>,
    host: Option<StartSteps>,
    waits: Vec<Wait>,
    /// Milliseconds until it was ready.
    took_ms: Option<u64>,
    /// Since when it waits for memory, and why.
    short: Option<(u64, String)>,
}

impl Beginning {
    /// Asked for now.
    pub fn new(by: String, thawed: bool) -> Self {
        let asked_us = unix_us();
        Self { asked_us, by, thawed, steps: Vec::new(), host: None, waits: Vec::new(), took_ms: None, short: None }
    }

    /// This has been done.
    pub fn mark(&mut self, what: &'static str) {
        self.steps.push((unix_us(), what));
    }

    /// There is no memory for it.
    pub fn short(&mut self, why: String) {
        self.short = Some((unix_us(), why));
    }

    /// There is memory for it.
    pub fn room(&mut self) {
        self.mark("memory granted");
        if let Some((since, detail)) = self.short.take() {
            let took_ms = unix_us().saturating_sub(since) / 1000;
            self.waits.push(Wait { on: "memory".to_owned(), took_ms, detail });
        }
    }

    /// A neighbour that it connects to had to be woken.
    fn neighbour(&mut self, name: &VpsName, took_ms: u64) {
        if self.waits.len() < WAITS {
            let detail = "it connected to it, which woke it".to_owned();
            self.waits.push(Wait { on: name.to_string(), took_ms, detail });
        }
    }

    /// What the host says of it.
    pub fn heard(&mut self, status: &VpsStatus) {
        // Those of another run are older.
        self.host = status.steps.filter(|steps| steps.asked_us >= self.asked_us).or(self.host);
    }

    fn told(&self, took_ms: u64) -> Start {
        let (at_ms, by, thawed) = (self.asked_us / 1000, cut(&self.by), self.thawed);
        Start { at_ms, by, took_ms, thawed, steps: self.steps(), waits: self.waits.clone() }
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = self.steps.clone();
        if let Some(host) = self.host {
            let made = if host.prepared { "taken from what was prepared" } else { "namespaces, cgroup and link made" };
            let times = [
                (host.made_us, made),
                (host.shim.built_us, "root and mounts made"),
                (host.shim.executed_us, "program executed"),
                (host.shim.heard_us, "listens, or said that it is ready"),
                (host.shim.checked_us, "its `ready` command succeeded"),
            ];
            steps.extend(times.into_iter().filter_map(|(at, what)| Some((at?, what))));
        }
        steps.sort_by_key(|(at, _)| *at);
        let after = |at: u64| at.saturating_sub(self.asked_us);
        steps.into_iter().map(|(at, what)| Step { what: what.to_owned(), after_us: after(at) }).collect()
    }
}

/// It is ready.
pub fn started(control: &Arc<Control>, vps: &Vps, took_ms: u64, by: &str) {
    if let Some(beginning) = vps.beginning().as_mut() {
        beginning.mark(if beginning.thawed { "thawed" } else { "ready" });
        beginning.took_ms = Some(took_ms);
        control.history.tell(&vps.name, Line::Start(beginning.told(took_ms)));
    }
    let from = by.strip_prefix("connection from ").and_then(|from| control.get(&from.parse().ok()?));
    let Some(from) = from.filter(|from| from.spec().tenant == vps.spec().tenant) else { return };
    let starting = from.life().state() == model::api::State::Starting;
    match from.beginning().as_mut().filter(|_| starting) {
        Some(beginning) => beginning.neighbour(&vps.name, took_ms),
        None => {
            let took = show_duration_ms(took_ms);
            control.history.record(Some(&from.name), "woke", format!("{}, ready after {took}", vps.name), "");
        }
    }
}

/// The gateway had the first byte from it.
pub fn answered(control: &Control, vps: &Vps, generation: u64, at_us: u64) {
    if vps.life().generation() != generation {
        return;
    }
    let mut beginning = vps.beginning();
    let Some(beginning) = beginning.as_mut() else { return };
    // Who is ready and has answered is told again; whatever else is heard is none of this start's.
    if let Some(took_ms) = beginning.took_ms.take().filter(|_| at_us >= beginning.asked_us) {
        beginning.steps.push((at_us.min(unix_us()), "first byte of an answer"));
        control.history.tell(&vps.name, Line::Start(beginning.told(took_ms)));
    }
}

/// It sleeps, or stands still.
pub fn stopped(control: &Control, name: &VpsName, why: &str, took_ms: u64, frozen: bool, ended: Option<&Ended>) {
    let stop = Stop { at_ms: unix_ms(), took_ms, frozen, why: cut(why), ended: ended.map(words) };
    control.history.tell(name, Line::Stop(stop));
}

/// It failed.
pub fn failed(control: &Arc<Control>, vps: &Arc<Vps>, what: &str, ended: Option<&Ended>) {
    let at_ms = unix_ms();
    let failure = match vps.beginning().as_ref() {
        Some(beginning) => Failure {
            began_ms: Some(beginning.asked_us / 1000),
            by: cut(&beginning.by),
            steps: beginning.steps(),
            ..failure(at_ms, what, ended)
        },
        None => failure(at_ms, what, ended),
    };
    tokio::spawn(keep(control.clone(), vps.name.clone(), failure));
}

/// It is down, as this process finds it: a failure that nobody saw is told; and it has failed, unless something came after. Whether it
/// has, by itself: a lost shim can be the end of the host.
pub async fn found_down(control: &Arc<Control>, vps: &Arc<Vps>, status: VpsStatus) -> bool {
    let Phase::Down { ended: Some(ended) } = status.phase else { return false };
    let last = control.history.of(&vps.name).await.last;
    let seen = last.failure.as_ref().filter(|failure| failure.at_ms >= status.since_ms);
    let what = match seen {
        Some(failure) => {
            let others = [last.start.as_ref().map(|start| start.at_ms), last.stop.as_ref().map(|stop| stop.at_ms)];
            if others.into_iter().flatten().any(|at_ms| at_ms > failure.at_ms) {
                return false;
            }
            failure.what.clone()
        }
        None => words(&ended),
    };
    vps.feed(Input::HadFailed(what.clone())).await;
    if seen.is_none() {
        control.history.record(Some(&vps.name), "failed", format!("{what}, while control was away"), "");
        tokio::spawn(keep(control.clone(), vps.name.clone(), failure(status.since_ms, &what, Some(&ended))));
    }
    ended != Ended::ShimLost
}

/// Whether a run ended as it should not.
pub fn is_failure(ended: &Ended) -> bool {
    match ended {
        Ended::Exited { status, oom, asked } => !asked && (*oom || !status.success()),
        Ended::NotStarted { .. } | Ended::ShimLost => true,
    }
}

/// Keeps a failure; then with what it wrote last.
async fn keep(control: Arc<Control>, name: VpsName, mut failure: Failure) {
    control.history.tell(&name, Line::Failure(failure.clone()));
    if failure.began_ms.is_none() {
        // An earlier process has seen it start.
        if let Some(start) = control.history.of(&name).await.last.start.filter(|start| start.at_ms <= failure.at_ms) {
            (failure.began_ms, failure.by) = (Some(start.at_ms), start.by);
        }
    }
    let wanted = logs::Wanted {
        since: failure.began_ms.and_then(|ms| Since::parse(&rfc3339(ms))),
        until: Some(rfc3339(failure.at_ms)),
        ..logs::Wanted::default()
    };
    let read = async {
        let files = logs::open(&control, &name).await.map_err(|fault| fault.message)?;
        logs::last(files, LINES, wanted).await.map_err(|error| error.to_string())
    };
    match read.await {
        Ok((_, lines)) => {
            let line = |line: model::api::LogLine| {
                let text: String = line.shown().chars().take(WIDTH).collect();
                format!("{} {} {text}", line.at, line.stream)
            };
            failure.log = lines.into_iter().map(line).collect();
            control.history.tell(&name, Line::Failure(failure));
        }
        Err(error) => tracing::warn!(vps = %name, error, "what it wrote before it failed can't be kept"),
    }
}

fn failure(at_ms: u64, what: &str, ended: Option<&Ended>) -> Failure {
    let mut failure = Failure { at_ms, what: cut(what), ..Failure::default() };
    if let Some(Ended::Exited { status, oom, .. }) = ended {
        failure.oom = *oom;
        match status {
            ExitStatus::Code(code) => failure.exit = Some(*code),
            ExitStatus::Signal(signal) => failure.signal = Some(*signal),
        }
    }
    failure
}

fn words(ended: &Ended) -> String {
    match ended {
        Ended::Exited { status, oom: true, .. } => format!("{status}, out of memory"),
        Ended::Exited { status, .. } => status.to_string(),
        Ended::NotStarted { reason } => cut(reason),
        Ended::ShimLost => "its shim was lost".to_owned(),
    }
}

/// Why one sleeps that this process has not seen up: since when, Unix milliseconds, and what is told of it.
pub fn before(story: &Story) -> Option<(u64, String)> {
    let stop = story.stop.as_ref().map(|stop| (stop.at_ms, stop.why.clone()));
    let failure = story.failure.as_ref().map(|failure| (failure.at_ms, format!("it failed: {}", failure.what)));
    let start = story.start.as_ref().map(|start| (start.at_ms, "it was up when the host ended".to_owned()));
    [start, failure, stop].into_iter().flatten().max_by_key(|(at, _)| *at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_in_the_order_of_time() {
        let mut beginning = Beginning::new("GET /".to_owned(), false);
        beginning.short("waits for 1 GiB".to_owned());
        beginning.room();
        let asked_us = beginning.asked_us;
        let steps = StartSteps {
            asked_us,
            made_us: Some(asked_us),
            shim: model::state::ShimTimes { executed_us: Some(u64::MAX), ..Default::default() },
            ..Default::default()
        };
        let mut status = crate::fixtures::status(1, Phase::Ready);
        status.steps = Some(StartSteps { asked_us: 5, ..steps });
        beginning.heard(&status);
        assert_eq!(beginning.host, None, "of an earlier run");
        status.steps = Some(steps);
        beginning.heard(&status);
        let steps: Vec<_> = beginning.steps().into_iter().map(|step| step.what).collect();
        assert_eq!(steps, ["namespaces, cgroup and link made", "memory granted", "program executed"]);
        assert_eq!(beginning.waits[0].detail, "waits for 1 GiB");
    }

    #[test]
    fn the_youngest_chapter_says_why_it_sleeps() {
        assert_eq!(before(&Story::default()), None);
        let mut story = Story { start: Some(Start { at_ms: 5, ..Start::default() }), ..Story::default() };
        assert_eq!(before(&story).unwrap().1, "it was up when the host ended");
        story.failure = Some(Failure { at_ms: 6, what: "exit 1".to_owned(), ..Failure::default() });
        assert_eq!(before(&story), Some((6, "it failed: exit 1".to_owned())));
        story.stop = Some(Stop { at_ms: 7, why: "stop by root".to_owned(), ..Stop::default() });
        assert_eq!(before(&story).unwrap().1, "stop by root");
    }
}
