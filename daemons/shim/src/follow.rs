//! What follows the files of `logs`: a process inside the VPS, with its root's right to read and no other, that sends the
//! lines that are added to the shim.
//!
//! Forked by init before the program, so that what is there at its start is known. Whatever a tenant makes of these paths
//! hangs or ends this process alone. It waits for the kernel's word (inotify(7)), never looks again and again; while the
//! shim takes nothing, it reads nothing.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
    io::Errno,
    net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair},
    pipe::{PipeFlags, pipe_with},
    process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit},
    thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs},
};
use sys::process::{Child, close_all_but, spawn_child};

pub mod frame;
mod pattern;
mod tail;
mod tree;

use frame::{Frame, Position, SLOTS, TEXT};
use tail::Tail;
use tree::{Found, Tree};

/// How long a file that is gone, or matches no more, is still read after the last that was written to it.
const LINGER: Duration = Duration::from_secs(30);
/// How long a start waits until it is known what is there.
const LOOK: Duration = Duration::from_secs(5);
/// How long the end of a VPS waits for what its program wrote last.
const LAST: Duration = Duration::from_secs(1);
/// What is told about paths, at most.
const TOLD: usize = 100;
/// Descriptors for other things than files.
const SPARE: u64 = 300;

/// The process that follows, as init sees it.
#[derive(Debug)]
pub struct Following {
    child: Child,
    /// When it is closed, the process reads what is left, and ends.
    end: OwnedFd,
}

impl Following {
    /// Starts it; the other end of its socket is the shim's. Waits until it is known what is there.
    pub fn start(patterns: &[String], known: &[u8]) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let (ended, end) = pipe_with(PipeFlags::CLOEXEC)?;
        let (looked, report) = pipe_with(PipeFlags::CLOEXEC)?;
        let child = spawn_child(|| {
            let began = confine(&[theirs.as_fd(), ended.as_fd(), report.as_fd()])
                .and_then(|()| Follower::new(theirs, ended, patterns, known));
            let done = began.and_then(|mut follower| {
                follower.look(true)?;
                drop(report);
                follower.run()
            });
            i32::from(done.is_err())
        })?;
        let timeout = Timespec { tv_sec: LOOK.as_secs() as i64, tv_nsec: 0 };
        let _ = poll(&mut [PollFd::new(&looked, PollFlags::IN)], Some(&timeout));
        Ok((Self { child, end }, ours))
    }

    /// What init keeps of it.
    pub fn descriptors(&self) -> [std::os::fd::BorrowedFd<'_>; 2] {
        [self.child.pidfd.as_fd(), self.end.as_fd()]
    }

    /// Has it read what was written last.
    pub fn finish(self) {
        drop(self.end);
        let timeout = Timespec { tv_sec: LAST.as_secs() as i64, tv_nsec: 0 };
        let _ = poll(&mut [PollFd::new(&self.child.pidfd, PollFlags::IN)], Some(&timeout));
    }
}

/// Leaves itself the right to read, and these descriptors.
fn confine(keep: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    close_all_but(keep)?;
    let read = CapabilitySet::DAC_READ_SEARCH;
    set_capabilities(None, CapabilitySets { effective: read, permitted: read, inheritable: CapabilitySet::empty() })?;
    set_no_new_privs(true)?;
    let limit = getrlimit(Resource::Nofile);
    let wanted = SLOTS as u64 + SPARE;
    let most = limit.maximum.map_or(wanted, |most| most.min(wanted));
    let current = limit.current.map(|current| current.max(most));
    Ok(setrlimit(Resource::Nofile, Rlimit { current, maximum: limit.maximum })?)
}

struct Follower {
    socket: OwnedFd,
    ended: OwnedFd,
    events: OwnedFd,
    tree: Tree,
    /// By slot.
    files: Vec<Option<Tail>>,
    /// Where files were read to in earlier runs, by slot.
    known: Vec<Option<Position>>,
    /// Files that may have more.
    dirty: BTreeSet<usize>,
    /// Whether directories changed.
    changed: bool,
    told: BTreeSet<String>,
}

impl Follower {
    fn new(socket: OwnedFd, ended: OwnedFd, patterns: &[String], known: &[u8]) -> io::Result<Self> {
        let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let known: Vec<_> = known.chunks_exact(Position::BYTES).take(SLOTS).map(Position::read).collect();
        let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(SPARE) as usize;
        let mut files = Vec::new();
        files.resize_with(SLOTS.min(most), || None);
        let tree = Tree::new(patterns);
        let (dirty, told) = Default::default();
        Ok(Self { socket, ended, events, tree, files, known, dirty, changed: false, told })
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            let last = self.wait()?;
            self.hear();
            if self.changed || last {
                self.changed = false;
                self.look(false)?;
            }
            if last {
                return self.rest();
            }
            for slot in std::mem::take(&mut self.dirty) {
                self.turn(slot, false)?;
            }
            self.forget()?;
        }
    }

    /// Waits until there is something to do; whether the end has come.
    fn wait(&self) -> io::Result<bool> {
        let gone = self.files.iter().flatten().filter_map(|tail| tail.gone).min();
        let left = match self.dirty.is_empty() {
            false => Some(Duration::ZERO),
            true => gone.map(|at| (at + LINGER).saturating_duration_since(Instant::now()) + Duration::from_millis(1)),
        };
        let timeout = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        let mut fds = [PollFd::new(&self.events, PollFlags::IN), PollFd::new(&self.ended, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(!fds[1].revents().is_empty()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes what the kernel says.
    fn hear(&mut self) {
        use inotify::ReadFlags;
        let mut buffer = [std::mem::MaybeUninit::uninit(); 8 << 10];
        let mut reader = inotify::Reader::new(&self.events, &mut buffer);
        // A bounded number, so that files get their turn.
        for _ in 0..4096 {
            let Ok(event) = reader.next() else { return };
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                self.changed = true;
                self.dirty.extend(0..self.files.len());
            } else if self.tree.watches(event.wd()) {
                self.changed = true;
            } else if let Some(slot) = self.slot_of(|tail| tail.watch == event.wd()) {
                self.dirty.insert(slot);
            }
        }
    }

    fn slot_of(&self, is: impl Fn(&Tail) -> bool) -> Option<usize> {
        self.files.iter().position(|file| file.as_ref().is_some_and(&is))
    }

    /// Looks which files there are; at the start of the run, what is in those that are not known is old.
    fn look(&mut self, start: bool) -> io::Result<()> {
        let (found, remarks) = self.tree.look(&self.events);
        for remark in remarks {
            self.say(remark)?;
        }
        let mut here = BTreeSet::new();
        for file in found {
            if let Some(slot) = self.slot_of(|tail| tail.identity == file.identity) {
                let tail = self.files[slot].as_mut().filter(|tail| tail.gone.is_some() || !here.contains(&slot));
                // Renamed, perhaps to where another one was.
                if let Some(tail) = tail {
                    (tail.path, tail.gone) = (file.path, None);
                }
                here.insert(slot);
            } else if let Some(slot) = self.take(file, start)? {
                here.insert(slot);
            }
        }
        let now = Instant::now();
        for (slot, tail) in self.files.iter_mut().enumerate() {
            if let Some(tail) = tail.as_mut().filter(|tail| tail.gone.is_none() && !here.contains(&slot)) {
                tail.gone = Some(now);
                self.dirty.insert(slot);
            }
        }
        Ok(())
    }

    /// Begins to follow a file.
    fn take(&mut self, file: Found, start: bool) -> io::Result<Option<usize>> {
        let path = frame::hash(&file.path);
        let of = |known: &Option<Position>| known.as_ref().is_some_and(|known| known.path == path);
        let same = self.known.iter().position(|p| of(p) && p.as_ref().is_some_and(|p| p.inode == file.identity.1));
        let by_path = same.or_else(|| self.known.iter().position(of));
        let free = |slot: &usize| self.files.get(*slot).is_some_and(Option::is_none);
        let slot = by_path.filter(free).or_else(|| self.files.iter().position(Option::is_none));
        let slot = slot.or_else(|| self.slot_of(|tail| tail.gone.is_some()));
        let Some(slot) = slot else {
            self.say(format!(
                "more than {} files: {} and others are not followed",
                self.files.len(),
                show(&file.path)
            ))?;
            return Ok(None);
        };
        self.drop_file(slot)?;
        let was = by_path.and_then(|at| self.known[at].take());
        let shown = show(&file.path);
        let mut tail = match Tail::open(file, &self.events) {
            Ok(Some(tail)) => tail,
            Ok(None) => return Ok(None),
            Err(error) => {
                self.say(format!("{shown} is not followed: {error}"))?;
                return Ok(None);
            }
        };
        match was {
            // The same file goes on where it was; another one under its name is new.
            Some(was) => tail.resume(&was),
            None if start => tail.skip_all()?,
            None => {}
        }
        self.send(&Frame::Lines { slot: slot as u16, position: tail.position(), path: &tail.path, text: &[] })?;
        self.files[slot] = Some(tail);
        self.dirty.insert(slot);
        Ok(Some(slot))
    }

    /// Reads once from a file; `last`: a beginning of a line is one.
    fn turn(&mut self, slot: usize, last: bool) -> io::Result<()> {
        let mut buffer = [0; TEXT];
        let Some(tail) = self.files.get_mut(slot).and_then(Option::as_mut) else { return Ok(()) };
        let read = match tail.read(&mut buffer, last) {
            Ok(read) => read,
            Err(error) => {
                let remark = format!("{} is not followed any more: {error}", show(&tail.path));
                if let Some(tail) = self.files[slot].take() {
                    tail.close(&self.events);
                }
                return self.say(remark);
            }
        };
        if read.length > 0 && tail.gone.is_some() {
            tail.gone = Some(Instant::now());
        }
        let (position, path) = (tail.position(), tail.path.clone());
        if read.more {
            self.dirty.insert(slot);
        }
        if read.dropped > 0 {
            let path = show(&path);
            let text =
                format!("{} bytes of {path} were dropped: it grows faster than its lines are taken", read.dropped);
            self.send(&Frame::Said(&text))?;
        }
        if read.length == 0 {
            return Ok(());
        }
        self.send(&Frame::Lines { slot: slot as u16, position, path: &path, text: &buffer[..read.length] })
    }

    /// Gives up files that have been gone for long.
    fn forget(&mut self) -> io::Result<()> {
        let old = |tail: &Tail| tail.gone.is_some_and(|at| at.elapsed() >= LINGER);
        while let Some(slot) = self.slot_of(old) {
            self.drop_file(slot)?;
        }
        Ok(())
    }

    fn drop_file(&mut self, slot: usize) -> io::Result<()> {
        if self.files[slot].is_some() {
            self.finish_file(slot)?;
        }
        if let Some(tail) = self.files[slot].take() {
            tail.close(&self.events);
        }
        Ok(())
    }

    /// Reads a file to its end.
    fn finish_file(&mut self, slot: usize) -> io::Result<()> {
        self.dirty.insert(slot);
        while self.dirty.remove(&slot) {
            self.turn(slot, true)?;
        }
        Ok(())
    }

    fn rest(&mut self) -> io::Result<()> {
        (0..self.files.len()).try_for_each(|slot| self.finish_file(slot))?;
        self.send(&Frame::End)
    }

    /// Says something about a path, once.
    fn say(&mut self, remark: String) -> io::Result<()> {
        if self.told.len() >= TOLD || !self.told.insert(remark.clone()) {
            return Ok(());
        }
        self.send(&Frame::Said(&remark))
    }

    /// Waits while the shim takes nothing.
    fn send(&self, frame: &Frame<'_>) -> io::Result<()> {
        let bytes = frame.bytes();
        loop {
            match send(&self.socket, &bytes, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                done => return Ok(done.map(drop)?),
            }
        }
    }
}

/// A path as it may be written into a log.
fn show(path: &[u8]) -> String {
    model::log::stored_path(path)
}
