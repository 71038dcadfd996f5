//! One VPS's log, as one target has it: which files, how far they were read, and how far they were surely sent.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
};

use serde::{Deserialize, Serialize};

/// Bytes that are read at once.
pub const CHUNK: usize = 64 << 10;
/// A log's files that are on disk at once: the one that is written, and the one before.
const FILES: usize = 2;

/// A place in a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The file's inode; 0: before all that is there.
    pub inode: u64,
    /// Bytes of it that were sent.
    pub offset: u64,
}

/// Where a log that nothing is known of is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// With what is added from now on.
    End,
    /// With all that is there.
    Oldest,
    /// After that.
    At(Position),
}

/// What could not be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Lines.
    pub lines: u64,
    /// Whether there were others, nobody knows how many.
    pub gap: bool,
}

impl Lost {
    pub fn add(&mut self, more: Self) {
        self.lines += more.lines;
        self.gap |= more.gap;
    }
}

#[derive(Debug)]
struct Held {
    file: File,
    inode: u64,
}

/// An open log.
#[derive(Debug)]
pub struct Tap {
    /// The oldest first; the last one is being written.
    files: VecDeque<Held>,
    /// File and offset that are read next.
    read: (usize, u64),
    /// Up to where it was surely sent, in the first file.
    sent: u64,
}

fn held(files: Vec<File>) -> io::Result<VecDeque<Held>> {
    files.into_iter().map(|file| Ok(Held { inode: file.metadata()?.ino(), file })).collect()
}

impl Tap {
    /// Opens a log of these files, the oldest first; none: it has none yet.
    pub fn open(files: Vec<File>, begin: Begin) -> io::Result<Option<(Self, Lost)>> {
        let mut files = held(files)?;
        let Some(last) = files.back() else { return Ok(None) };
        let mut lost = Lost::default();
        let mut offset = 0;
        match begin {
            Begin::End => {
                offset = last.file.metadata()?.len();
                files.drain(..files.len() - 1);
            }
            Begin::At(Position { inode, offset: at }) if inode != 0 => {
                match files.iter().position(|held| held.inode == inode) {
                    Some(place) if files[place].file.metadata()?.len() >= at => {
                        files.drain(..place);
                        offset = at;
                    }
                    // Rotated away, or another file has its number.
                    _ => lost.gap = true,
                }
            }
            Begin::Oldest | Begin::At(_) => {}
        }
        Ok(Some((Self { files, read: (0, offset), sent: offset }, lost)))
    }

    /// Takes up the files that came since, and says whether there were any. What is gone from disk is not kept: it would
    /// fill it.
    pub fn rotated(&mut self, files: Vec<File>) -> io::Result<(Lost, bool)> {
        let mut lost = Lost::default();
        let mut files = held(files)?;
        match self.files.back().and_then(|last| files.iter().position(|held| held.inode == last.inode)) {
            Some(place) => drop(files.drain(..=place)),
            None => lost.gap = !files.is_empty(),
        }
        let newer = !files.is_empty();
        self.files.extend(files);
        while self.files.len() > FILES {
            let Some(oldest) = self.files.pop_front() else { break };
            match self.read {
                (0, offset) => {
                    lost.lines += lines(&oldest.file, offset)?;
                    self.read = (0, 0);
                }
                (place, offset) => self.read = (place - 1, offset),
            }
            self.sent = 0;
        }
        Ok((lost, newer))
    }

    /// Reads the next whole lines into `buffer`; false: there are none now.
    pub fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            let (place, offset) = self.read;
            let Some(held) = self.files.get(place) else { return Ok(false) };
            buffer.resize(CHUNK, 0);
            let n = held.file.read_at(buffer, offset)?;
            let whole = buffer[..n].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            // A shim writes no such line.
            let whole = if whole == 0 && n == CHUNK { n } else { whole };
            buffer.truncate(whole);
            if whole > 0 {
                self.read.1 += whole as u64;
                return Ok(true);
            }
            if place + 1 >= self.files.len() {
                return Ok(false);
            }
            self.read = (place + 1, 0);
        }
    }

    /// What was read, has been sent.
    pub fn confirm(&mut self) {
        let (place, offset) = self.read;
        self.files.drain(..place);
        (self.read, self.sent) = ((0, offset), offset);
    }

    /// What was read and is not confirmed, is read again.
    pub fn rewind(&mut self) {
        self.read = (0, self.sent);
    }

    /// Up to where it was sent.
    pub fn position(&self) -> Position {
        Position { inode: self.files.front().map_or(0, |held| held.inode), offset: self.sent }
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> u64 {
        let length = |held: &Held| held.file.metadata().map_or(0, |metadata| metadata.len());
        self.files.iter().map(length).sum::<u64>().saturating_sub(self.sent)
    }

    /// The file that is being written.
    pub fn newest(&self) -> Option<&File> {
        self.files.back().map(|held| &held.file)
    }
}

/// Lines of a file from `offset` on.
fn lines(file: &File, mut offset: u64) -> io::Result<u64> {
    let (mut buffer, mut count) = (vec![0; CHUNK], 0);
    loop {
        match file.read_at(&mut buffer, offset)? {
            0 => return Ok(count),
            n => {
                count += buffer[..n].iter().filter(|b| **b == b'\n').count() as u64;
                offset += n as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A log's directory, as a shim has it.
    struct Log(tempfile::TempDir);

    impl Log {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn say(&self, text: &str) {
            let path = self.0.path().join("log");
            let mut file = File::options().append(true).create(true).open(path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn rotate(&self) {
            std::fs::rename(self.0.path().join("log"), self.0.path().join("log.1")).unwrap();
        }

        fn files(&self) -> Vec<File> {
            ["log.1", "log"].iter().filter_map(|name| File::open(self.0.path().join(name)).ok()).collect()
        }

        fn tap(&self, begin: Begin) -> (Tap, Lost) {
            Tap::open(self.files(), begin).unwrap().unwrap()
        }
    }

    fn all(tap: &mut Tap) -> String {
        let (mut text, mut buffer) = (String::new(), Vec::new());
        while tap.read(&mut buffer).unwrap() {
            text.push_str(std::str::from_utf8(&buffer).unwrap());
        }
        text
    }

    #[test]
    fn a_log_is_read_over_rotations_and_goes_on_where_it_was() {
        let log = Log::new();
        assert!(Tap::open(log.files(), Begin::Oldest).unwrap().is_none());
        log.say("1\n2\nhalf");
        let (mut tap, lost) = log.tap(Begin::Oldest);
        assert_eq!((all(&mut tap).as_str(), lost), ("1\n2\n", Lost::default()));
        log.say(" a line\n");
        log.rotate();
        log.say("3\n");
        assert_eq!(all(&mut tap), "half a line\n");
        assert_eq!(tap.rotated(log.files()).unwrap(), (Lost::default(), true));
        assert_eq!(tap.rotated(log.files()).unwrap(), (Lost::default(), false));
        assert_eq!(all(&mut tap), "3\n");
        // Nothing was confirmed.
        tap.rewind();
        assert_eq!(all(&mut tap), "1\n2\nhalf a line\n3\n");
        tap.confirm();
        let position = tap.position();
        log.say("4\n");
        let (mut again, lost) = log.tap(Begin::At(position));
        assert_eq!((all(&mut again).as_str(), lost), ("4\n", Lost::default()));
        assert_eq!(all(&mut log.tap(Begin::End).0), "");
        assert_eq!(all(&mut log.tap(Begin::Oldest).0), "1\n2\nhalf a line\n3\n4\n");
    }

    #[test]
    fn what_is_rotated_away_is_counted() {
        let log = Log::new();
        log.say("1\n2\n3\n");
        let (mut tap, _) = log.tap(Begin::Oldest);
        let mut buffer = Vec::new();
        assert!(tap.read(&mut buffer).unwrap());
        tap.rewind();
        for text in ["4\n5\n", "6\n"] {
            log.rotate();
            log.say(text);
            let (lost, _) = tap.rotated(log.files()).unwrap();
            assert_eq!(lost, Lost { lines: if text == "6\n" { 3 } else { 0 }, gap: false });
        }
        assert_eq!(all(&mut tap), "4\n5\n6\n");
        tap.confirm();
        // Two rotations at once: what was between is not known.
        let before = tap.position();
        for text in ["7\n", "8\n", "9\n"] {
            log.rotate();
            log.say(text);
        }
        assert_eq!(tap.rotated(log.files()).unwrap().0, Lost { lines: 0, gap: true });
        assert_eq!(all(&mut tap), "8\n9\n");
        let (mut late, lost) = log.tap(Begin::At(before));
        assert_eq!((all(&mut late).as_str(), lost.gap), ("8\n9\n", true));
    }
}
