//! What the gateway and persons ask for.

use model::{
    limits::show_duration_ms,
    spec::{Idle, IdleAction},
};

use super::{Action, Cancel, KILL_AGAIN_MS, Life, Starting, State, TRIES};

impl Life {
    pub(super) fn wake(&mut self, now: u64, by: String) {
        self.tries_left = TRIES;
        self.idle_pending = false;
        match &mut self.state {
            State::Freezing { .. } | State::Frozen if self.held.is_some() => {}
            State::Asleep => self.begin(now, by),
            State::Failed { until, .. } if now >= *until => self.begin(now, by),
            State::Starting(Starting { cancel: Some(Cancel::Stop { again }), .. })
            | State::Freezing { again }
            | State::Stopping { again } => drop(again.get_or_insert(by)),
            State::Frozen => self.begin_thaw(now, by),
            State::Failed { .. } | State::Starting(_) | State::Running | State::Thawing { .. } => {}
        }
    }

    pub(super) fn start(&mut self, now: u64, by: String) {
        if matches!(self.state, State::Failed { .. }) {
            self.fails = 0;
            self.tries_left = TRIES;
            self.begin(now, by);
        } else {
            self.wake(now, by);
        }
    }

    /// Down; and `restart`: up again.
    pub(super) fn stop(&mut self, now: u64, by: String, restart: bool) {
        self.tries_left = TRIES;
        let again = restart.then(|| by.clone());
        let because = by.clone();
        match &mut self.state {
            State::Asleep if restart => self.begin(now, by),
            State::Asleep => {}
            State::Failed { .. } => {
                self.fails = 0;
                if restart { self.begin(now, by) } else { self.sleep(now, because) }
            }
            State::Starting(starting) if starting.run.is_none() => {
                // The host is being asked to start it: what it answers says whether there is something to stop.
                starting.cancel = Some(Cancel::Stop { again });
                self.because = because;
                self.record("stopping", "while it was being started", by);
            }
            State::Stopping { again: stored } => {
                *stored = again;
                self.because = because;
            }
            state => {
                let thaw = matches!(state, State::Frozen | State::Freezing { .. } | State::Thawing { .. });
                self.fails = 0;
                self.record("stopping", "", by);
                self.begin_stop(now, again, thaw, because);
            }
        }
    }

    pub(super) fn begin_stop(&mut self, now: u64, again: Option<String>, thaw: bool, because: String) {
        self.set(now, State::Stopping { again }, because);
        self.actions.push(Action::Stop { grace_ms: None, thaw });
        self.set_timer(self.rules.grace_ms.saturating_add(KILL_AGAIN_MS));
    }

    pub(super) fn freeze(&mut self, now: u64, by: String) {
        if self.state == State::Running {
            self.record("freezing", "", by.clone());
            self.set(now, State::Freezing { again: None }, format!("frozen: {by}"));
            self.actions.push(Action::Freeze);
        }
    }

    pub(super) fn thaw(&mut self, now: u64, by: String) {
        if matches!(self.state, State::Frozen | State::Freezing { .. }) {
            self.wake(now, by);
        }
    }

    /// Has a VPS stand still that must not go on.
    pub(super) fn hold(&mut self, now: u64, reason: String, public: &'static str) {
        if self.state == State::Running {
            self.generation += 1;
            self.record("held", reason.clone(), "");
            self.set(now, State::Freezing { again: None }, reason.clone());
            self.actions.push(Action::Freeze);
            self.held = Some((reason, public));
        }
    }

    pub(super) fn release(&mut self, now: u64, by: String) {
        if self.held.take().is_some() {
            self.generation += 1;
            match &mut self.state {
                State::Freezing { again } => *again = Some(by),
                State::Frozen => self.begin_thaw(now, by),
                _ => {}
            }
        }
    }

    pub(super) fn begin_thaw(&mut self, now: u64, by: String) {
        self.record("thawing", "", by.clone());
        let because = format!("being thawed: {by}");
        self.set(now, State::Thawing { began: now, by }, because);
        self.actions.push(Action::Thaw);
    }

    pub(super) fn idle(&mut self, now: u64) {
        let Idle::After { after_ms, then, .. } = self.rules.idle else { return };
        if self.state != State::Running {
            return;
        }
        if self.execs > 0 {
            self.idle_pending = true;
            return;
        }
        let because = format!("nobody used it for {}", show_duration_ms(after_ms));
        self.record("idle", because.clone(), "");
        match then {
            IdleAction::Stop => self.begin_stop(now, None, false, because),
            IdleAction::Freeze => {
                self.set(now, State::Freezing { again: None }, because);
                self.actions.push(Action::Freeze);
            }
        }
    }
}
