//! The shim's end of what follows the files of `logs`: takes lines at a bounded rate, and notes how far each file was taken.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags, openat},
    io::{Errno, ioctl_fionbio, pread, pwrite, read},
};

use crate::{
    follow::frame::{FRAME, Frame, Position, SLOTS},
    log::Log,
};

/// Bytes of the log that files may fill in a second; who writes more is not heard until the next one.
const PER_SECOND: usize = 1 << 20;
/// The file beside the log, a slot for each file.
const STORE: &str = "files";

/// Where lines of files come from.
#[derive(Debug)]
pub struct Files {
    socket: OwnedFd,
    store: Option<OwnedFd>,
    since: Instant,
    taken: usize,
    /// Whether it has said that this is all.
    done: bool,
}

/// What is known of the files of earlier runs.
pub fn known(log: &OwnedFd) -> Vec<u8> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let Ok(store) = openat(log, STORE, flags, Mode::empty()) else { return Vec::new() };
    let mut bytes = vec![0; SLOTS * Position::BYTES];
    let n = pread(&store, bytes.as_mut_slice(), 0).unwrap_or(0);
    bytes.truncate(n);
    bytes
}

impl Files {
    /// Hears `socket`, and notes positions in the log's directory.
    pub fn new(socket: OwnedFd, log: impl AsFd) -> Option<Self> {
        ioctl_fionbio(&socket, true).ok()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let store = openat(log, STORE, flags, Mode::from(0o600)).ok();
        Some(Self { socket, store, since: Instant::now(), taken: 0, done: false })
    }

    /// What to wait for; none: not before `at`.
    pub fn socket(&self) -> Option<&OwnedFd> {
        self.at().is_none_or(|at| Instant::now() >= at).then_some(&self.socket)
    }

    /// When it is heard again.
    pub fn at(&self) -> Option<Instant> {
        (self.taken >= PER_SECOND).then(|| self.since + Duration::from_secs(1))
    }

    /// Whether all has been read.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Takes what came, up to `most` frames; false: nobody is there any more.
    pub fn hear(&mut self, log: &mut Log, most: usize) -> bool {
        let mut bytes = [0; FRAME];
        if self.since.elapsed() >= Duration::from_secs(1) {
            (self.since, self.taken) = (Instant::now(), 0);
        }
        for _ in 0..most {
            match read(&self.socket, bytes.as_mut_slice()) {
                Ok(0) => return false,
                Ok(n) => self.take(&bytes[..n], log),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return false,
            }
        }
        true
    }

    fn take(&mut self, bytes: &[u8], log: &mut Log) {
        match Frame::read(bytes) {
            Some(Frame::Lines { slot, position, path, text }) => {
                self.taken += log.file(path, text);
                // Lines first: they may come twice when this process is killed in between, but are never missed.
                log.flush();
                let place = u64::from(slot) * Position::BYTES as u64;
                let _ = self.store.as_ref().map(|store| pwrite(store, &position, place));
            }
            Some(Frame::Said(text)) => {
                let text: String = text.chars().filter(|c| !c.is_control()).collect();
                log.say(&text);
                self.taken += text.len() + 64;
            }
            Some(Frame::End) => self.done = true,
            None => self.taken += bytes.len(),
        }
    }
}
