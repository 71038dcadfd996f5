//! What the host says, and what came of what it was asked for.

use model::{
    limits::show_duration_ms,
    spec::{Idle, Restart},
    state::{Ended, Phase, VpsStatus},
};

use super::{Action, Cancel, ENDED, FOUND_UP, Failure, Life, NOT_WOKEN, STEADY_MS, Starting, State, Step, TRIES};

impl Life {
    /// `asked`: it was taken after this state began.
    pub(super) fn snapshot(&mut self, now: u64, status: Option<VpsStatus>, asked: bool) {
        // Only now the number of the last run may become lower: a host that was restarted counts anew.
        let Some(status) = status else {
            self.ended_run = 0;
            return self.not_there(now, 0, None);
        };
        match status.phase {
            Phase::Down { ended } => {
                self.ended_run = status.run;
                self.not_there(now, status.run, ended);
            }
            phase => {
                self.ended_run = status.run.saturating_sub(1);
                // All that comes unasked can be older than the answers to `Freeze` and `Thaw`; but who did not see it frozen or
                // thawed hears of it by a snapshot alone.
                match (&self.state, &phase) {
                    (State::Frozen, Phase::Ready) | (State::Running, Phase::Frozen) if !asked => {
                        self.actions.push(Action::Look(self.entered));
                    }
                    (State::Frozen, Phase::Ready) => self.set(now, State::Running, "the host thawed it"),
                    (State::Running, Phase::Frozen) => self.set(now, State::Frozen, "the host froze it"),
                    _ => self.status(now, VpsStatus { phase, ..status }),
                }
            }
        }
    }

    fn not_there(&mut self, now: u64, run: u64, ended: Option<Ended>) {
        // A snapshot may be older than the answer that said which run this is, but not older than its `Ready`.
        match &self.state {
            State::Starting(s) if !s.ready && s.run.is_none_or(|started| run < started) => {}
            _ => self.down(now, ended),
        }
    }

    pub(super) fn status(&mut self, now: u64, status: VpsStatus) {
        let run = status.run;
        if run <= self.ended_run {
            return;
        }
        if let Phase::Down { ended } = status.phase {
            self.ended_run = run;
            return self.down(now, ended);
        }
        match (&mut self.state, status.phase) {
            (State::Starting(starting), Phase::Starting) => starting.run = Some(run),
            (State::Starting(starting), Phase::Ready) => {
                starting.run = Some(run);
                starting.ready = true;
                self.check_running(now);
            }
            (State::Asleep | State::Failed { .. }, phase @ (Phase::Starting | Phase::Ready)) => {
                self.adopt(now, run, phase == Phase::Ready);
            }
            (State::Asleep | State::Failed { .. }, Phase::Frozen) => {
                self.set(now, State::Frozen, "found frozen");
            }
            (State::Freezing { .. }, Phase::Frozen) => self.frozen(now),
            (State::Thawing { .. }, Phase::Ready) => self.thawed(now),
            (State::Starting(starting), Phase::Stopping) => {
                starting.run = Some(run);
                // It may be this service's own doing; then it is known already what comes after.
                starting.cancel.get_or_insert(Cancel::Stop { again: None });
            }
            (State::Stopping { .. }, _) => {}
            (_, Phase::Stopping) => {
                self.set(now, State::Stopping { again: None }, "the host stops it");
                self.set_timer(self.rules.grace_ms);
            }
            _ => {}
        }
    }

    /// It is up, and this process did not start it.
    fn adopt(&mut self, now: u64, run: u64, ready: bool) {
        self.generation += 1;
        let launch = self.next();
        let starting = Starting {
            launch,
            began: now,
            by: None,
            run: Some(run),
            ready,
            attached: false,
            waits: None,
            cancel: None,
        };
        self.set(now, State::Starting(starting), "found on its way up");
        self.actions.push(Action::Attach(launch));
        self.set_timer(self.rules.start_deadline_ms);
    }

    /// Who asks for it has it tried again at once: what was to be waited for is over, or unknown. So is one that never sleeps.
    pub(super) fn had_failed(&mut self, now: u64, what: String) {
        if self.state == State::Asleep && self.because == NOT_WOKEN {
            let failure = Failure { what, public: "it could not be started" };
            let auto = self.rules.idle == Idle::Never && self.rules.restart != Restart::Never;
            self.set(now, State::Failed { failure, until: now, auto }, NOT_WOKEN);
            if auto {
                self.set_timer(0);
            }
        }
    }

    pub(super) fn launched(&mut self, now: u64, launch: u64, result: Result<Option<u64>, Failure>) {
        let State::Starting(starting) = &mut self.state else { return };
        if starting.launch != launch {
            return;
        }
        match result {
            Ok(run) => {
                starting.run = starting.run.or(run);
                match &starting.cancel {
                    Some(Cancel::Stop { again }) => {
                        let (again, because) = (again.clone(), self.because.clone());
                        self.begin_stop(now, again, false, because);
                    }
                    Some(Cancel::Fail(_)) => self.kill(),
                    None => {}
                }
            }
            Err(failure) => match starting.cancel.take() {
                Some(Cancel::Stop { again }) => self.stopped(now, again),
                Some(Cancel::Fail(first)) => self.fail(now, first),
                None => self.fail(now, failure),
            },
        }
    }

    pub(super) fn attached(&mut self, now: u64, launch: u64, result: Result<(), Failure>) {
        let State::Starting(starting) = &mut self.state else { return };
        if starting.launch != launch {
            return;
        }
        match result {
            Ok(()) => {
                starting.attached = true;
                self.check_running(now);
            }
            Err(failure) => {
                if starting.cancel.is_none() {
                    starting.cancel = Some(Cancel::Fail(failure));
                    self.kill();
                }
            }
        }
    }

    fn check_running(&mut self, now: u64) {
        let State::Starting(starting) = &self.state else { return };
        if !(starting.ready && starting.attached && starting.cancel.is_none()) {
            return;
        }
        let took_ms = now - starting.began;
        match starting.by.clone() {
            Some(by) => self.up(now, took_ms, by, "ready"),
            None => self.set(now, State::Running, FOUND_UP),
        }
    }

    fn up(&mut self, now: u64, took_ms: u64, by: String, what: &'static str) {
        let took = show_duration_ms(took_ms);
        self.record(what, format!("after {took}"), by.clone());
        self.set(now, State::Running, format!("{by}, {what} after {took}"));
        self.actions.push(Action::Woken { took_ms, by });
    }

    fn frozen(&mut self, now: u64) {
        let State::Freezing { again } = &mut self.state else { return };
        let again = again.take();
        let because = self.because.clone();
        self.record("frozen", because.clone(), "");
        let took_ms = now.saturating_sub(self.since);
        self.actions.push(Action::Stopped { why: because.clone(), took_ms, frozen: true, ended: None });
        self.set(now, State::Frozen, because);
        if let Some(by) = again {
            self.begin_thaw(now, by);
        }
    }

    fn thawed(&mut self, now: u64) {
        if let State::Thawing { began, by } = &self.state {
            let (took_ms, by) = (now - began, by.clone());
            self.up(now, took_ms, by, "thawed");
        }
    }

    /// It has no process any more.
    fn down(&mut self, now: u64, ended: Option<Ended>) {
        self.ended.clone_from(&ended);
        match &mut self.state {
            State::Asleep | State::Failed { .. } => {}
            State::Stopping { again } => {
                let again = again.take();
                self.stopped(now, again);
            }
            State::Starting(starting) => match starting.cancel.take() {
                Some(Cancel::Stop { again }) => self.stopped(now, again),
                Some(Cancel::Fail(failure)) => self.fail(now, failure),
                None => self.fail(now, failure_of(ended, "its program ended before it was ready")),
            },
            State::Running | State::Freezing { .. } | State::Frozen | State::Thawing { .. } => {
                self.ended_by_itself(now, ended);
            }
        }
    }

    fn ended_by_itself(&mut self, now: u64, ended: Option<Ended>) {
        let again = match &mut self.state {
            State::Freezing { again } => again.take(),
            State::Thawing { by, .. } => Some(by.clone()),
            _ => None,
        };
        if now.saturating_sub(self.since) >= STEADY_MS {
            self.fails = 0;
            self.tries_left = TRIES;
        }
        let clean = match ended {
            Some(Ended::Exited { status, oom, asked }) => asked || (status.success() && !oom),
            _ => false,
        };
        let asked = matches!(ended, Some(Ended::Exited { asked: true, .. }));
        if asked || (clean && self.rules.restart != Restart::Always) {
            self.because = if asked { "the host was asked to stop it" } else { ENDED }.to_owned();
            return self.stopped(now, again);
        }
        self.fail(now, failure_of(ended, "its program ended"));
    }

    fn stopped(&mut self, now: u64, again: Option<String>) {
        let asked = matches!(self.state, State::Stopping { .. });
        let took_ms = if asked { now.saturating_sub(self.since) } else { 0 };
        let (why, ended) = (self.because.clone(), self.ended.take());
        self.actions.push(Action::Stopped { why, took_ms, frozen: false, ended });
        match again {
            Some(by) => self.begin(now, by),
            None => {
                let because = std::mem::take(&mut self.because);
                self.sleep(now, because);
            }
        }
    }

    pub(super) fn done(&mut self, now: u64, step: Step, result: Result<(), String>) {
        match (step, result, &mut self.state) {
            (Step::Freeze, Ok(()), State::Freezing { .. }) => self.frozen(now),
            (Step::Freeze, Err(reason), State::Freezing { .. }) => {
                self.record("failed", format!("it could not be frozen: {reason}"), "");
                self.set(now, State::Running, "it could not be frozen");
            }
            (Step::Thaw, Ok(()), State::Thawing { .. }) => self.thawed(now),
            (Step::Thaw, Err(reason), State::Thawing { by, .. }) => {
                let again = Some(by.clone());
                self.record("failed", format!("it could not be thawed: {reason}"), "");
                self.set(now, State::Stopping { again }, "it could not be thawed");
                self.kill();
            }
            // There may be nothing to stop; then no event comes either.
            (Step::Stop, Err(_), State::Stopping { .. }) => self.actions.push(Action::Look(self.entered)),
            _ => {}
        }
    }
}

fn failure_of(ended: Option<Ended>, public: &'static str) -> Failure {
    match ended {
        Some(Ended::Exited { status, oom: true, .. }) => {
            Failure { what: format!("{status}, out of memory"), public: "it ran out of memory" }
        }
        Some(Ended::Exited { status, .. }) => Failure { what: status.to_string(), public },
        Some(Ended::NotStarted { reason }) => Failure { what: reason, public: "it could not be set up" },
        Some(Ended::ShimLost) => Failure { what: "its shim was lost".to_owned(), public },
        None => Failure { what: "it ended while nobody watched".to_owned(), public },
    }
}
