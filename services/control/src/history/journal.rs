//! The events of all VPSs: two files of bounded size, of which the older one gives way. Each event has its number, so that
//! a reader knows of those that are missing.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Take},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use model::api::Event;
use serde::{Deserialize, Serialize};

use super::file;
use crate::clock::{Since, rfc3339};

/// Bytes of one file; there are two.
pub const SEGMENT: u64 = 2 << 20;
/// Bytes from the end in which the last number is looked for first.
const TAIL: u64 = 64 << 10;
/// Events that are read at once.
const CHUNK: usize = 256;
/// The word for events that are missing.
pub const LOST: &str = "lost";

/// An event and its number, from 1.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Numbered {
    /// The number.
    pub number: u64,
    /// The event.
    pub event: Event,
}

/// The two files.
#[derive(Debug)]
pub struct Journal {
    newer: PathBuf,
    older: PathBuf,
}

impl Journal {
    /// In this directory.
    pub fn new(directory: &Path) -> Self {
        Self { newer: directory.join("events.jsonl"), older: directory.join("events.older.jsonl") }
    }

    /// The highest number that is kept; 0: none is.
    pub fn last(&self) -> u64 {
        let last = |path: &Path, from_end: u64| -> io::Result<Option<u64>> {
            let mut file = File::open(path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(from_end)))?;
            let mut bytes = Vec::new();
            file.take(SEGMENT * 2).read_to_end(&mut bytes)?;
            Ok(bytes.split(|byte| *byte == b'\n').filter_map(parse).map(|numbered| numbered.number).max())
        };
        let looks = [(&self.newer, TAIL), (&self.newer, u64::MAX), (&self.older, TAIL), (&self.older, u64::MAX)];
        looks.into_iter().find_map(|(path, from_end)| last(path, from_end).ok().flatten()).unwrap_or(0)
    }

    /// Adds events.
    pub fn append(&self, events: &[Numbered]) -> io::Result<()> {
        // In pieces, so that a file stays within its size, whatever comes at once.
        for some in events.chunks(64) {
            let mut lines = Vec::new();
            for event in some {
                file::line(&mut lines, event)?;
            }
            if file::append(&self.newer, &lines)? >= SEGMENT {
                fs::rename(&self.newer, &self.older)?;
            }
        }
        Ok(())
    }

    /// What is there now, up to the event of number `last`: what comes later, who follows gets otherwise.
    pub fn read(&self, since: Option<Since>, last: u64) -> io::Result<Reading> {
        let mut parts = Vec::new();
        for path in [&self.newer, &self.older] {
            match File::open(path) {
                Ok(file) => parts.push(BufReader::new({
                    let length = file.metadata()?.len();
                    file.take(length)
                })),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Reading { parts, skip: 0, previous: None, since, last })
    }
}

fn parse(line: &[u8]) -> Option<Numbered> {
    serde_json::from_slice(line).ok()
}

/// Events, the oldest first, and for those that are missing among them one that says so.
#[derive(Debug)]
pub struct Reading {
    /// The newer file first: the older one is read, and taken away, before it.
    parts: Vec<BufReader<Take<File>>>,
    /// Lines that are left out.
    skip: usize,
    /// The number of the last event.
    previous: Option<u64>,
    since: Option<Since>,
    last: u64,
}

impl Reading {
    /// Leaves out all but the last `count`.
    pub fn last(mut self, count: usize) -> io::Result<Self> {
        let (mut lines, mut buffer) = (0, vec![0; TAIL as usize]);
        for part in &self.parts {
            let (mut at, end) = (0, part.get_ref().limit());
            while at < end {
                let wanted = buffer.len().min((end - at) as usize);
                let n = part.get_ref().get_ref().read_at(&mut buffer[..wanted], at)?;
                if n == 0 {
                    break;
                }
                lines += buffer[..n].iter().filter(|byte| **byte == b'\n').count();
                at += n as u64;
            }
        }
        self.skip = lines.saturating_sub(count);
        Ok(self)
    }

    /// The next events; none: that was all.
    pub fn chunk(&mut self) -> io::Result<Option<Vec<Event>>> {
        let (mut events, mut line) = (Vec::new(), Vec::new());
        while let Some(part) = self.parts.last_mut() {
            line.clear();
            if part.read_until(b'\n', &mut line)? == 0 {
                self.parts.pop();
                continue;
            }
            if self.skip > 0 {
                self.skip -= 1;
                continue;
            }
            let Some(Numbered { number, event }) = parse(&line) else {
                tracing::warn!(after = self.previous, "an event that was kept is damaged");
                continue;
            };
            if number > self.last {
                continue;
            }
            let previous = self.previous.replace(number);
            let wanted = self.since.as_ref().is_none_or(|since| since.keeps(&rfc3339(event.at_ms)));
            if !wanted {
                continue;
            }
            let lost = match previous {
                Some(previous) => number.saturating_sub(previous.saturating_add(1)),
                None if self.since.is_some() => number.saturating_sub(1),
                None => 0,
            };
            if lost > 0 {
                let detail = match previous {
                    Some(_) => format!("{lost} missing here: they could not be kept"),
                    None => format!("{lost} older events are not kept any more"),
                };
                events.push(lost_event(event.at_ms, detail));
            }
            events.push(event);
            if events.len() >= CHUNK {
                break;
            }
        }
        Ok((!events.is_empty()).then_some(events))
    }
}

/// Says that events are missing.
pub fn lost_event(at_ms: u64, detail: String) -> Event {
    Event { at_ms, vps: None, what: LOST.to_owned(), detail, actor: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u64) -> Numbered {
        Numbered {
            number,
            event: Event {
                detail: "x".repeat(400),
                what: "ready".to_owned(),
                ..lost_event(number * 1000, String::new())
            },
        }
    }

    fn all(mut reading: Reading) -> Vec<Event> {
        std::iter::from_fn(|| reading.chunk().unwrap()).flatten().collect()
    }

    #[test]
    fn a_journal_is_bounded_and_says_what_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::new(directory.path());
        assert_eq!(journal.last(), 0);
        let events: Vec<_> = (1..=20_000).map(event).collect();
        for some in events.chunks(700) {
            journal.append(some).unwrap();
        }
        let size: u64 = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!((SEGMENT..=2 * SEGMENT + (64 << 10)).contains(&size), "{size}");
        assert_eq!(journal.last(), 20_000);
        let kept = all(journal.read(Some(Since::parse("1970").unwrap()), u64::MAX).unwrap());
        assert_eq!(kept[0].what, LOST);
        assert_eq!(kept[0].detail, format!("{} older events are not kept any more", 20_000 - (kept.len() - 1)));
        let some = all(journal.read(Some(Since::parse("1970-01-01T05:33:19Z").unwrap()), u64::MAX).unwrap());
        assert_eq!(some.iter().map(|event| event.at_ms).collect::<Vec<_>>(), [19_999_000, 20_000_000]);
        let last = all(journal.read(None, u64::MAX).unwrap().last(300).unwrap());
        assert_eq!((last.len(), last[0].at_ms), (300, 19_701_000));
    }

    #[test]
    fn a_line_that_was_cut_off_costs_itself() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::new(directory.path());
        journal.append(&[event(1), event(2)]).unwrap();
        let path = directory.path().join("events.jsonl");
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 9).unwrap();
        assert_eq!(journal.last(), 1);
        journal.append(&[event(3)]).unwrap();
        let kept = all(journal.read(None, u64::MAX).unwrap());
        assert_eq!(kept.iter().map(|event| event.what.as_str()).collect::<Vec<_>>(), ["ready", LOST, "ready"]);
        // Whatever is in it.
        fs::write(&path, [0xff; 100]).unwrap();
        assert_eq!((journal.last(), all(journal.read(None, u64::MAX).unwrap()).len()), (0, 0));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(journal.append(&[event(4)]).is_err());
    }
}
