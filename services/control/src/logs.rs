//! Reads the log files that the host hands over: the last lines, then what is added, over rotations.

use std::{
    fs::File,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    sync::Arc,
    time::Duration,
};

use model::{
    VpsName,
    api::{ErrorKind, LogLine},
};
use rustix::fs::inotify;
use tokio::{net::unix::pipe, sync::mpsc};
use wire::{Fault, host};

use crate::{clock::Since, shared::Control};

/// Bytes that are looked at for the last lines.
const TAIL: u64 = 4 << 20;
/// Bytes of one line; a longer one becomes several.
const LINE: usize = 16 << 10;
/// Where the kernel does not tell of changes: how often the file is looked at.
const POLL: Duration = Duration::from_millis(250);
/// How soon it is looked again for the file that follows one that was moved away.
const BETWEEN: Duration = Duration::from_millis(50);
/// How often the host is asked whether a file has been rotated that nothing tells of.
const ASK: Duration = Duration::from_secs(2);

/// The log files of a VPS, the oldest first; none when it has not run yet.
pub async fn open(control: &Control, name: &VpsName) -> Result<Vec<File>, Fault> {
    let method = host::Logs { name: name.clone() };
    let asked = control.host.call_with_fds(&method, &[]);
    let answer = tokio::time::timeout(crate::calls::PATIENCE, asked).await;
    match answer.map_err(|_| Fault::new(ErrorKind::Unavailable, "the host daemon did not answer in time"))? {
        Ok((_, fds)) => Ok(fds.into_iter().map(File::from).collect()),
        Err(fault) if fault.kind == ErrorKind::NotFound => Ok(Vec::new()),
        Err(fault) => Err(fault),
    }
}

/// Which lines are wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Of these streams, or of files of these paths; empty: of all.
    pub sources: Vec<String>,
    /// Not older.
    pub since: Option<Since>,
    /// Not younger: a time as lines have it.
    pub until: Option<String>,
}

impl Wanted {
    fn keeps(&self, line: &LogLine) -> bool {
        let young = self.since.as_ref().is_none_or(|since| since.keeps(&line.at));
        // RFC 3339 in UTC: in order as texts, too.
        let old = self.until.as_ref().is_none_or(|until| line.at <= *until);
        let of = |source: &String| *source == line.stream || Some(source) == line.file.as_ref();
        young && old && (self.sources.is_empty() || self.sources.iter().any(of))
    }
}

/// The last `count` lines, on a thread that may take its time: wakes are decided on this one.
pub async fn last(files: Vec<File>, count: usize, wanted: Wanted) -> std::io::Result<(Vec<File>, Vec<LogLine>)> {
    let read = tokio::task::spawn_blocking(move || tail(&files, count, &wanted).map(|lines| (files, lines)));
    read.await.map_err(std::io::Error::other)?
}

fn tail(files: &[File], count: usize, wanted: &Wanted) -> std::io::Result<Vec<LogLine>> {
    let mut lines: Vec<LogLine> = Vec::new();
    let mut budget = TAIL;
    for file in files.iter().rev() {
        if lines.len() >= count || budget == 0 {
            break;
        }
        let end = whole(file)?;
        let length = end.min(budget);
        budget -= length;
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, end - length)?;
        let cut = if length < end { bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |n| n + 1) } else { 0 };
        let text = bytes[cut..].strip_suffix(b"\n").unwrap_or(&bytes[cut..]);
        if text.is_empty() {
            continue;
        }
        // From the end, so that no more are read than are wanted.
        let kept = text.rsplit(|b| *b == b'\n').map(LogLine::parse).filter(|line| wanted.keeps(line));
        let mut older: Vec<_> = kept.take(count - lines.len()).collect();
        older.reverse();
        lines.splice(0..0, older);
    }
    Ok(lines)
}

/// Bytes up to the end of the last whole line.
fn whole(file: &File) -> std::io::Result<u64> {
    let length = file.metadata()?.len();
    let look = length.min(LINE as u64 * 2);
    let mut bytes = vec![0; look as usize];
    file.read_exact_at(&mut bytes, length - look)?;
    Ok(bytes.iter().rposition(|b| *b == b'\n').map_or(length - look, |at| length - look + at as u64 + 1))
}

/// Sends the last `count` lines, then what is added until the receiver or the VPS is gone.
pub async fn follow(control: Arc<Control>, name: VpsName, count: usize, wanted: Wanted, lines: mpsc::Sender<LogLine>) {
    let followed = async {
        let mut files = open(&control, &name).await?;
        // From here on: what is there now and what comes later meet at this place.
        let mut at = match files.last() {
            Some(last) => whole(last)?,
            None => 0,
        };
        let lines_before;
        (files, lines_before) = last(files, count, wanted.clone()).await?;
        for line in lines_before {
            if lines.send(line).await.is_err() {
                return Ok(());
            }
        }
        loop {
            let Some(current) = files.pop() else {
                tokio::select! {
                    () = tokio::time::sleep(POLL) => files = open(&control, &name).await?,
                    () = lines.closed() => return Ok(()),
                }
                files.reverse();
                at = 0;
                if !exists(&control, &name) {
                    return Ok(());
                }
                continue;
            };
            let inode = current.metadata()?.ino();
            let Some(newer) = one_file(&control, &name, current, at, &wanted, &lines).await? else { return Ok(()) };
            files = newer.into_iter().rev().collect();
            at = 0;
            tracing::debug!(inode, vps = %name, "its log was rotated");
        }
    };
    let result: Result<(), Fault> = followed.await;
    if let Err(fault) = result {
        tracing::debug!(vps = %name, %fault, "following its log ended");
    }
}

fn exists(control: &Control, name: &VpsName) -> bool {
    control.get(name).is_some() || control.config.designated.contains_key(name)
}

/// Follows one file until there are newer ones, which it answers; none: nobody listens any more.
async fn one_file(
    control: &Control,
    name: &VpsName,
    file: File,
    mut at: u64,
    wanted: &Wanted,
    lines: &mpsc::Sender<LogLine>,
) -> Result<Option<Vec<File>>, Fault> {
    let watch = Watch::new(&file);
    let inode = file.metadata()?.ino();
    let mut rest = Vec::new();
    let mut asked = tokio::time::Instant::now();
    // It was moved away, and its shim had not made the next one yet.
    let mut between = false;
    loop {
        if !added(&file, &mut at, &mut rest, wanted, lines).await? {
            return Ok(None);
        }
        let moved = tokio::select! {
            moved = watch.changed() => moved,
            () = tokio::time::sleep(BETWEEN), if between => true,
            () = lines.closed() => return Ok(None),
        };
        if moved || asked.elapsed() >= ASK {
            asked = tokio::time::Instant::now();
            let files = open(control, name).await?;
            let inodes = files.iter().map(|file| Ok(file.metadata()?.ino())).collect::<std::io::Result<Vec<_>>>()?;
            let place = inodes.iter().position(|other| *other == inode);
            if place.is_none_or(|place| place + 1 < files.len()) {
                if !added(&file, &mut at, &mut rest, wanted, lines).await?
                    || (files.is_empty() && !exists(control, name))
                {
                    return Ok(None);
                }
                return Ok(Some(files.into_iter().skip(place.map_or(0, |place| place + 1)).collect()));
            }
            between |= moved;
        }
    }
}

/// Sends the lines that were added; false: nobody listens any more.
async fn added(
    file: &File,
    at: &mut u64,
    rest: &mut Vec<u8>,
    wanted: &Wanted,
    lines: &mpsc::Sender<LogLine>,
) -> std::io::Result<bool> {
    let mut chunk = vec![0; LINE];
    loop {
        let n = file.read_at(&mut chunk, *at)?;
        if n == 0 {
            return Ok(true);
        }
        *at += n as u64;
        for byte in &chunk[..n] {
            if *byte != b'\n' && rest.len() < LINE {
                rest.push(*byte);
                continue;
            }
            let line = LogLine::parse(rest);
            if wanted.keeps(&line) && lines.send(line).await.is_err() {
                return Ok(false);
            }
            rest.clear();
            if *byte != b'\n' {
                rest.push(*byte);
            }
        }
    }
}

/// Tells when a file was written to. The log belongs to its shim, so the kernel may refuse to watch it.
struct Watch {
    /// An inotify descriptor: it is read as a pipe is.
    events: Option<pipe::Receiver>,
}

impl Watch {
    fn new(file: &File) -> Self {
        let watch = || -> std::io::Result<_> {
            use inotify::{CreateFlags, WatchFlags};
            let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            inotify::add_watch(&events, path, WatchFlags::MODIFY | WatchFlags::MOVE_SELF | WatchFlags::ATTRIB)?;
            pipe::Receiver::from_owned_fd_unchecked(events)
        };
        Self { events: watch().inspect_err(|error| tracing::debug!(%error, "polling a log")).ok() }
    }

    /// Waits for a change; true: it may have been moved away.
    async fn changed(&self) -> bool {
        let mut buffer = [0; 1024];
        if let Some(events) = &self.events {
            while events.readable().await.is_ok() {
                match events.try_read(&mut buffer) {
                    Ok(n) => return moved(&buffer[..n]),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(_) => break,
                }
            }
        }
        tokio::time::sleep(POLL).await;
        false
    }
}

/// Whether events (inotify(7): descriptor, mask, cookie, length of the name, name) say more than "written to".
fn moved(events: &[u8]) -> bool {
    let written = inotify::ReadFlags::MODIFY.bits();
    let word =
        |event: &[u8], at: usize| event.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let mut rest = events;
    while rest.len() >= 16 {
        if word(rest, 4) != written {
            return true;
        }
        rest = rest.get(16 + word(rest, 12) as usize..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write as _;

    #[test]
    fn a_tail_spans_files_and_leaves_out_half_lines() {
        let file = |text: &str| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file
        };
        let files = [file("a out 1\na out 2\n"), file("a out 3\na out 4\na out half")];
        let texts =
            |n| tail(&files, n, &Wanted::default()).unwrap().into_iter().map(|line| line.text).collect::<Vec<_>>();
        assert_eq!(texts(3), ["2", "3", "4"]);
        assert_eq!(texts(10), ["1", "2", "3", "4"]);
        assert!(texts(0).is_empty());
        let mixed = [file("2025 out 1\n2026 log user.err x: y\n2027 vps 3\n")];
        let only = |sources: &[&str], since: Option<&str>| {
            let sources = sources.iter().map(|s| (*s).to_owned()).collect();
            let wanted = Wanted { sources, since: since.map(|at| Since::parse(at).unwrap()), until: None };
            tail(&mixed, 9, &wanted).unwrap().into_iter().map(|line| line.stream).collect::<Vec<_>>()
        };
        assert_eq!(only(&["log", "vps"], None), ["log", "vps"]);
        assert_eq!(only(&[], Some("2026")), ["log", "vps"]);
    }

    #[tokio::test]
    async fn what_is_added_comes_line_by_line() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let reading = file.reopen().unwrap();
        let watch = Watch::new(&reading);
        let (lines, mut out) = mpsc::channel(8);
        let (mut at, mut rest) = (0, Vec::new());
        file.write_all(b"t out one\nt out tw").unwrap();
        assert!(!watch.changed().await);
        assert!(added(&reading, &mut at, &mut rest, &Wanted::default(), &lines).await.unwrap());
        assert_eq!(out.recv().await.unwrap().text, "one");
        file.write_all(b"o\n").unwrap();
        assert!(added(&reading, &mut at, &mut rest, &Wanted::default(), &lines).await.unwrap());
        assert_eq!(out.recv().await.unwrap().text, "two");
        let moved = file.path().with_extension("1");
        std::fs::rename(file.path(), &moved).unwrap();
        while !watch.changed().await {}
        std::fs::remove_file(moved).unwrap();
    }

    proptest! {
        #[test]
        fn any_file_has_a_tail(
            older in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b' '), any::<u8>()], 0..3000),
            newer in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b' '), any::<u8>()], 0..3000),
            count in 0usize..50,
        ) {
            let file = |bytes: &[u8]| {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(bytes).unwrap();
                file
            };
            let wanted = Wanted::default();
            let lines = tail(&[file(&older), file(&newer)], count, &wanted).unwrap();
            prop_assert!(lines.len() <= count && lines.iter().all(|line| !line.text.contains('\n')));
        }
    }
}
