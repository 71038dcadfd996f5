//! What of an open connection counts as use: it does until no byte has moved for its VPS's `quiet` time, and again as soon as
//! one does.
//!
//! A connection that does not count outlives its VPS's freeze: the kernel keeps both ends, and the client's next byte thaws
//! the VPS. It can't outlive a stop: the server's end is gone then, and the client's is closed.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::wake::{DEADLINE, Use, Vps};

/// One relayed connection.
#[derive(Debug)]
pub struct Activity {
    vps: Arc<Vps>,
    /// Which run of the VPS the server's end belongs to.
    generation: u64,
    quiet: Option<Duration>,
    /// It never counts: its client is one that the VPS ignores.
    ignored: bool,
    by: String,
    state: Mutex<State>,
    /// It counts again.
    again: Notify,
}

#[derive(Debug)]
struct State {
    last: Instant,
    /// None: it does not count.
    in_use: Option<Use>,
}

impl Activity {
    /// A connection that has just been made; `by` is what a wake by it is called. Without a use it never counts.
    pub fn new(vps: Arc<Vps>, generation: u64, in_use: Option<Use>, by: String) -> Self {
        let ignored = in_use.is_none();
        let state = Mutex::new(State { last: Instant::now(), in_use });
        Self { quiet: vps.quiet().filter(|_| !ignored), ignored, vps, generation, by, state, again: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it counts; if so, a byte has moved just now.
    fn counts(&self) -> bool {
        let mut state = self.lock();
        state.last = Instant::now();
        state.in_use.is_some()
    }

    fn count(&self, in_use: Use) {
        self.lock().in_use = Some(in_use);
        self.again.notify_one();
    }

    /// Bytes came from the client: the VPS is needed, as it was when the connection was made.
    pub async fn client_sent(&self) -> io::Result<()> {
        if self.ignored && !self.vps.is_up(self.generation) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if self.quiet.is_none() || self.counts() {
            return Ok(());
        }
        let in_use = self.vps.enter();
        let reached = self.vps.reach(|| Some(self.by.clone()), Instant::now() + DEADLINE).await;
        match reached {
            Ok(place) if place.generation == self.generation => self.count(in_use),
            // What it was connected to is gone; the next connection finds the new one.
            _ => return Err(io::ErrorKind::ConnectionReset.into()),
        }
        Ok(())
    }

    /// Bytes came from the server. The last words of one that stops are no reason to wake it.
    pub fn server_sent(&self) {
        self.vps.sent();
        if self.quiet.is_some() && !self.counts() && self.vps.is_up(self.generation) {
            self.count(self.vps.enter());
        }
    }

    /// The server has no more to say. Where its VPS is on its way down nobody is there to hear the client either.
    pub fn server_ended(&self) -> io::Result<()> {
        if self.vps.is_up(self.generation) { Ok(()) } else { Err(io::ErrorKind::ConnectionAborted.into()) }
    }

    /// Lets go of the use whenever the connection has been silent for so long. Never ends.
    pub async fn watch(&self) -> Infallible {
        let Some(quiet) = self.quiet else { return std::future::pending().await };
        loop {
            let end = self.lock().last + quiet;
            sleep_until(end).await;
            let silent = {
                let mut state = self.lock();
                let last = state.last;
                let over = last + quiet <= Instant::now();
                if over { state.in_use.take().map(|in_use| (in_use, last)) } else { None }
            };
            if let Some((in_use, last)) = silent {
                in_use.end(last);
                self.again.notified().await;
            }
        }
    }
}
