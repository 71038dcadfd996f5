//! One VPS as the gateway sees it: whether it can be sent to, who waits for it, who uses it.
//!
//! The stream of `Routes` and the answers to `Wake` come on different connections, so a state may be older than what the
//! gateway itself has said since. Three rules keep it from sending where it must not:
//! - `Wake` and `Idle` of one VPS are called one after the other (see `idle`), so that an answer to `Wake` is newer
//!   than every `Idle` before it.
//! - After `Idle`, or after a connection to the VPS failed, it is *muted*: an `At` of that generation is not believed, it
//!   is only a reason to ask again when somebody waits. What ends it: a `Wake` answered with `At`, a higher
//!   generation, or a `No` that follows an `At` in the stream.
//! - An answer counts only for the round of waiting it was asked in.

mod hear;

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use model::{VpsName, api::Ignored};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};
use wire::{Client, control::VpsState};

use crate::{backend::Pool, idle::attend};

/// How long a client waits for a VPS.
pub const DEADLINE: Duration = Duration::from_secs(90);
/// How many clients may wait for one VPS.
pub const WAITING: usize = 10_000;
/// Pause before a `Wake` that follows a failed connection or call: the first, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Why a VPS was not reached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReached {
    /// It could not be started.
    #[error("{public}")]
    Failed {
        /// For a stranger.
        public: String,
        /// When it is worth trying again.
        retry_after: Duration,
    },
    /// Not within `DEADLINE`.
    #[error("not ready within {} s", DEADLINE.as_secs())]
    Deadline,
    /// `WAITING` clients wait already.
    #[error("too many clients wait for it")]
    Crowded,
    /// It is not up, and who asks does not wake it.
    #[error("asleep, and not woken for this client")]
    Ignored,
}

#[derive(Debug)]
enum Phase {
    /// Ask for a `Wake` before sending to it.
    Away,
    /// Somebody waits. `answered`: the generation of the answer to this round's `Wake`.
    Waking {
        answered: Option<u64>,
    },
    Up {
        address: IpAddr,
        generation: u64,
    },
    Failed {
        public: String,
        until: Instant,
    },
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// The stream's last word.
    heard: Option<VpsState>,
    muted: Option<u64>,
    /// Counts the rounds of waiting.
    round: u64,
    /// A `Wake` is to be called, not before this time.
    ask: Option<Instant>,
    by: String,
    /// `Idle` is to be called, not before this time.
    say_idle: Option<Instant>,
    pause: Duration,
    users: usize,
    waiting: usize,
    idle_since: Instant,
    /// The generation that a `Wake` led to, of which nobody listens yet whether it answers.
    woken: Option<u64>,
    /// When it first answered after a `Wake`, Unix microseconds; to be told.
    answered: Option<(u64, u64)>,
    /// None: nothing leads to it.
    times: Option<IdleTimes>,
    /// Something was heard since the last table: its route may be in the next.
    fresh: bool,
    /// Whether a task calls `Wake` and `Idle`. There is one only while there is something to call, or to wait for: of ten
    /// thousand VPSs nearly all sleep.
    attended: bool,
}

/// When a VPS counts as idle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IdleTimes {
    /// Time without use; none: never.
    pub after: Option<Duration>,
    /// Silence after which an open connection is no use; none: it always is.
    pub quiet: Option<Duration>,
}

/// How clients were served that don't wake a VPS: requests, or connections of address routes.
#[derive(Debug, Default)]
pub struct Counts {
    /// By the VPS, which was up.
    pub served: AtomicU64,
    /// With its last answer.
    pub from_cache: AtomicU64,
    /// Not.
    pub refused: AtomicU64,
}

impl Counts {
    /// What has been counted; none: nobody.
    pub fn read(&self) -> Option<Ignored> {
        let [served, from_cache, refused] =
            [&self.served, &self.from_cache, &self.refused].map(|count| count.load(Ordering::Relaxed));
        (served + from_cache + refused > 0).then_some(Ignored { served, from_cache, refused })
    }
}

/// One VPS.
#[derive(Debug)]
pub struct Vps {
    /// Its name.
    pub name: VpsName,
    /// Connections to it that wait for a request.
    pub pool: Pool,
    /// How clients were served that don't wake it.
    pub ignored: Counts,
    state: Mutex<State>,
    /// The generation whose first byte is waited for; 0: none.
    first: AtomicU64,
    /// Wakes who waits.
    news: Notify,
    /// Wakes the caller of `Wake` and `Idle`.
    pub(crate) work: Notify,
    /// Whom they are called of; none: nobody does.
    control: Option<Client>,
    me: Weak<Self>,
}

/// What is to be called next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Wake {
        round: u64,
        by: String,
    },
    Answered {
        generation: u64,
        at_us: u64,
    },
    Idle,
    SleepUntil(Instant),
    /// Nothing: who calls may go.
    Rest,
}

/// A use of a VPS: as long as it lives, the VPS is not idle.
#[derive(Debug)]
pub struct Use {
    vps: Arc<Vps>,
    ended: Option<Instant>,
}

impl Use {
    /// Ends it; it was over at `last` already.
    pub fn end(mut self, last: Instant) {
        self.ended = Some(last);
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut state = self.vps.lock();
        state.users -= 1;
        state.idle_since = state.idle_since.max(self.ended.unwrap_or_else(Instant::now));
        if state.users == 0 {
            // While the caller of `Idle` sleeps it looks at `idle_since` by itself afterwards.
            if !state.attended {
                self.vps.attend(state);
            }
        }
    }
}

struct Waiting<'a>(&'a Vps);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

/// Where a VPS is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its address.
    pub address: IpAddr,
    /// The generation this holds for.
    pub generation: u64,
}

impl Vps {
    /// A VPS nothing is known of yet; `control` is asked to wake it.
    pub fn new(name: VpsName, control: Option<Client>) -> Arc<Self> {
        let state = State {
            phase: Phase::Away,
            heard: None,
            muted: None,
            round: 0,
            ask: None,
            by: String::new(),
            say_idle: None,
            pause: PAUSE.0,
            users: 0,
            waiting: 0,
            idle_since: Instant::now(),
            woken: None,
            answered: None,
            times: None,
            fresh: false,
            attended: false,
        };
        let (pool, ignored, state) = (Pool::default(), Counts::default(), Mutex::new(state));
        let (first, news, work) = (AtomicU64::new(0), Notify::new(), Notify::new());
        Arc::new_cyclic(|me| Self { name, pool, ignored, state, first, news, work, control, me: me.clone() })
    }

    /// Has somebody look at what is to be called next.
    fn attend(&self, mut state: MutexGuard<'_, State>) {
        if state.attended {
            drop(state);
            return self.work.notify_one();
        }
        let told = state.ask.is_some() || state.say_idle.is_some() || state.answered.is_some();
        let due = told || matches!(state.phase, Phase::Up { .. });
        let (true, Some(me), Some(control)) = (due, self.me.upgrade(), &self.control) else { return };
        state.attended = true;
        drop(state);
        tokio::spawn(attend(me, control.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a use.
    pub fn enter(self: &Arc<Self>) -> Use {
        self.lock().users += 1;
        Use { vps: self.clone(), ended: None }
    }

    /// Where it is, once it can be sent to; asks for a `Wake` where one is needed. The caller holds a `Use`, or says that
    /// it is nobody (`by`) who could wake it.
    pub async fn reach(&self, by: impl FnOnce() -> Option<String>, deadline: Instant) -> Result<Place, NotReached> {
        let _waiting = {
            let mut state = self.lock();
            match &state.phase {
                Phase::Up { address, generation } => {
                    return Ok(Place { address: *address, generation: *generation });
                }
                Phase::Failed { public, until } if Instant::now() < *until => return Err(failed(public, *until)),
                _ => {}
            }
            let by = by().ok_or(NotReached::Ignored)?;
            if state.waiting >= WAITING {
                return Err(NotReached::Crowded);
            }
            let forgotten = state.waiting == 0 && state.ask.is_none();
            if !matches!(state.phase, Phase::Waking { .. }) || forgotten {
                state.by = by;
                state.start_round(Instant::now());
            }
            state.waiting += 1;
            self.attend(state);
            Waiting(self)
        };
        let arrival = async {
            loop {
                let mut news = std::pin::pin!(self.news.notified());
                news.as_mut().enable();
                {
                    let mut state = self.lock();
                    match &state.phase {
                        Phase::Up { address, generation } => {
                            return Ok(Place { address: *address, generation: *generation });
                        }
                        Phase::Failed { public, until } => return Err(failed(public, *until)),
                        Phase::Waking { .. } => {}
                        // It went down again between two looks.
                        Phase::Away => {
                            state.start_round(Instant::now());
                            self.attend(state);
                        }
                    }
                }
                news.await;
            }
        };
        timeout_at(deadline, arrival).await.unwrap_or(Err(NotReached::Deadline))
    }

    /// A connection to `place` failed: it is not believed any more, and `Wake` is asked again after a pause.
    pub fn lost(&self, place: Place) {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Up { generation, .. } if generation == place.generation) {
            return;
        }
        state.muted = Some(place.generation);
        let pause = state.pause;
        state.pause = (pause * 2).min(PAUSE.1);
        state.start_round(Instant::now() + pause);
        self.attend(state);
        self.pool.clear(None);
    }

    /// Whether it can still be sent to as in `generation`.
    pub fn is_up(&self, generation: u64) -> bool {
        matches!(self.lock().phase, Phase::Up { generation: now, .. } if now == generation)
    }

    /// Bytes came from it.
    pub fn sent(&self) {
        // Nearly always nobody waits for them.
        if self.first.load(Ordering::Relaxed) == 0 {
            return;
        }
        let generation = self.first.swap(0, Ordering::Relaxed);
        if generation > 0 {
            let at_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64);
            let mut state = self.lock();
            state.answered = Some((generation, at_us));
            self.attend(state);
        }
    }

    /// A connection to it came about.
    pub fn found(&self) {
        self.lock().pause = PAUSE.0;
    }

    /// What leads to it changed: its idle times; none: nothing does.
    pub fn configure(&self, times: Option<IdleTimes>) {
        let mut state = self.lock();
        if state.times != times {
            state.times = times;
            self.attend(state);
        }
    }

    /// Silence after which an open connection is no use of it.
    pub fn quiet(&self) -> Option<Duration> {
        self.lock().times.unwrap_or_default().quiet
    }

    /// Ends it when nothing leads to it, it has no user and no news. Nobody may find it any more.
    pub fn retire(&self) -> bool {
        let mut state = self.lock();
        let fresh = std::mem::take(&mut state.fresh);
        state.times.is_none() && state.users == 0 && !fresh
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting
    }

    /// What is to be called now. Decides on idleness in the same moment as it stops further use.
    pub(crate) fn next(&self) -> Next {
        let mut state = self.lock();
        let now = Instant::now();
        if let Some(at) = state.ask {
            if state.waiting == 0 && state.users == 0 {
                // Nobody waits any more.
                (state.ask, state.phase) = (None, Phase::Away);
            } else if at > now {
                return Next::SleepUntil(at);
            } else {
                state.ask = None;
                return Next::Wake { round: state.round, by: state.by.clone() };
            }
        }
        if let Some((generation, at_us)) = state.answered.take() {
            return Next::Answered { generation, at_us };
        }
        if let Some(at) = state.say_idle {
            if at > now {
                return Next::SleepUntil(at);
            }
            state.say_idle = None;
            return Next::Idle;
        }
        match (&state.phase, state.times.unwrap_or_default().after) {
            (Phase::Up { generation, .. }, Some(after)) if state.users == 0 => {
                let end = state.idle_since + after;
                if end > now {
                    return Next::SleepUntil(end);
                }
                (state.muted, state.phase) = (Some(*generation), Phase::Away);
                drop(state);
                self.pool.clear(None);
                Next::Idle
            }
            _ => {
                state.attended = false;
                Next::Rest
            }
        }
    }
}

impl State {
    fn start_round(&mut self, ask: Instant) {
        self.round += 1;
        self.phase = Phase::Waking { answered: None };
        self.ask = Some(ask);
        self.say_idle = None;
    }

    fn up(&mut self, address: IpAddr, generation: u64) {
        if !matches!(self.phase, Phase::Up { generation: now, .. } if now == generation) && self.users == 0 {
            self.idle_since = Instant::now();
        }
        if matches!(self.phase, Phase::Waking { .. }) {
            self.woken = Some(generation);
        }
        (self.muted, self.ask, self.say_idle) = (None, None, None);
        self.phase = Phase::Up { address, generation };
    }

    fn fail(&mut self, public: String, retry_after: Duration) {
        (self.ask, self.say_idle) = (None, None);
        self.phase = Phase::Failed { public, until: Instant::now() + retry_after };
    }
}

fn failed(public: &str, until: Instant) -> NotReached {
    let retry_after = until.saturating_duration_since(Instant::now());
    NotReached::Failed { public: public.to_owned(), retry_after }
}
