//! What `control` says of one VPS, in its stream and in its answers, and what of it is believed.

use std::{
    sync::{MutexGuard, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;
use wire::control::{Reachable, VpsState};

use super::{Next, PAUSE, Phase, State, Vps};

impl Vps {
    /// What the stream says. `first`: it is part of a new stream's first message.
    pub fn hear(&self, said: VpsState, first: bool) {
        let mut state = self.lock();
        let follows_at = matches!(&state.heard, Some(VpsState { state: Reachable::At(_), .. }));
        let waking = matches!(state.phase, Phase::Waking { .. });
        // Who answered the last `Wake` may be gone, and have forgotten it.
        if first && waking {
            state.ask = Some(Instant::now());
        }
        match &said.state {
            Reachable::At(address) => {
                if state.muted.is_some_and(|muted| said.generation <= muted) {
                    if waking {
                        state.ask.get_or_insert(Instant::now());
                    }
                } else {
                    state.up(*address, said.generation);
                }
            }
            Reachable::No => {
                if follows_at {
                    state.muted = None;
                }
                match &state.phase {
                    // The start that was asked for is not going on any more: a person stopped it.
                    Phase::Waking { answered: Some(answered) } if said.generation > *answered => {
                        state.ask.get_or_insert(Instant::now());
                    }
                    Phase::Waking { .. } => {}
                    _ => state.phase = Phase::Away,
                }
            }
            Reachable::Failed { public, retry_after_ms } => {
                let counts = match &state.phase {
                    Phase::Waking { answered } => answered.is_some_and(|answered| said.generation >= answered),
                    _ => true,
                };
                if counts {
                    state.muted = None;
                    state.fail(public.clone(), Duration::from_millis(*retry_after_ms));
                }
            }
        }
        (state.heard, state.fresh) = (Some(said), true);
        self.changed(state);
    }

    /// The answer to the `Wake` of `round`.
    pub(crate) fn answered(&self, round: u64, said: VpsState) {
        let mut state = self.lock();
        if state.round != round || !matches!(state.phase, Phase::Waking { .. }) {
            return;
        }
        match said.state {
            Reachable::At(address) => state.up(address, said.generation),
            Reachable::Failed { public, retry_after_ms } => {
                state.fail(public, Duration::from_millis(retry_after_ms));
            }
            Reachable::No => {
                state.phase = Phase::Waking { answered: Some(said.generation) };
                // The failure of this very start, or its end, may have been heard before this answer.
                match &state.heard {
                    Some(VpsState { generation, state: Reachable::Failed { public, retry_after_ms }, .. })
                        if *generation >= said.generation =>
                    {
                        let (public, retry_after) = (public.clone(), Duration::from_millis(*retry_after_ms));
                        state.fail(public, retry_after);
                    }
                    Some(VpsState { generation, state: Reachable::No, .. }) if *generation > said.generation => {
                        state.ask.get_or_insert(Instant::now());
                    }
                    _ => {}
                }
            }
        }
        self.changed(state);
    }

    /// The `Wake` of `round` failed for good.
    pub(crate) fn refused(&self, round: u64) {
        let mut state = self.lock();
        if state.round == round && matches!(state.phase, Phase::Waking { .. }) {
            state.fail("the server could not be started".to_owned(), Duration::from_secs(1));
            self.changed(state);
        }
    }

    /// A call failed because nobody answers: again, after a pause.
    pub(crate) fn call_again(&self, next: &Next) {
        let mut state = self.lock();
        let at = Instant::now() + state.pause;
        state.pause = (state.pause * 2).min(PAUSE.1);
        match next {
            Next::Wake { round, .. } if state.round == *round && matches!(state.phase, Phase::Waking { .. }) => {
                state.ask.get_or_insert(at);
            }
            // Unless it is being woken or used again.
            Next::Idle if matches!(state.phase, Phase::Away) => state.say_idle = Some(at),
            _ => {}
        }
    }

    fn changed(&self, mut state: MutexGuard<'_, State>) {
        if let Some(generation) = state.woken.take() {
            self.first.store(generation, Ordering::Relaxed);
        }
        let keep = match state.phase {
            Phase::Up { generation, .. } => Some(generation),
            _ => None,
        };
        self.attend(state);
        self.pool.clear(keep);
        self.news.notify_waiters();
    }
}
