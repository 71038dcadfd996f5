//! What happened: a live feed, a journal of all events, and a story per VPS, both on disk. What is recorded is written a
//! moment later, several together: nobody waits for the disk, but for who reads, who is shown what is on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use model::{VpsName, api::Event};
use tokio::sync::{Notify, broadcast};

mod chapters;
mod file;
mod journal;

pub use chapters::{Chapters, Line};
pub use journal::{Reading, lost_event};

use chapters::Shelf;
use journal::{Journal, Numbered};

use crate::clock::Since;

/// Events that are shown where nobody says since when.
const LATELY: usize = 1024;
/// Events a slow reader may lag behind.
const LAG: usize = 256;
/// What may wait for the disk.
const WAITING: usize = 4096;
/// How long is collected before it is written.
const COLLECT: Duration = Duration::from_millis(20);
/// Characters of a text that are kept.
const TEXT: usize = 1000;

/// The records.
#[derive(Debug, Clone)]
pub struct History {
    kept: Arc<Kept>,
}

#[derive(Debug)]
struct Kept {
    pending: Mutex<Pending>,
    files: Mutex<Files>,
    live: broadcast::Sender<Event>,
    recorded: Notify,
}

/// What was recorded and is not written yet, in order.
#[derive(Debug, Default)]
struct Pending {
    /// The number of the last event.
    number: u64,
    entries: Vec<Entry>,
}

#[derive(Debug)]
enum Entry {
    Event(Numbered),
    Chapter(VpsName, Line),
    Forget(VpsName),
}

#[derive(Debug)]
struct Files {
    journal: Journal,
    shelf: Shelf,
    /// Whether the disk took nothing lately.
    failing: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A text that has its bounds.
pub fn cut(text: impl Into<String>) -> String {
    let mut text: String = text.into();
    if let Some((end, _)) = text.char_indices().nth(TEXT) {
        text.truncate(end);
        text.push('…');
    }
    text
}

impl History {
    /// Goes on with what is in this directory.
    pub fn open(data: &Path) -> Self {
        let journal = Journal::new(data);
        let shelf = Shelf::new(chapters::directory(data).unwrap_or_else(|error| {
            tracing::error!(%error, "no directory for stories");
            data.join("story")
        }));
        let pending = Pending { number: journal.last(), entries: Vec::new() };
        let files = Files { journal, shelf, failing: false };
        let kept = Arc::new(Kept {
            pending: Mutex::new(pending),
            files: Mutex::new(files),
            live: broadcast::Sender::new(LAG),
            recorded: Notify::new(),
        });
        tokio::spawn(kept.clone().keep());
        Self { kept }
    }

    /// Keeps one event, and tells who follows.
    pub fn record(&self, vps: Option<&VpsName>, what: &str, detail: impl Into<String>, actor: impl Into<String>) {
        let at_ms = crate::clock::unix_ms();
        let (what, detail, actor) = (what.to_owned(), cut(detail), cut(actor));
        let event = Event { at_ms, vps: vps.cloned(), what, detail, actor };
        let name = vps.map_or("", VpsName::as_str);
        tracing::info!(vps = name, what = event.what, detail = event.detail, actor = event.actor, "event");
        let mut pending = lock(&self.kept.pending);
        pending.number += 1;
        let number = pending.number;
        pending.add(Entry::Event(Numbered { number, event: event.clone() }));
        // Under the lock, so that `follow` neither misses an event nor gets one twice. Nobody listening is no fault.
        let _ = self.kept.live.send(event);
        drop(pending);
        self.kept.recorded.notify_one();
    }

    /// Adds to the story of a VPS.
    pub fn tell(&self, vps: &VpsName, line: Line) {
        lock(&self.kept.pending).add(Entry::Chapter(vps.clone(), line));
        self.kept.recorded.notify_one();
    }

    /// Writes what was recorded until now, as far as the disk takes it.
    pub async fn written(&self) {
        let kept = self.kept.clone();
        let _ = blocking(move || {
            kept.write();
            Ok(())
        })
        .await;
    }

    /// The story of one VPS.
    pub async fn of(&self, vps: &VpsName) -> Chapters {
        let (kept, name) = (self.kept.clone(), vps.clone());
        let read = blocking(move || {
            kept.write();
            lock(&kept.files).shelf.read(&name)
        });
        read.await.unwrap_or_else(|error| {
            tracing::error!(%vps, %error, "its story can't be read");
            Chapters::default()
        })
    }

    /// What happened since then, else the last of it, oldest first; and what will happen from then on.
    pub async fn follow(&self, since: Option<Since>) -> io::Result<(Reading, broadcast::Receiver<Event>)> {
        let (last, live) = {
            let pending = lock(&self.kept.pending);
            (pending.number, self.kept.live.subscribe())
        };
        let kept = self.kept.clone();
        let reading = blocking(move || {
            kept.write();
            let files = lock(&kept.files);
            let all = since.is_some();
            let reading = files.journal.read(since, last)?;
            if all { Ok(reading) } else { reading.last(LATELY) }
        });
        Ok((reading.await?, live))
    }

    /// Forgets the story of a VPS that was deleted; the journal keeps its events.
    pub fn forget(&self, vps: &VpsName) {
        lock(&self.kept.pending).entries.push(Entry::Forget(vps.clone()));
        self.kept.recorded.notify_one();
    }

    /// Forgets the stories of all others.
    pub fn forget_all_but(&self, known: BTreeSet<VpsName>) {
        let kept = self.kept.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = lock(&kept.files).shelf.sweep(&known) {
                tracing::warn!(%error, "stories of VPSs that are not there any more can't be removed");
            }
        });
    }
}

/// Runs what may wait for the disk.
async fn blocking<T: Send + 'static>(run: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(run).await.map_err(io::Error::other)?
}

impl Reading {
    /// The next events, read where that keeps nobody waiting; none: that was all.
    pub async fn next(mut self) -> io::Result<Option<(Self, Vec<Event>)>> {
        blocking(move || Ok(self.chunk()?.map(|events| (self, events)))).await
    }
}

impl Pending {
    /// What finds no place is missing in the journal, which a reader sees from the numbers.
    fn add(&mut self, entry: Entry) {
        if self.entries.len() < WAITING {
            self.entries.push(entry);
        }
    }
}

impl Kept {
    async fn keep(self: Arc<Self>) {
        loop {
            self.recorded.notified().await;
            tokio::time::sleep(COLLECT).await;
            let kept = self.clone();
            let _ = tokio::task::spawn_blocking(move || kept.write()).await;
        }
    }

    /// Writes what was recorded until now.
    fn write(&self) {
        let mut files = lock(&self.files);
        // Taken while the files are held, so that it is written in order.
        let entries = std::mem::take(&mut lock(&self.pending).entries);
        if entries.is_empty() {
            return;
        }
        match (files.write(entries), files.failing) {
            (Ok(()), _) => files.failing = false,
            (Err(error), false) => {
                files.failing = true;
                tracing::error!(%error, "what happens can't be kept: it will be missing in `events` and `why`");
            }
            (Err(_), true) => {}
        }
    }
}

impl Files {
    fn write(&self, entries: Vec<Entry>) -> io::Result<()> {
        let (mut events, mut stories) = (Vec::new(), BTreeMap::<VpsName, Vec<Line>>::new());
        let mut result = Ok(());
        for entry in entries {
            match entry {
                Entry::Event(numbered) => {
                    if let Some(name) = &numbered.event.vps {
                        stories.entry(name.clone()).or_default().push(Line::Event(numbered.event.clone()));
                    }
                    events.push(numbered);
                }
                Entry::Chapter(name, line) => stories.entry(name).or_default().push(line),
                Entry::Forget(name) => {
                    stories.remove(&name);
                    result = result.and(self.shelf.remove(&name));
                }
            }
        }
        for (name, lines) in stories {
            result = result.and(self.shelf.append(&name, lines));
        }
        result.and(self.journal.append(&events))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(mut reading: Reading) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some((rest, some)) = reading.next().await.unwrap() {
            events.extend(some);
            reading = rest;
        }
        events
    }

    #[tokio::test]
    async fn what_was_shown_is_there_after_a_restart_and_followers_miss_nothing() {
        let data = tempfile::tempdir().unwrap();
        let name: VpsName = "blog".parse().unwrap();
        let history = History::open(data.path());
        for n in 0..LATELY + 10 {
            history.record(Some(&name), "ready", n.to_string(), "");
        }
        let (past, mut live) = history.follow(None).await.unwrap();
        history.record(None, "applied", "x", "root");
        let past = all(past).await;
        assert_eq!((past.len(), past[0].detail.as_str()), (LATELY, "10"));
        assert_eq!(live.recv().await.unwrap().detail, "x");
        assert_eq!(history.of(&name).await.events.back().unwrap().detail, (LATELY + 9).to_string());

        let again = History::open(data.path());
        assert_eq!(again.of(&name).await.events.back().unwrap().detail, (LATELY + 9).to_string());
        again.record(None, "applied", "y", "root");
        let (past, _) = again.follow(Since::parse("1970")).await.unwrap();
        let past = all(past).await;
        assert_eq!((past.len(), past.last().unwrap().detail.as_str()), (LATELY + 12, "y"));
        again.forget(&name);
        assert!(again.of(&name).await.events.is_empty());
    }

    #[tokio::test]
    async fn a_disk_that_takes_nothing_costs_what_happened_meanwhile() {
        let data = tempfile::tempdir().unwrap();
        let history = History::open(data.path());
        history.record(None, "applied", "1", "");
        drop(history.follow(None).await.unwrap());
        let (there, away) = (data.path().join("events.jsonl"), data.path().join("away"));
        std::fs::rename(&there, &away).unwrap();
        std::fs::create_dir(&there).unwrap();
        history.record(None, "applied", "2", "");
        assert!(history.follow(None).await.is_err() || history.kept.files.lock().unwrap().failing);
        std::fs::remove_dir(&there).unwrap();
        std::fs::rename(&away, &there).unwrap();
        history.record(None, "applied", "3", "");
        let (past, _) = history.follow(None).await.unwrap();
        let details: Vec<_> = all(past).await.into_iter().map(|event| event.detail).collect();
        assert_eq!(details, ["1", "1 missing here: they could not be kept", "3"]);
    }

    #[test]
    fn texts_have_bounds() {
        assert_eq!(cut("é".repeat(5000)).chars().count(), TEXT + 1);
        assert_eq!(cut("short"), "short");
    }
}
