//! The story of one VPS: a small file that is read when somebody asks for it, so that VPSs that sleep cost no memory.

use std::{
    collections::{BTreeSet, VecDeque},
    fs, io,
    path::{Path, PathBuf},
};

use model::{
    VpsName,
    api::Event,
    story::{Failure, Start, Stop, Story},
};
use serde::{Deserialize, Serialize};

use super::file;

/// Bytes of one file at most.
pub const BOUND: u64 = 32 << 10;
/// Bytes of events that are kept when it would become larger.
const EVENTS: usize = 8 << 10;
/// Bytes of a chapter at most.
const CHAPTER: usize = 6 << 10;
/// Events that are kept in mind.
const COUNT: usize = 64;

/// One line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// Something that happened.
    Event(Event),
    /// A start that came to be ready.
    Start(Start),
    /// A stop.
    Stop(Stop),
    /// A failure.
    Failure(Failure),
}

/// What a file says.
#[derive(Debug, Default)]
pub struct Chapters {
    /// What happened, the oldest first.
    pub events: VecDeque<Event>,
    /// The last of each.
    pub last: Story,
    damaged: usize,
}

impl Chapters {
    fn add(&mut self, line: Line) {
        match line {
            Line::Event(event) => {
                if self.events.len() == COUNT {
                    self.events.pop_front();
                }
                self.events.push_back(event);
            }
            Line::Start(start) => self.last.start = Some(start),
            Line::Stop(stop) => self.last.stop = Some(stop),
            Line::Failure(failure) => self.last.failure = Some(failure),
        }
    }

    fn lines(self) -> io::Result<Vec<u8>> {
        let Story { start, stop, failure } = self.last;
        let last = [start.map(Line::Start), stop.map(Line::Stop), failure.map(Line::Failure)];
        let mut bytes = Vec::new();
        for line in last.into_iter().flatten() {
            file::line(&mut bytes, &line)?;
        }
        let (mut size, mut events) = (0, Vec::new());
        for event in self.events.into_iter().rev() {
            let mut line = Vec::new();
            file::line(&mut line, &Line::Event(event))?;
            size += line.len();
            if size > EVENTS {
                break;
            }
            events.push(line);
        }
        bytes.extend(events.into_iter().rev().flatten());
        Ok(bytes)
    }
}

/// All stories.
#[derive(Debug)]
pub struct Shelf {
    directory: PathBuf,
}

impl Shelf {
    /// In this directory.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self, name: &VpsName) -> PathBuf {
        self.directory.join(format!("{name}.jsonl"))
    }

    /// Adds to a story.
    pub fn append(&self, name: &VpsName, lines: Vec<Line>) -> io::Result<()> {
        let path = self.path(name);
        let mut bytes = Vec::new();
        for line in &lines {
            file::line(&mut bytes, &bounded(line.clone())?)?;
        }
        let there = fs::metadata(&path).map_or(0, |metadata| metadata.len());
        if there + 1 + bytes.len() as u64 <= BOUND {
            return file::append(&path, &bytes).map(drop);
        }
        let mut chapters = self.read(name)?;
        for line in lines {
            chapters.add(bounded(line)?);
        }
        let new = self.directory.join(format!("{name}.new"));
        // What an earlier process may have left of one.
        let _ = fs::remove_file(&new);
        file::append(&new, &chapters.lines()?)?;
        fs::rename(new, path)
    }

    /// A story; an empty one where there is none.
    pub fn read(&self, name: &VpsName) -> io::Result<Chapters> {
        let path = self.path(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Chapters::default()),
            Err(error) => return Err(error),
        };
        let mut chapters = Chapters::default();
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(line) => chapters.add(line),
                Err(_) => chapters.damaged += 1,
            }
        }
        if chapters.damaged > 0 {
            let (path, lines) = (path.display(), chapters.damaged);
            tracing::warn!(vps = %name, %path, lines, "its story is damaged; what these lines said is lost");
        }
        Ok(chapters)
    }

    /// Forgets a story.
    pub fn remove(&self, name: &VpsName) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes what is nobody's.
    pub fn sweep(&self, known: &BTreeSet<VpsName>) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let name: Option<VpsName> = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
            let whole = path.extension().is_some_and(|extension| extension == "jsonl");
            if !whole || name.is_none_or(|name| !known.contains(&name)) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// The directory, made where it is missing.
pub fn directory(data: &Path) -> io::Result<PathBuf> {
    let directory = data.join("story");
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// A failure without the first lines of its log, where they would be too much; a start without its last steps.
fn bounded(mut line: Line) -> io::Result<Line> {
    loop {
        let mut bytes = Vec::new();
        file::line(&mut bytes, &line)?;
        let less = bytes.len() <= CHAPTER
            || match &mut line {
                Line::Failure(failure) if !failure.log.is_empty() => {
                    failure.log.remove(0);
                    false
                }
                Line::Start(start) if !start.waits.is_empty() => {
                    start.waits.pop();
                    false
                }
                _ => true,
            };
        if less {
            return Ok(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(what: &str, detail: &str) -> Line {
        let (what, detail) = (what.to_owned(), detail.to_owned());
        Line::Event(Event { at_ms: 7, vps: Some("blog".parse().unwrap()), what, detail, actor: String::new() })
    }

    fn shelf() -> (tempfile::TempDir, Shelf, VpsName) {
        let data = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(directory(data.path()).unwrap());
        (data, shelf, "blog".parse().unwrap())
    }

    #[test]
    fn a_story_is_bounded_and_keeps_the_last_of_each() {
        let (data, shelf, name) = shelf();
        let failure = Failure { what: "exit 1".to_owned(), log: vec!["\u{1}".repeat(400); 20], ..Failure::default() };
        shelf.append(&name, vec![Line::Failure(failure)]).unwrap();
        let mut most = 0;
        for n in 0..2000 {
            let start = Start { by: format!("start {n}"), ..Start::default() };
            shelf.append(&name, vec![event("ready", &"x".repeat(300)), Line::Start(start)]).unwrap();
            most = most.max(fs::metadata(data.path().join("story/blog.jsonl")).unwrap().len());
        }
        assert!(most <= BOUND, "{most}");
        let Chapters { events, last, .. } = shelf.read(&name).unwrap();
        assert!((16..=COUNT).contains(&events.len()), "{}", events.len());
        assert_eq!(last.start.unwrap().by, "start 1999");
        let failure = last.failure.unwrap();
        assert_eq!((failure.what.as_str(), failure.log.len()), ("exit 1", 2));
        assert_eq!(last.stop, None);
        assert_eq!(fs::read_dir(data.path().join("story")).unwrap().count(), 1);
    }

    #[test]
    fn damage_costs_what_it_hit() {
        let (data, shelf, name) = shelf();
        let stop = Stop { why: "stop by root".to_owned(), ..Stop::default() };
        shelf.append(&name, vec![Line::Stop(stop), event("asleep", "a")]).unwrap();
        let path = data.path().join("story/blog.jsonl");
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 9).unwrap();
        shelf.append(&name, vec![event("ready", "b")]).unwrap();
        let chapters = shelf.read(&name).unwrap();
        assert_eq!(chapters.last.stop.unwrap().why, "stop by root");
        assert_eq!((chapters.events.len(), chapters.damaged), (1, 1));
        fs::write(&path, [0xff; 40_000]).unwrap();
        assert_eq!(shelf.read(&name).unwrap().events.len(), 0);
        shelf.append(&name, vec![event("ready", "c")]).unwrap();
        assert_eq!(shelf.read(&name).unwrap().events.len(), 1);
    }

    #[test]
    fn what_is_nobody_s_is_swept() {
        let (data, shelf, name) = shelf();
        let other: VpsName = "other".parse().unwrap();
        shelf.append(&name, vec![event("ready", "")]).unwrap();
        shelf.append(&other, vec![event("ready", "")]).unwrap();
        fs::write(data.path().join("story/blog.new"), "x").unwrap();
        shelf.sweep(&BTreeSet::from([name.clone()])).unwrap();
        assert_eq!(fs::read_dir(data.path().join("story")).unwrap().count(), 1);
        assert_eq!(shelf.read(&name).unwrap().events.len(), 1);
        shelf.remove(&name).unwrap();
        shelf.remove(&name).unwrap();
    }
}
