//! The log of a VPS: one line per line of its program's output, `TIME out|err|log|vps TEXT`, in `log` and, older, `log.1`.
//! Bounded on disk and in memory, whatever is written.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::{
    fs::{Mode, OFlags, fstat, openat, renameat},
    io::{Errno, read, write},
};

use crate::syslog;

/// Bytes of a file before it becomes `log.1`.
const MAX_FILE: u64 = 8 << 20;
/// Bytes of a line; a longer one goes on in the next.
pub const MAX_LINE: usize = 8 << 10;
/// Bytes before a line's text.
const STAMP: usize = 34;
/// Bytes that are read from a stream at once.
const CHUNK: usize = 4 << 10;
/// Bytes that are gathered before they are written.
const GATHER: usize = 16 << 10;

/// Where a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
    /// The shim.
    Vps,
    /// `/dev/log`.
    Log,
    /// A file of `logs`.
    File,
}

impl Source {
    fn word(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::Err => "err",
            Self::Vps => "vps",
            Self::Log => "log",
            Self::File => "file",
        }
    }
}

/// What a stream had to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pumped {
    /// Something.
    Some,
    /// Nothing now.
    Nothing,
    /// All ends that could write are closed.
    End,
}

/// The log.
#[derive(Debug)]
pub struct Log {
    directory: OwnedFd,
    file: Option<OwnedFd>,
    size: u64,
    /// The beginnings of the streams' next lines.
    partial: [Vec<u8>; 2],
    gathered: Vec<u8>,
}

impl Log {
    /// Goes on in `directory`'s `log`.
    pub fn open(directory: OwnedFd) -> Self {
        let mut log = Self { directory, file: None, size: 0, partial: [Vec::new(), Vec::new()], gathered: Vec::new() };
        log.reopen();
        log
    }

    /// Where it is.
    pub fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    fn reopen(&mut self) {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        self.file = openat(&self.directory, "log", flags, Mode::from(0o644)).ok();
        self.size = self.file.as_ref().and_then(|f| fstat(f).ok()).map_or(0, |s| s.st_size as u64);
    }

    /// Writes a line of the shim's own.
    pub fn say(&mut self, text: &str) {
        self.line(Source::Vps, text.as_bytes(), SystemTime::now());
        self.flush();
    }

    /// Adds a message of `/dev/log`; `flush` writes it.
    pub fn syslog(&mut self, message: &[u8]) {
        self.line(Source::Log, &syslog::line(message), SystemTime::now());
    }

    /// Adds lines of a file; `flush` writes them. How many bytes that is.
    pub fn file(&mut self, path: &[u8], text: &[u8]) -> usize {
        let (word, now) = (model::log::stored_path(path), SystemTime::now());
        let mut bytes = 0;
        for line in text.strip_suffix(b"\n").unwrap_or(text).split(|b| *b == b'\n').filter(|_| !text.is_empty()) {
            // What is empty is a line, too.
            for piece in line.chunks(MAX_LINE).chain(line.is_empty().then_some(line)) {
                let line = [word.as_bytes(), b" ", piece].concat();
                bytes += line.len() + STAMP;
                self.line(Source::File, &line, now);
            }
        }
        bytes
    }

    /// Reads once from a stream that does not block, and writes the lines that are complete.
    pub fn pump(&mut self, source: Source, stream: impl AsFd) -> Pumped {
        let mut chunk = [0; CHUNK];
        match read(stream, chunk.as_mut_slice()) {
            Ok(0) => Pumped::End,
            Ok(n) => {
                self.take(source, &chunk[..n], SystemTime::now());
                self.flush();
                Pumped::Some
            }
            Err(Errno::AGAIN | Errno::INTR) => Pumped::Nothing,
            Err(_) => Pumped::End,
        }
    }

    /// Writes what came without a line end.
    pub fn finish(&mut self) {
        for (n, source) in [Source::Out, Source::Err].into_iter().enumerate() {
            let rest = std::mem::take(&mut self.partial[n]);
            if !rest.is_empty() {
                self.line(source, &rest, SystemTime::now());
            }
        }
        self.flush();
    }

    fn take(&mut self, source: Source, mut bytes: &[u8], now: SystemTime) {
        let n = usize::from(source == Source::Err);
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            let mut line = std::mem::take(&mut self.partial[n]);
            line.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            self.line(source, &line, now);
            line.clear();
            self.partial[n] = line;
        }
        self.partial[n].extend_from_slice(bytes);
        if self.partial[n].len() >= MAX_LINE {
            let line = std::mem::take(&mut self.partial[n]);
            self.line(source, &line, now);
        }
    }

    fn line(&mut self, source: Source, text: &[u8], now: SystemTime) {
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        self.gathered.extend_from_slice(stamp(now).as_bytes());
        self.gathered.push(b' ');
        self.gathered.extend_from_slice(source.word().as_bytes());
        self.gathered.push(b' ');
        self.gathered.extend_from_slice(text);
        self.gathered.push(b'\n');
        if self.gathered.len() >= GATHER {
            self.flush();
        }
    }

    /// A disk that is full loses lines, not the VPS.
    pub fn flush(&mut self) {
        let bytes = std::mem::take(&mut self.gathered);
        if self.size > 0 && self.size + bytes.len() as u64 > MAX_FILE {
            let _ = renameat(&self.directory, "log", &self.directory, "log.1");
            self.reopen();
        }
        let mut rest = bytes.as_slice();
        while let (Some(file), false) = (&self.file, rest.is_empty()) {
            let Ok(n) = write(file, rest) else { break };
            self.size += n as u64;
            rest = &rest[n..];
        }
        self.gathered = bytes;
        self.gathered.clear();
        self.gathered.shrink_to(2 * GATHER);
    }
}

/// `2026-11-22T13:00:00.123456Z`.
fn stamp(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, micros) = (since.as_secs(), since.subsec_micros());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = model::schedule::date(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests;
