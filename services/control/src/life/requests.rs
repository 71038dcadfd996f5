//! What the gateway and persons ask for.

use model::{
    limits::show_duration_ms,
    spec::{Idle, IdleAction, Restart},
};

use super::{
    Action, Answer, BUSY_AGAIN_MS, Cancel, FULL, FULL_MS, Failure, Holder, KILL_AGAIN_MS, Life, Starting, State, TRIES,
};

impl Life {
    pub(super) fn wake(&mut self, now: u64, by: String) {
        self.tries_left = TRIES;
        (self.idle_pending, self.asking, self.back) = (false, None, None);
        match &mut self.state {
            State::Freezing { .. } | State::Frozen if !self.held.is_empty() => self.held_up = true,
            State::Asleep => self.begin(now, by),
            State::Failed { until, .. } if now >= *until => self.begin(now, by),
            State::Starting(Starting { cancel: Some(Cancel::Stop { again }), .. })
            | State::Freezing { again }
            | State::Stopping { again } => drop(again.get_or_insert(by)),
            State::Frozen => self.begin_thaw(now, by),
            State::Running => {
                // Whatever was to happen since nobody used it.
                self.timer = self.next();
                self.count_idle();
            }
            State::Failed { .. } | State::Starting(_) | State::Thawing { .. } => {}
        }
    }

    pub(super) fn job(&mut self, now: u64, by: String) {
        let back = match &self.state {
            State::Frozen => Some(IdleAction::Freeze),
            State::Asleep | State::Failed { .. } => Some(IdleAction::Stop),
            _ => self.back,
        };
        self.wake(now, by);
        self.back = back.filter(|_| self.unrouted());
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
        if !matches!(self.state, State::Asleep) {
            // Whoever waits for the start that ends here hears of it, and asks again.
            self.generation += 1;
        }
        let again = restart.then(|| by.clone());
        let because = by.clone();
        match &mut self.state {
            State::Asleep if restart => self.begin(now, by),
            State::Asleep => {}
            State::Failed { .. } => {
                self.fails = 0;
                if restart {
                    self.begin(now, by);
                } else {
                    self.actions.push(Action::Stopped { why: by, took_ms: 0, frozen: false, ended: None });
                    self.sleep(now, because);
                }
            }
            State::Starting(starting) if starting.waits.is_some() => {
                self.record("stopping", "while it waited for memory", by.clone());
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
            self.rested = false;
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

    /// Has a VPS stand still that must not go on, whether it ran or stands still already.
    pub(super) fn hold(&mut self, now: u64, holder: Holder, reason: String) {
        if self.state == State::Running {
            self.generation += 1;
            self.record("held", reason.clone(), "");
            self.set(now, State::Freezing { again: None }, reason.clone());
            self.actions.push(Action::Freeze);
            self.held_up = true;
        } else if self.held.is_empty() {
            self.held_up = false;
        }
        if matches!(self.state, State::Freezing { .. } | State::Frozen) {
            self.held.insert(holder, reason);
        }
    }

    pub(super) fn release(&mut self, now: u64, holder: Holder, by: String) {
        if self.held.remove(&holder).is_some() && self.held.is_empty() && self.held_up {
            self.generation += 1;
            match &mut self.state {
                State::Freezing { again } => *again = Some(by),
                State::Frozen => self.begin_thaw(now, by),
                _ => {}
            }
        }
    }

    pub(super) fn begin_thaw(&mut self, now: u64, by: String) {
        self.actions.push(Action::Begun { by: by.clone(), thaw: true });
        self.record("thawing", "", by.clone());
        let because = format!("being thawed: {by}");
        self.set(now, State::Thawing { began: now, by }, because);
        self.actions.push(Action::Thaw);
    }

    pub(super) fn idle(&mut self, now: u64) {
        let Idle::After { after_ms, then, .. } = self.rules.idle else { return };
        self.rest(now, format!("nobody used it for {}", show_duration_ms(after_ms)), then);
    }

    /// The last program that somebody ran inside has ended.
    pub(super) fn all_ended(&mut self, now: u64) {
        if std::mem::take(&mut self.idle_pending) {
            self.idle(now);
        } else if let Some(then) = self.back.filter(|_| self.state == State::Running) {
            self.rest(now, "only a job needed it, and that has ended".to_owned(), then);
        } else {
            self.count_idle();
        }
    }

    /// Nobody needs it, as far as that can be seen from outside.
    fn rest(&mut self, now: u64, because: String, then: IdleAction) {
        if self.state != State::Running || self.asking.is_some() {
            return;
        }
        if self.execs > 0 {
            self.idle_pending = true;
        } else if self.rules.busy || self.direct {
            let number = self.next();
            self.asking = Some(number);
            self.actions.push(Action::AskBusy(number));
        } else {
            self.make_rest(now, because, then);
        }
    }

    fn make_rest(&mut self, now: u64, because: String, then: IdleAction) {
        self.record("idle", because.clone(), "");
        match then {
            IdleAction::Stop => self.begin_stop(now, None, false, because),
            IdleAction::Freeze => {
                self.rested = true;
                self.set(now, State::Freezing { again: None }, because);
                self.actions.push(Action::Freeze);
            }
        }
    }

    pub(super) fn busy(&mut self, now: u64, number: u64, answer: Answer) {
        if self.asking != Some(number) || self.state != State::Running {
            return;
        }
        self.asking = None;
        if self.execs > 0 {
            self.idle_pending = true;
            return;
        }
        let (after_ms, then) = match (&self.rules.idle, self.back) {
            (Idle::After { after_ms, then, .. }, back) => (*after_ms, back.unwrap_or(*then)),
            (Idle::Never, Some(back)) => (BUSY_AGAIN_MS.1, back),
            (Idle::Never, None) => return,
        };
        let again = after_ms.clamp(BUSY_AGAIN_MS.0, BUSY_AGAIN_MS.1);
        let says = match answer {
            Answer::Used(0) => return self.set_timer(again),
            Answer::Used(ago) => return self.set_timer(after_ms.saturating_sub(ago).max(1)),
            Answer::Free => {
                let because = match self.rules.busy {
                    true => "nobody used it, and its `busy` command said that it is not busy".to_owned(),
                    false => format!("nobody used it for {}", show_duration_ms(after_ms)),
                };
                return self.make_rest(now, because, then);
            }
            Answer::Busy => "nobody uses it, but its `busy` command says that it is busy".to_owned(),
            // Who can't be asked is not stopped.
            Answer::Unknown(reason) => format!("nobody uses it, as far as is known: {reason}"),
        };
        if self.because != says {
            self.record("busy", says.clone(), "");
            self.because = says;
        }
        self.set_timer(again);
    }

    /// Begins to count the idle time, where the gateway does not, or has done so already.
    pub(super) fn count_idle(&mut self) {
        let Idle::After { after_ms, .. } = self.rules.idle else { return };
        if (self.unrouted() || self.gateway_left)
            && self.state == State::Running
            && self.execs == 0
            && self.asking.is_none()
        {
            self.set_timer(after_ms);
        }
    }

    /// Memory is short: it waits, as long as a start may take.
    pub(super) fn full(&mut self, launch: u64, why: String) {
        let State::Starting(starting) = &mut self.state else { return };
        if starting.launch != launch || starting.cancel.is_some() {
            return;
        }
        if starting.waits.replace(why.clone()).is_none() {
            self.record("waiting", why, "");
        }
    }

    pub(super) fn room(&mut self, now: u64) {
        let State::Starting(starting) = &mut self.state else { return };
        if starting.waits.take().is_none() {
            return;
        }
        let (launch, waited) = (starting.launch, show_duration_ms(now.saturating_sub(starting.began)));
        self.record("room", format!("after {waited}"), "");
        self.actions.push(Action::Launch(launch));
        self.set_timer(self.rules.start_deadline_ms);
    }

    pub(super) fn give(&mut self, now: u64) {
        if self.can_give(now).is_some() {
            let because = "others needed the memory it kept while it was frozen".to_owned();
            self.record("stopping", because.clone(), "");
            self.begin_stop(now, None, true, because);
        }
    }

    /// It waited for memory as long as a start may take. That is no fault of its own, so it does not count as one.
    pub(super) fn refuse(&mut self, now: u64, why: String) {
        self.generation += 1;
        let what = format!("this host is full: it {why}");
        self.record("failed", what.clone(), "");
        self.actions.push(Action::Failed { what: what.clone(), ended: None });
        let auto = self.rules.idle == Idle::Never && self.rules.restart != Restart::Never;
        let failure = Failure { what: what.clone(), public: FULL };
        self.set(now, State::Failed { failure, until: now + FULL_MS, auto }, what);
        if auto {
            self.set_timer(FULL_MS);
        }
    }
}
