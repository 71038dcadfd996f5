//! The keeper: holds descriptors under names, starts the daemon again when it dies, and ends with the host.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use model::host::Paths;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FlockOperation, Mode, OFlags, flock, open},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{
        Pid, Resource, Rlimit, Signal, WaitOptions, getpid, getrlimit, getuid, pidfd_send_signal, set_child_subreaper,
        setrlimit, wait,
    },
};
use sys::{
    handover::{exec_with, take},
    process::{Child, close_on_exec_from, default_signals, exec_fd, place_fd, spawn_child},
    signal::SignalFd,
};
use wire::keeper::{NEXT, PREVIOUS, ROOT_LOCK, Word, recv, send};

/// Descriptors held at most: a few per VPS.
const HELD: usize = 100_000;
/// How long the daemon of a new version may take before the keeper goes back to the old one.
const TAKE_OVER: Duration = Duration::from_secs(30);
/// A daemon that lived longer than this is started again at once.
const SOUND: Duration = Duration::from_secs(1);
/// How long children may take to end with the host.
const CHILDREN_END: Duration = Duration::from_secs(10);
const MIN_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// What the keeper holds, under names.
type Held = BTreeMap<String, OwnedFd>;

/// How a daemon ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It stopped the host.
    Stopped,
    /// It exited by itself with this code.
    Code(i32),
    /// A signal or a panic ended it.
    Died,
}

/// Keeps the host until it is stopped; the exit code. `list` is the number of a list of what a keeper of another version held,
/// which became this one.
pub fn run(paths: &Paths, root: Option<&Path>, list: Option<i32>) -> anyhow::Result<u8> {
    check_machine()?;
    let mut held = Held::new();
    if let Some(list) = list {
        held.extend(take(list).context("taking over what an earlier keeper held")?);
    }
    let lock = match held.remove(ROOT_LOCK) {
        Some(lock) => lock,
        None => lock(paths)?,
    };
    raise_limits();
    let signals = SignalFd::open(&[Signal::TERM, Signal::INT, Signal::CHILD])?;
    // Shims outlive the daemon that started them; their ends are reaped here.
    set_child_subreaper(Some(getpid()))?;
    let mut pause = Duration::ZERO;
    let mut first = list.is_none();
    let mut stopping = false;
    let code = loop {
        let started = Instant::now();
        let (daemon, socket) = start_daemon(root)?;
        let end = attend(&daemon, socket, &signals, &mut held, &mut stopping)?;
        let (next, previous) = (held.remove(NEXT), held.remove(PREVIOUS));
        match end {
            End::Stopped => break 0,
            _ if next.is_some() && !stopping => go_on_as(next.as_ref(), true, root, &held, &lock),
            End::Code(code) if first || stopping => break code.clamp(1, 255) as u8,
            _ if stopping => break 1,
            _ if previous.is_some() => {
                eprintln!("bailiwickd: the new version's daemon ended ({end:?}); going back to the old version");
                go_on_as(previous.as_ref(), false, root, &held, &lock);
            }
            _ => eprintln!("bailiwickd: the daemon ended ({end:?}); starting it again"),
        }
        first = false;
        pause = if started.elapsed() >= SOUND { Duration::ZERO } else { next_pause(pause) };
        if wait_for_stop(&signals, pause)? {
            break 1;
        }
    };
    // Shims end when this process's copies of their sockets are closed.
    drop(held);
    await_children(&signals)?;
    let _ = std::fs::remove_file(paths.run.join("lock"));
    let _ = std::fs::remove_dir(&paths.run);
    drop(lock);
    Ok(code)
}

/// Becomes `program`, which takes all that is held. With `back` it may go back to this one. Returns only when that failed.
fn go_on_as(program: Option<&OwnedFd>, back: bool, root: Option<&Path>, held: &Held, lock: &OwnedFd) {
    let become_it = || -> anyhow::Result<io::Error> {
        let program = program.context("no program")?;
        let own = own_program()?;
        let arguments = arguments(c"keep", root)?;
        let arguments = |list: i32| {
            let number = [CString::from(c"--held"), CString::new(list.to_string()).unwrap_or_default()];
            arguments.into_iter().chain(number).collect()
        };
        let held = held.iter().map(|(name, fd)| (name.as_str(), fd.as_fd()));
        let own = back.then_some((PREVIOUS, own.as_fd()));
        Ok(exec_with(program.as_fd(), held.chain([(ROOT_LOCK, lock.as_fd())]).chain(own), arguments, &environment()))
    };
    let error = become_it().map_or_else(|error| format!("{error:#}"), |error| error.to_string());
    eprintln!("bailiwickd: the keeper can't become another version: {error}");
}

fn own_program() -> anyhow::Result<OwnedFd> {
    open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context("opening bailiwickd")
}

/// What bailiwickd is executed with.
fn arguments(verb: &CStr, root: Option<&Path>) -> anyhow::Result<Vec<CString>> {
    let mut arguments = vec![c"bailiwickd".into(), CString::from(verb)];
    if let Some(root) = root {
        arguments.extend([CString::from(c"--root"), CString::new(root.as_os_str().as_encoded_bytes())?]);
    }
    Ok(arguments)
}

fn environment() -> Vec<CString> {
    let variable = |(mut name, value): (std::ffi::OsString, std::ffi::OsString)| {
        name.push("=");
        name.push(value);
        CString::new(name.into_vec()).ok()
    };
    std::env::vars_os().filter_map(variable).collect()
}

/// The daemon is started again at once the first time, then with growing pauses.
fn next_pause(last: Duration) -> Duration {
    if last.is_zero() { MIN_PAUSE } else { (last * 2).min(MAX_PAUSE) }
}

fn check_machine() -> anyhow::Result<()> {
    ensure!(getuid().is_root(), "only root can keep a host; run it with sudo, or as the systemd service");
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    ensure!(
        version(&release) >= (6, 9),
        "Linux {release} is too old: bailiwick needs 6.9 or later (pidfd of threads, id-mapped tmpfs)"
    );
    Ok(())
}

/// The keeper and the daemon have several descriptors per VPS; the daemon inherits the limit.
fn raise_limits() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(['.', '-', '+']).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The lock of this root; held as long as the returned descriptor.
fn lock(paths: &Paths) -> anyhow::Result<OwnedFd> {
    std::fs::create_dir_all(&paths.run).with_context(|| format!("making {}", paths.run.display()))?;
    let path = paths.run.join("lock");
    loop {
        let file = open(&path, OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC, Mode::from(0o600))
            .with_context(|| format!("opening {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                bail!("another host runs on {}; stop it first, or use another --root", paths.run.display())
            }
            Err(error) => return Err(error).with_context(|| format!("locking {}", path.display())),
        }
        // A host that just ended may have removed the file between our open and our lock.
        let (ours, there) = (rustix::fs::fstat(&file)?, rustix::fs::stat(&path));
        if there.is_ok_and(|there| (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)) {
            return Ok(file);
        }
    }
}

fn start_daemon(root: Option<&Path>) -> anyhow::Result<(Child, OwnedFd)> {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).context("a socket pair")?;
    let (program, arguments, environment) = (own_program()?, arguments(c"daemon", root)?, environment());
    let child = spawn_child(|| {
        let prepared = || -> io::Result<()> {
            default_signals()?;
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
            // Its standard input is its socket to us.
            place_fd(theirs.as_fd(), 0)?;
            close_on_exec_from(3)?;
            Err(exec_fd(program.as_fd(), &arguments, &environment))
        };
        if let Err(error) = prepared() {
            eprintln!("bailiwickd: starting the daemon: {error}");
        }
        1
    });
    Ok((child.context("forking the daemon")?, ours))
}

/// Serves one daemon until it ends.
fn attend(
    daemon: &Child,
    socket: OwnedFd,
    signals: &SignalFd,
    held: &mut Held,
    stopping: &mut bool,
) -> anyhow::Result<End> {
    let mut stopped = false;
    let mut open = give(&socket, held).is_ok();
    let begun = Instant::now();
    loop {
        let mut fds = [PollFd::new(signals, PollFlags::IN), PollFd::new(&socket, PollFlags::IN)];
        // A socket whose other end is closed would be ready for ever.
        let polled = if open { &mut fds[..] } else { &mut fds[..1] };
        let on_trial = held.contains_key(PREVIOUS);
        match poll(polled, on_trial.then_some(&Timespec { tv_sec: 1, tv_nsec: 0 })) {
            Ok(0) if on_trial && begun.elapsed() > TAKE_OVER => {
                let _ = pidfd_send_signal(&daemon.pidfd, Signal::KILL);
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if open && fds[1].revents() != PollFlags::empty() {
            match recv(&socket) {
                Ok(Some(message)) => stopped |= obey(message, held),
                Ok(None) => open = false,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Err(_) => open = false,
            }
            // What the daemon said before it ended comes before its end.
            continue;
        }
        while let Some(signal) = signals.take()? {
            if signal == Signal::CHILD.as_raw() {
                if let Some(end) = reap(daemon.pid)? {
                    return Ok(if stopped { End::Stopped } else { end });
                }
            } else {
                *stopping = true;
                let _ = pidfd_send_signal(&daemon.pidfd, Signal::TERM);
            }
        }
    }
}

/// Gives a new daemon all that is held.
fn give(socket: &OwnedFd, held: &Held) -> io::Result<()> {
    for (name, fd) in held.iter().filter(|(name, _)| **name != PREVIOUS) {
        send(socket.as_fd(), Word::Held, name, Some(fd.as_fd()))?;
    }
    send(socket.as_fd(), Word::End, "", None)
}

/// Does what the daemon says; whether the host stops.
fn obey((word, name, fd): (Word, String, Option<OwnedFd>), held: &mut Held) -> bool {
    match (word, fd) {
        (Word::Keep, Some(fd)) if held.len() < HELD || held.contains_key(&name) => drop(held.insert(name, fd)),
        (Word::Drop, _) => drop(held.remove(&name)),
        (Word::Become, Some(fd)) => drop(held.insert(NEXT.to_owned(), fd)),
        (Word::Stop, _) => return true,
        _ => {}
    }
    false
}

/// Reaps all children that have ended, of whatever process group (waitpid's 0 would leave an orphaned init, which is in one
/// of its own); how the daemon did, if it is one of them.
fn reap(daemon: Pid) -> anyhow::Result<Option<End>> {
    let mut end = None;
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == daemon => {
                // 101 is a panic.
                let code = status.exit_status().filter(|code| *code != 101);
                end = Some(code.map_or(End::Died, End::Code));
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(end),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until nobody is left: children of the daemon came here with its end, and die of it as soon as the kernel lets them.
fn await_children(signals: &SignalFd) -> anyhow::Result<()> {
    let deadline = Instant::now() + CHILDREN_END;
    loop {
        while signals.take()?.is_some() {}
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) => {}
                Ok(None) | Err(rustix::io::Errno::INTR) => break,
                Err(_) => return Ok(()),
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            eprintln!("bailiwickd: processes are left that do not end");
            return Ok(());
        }
        await_signal(signals, left);
    }
}

/// Waits for `pause`, reaping; whether it was asked to stop meanwhile.
fn wait_for_stop(signals: &SignalFd, pause: Duration) -> anyhow::Result<bool> {
    let deadline = Instant::now() + pause;
    loop {
        while let Some(signal) = signals.take()? {
            if signal != Signal::CHILD.as_raw() {
                return Ok(true);
            }
            while matches!(wait(WaitOptions::NOHANG), Ok(Some(_))) {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        await_signal(signals, left);
    }
}

fn await_signal(signals: &SignalFd, left: Duration) {
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
    let _ = poll(&mut [PollFd::new(signals, PollFlags::IN)], Some(&timeout));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn what_is_kept_is_given_to_the_next_daemon() {
        let (keeper, daemon) = pair();
        let (one, _) = pair();
        let mut held = Held::new();
        for (word, name, fd) in [
            (Word::Keep, "listen/[::]:80", Some(one.as_fd())),
            (Word::Keep, "shim/a", Some(one.as_fd())),
            (Word::Keep, "nothing", None),
            (Word::Drop, "shim/a", None),
        ] {
            send(daemon.as_fd(), word, name, fd).unwrap();
            assert!(!obey(recv(&keeper).unwrap().unwrap(), &mut held));
        }
        give(&keeper, &held).unwrap();
        let (word, name, fd) = recv(&daemon).unwrap().unwrap();
        assert_eq!((word, name.as_str()), (Word::Held, "listen/[::]:80"));
        assert!(fd.is_some());
        assert_eq!(recv(&daemon).unwrap().unwrap().0, Word::End);
        send(daemon.as_fd(), Word::Stop, "", None).unwrap();
        assert!(obey(recv(&keeper).unwrap().unwrap(), &mut held));
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        let pauses: Vec<_> =
            std::iter::successors(Some(Duration::ZERO), |last| Some(next_pause(*last))).take(20).collect();
        assert!(pauses.is_sorted());
        assert_eq!((pauses[1], pauses[19]), (MIN_PAUSE, MAX_PAUSE));
    }

    #[test]
    fn kernel_releases_are_read() {
        assert_eq!(version("6.18.44-fc-v669"), (6, 18));
        assert_eq!(version("6.9+deb13"), (6, 9));
        assert!(version("6.1.0-28-amd64") < (6, 9));
    }
}
