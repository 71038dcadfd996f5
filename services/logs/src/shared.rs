//! What is known for one target: all logs, which of them have more, and how the target does.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use model::{
    TenantName, VpsName,
    api::{LogLine, LogTargetRow},
    host::LogTarget,
};
use tokio::sync::Notify;
use wire::host::Statuses;

use crate::{
    positions::{self, Positions},
    tap::{Begin, Lost, Position, Tap},
};

/// Logs of VPSs that are down which are open at once: they are read to their ends one after the other.
const DOWN: usize = 64;

/// One target's.
#[derive(Debug)]
pub struct Shared {
    pub target: LogTarget,
    /// This host's name.
    pub node: String,
    /// A log has more.
    pub work: Notify,
    /// Files have to be asked for.
    pub asks: Notify,
    /// Positions changed.
    pub moved: Notify,
    /// It is known which logs there are, and stored.
    pub begun: Notify,
    file: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    logs: BTreeMap<VpsName, Log>,
    /// Those that may have lines to read.
    dirty: BTreeSet<VpsName>,
    /// Those that were read since the last word that all has arrived, or are to be closed.
    unconfirmed: BTreeSet<VpsName>,
    /// Who had its turn last.
    last: Option<VpsName>,
    /// Whether nothing was ever sent there, and it is not known yet which logs there are.
    fresh: bool,
    away: Option<String>,
    since_ms: u64,
    sent: u64,
    lost: u64,
    gaps: u64,
    lost_ms: Option<u64>,
}

#[derive(Debug)]
struct Log {
    tenant: Option<TenantName>,
    up: bool,
    /// Whether the VPS was deleted.
    gone: bool,
    /// Whether its files have to be asked for.
    ask: bool,
    /// Whether the newest file was moved away, and the next one has not been seen.
    moved: bool,
    begin: Begin,
    tap: Option<Tap>,
    /// Lost, and its target was not told.
    untold: Lost,
    /// Lost, and its target is being told.
    telling: Lost,
}

/// Some lines of one log.
#[derive(Debug)]
pub struct Chunk {
    pub vps: VpsName,
    pub tenant: Option<TenantName>,
    pub lines: Vec<LogLine>,
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Shared {
    /// With what is stored in `directory`.
    pub fn open(target: LogTarget, directory: &Path) -> Self {
        let file = positions::place(directory, &target);
        let mut state = State { since_ms: now_ms(), away: Some("not connected yet".to_owned()), ..State::default() };
        match positions::load(&file) {
            Ok(Some(Positions { vps, lost, gaps, lost_ms })) => {
                (state.lost, state.gaps, state.lost_ms) = (lost, gaps, lost_ms);
                let log = |(name, position)| (name, Log::new(Begin::At(position)));
                state.logs = vps.into_iter().map(log).collect();
            }
            Ok(None) => state.fresh = true,
            Err(error) => {
                tracing::warn!(%target, %error, "how far it was sent can't be read: all that logs hold is sent again");
                (state.gaps, state.lost_ms) = (state.gaps + 1, Some(now_ms()));
            }
        }
        let node = std::env::var("BAILIWICK_NODE").unwrap_or_else(|_| "localhost".to_owned());
        let (work, asks, moved, begun) = Default::default();
        Self { target, node, work, asks, moved, begun, file, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the host says of VPSs; `whole`: those that are not in it are gone.
    pub fn statuses(&self, statuses: Statuses, whole: bool) {
        let mut state = self.state();
        let begin = if state.fresh { Begin::End } else { Begin::Oldest };
        state.fresh = state.fresh && !whole;
        let mut gone: BTreeSet<_> = statuses.gone.into_iter().collect();
        if whole {
            let listed: BTreeSet<_> = statuses.vps.iter().map(|status| &status.name).collect();
            gone.extend(state.logs.keys().filter(|name| !listed.contains(name)).cloned());
        }
        for status in statuses.vps {
            gone.remove(&status.name);
            let log = state.logs.entry(status.name).or_insert_with(|| Log::new(begin));
            // One of that name that was deleted and made anew has other files.
            (log.tenant, log.up, log.gone) = (status.tenant, status.phase.is_up(), false);
            log.ask = true;
        }
        for name in gone {
            if let Some(log) = state.logs.get_mut(&name) {
                (log.up, log.gone) = (false, true);
                // What is open is read to its end.
                state.dirty.insert(name.clone());
                state.unconfirmed.insert(name);
            }
        }
        drop(state);
        self.asks.notify_one();
        self.work.notify_one();
    }

    /// Whether a file is being waited for.
    pub fn is_between(&self) -> bool {
        self.state().logs.values().any(|log| log.moved)
    }

    /// Whose files have to be asked for now.
    pub fn asking(&self) -> Vec<VpsName> {
        let state = self.state();
        let mut places = DOWN.saturating_sub(state.logs.values().filter(|log| !log.up && log.tap.is_some()).count());
        let mut wanted = |log: &Log| {
            let place = log.up || log.tap.is_some() || places > 0;
            places -= usize::from(place && !log.up && log.tap.is_none());
            place
        };
        let asking = state.logs.iter().filter(|(_, log)| log.ask && !log.gone && wanted(log));
        asking.map(|(name, _)| name.clone()).collect()
    }

    /// The files of a log have come; the one that is being written, to be watched.
    pub fn answered(&self, name: &VpsName, files: Vec<File>) -> std::io::Result<Option<File>> {
        let mut state = self.state();
        let Some(log) = state.logs.get_mut(name) else { return Ok(None) };
        log.ask = false;
        let lost = match &mut log.tap {
            Some(tap) => {
                let (lost, newer) = tap.rotated(files)?;
                // Between the two steps of its shim there is no file to be seen: again, soon.
                log.moved &= !newer && log.up;
                log.ask = log.moved;
                lost
            }
            None => match Tap::open(files, log.begin)? {
                Some((tap, lost)) => {
                    // Most of those that are down have been sent: they are not kept open.
                    if log.up || tap.waiting() > 0 {
                        log.tap = Some(tap);
                    } else {
                        log.begin = Begin::At(tap.position());
                    }
                    lost
                }
                None => return Ok(None),
            },
        };
        log.untold.add(lost);
        let newest = log.tap.as_ref().and_then(Tap::newest).map(File::try_clone).transpose()?;
        state.lost += lost.lines;
        state.gaps += u64::from(lost.gap);
        if lost != Lost::default() {
            state.lost_ms = Some(now_ms());
        }
        state.dirty.insert(name.clone());
        drop(state);
        if lost != Lost::default() {
            tracing::warn!(vps = %name, target = %self.target, "{}", said(lost));
            self.moved.notify_one();
        }
        self.work.notify_one();
        Ok(newest)
    }

    /// A log was written to; `rotated`: it may have another file now; `moved`: it surely has, or will.
    pub fn mark(&self, name: &VpsName, rotated: bool, moved: bool) {
        let mut state = self.state();
        state.dirty.insert(name.clone());
        if let Some(log) = state.logs.get_mut(name).filter(|_| rotated) {
            (log.ask, log.moved) = (true, log.moved || moved);
            self.asks.notify_one();
        }
        drop(state);
        self.work.notify_one();
    }

    /// Every log may have been written to.
    pub fn mark_all(&self) {
        let names: Vec<_> = self.state().logs.iter().filter(|(_, log)| log.up).map(|(name, _)| name.clone()).collect();
        names.iter().for_each(|name| self.mark(name, true, false));
    }

    /// The next lines, of each log in turn.
    pub fn next(&self, buffer: &mut Vec<u8>) -> Option<Chunk> {
        let mut state = self.state();
        loop {
            let after = state.last.clone().map_or(Bound::Unbounded, Bound::Excluded);
            let next = state.dirty.range((after, Bound::Unbounded)).next().or_else(|| state.dirty.first());
            let vps = next?.clone();
            state.last = Some(vps.clone());
            let log = state.logs.get_mut(&vps);
            let read = log.and_then(|log| Some((log.tap.as_mut()?.read(buffer), log)));
            match read {
                Some((Ok(true), log)) => {
                    let mut lines: Vec<_> = buffer
                        .strip_suffix(b"\n")
                        .unwrap_or(buffer)
                        .split(|b| *b == b'\n')
                        .map(LogLine::parse)
                        .collect();
                    let lost = std::mem::take(&mut log.untold);
                    log.telling.add(lost);
                    if lost != Lost::default() {
                        let at = lines.first().map(|line| line.at.clone()).unwrap_or_default();
                        lines.insert(
                            0,
                            LogLine { at, stream: "vps".to_owned(), text: said(lost), ..LogLine::default() },
                        );
                    }
                    let tenant = log.tenant.clone();
                    state.unconfirmed.insert(vps.clone());
                    return Some(Chunk { vps, tenant, lines });
                }
                Some((Err(error), _)) => tracing::warn!(%vps, %error, "its log can't be read"),
                Some((Ok(false), _)) | None => {}
            }
            state.dirty.remove(&vps);
            state.unconfirmed.insert(vps);
        }
    }

    /// So many lines were handed to the target.
    pub fn count(&self, lines: usize) {
        self.state().sent += lines as u64;
    }

    /// Whether something was read that may not have arrived.
    pub fn is_unconfirmed(&self) -> bool {
        !self.state().unconfirmed.is_empty()
    }

    /// All that was read has arrived. Logs that will have no more are closed.
    pub fn confirm(&self) {
        let mut state = self.state();
        for name in std::mem::take(&mut state.unconfirmed) {
            let dry = !state.dirty.contains(&name);
            let Some(log) = state.logs.get_mut(&name) else { continue };
            log.telling = Lost::default();
            if let Some(tap) = &mut log.tap {
                tap.confirm();
            }
            if dry
                && !log.up
                && !log.ask
                && let Some(tap) = log.tap.take()
            {
                log.begin = Begin::At(tap.position());
                self.asks.notify_one();
            }
            if dry && log.gone {
                state.logs.remove(&name);
            }
        }
        drop(state);
        self.moved.notify_one();
    }

    /// The target is away: what may not have arrived is read again later.
    pub fn away(&self, reason: String) {
        let mut state = self.state();
        let state = &mut *state;
        for name in std::mem::take(&mut state.unconfirmed) {
            let Some(log) = state.logs.get_mut(&name) else { continue };
            let untold = std::mem::take(&mut log.telling);
            log.untold.add(untold);
            if let Some(tap) = &mut log.tap {
                tap.rewind();
            }
            state.dirty.insert(name);
        }
        if state.away.as_ref() != Some(&reason) {
            tracing::warn!(target = %self.target, reason, "logs are not shipped; they wait in their files");
        }
        if state.away.is_none() {
            state.since_ms = now_ms();
        }
        state.away = Some(reason);
    }

    /// The target takes lines.
    pub fn here(&self) {
        let mut state = self.state();
        if state.away.take().is_some() {
            state.since_ms = now_ms();
            tracing::info!(target = %self.target, "logs are shipped");
        }
    }

    /// How it is, for who asks.
    pub fn status(&self) -> LogTargetRow {
        let state = self.state();
        LogTargetRow {
            target: self.target.to_string(),
            away: state.away.clone(),
            since_ms: state.since_ms,
            sent: state.sent,
            lost: state.lost,
            gaps: state.gaps,
            lost_ms: state.lost_ms,
            waiting: state.logs.values().filter_map(|log| log.tap.as_ref()).map(Tap::waiting).sum(),
        }
    }

    /// How many logs there are.
    pub fn logs(&self) -> usize {
        self.state().logs.len()
    }

    /// Stores how far all was sent.
    pub fn save(&self) {
        let positions = {
            let state = self.state();
            let position = |(name, log): (&VpsName, &Log)| {
                let known = match (&log.tap, log.begin) {
                    (Some(tap), _) => tap.position(),
                    (None, Begin::At(position)) => position,
                    // Nothing of it is there: all that comes is new.
                    (None, Begin::End | Begin::Oldest) => Position::default(),
                };
                (name.clone(), known)
            };
            Positions {
                vps: state.logs.iter().map(position).collect(),
                lost: state.lost,
                gaps: state.gaps,
                lost_ms: state.lost_ms,
            }
        };
        if let Err(error) = positions::save(&self.file, &positions) {
            tracing::warn!(target = %self.target, %error, "how far logs were sent can't be stored");
        }
    }
}

impl Log {
    fn new(begin: Begin) -> Self {
        let (untold, telling, tap, tenant) = Default::default();
        Self { tenant, up: false, gone: false, ask: true, moved: false, begin, tap, untold, telling }
    }
}

/// In a person's words.
fn said(lost: Lost) -> String {
    let lines = match lost {
        Lost { lines: 0, .. } => "an unknown number of lines".to_owned(),
        Lost { lines, gap: false } => format!("{lines} lines"),
        Lost { lines, gap: true } => format!("{lines} lines and an unknown number of others"),
    };
    format!("{lines} of this log were not shipped: it was rotated away before")
}
