//! The life of one VPS as a pure machine: inputs and the time go in, actions come out. The driver carries them out.
//!
//! ```text
//! asleep → starting → running → stopping → asleep
//!             ↓  ↑       ↓ ↑
//!            failed    freezing → frozen → thawing
//! ```
//!
//! Times are milliseconds of a clock that never goes back.

mod host;
mod requests;

use std::collections::BTreeMap;

use model::{
    api,
    limits::show_duration_ms,
    run::Ready,
    spec::{Idle, IdleAction, Restart, VpsSpec},
    state::{Ended, VpsStatus},
};

use crate::run_spec;

/// First pause between two tries; it doubles.
const BACK_OFF_MS: u64 = 100;
/// Longest pause between two tries.
const BACK_OFF_MAX_MS: u64 = 60_000;
/// Who was up so long begins to count anew.
const STEADY_MS: u64 = 60_000;
/// Tries without anybody asking, of a VPS that sleeps when nobody needs it.
const TRIES: u32 = 5;
/// After so long without an end, a kill is repeated and the host is asked what is there.
const KILL_AGAIN_MS: u64 = 5_000;
/// A VPS that said it is busy is asked again after its idle time, but not before and not later than this.
const BUSY_AGAIN_MS: (u64, u64) = (1_000, 60_000);
/// What strangers are told then.
const FULL: &str = "this host is full";
/// When a start is tried again that found no memory.
const FULL_MS: u64 = 5_000;

/// How long nobody asks for one that is held.
const HELD_MS: u64 = 10_000;

/// Why a VPS sleeps whose program had nothing left to do.
pub const ENDED: &str = "its program ended: exit 0";

/// Why a VPS sleeps that this process has not seen up.
pub const NOT_WOKEN: &str = "not woken yet";

/// Why a VPS runs that this process has not started.
pub const FOUND_UP: &str = "it was up when control was started";

/// The word for a VPS that fell asleep.
pub const ASLEEP: &str = "asleep";

/// What of a spec the machine needs. A change counts at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// What happens when nobody uses it.
    pub idle: Idle,
    /// Whether the gateway does not see who uses it: then its idle time is counted here.
    pub unrouted: bool,
    /// Whether it is asked before it is made to sleep since nobody uses it.
    pub busy: bool,
    /// What happens when its program ends by itself.
    pub restart: Restart,
    /// Milliseconds a start may take.
    pub start_deadline_ms: u64,
    /// What it has not done when that is over.
    pub late: String,
    /// Milliseconds its program has to end.
    pub grace_ms: u64,
}

impl From<&VpsSpec> for Rules {
    fn from(spec: &VpsSpec) -> Self {
        Self {
            idle: spec.idle.clone(),
            unrouted: !spec.is_led_to(),
            busy: !spec.busy.is_empty(),
            restart: spec.restart,
            start_deadline_ms: spec.start_deadline_ms,
            late: late(spec),
            grace_ms: spec.stop.grace_ms,
        }
    }
}

fn late(spec: &VpsSpec) -> String {
    let (what, first) = match run_spec::ready(spec) {
        Ready::Listen(port) => (format!("nothing listened on port {port}"), true),
        Ready::Notify => ("it did not say READY=1".to_owned(), true),
        Ready::Started => (String::new(), false),
    };
    match (&spec.ready_check, first) {
        (Some(check), true) => format!(", since {what}, or then `{}` did not succeed", check.command.join(" ")),
        (Some(check), false) => format!(", since `{}` did not succeed", check.command.join(" ")),
        (None, true) => format!(", since {what}"),
        (None, false) => String::new(),
    }
}

/// Why a start or a run was no success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For who may see the VPS: `exit 1`.
    pub what: String,
    /// For strangers: no paths, no names, no output.
    pub public: &'static str,
}

/// Whether a VPS is busy that the gateway sees nobody use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is not.
    Free,
    /// Its `busy` command says so.
    Busy,
    /// It was used past the gateway, so many milliseconds ago; 0: it still is.
    Used(u64),
    /// It can't be known; why.
    Unknown(String),
}

/// A request to the host that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `Host.Stop`
    Stop,
    /// `Host.Freeze`
    Freeze,
    /// `Host.Thaw`
    Thaw,
}

/// For whom a VPS stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// It is the one that fills the disk.
    Disk,
    /// What it writes to is read.
    Export,
    /// What it writes to is copied, which takes a moment.
    Copy,
}

impl Holder {
    /// What a stranger is told who asks for it; none: who asks waits.
    fn public(self) -> Option<&'static str> {
        match self {
            Self::Disk => Some("this host is full"),
            Self::Export => Some("it is being copied"),
            Self::Copy => None,
        }
    }
}

/// What can happen.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The gateway has somebody who needs it.
    Wake(String),
    /// A person needs it.
    Need(String),
    /// A job needs it.
    Job(String),
    /// A person wants it up, back-off or not.
    Start(String),
    /// A person wants it down.
    Stop(String),
    /// A person wants it down, then up.
    Restart(String),
    /// A person wants it to stand still.
    Freeze(String),
    /// A person wants it to go on.
    Thaw(String),
    /// It stands still until `Release`, whoever asks for it: the reason, for a person.
    Hold(Holder, String),
    /// It may go on, as far as this holder has a say: who says so.
    Release(Holder, String),
    /// The gateway says nobody has used it for its idle time.
    Idle,
    /// The answer to `Action::AskBusy` of that number.
    Busy(u64, Answer),
    /// The launch of that number waits for memory; why.
    Full(u64, String),
    /// There is memory for it now.
    Room,
    /// Others need the memory it keeps while it is frozen.
    Give,
    /// Its spec changed.
    Changed,
    /// What the host had when the stream of its events began; none: it knows no such VPS.
    Snapshot(Option<VpsStatus>),
    /// The same, as an answer to `Action::Look`.
    Looked(u64, Option<VpsStatus>),
    /// It failed before this process began, and nothing came of that since; how.
    HadFailed(String),
    /// The host says it changed.
    Status(VpsStatus),
    /// The launch number `.0` got the host to start run `.1`, or did not. No number: it was up already.
    Launched(u64, Result<Option<u64>, Failure>),
    /// The link of launch number `.0` is there, or not.
    Attached(u64, Result<(), Failure>),
    /// The host answered; an error says why not.
    Done(Step, Result<(), String>),
    /// The timer of that number is over.
    Timer(u64),
    /// Somebody runs a program inside.
    ExecBegan,
    /// That program ended.
    ExecEnded,
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Get the host to start it and the network to attach it, side by side.
    Launch(u64),
    /// Only attach it: it is up already.
    Attach(u64),
    /// Ask whether it is used past the gateway, and run its `busy` command, for `Input::Busy` of that number.
    AskBusy(u64),
    /// Ask the host to end it, after having thawed it where `thaw`.
    Stop {
        /// Milliseconds until SIGKILL; none: as its spec says.
        grace_ms: Option<u64>,
        /// Whether it may be frozen.
        thaw: bool,
    },
    /// Ask the host to freeze it.
    Freeze,
    /// Ask the host to thaw it.
    Thaw,
    /// Ask the host what it has, as `Input::Looked` of that number.
    Look(u64),
    /// `Input::Timer(.0)` after `.1` milliseconds.
    Timer(u64, u64),
    /// A start, or a thaw, was asked for by `by`.
    Begun {
        /// Who.
        by: String,
        /// Whether it stands still until then.
        thaw: bool,
    },
    /// It failed.
    Failed {
        /// For who may see it.
        what: String,
        /// How its program ended, if it did.
        ended: Option<Ended>,
    },
    /// It sleeps, or stands still, after it was up.
    Stopped {
        /// Why, or by whom.
        why: String,
        /// Milliseconds since that was wanted.
        took_ms: u64,
        /// Whether it stands still.
        frozen: bool,
        /// How its program ended, if it did.
        ended: Option<Ended>,
    },
    /// It is up: remember who woke it and how long that took.
    Woken {
        /// Milliseconds from wake to ready.
        took_ms: u64,
        /// Who.
        by: String,
    },
    /// Keep for `why` and `events`.
    Record {
        /// One word.
        what: &'static str,
        /// More.
        detail: String,
        /// Who did it.
        actor: String,
    },
}

/// Why a VPS that is on its way up goes down again.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cancel {
    Stop { again: Option<String> },
    Fail(Failure),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Starting {
    launch: u64,
    began: u64,
    /// None: it was found up.
    by: Option<String>,
    run: Option<u64>,
    ready: bool,
    attached: bool,
    /// Why it waits for memory. The host has not been asked yet.
    waits: Option<String>,
    cancel: Option<Cancel>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Asleep,
    Starting(Starting),
    Running,
    Freezing { again: Option<String> },
    Frozen,
    Thawing { began: u64, by: String },
    Stopping { again: Option<String> },
    Failed { failure: Failure, until: u64, auto: bool },
}

/// Whether it can be sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// Not now.
    No,
    /// Yes.
    Yes,
    /// It could not be started; `.1` is when it may be tried again.
    Failed(&'static str, u64),
}

/// One VPS's life.
#[derive(Debug)]
pub struct Life {
    rules: Rules,
    state: State,
    /// When it came into this state.
    since: u64,
    /// Why it is in this state, for a person.
    because: String,
    generation: u64,
    /// Counts launches and timers, so that what belongs to an earlier state is known as such.
    serial: u64,
    timer: u64,
    /// Counts changes of state.
    entered: u64,
    /// The last run that is known to have ended.
    ended_run: u64,
    /// How it ended, as long as nothing came of it.
    ended: Option<Ended>,
    fails: u32,
    tries_left: u32,
    execs: u32,
    idle_pending: bool,
    /// Why nobody may thaw it.
    held: BTreeMap<Holder, String>,
    /// Whether it goes on when nobody holds it any more: it ran, or somebody asked for it.
    held_up: bool,
    /// The number of the question whether it is busy, while there is no answer.
    asking: Option<u64>,
    /// What it did before a job woke it, as long as nobody else needs it; only where no user goes unseen.
    back: Option<IdleAction>,
    /// Whether another file's rule leads to it.
    led_to: bool,
    /// Whether connections go past the gateway while it is up, so that others have to be asked too.
    direct: bool,
    /// Whether the gateway has said that nobody uses it. It says so once: from then on the time is counted here.
    gateway_left: bool,
    /// Whether it stands still since nobody used it, and not because a person wanted that.
    rested: bool,
    actions: Vec<Action>,
}

impl Life {
    /// A VPS that is asleep until the host says otherwise. `generation` must be above all that were given out before.
    pub fn new(rules: Rules, generation: u64, now: u64) -> Self {
        Self {
            rules,
            state: State::Asleep,
            since: now,
            because: NOT_WOKEN.to_owned(),
            generation,
            serial: 0,
            timer: 0,
            entered: 0,
            ended_run: 0,
            ended: None,
            fails: 0,
            tries_left: TRIES,
            execs: 0,
            idle_pending: false,
            held: BTreeMap::new(),
            held_up: false,
            asking: None,
            back: None,
            led_to: false,
            direct: false,
            gateway_left: false,
            rested: false,
            actions: Vec::new(),
        }
    }

    /// Follows a change of the spec.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Says whether the gateway's table leads to it, whoever's file says so.
    pub fn set_led_to(&mut self, led_to: bool) {
        self.led_to = led_to;
    }

    /// Says whether connections may go past the gateway.
    pub fn set_direct(&mut self, direct: bool) {
        self.direct = direct;
    }

    /// Whether connections may go past the gateway while it is up.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether connections may go past the gateway now: not while it is being decided whether it sleeps.
    pub fn takes_directly(&self) -> bool {
        self.state == State::Running && self.asking.is_none()
    }

    fn unrouted(&self) -> bool {
        self.rules.unrouted && !self.led_to
    }

    /// One input; the actions are in order.
    pub fn step(&mut self, now: u64, input: Input) -> Vec<Action> {
        match input {
            Input::Wake(by) => {
                self.gateway_left = false;
                self.wake(now, by);
            }
            Input::Need(by) => self.wake(now, by),
            Input::Job(by) => self.job(now, by),
            Input::Start(by) => self.start(now, by),
            Input::Stop(by) => self.stop(now, by, false),
            Input::Restart(by) => self.stop(now, by, true),
            Input::Freeze(by) => self.freeze(now, by),
            Input::Thaw(by) => self.thaw(now, by),
            Input::Hold(holder, reason) => self.hold(now, holder, reason),
            Input::Release(holder, by) => self.release(now, holder, by),
            Input::Idle => {
                self.gateway_left = true;
                self.idle(now);
            }
            Input::Busy(number, answer) => self.busy(now, number, answer),
            Input::Full(launch, why) => self.full(launch, why),
            Input::Room => self.room(now),
            Input::Give => self.give(now),
            Input::Changed => self.count_idle(),
            Input::Snapshot(status) => self.snapshot(now, status, false),
            Input::Looked(entered, status) if entered == self.entered => self.snapshot(now, status, true),
            Input::Looked(..) => {}
            Input::Status(status) => self.status(now, status),
            Input::HadFailed(what) => self.had_failed(now, what),
            Input::Launched(launch, result) => self.launched(now, launch, result),
            Input::Attached(launch, result) => self.attached(now, launch, result),
            Input::Done(step, result) => self.done(now, step, result),
            Input::Timer(number) if number == self.timer => self.timer(now),
            Input::Timer(_) => {}
            Input::ExecBegan => self.execs += 1,
            Input::ExecEnded => {
                self.execs = self.execs.saturating_sub(1);
                if self.execs == 0 {
                    self.all_ended(now);
                }
            }
        }
        std::mem::take(&mut self.actions)
    }

    /// Its state in a person's words.
    pub fn state(&self) -> api::State {
        match &self.state {
            State::Asleep => api::State::Asleep,
            State::Starting(Starting { waits: Some(_), .. }) => api::State::Waiting,
            State::Starting(Starting { cancel: Some(_), .. }) | State::Stopping { .. } => api::State::Stopping,
            State::Starting(_) | State::Thawing { .. } => api::State::Starting,
            State::Running => api::State::Running,
            State::Freezing { .. } | State::Frozen => api::State::Frozen,
            State::Failed { .. } => api::State::Failed,
        }
    }

    /// Whether it can be sent to.
    pub fn reach(&self) -> Reach {
        match &self.state {
            State::Running => Reach::Yes,
            State::Freezing { .. } | State::Frozen => match self.held.keys().find_map(|holder| holder.public()) {
                Some(public) => Reach::Failed(public, self.since + HELD_MS),
                None => Reach::No,
            },
            State::Failed { failure, until, .. } => Reach::Failed(failure.public, *until),
            _ => Reach::No,
        }
    }

    /// Whether nothing more will happen unless something new is asked for.
    pub fn settled(&self) -> bool {
        matches!(self.state, State::Asleep | State::Running | State::Frozen | State::Failed { .. })
    }

    /// Grows with each start and each failure.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When it came into its state.
    pub fn since(&self) -> u64 {
        self.since
    }

    /// Whether it stands still until this one releases it.
    pub fn is_held_by(&self, holder: Holder) -> bool {
        self.held.contains_key(&holder)
    }

    /// Why it is as it is, for a person.
    pub fn because(&self) -> &str {
        &self.because
    }

    /// Whether it did not come up since memory is short.
    pub fn is_refused(&self) -> bool {
        matches!(&self.state, State::Failed { failure, .. } if failure.public == FULL)
    }

    /// Whether its memory can be had: nobody has used it since it was frozen by itself, this many milliseconds ago.
    pub fn can_give(&self, now: u64) -> Option<u64> {
        (self.state == State::Frozen && self.rested && self.held.is_empty()).then(|| now.saturating_sub(self.since))
    }

    /// What it waits for, when it waits for memory.
    pub fn waits(&self) -> Option<&str> {
        match &self.state {
            State::Starting(starting) => starting.waits.as_deref(),
            _ => None,
        }
    }

    /// What is wrong, in one line, when it failed.
    pub fn failure(&self, now: u64) -> Option<String> {
        let State::Failed { failure, until, auto } = &self.state else {
            return self.held.values().next().cloned();
        };
        let wait = until.saturating_sub(now);
        let next = match (auto, wait) {
            (true, _) => format!("{} try in {}", ordinal(self.fails + 1), show_duration_ms(wait)),
            (false, 0) => "the next request tries again".to_owned(),
            (false, _) => format!("a request tries again in {}", show_duration_ms(wait)),
        };
        Some(format!("{}, {next}", failure.what))
    }

    fn set(&mut self, now: u64, state: State, because: impl Into<String>) {
        self.state = state;
        self.since = now;
        self.because = because.into();
        self.entered += 1;
        // A timer belongs to the state that set it.
        self.timer = self.next();
        if !matches!(self.state, State::Freezing { .. } | State::Frozen) {
            self.held.clear();
        }
        (self.idle_pending, self.asking, self.gateway_left) = (false, None, false);
        if matches!(self.state, State::Asleep | State::Failed { .. }) {
            self.back = None;
        }
        self.count_idle();
    }

    fn next(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn set_timer(&mut self, after_ms: u64) {
        self.timer = self.next();
        self.actions.push(Action::Timer(self.timer, after_ms));
    }

    fn record(&mut self, what: &'static str, detail: impl Into<String>, actor: impl Into<String>) {
        self.actions.push(Action::Record { what, detail: detail.into(), actor: actor.into() });
    }

    fn begin(&mut self, now: u64, by: String) {
        self.generation += 1;
        self.ended = None;
        let launch = self.next();
        self.actions.push(Action::Begun { by: by.clone(), thaw: false });
        self.record("waking", "", by.clone());
        let because = by.clone();
        let starting = Starting {
            launch,
            began: now,
            by: Some(by),
            run: None,
            ready: false,
            attached: false,
            waits: None,
            cancel: None,
        };
        self.set(now, State::Starting(starting), because);
        self.actions.push(Action::Launch(launch));
        self.set_timer(self.rules.start_deadline_ms);
    }

    fn fail(&mut self, now: u64, failure: Failure) {
        self.fails += 1;
        self.generation += 1;
        let auto = match self.rules.restart {
            Restart::Always => true,
            Restart::OnFailure => self.tries_left > 0 || self.rules.idle == Idle::Never,
            Restart::Never => false,
        };
        self.tries_left = self.tries_left.saturating_sub(1);
        // Whoever asks for a server that ran well until now waits for the next start instead of being turned away.
        let first = self.fails == 1 && matches!(self.state, State::Running);
        let delay = if first { 0 } else { back_off(self.fails) };
        self.record("failed", failure.what.clone(), "");
        self.actions.push(Action::Failed { what: failure.what.clone(), ended: self.ended.take() });
        let because = failure.what.clone();
        self.set(now, State::Failed { failure, until: now + delay, auto }, because);
        if auto {
            self.set_timer(delay);
        }
    }

    fn sleep(&mut self, now: u64, because: impl Into<String>) {
        let because = because.into();
        self.record(ASLEEP, because.clone(), "");
        self.set(now, State::Asleep, because);
    }

    fn timer(&mut self, now: u64) {
        match &mut self.state {
            State::Running => self.idle(now),
            State::Starting(Starting { waits: Some(why), .. }) => {
                let why = std::mem::take(why);
                self.refuse(now, why);
            }
            State::Starting(starting) => {
                let reason = if starting.run.is_some() && !starting.ready { self.rules.late.as_str() } else { "" };
                let late = format!("not ready within {}{reason}", show_duration_ms(self.rules.start_deadline_ms));
                let public = "it was not ready in time";
                let failure = || Cancel::Fail(Failure { what: late, public });
                starting.cancel.get_or_insert_with(failure);
                self.kill();
            }
            State::Stopping { .. } => self.kill(),
            State::Failed { auto: true, .. } => self.begin(now, "its restart policy".to_owned()),
            _ => {}
        }
    }

    /// Ends what is there, now; and looks again later, since an answer or an event may have been lost.
    fn kill(&mut self) {
        let launching = matches!(&self.state, State::Starting(s) if s.run.is_none());
        if !launching {
            self.actions.push(Action::Stop { grace_ms: Some(0), thaw: false });
            self.actions.push(Action::Look(self.entered));
        }
        self.set_timer(KILL_AGAIN_MS);
    }
}

fn back_off(fails: u32) -> u64 {
    BACK_OFF_MS.checked_shl(fails.saturating_sub(1).min(20)).unwrap_or(BACK_OFF_MAX_MS).min(BACK_OFF_MAX_MS)
}

fn ordinal(n: u32) -> String {
    let suffix = match (n % 10, n % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{n}{suffix}")
}

#[cfg(test)]
mod tests;
