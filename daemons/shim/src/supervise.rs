//! The shim's loop: daemon, init, held calls, output and deadline, until the VPS has no process any more.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use model::{ExitStatus, RunSpec, run::Ready, state::ShimTimes};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, ioctl_fionbio, read},
    process::{Signal, WaitOptions, pidfd_send_signal, waitpid},
};
use wire::shim::{FromShim, ShimState, ToShim, VERSION, recv, send};

use crate::{
    channel::{self, FROM_INIT, FromInit, Received, ToInit},
    check::{self, Check, Due},
    files::Files,
    init::exit_status,
    listen::{self, Heard},
    log::{Log, MAX_LINE, Pumped, Source},
    start::Vps,
    syslog::{Budget, PER_SECOND},
};

/// Messages of one kind that are heard before it is somebody else's turn.
const TURN: usize = 32;

/// What poll(2) says can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Daemon,
    Init,
    InitEnd,
    Held,
    Notify,
    Out,
    Err,
    Check,
    Syslog,
    Files,
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

/// Supervises one VPS.
#[derive(Debug)]
pub struct Supervisor {
    daemon: OwnedFd,
    init: Option<OwnedFd>,
    pid: rustix::process::Pid,
    pidfd: OwnedFd,
    out: Option<OwnedFd>,
    err: Option<OwnedFd>,
    held: Option<OwnedFd>,
    notify: Option<OwnedFd>,
    syslog: Option<OwnedFd>,
    files: Option<Files>,
    budget: Budget,
    log: Log,
    ready: Ready,
    /// What has to succeed besides, and has not yet.
    check: Option<Box<Check>>,
    stop_signal: i32,
    /// Whether it was prepared, and `Go` has not come.
    ahead: bool,
    state: ShimState,
    times: ShimTimes,
    /// When init is killed.
    deadline: Option<Instant>,
    ended: Option<ExitStatus>,
    not_started: Option<String>,
}

impl Supervisor {
    /// Takes over a VPS that is being built.
    pub fn new(daemon: OwnedFd, vps: Vps) -> Self {
        Self {
            daemon,
            init: Some(vps.init),
            pid: vps.pid,
            pidfd: vps.pidfd,
            out: Some(vps.output),
            err: Some(vps.errors),
            held: None,
            notify: None,
            syslog: None,
            files: None,
            budget: Budget::default(),
            log: Log::open(vps.log),
            check: Check::of(&vps.run),
            ready: vps.run.ready,
            stop_signal: vps.run.stop.signal,
            ahead: vps.ahead,
            state: ShimState::Building,
            times: ShimTimes::default(),
            deadline: None,
            ended: None,
            not_started: None,
        }
    }

    /// Until the VPS is gone.
    pub fn run(mut self) -> anyhow::Result<()> {
        // A daemon that does not read, because it is being started again, is no reason to wait.
        ioctl_fionbio(&self.daemon, true)?;
        self.report();
        loop {
            for from in self.wait()? {
                match from {
                    From::Daemon => self.hear_daemon(),
                    From::Init => self.hear_init(),
                    From::InitEnd => return self.finish(),
                    From::Held => self.hear_held(),
                    From::Notify => self.hear_notify(),
                    From::Syslog => self.hear_syslog(),
                    From::Files => self.hear_files(TURN),
                    From::Out | From::Err => self.pump(from),
                    From::Check => self.check.iter_mut().for_each(|check| check.hear()),
                }
            }
            if self.deadline.is_some_and(|at| Instant::now() >= at) {
                self.deadline = None;
                self.kill();
            }
            self.check();
        }
    }

    fn wait(&self) -> io::Result<Vec<From>> {
        let mut sources = vec![(From::Daemon, &self.daemon)];
        let check = self.check.as_ref();
        let optional = [
            (From::Init, &self.init),
            (From::Held, &self.held),
            (From::Notify, &self.notify),
            (From::Syslog, &self.syslog),
            (From::Out, &self.out),
            (From::Err, &self.err),
        ];
        sources.extend(optional.into_iter().filter_map(|(from, fd)| Some((from, fd.as_ref()?))));
        sources.extend(self.files.iter().filter_map(|files| Some((From::Files, files.socket()?))));
        sources.extend(check.and_then(|check| check.output()).map(|output| (From::Check, output)));
        // Last, so that what init said before its end is heard first.
        sources.push((From::InitEnd, &self.pidfd));
        let mut fds: Vec<_> = sources.iter().map(|(_, fd)| PollFd::new(*fd, PollFlags::IN)).collect();
        let files = self.files.as_ref().and_then(|files| files.at()).filter(|at| *at > Instant::now());
        let next = self.deadline.into_iter().chain(check.and_then(|check| check.at())).chain(files).min();
        let left = next.map(|at| at.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let timeout = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(sources.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|((from, _), _)| *from).collect())
    }

    /// What does not reach a daemon that is away, its successor asks for (`Report`).
    fn tell(&self, message: &FromShim) {
        let _ = send(self.daemon.as_fd(), message, &[]);
    }

    fn report(&self) {
        let pid = Some(self.pid.as_raw_nonzero().get());
        self.tell(&FromShim::State { version: VERSION, state: self.state, pid, times: self.times });
    }

    fn enter(&mut self, state: ShimState) {
        // A VPS that was asked to end does not become ready any more.
        if self.state != state && self.state != ShimState::Stopping {
            self.state = state;
            self.report();
        }
    }

    /// It is ready, unless something has to succeed first.
    fn up(&mut self) {
        if self.ready != Ready::Started {
            self.times.heard_us.get_or_insert_with(now_us);
        }
        match &mut self.check {
            Some(check) if self.state != ShimState::Stopping => check.begin(),
            _ => self.enter(ShimState::Ready),
        }
    }

    /// Does what the check is due to do.
    fn check(&mut self) {
        let Some(check) = &mut self.check else { return };
        let done = match check.due() {
            Ok(None) => return,
            Ok(Some(Due::Kill)) => self.ask(&ToInit::ExecKill { id: check::ID }, &[]),
            Ok(Some(Due::Run(message, fds))) => self.ask(&message, &fds),
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            self.checked(ExitStatus::Code(126), Some(error.to_string()));
        }
    }

    fn checked(&mut self, status: ExitStatus, error: Option<String>) {
        let Some(check) = &mut self.check else { return };
        let (ready, line) = check.ended(status, error);
        if let Some(line) = line {
            self.log.say(&line);
        }
        if ready {
            self.check = None;
            self.times.checked_us = Some(now_us());
            self.enter(ShimState::Ready);
        }
    }

    fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    fn hear_daemon(&mut self) {
        match recv::<ToShim>(self.daemon.as_fd()) {
            Ok(Some((message, fds))) => self.obey(message, &fds),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.log.say(&format!("a message of the host was not understood: {error}"));
            }
            // Neither daemon nor keeper: nobody could ever stop this VPS.
            Ok(None) | Err(_) => {
                if !self.ahead {
                    self.log.say("the host daemon and its keeper are gone; ending");
                }
                self.state = ShimState::Stopping;
                self.kill();
            }
        }
    }

    fn obey(&mut self, message: ToShim, fds: &[OwnedFd]) {
        match message {
            ToShim::Start { .. } | ToShim::Prepare { .. } => {}
            ToShim::Go { run } => self.go(run, fds),
            ToShim::Report => self.report(),
            ToShim::Stop { grace_ms } => self.stop(grace_ms),
            ToShim::Exec { id, command, env, user, cwd, terminal } => {
                let asked = self.ask(&ToInit::Exec { id, command, env, user, cwd, terminal }, fds);
                if let Err(error) = asked {
                    let error = Some(format!("init of the VPS takes no requests: {error}"));
                    self.tell(&FromShim::ExecEnded { id, status: ExitStatus::Code(126), error });
                }
            }
            ToShim::ExecKill { id } => {
                let _ = self.ask(&ToInit::ExecKill { id }, &[]);
            }
        }
    }

    /// Has a prepared VPS run this.
    fn go(&mut self, run: Box<RunSpec>, fds: &[OwnedFd]) {
        if !std::mem::take(&mut self.ahead) {
            return;
        }
        self.check = Check::of(&run);
        (self.ready, self.stop_signal) = (run.ready.clone(), run.stop.signal);
        self.check = Check::of(&run);
        self.times = ShimTimes::default();
        self.enter(ShimState::Building);
        if let Err(error) = self.ask(&ToInit::Go { run }, fds) {
            self.not_started.get_or_insert(format!("init of the prepared VPS takes no requests: {error}"));
            self.kill();
        }
    }

    fn ask(&self, message: &ToInit, fds: &[OwnedFd]) -> io::Result<()> {
        let init = self.init.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        channel::send(init, message, &fds)
    }

    fn stop(&mut self, grace_ms: u64) {
        let started = matches!(self.state, ShimState::Started | ShimState::Ready | ShimState::Stopping);
        self.enter(ShimState::Stopping);
        if let Some(line) = self.check.take().and_then(|check| check.unfinished()) {
            self.log.say(&line);
        }
        let asked = grace_ms > 0 && started && self.ask(&ToInit::Signal { number: self.stop_signal }, &[]).is_ok();
        if !asked {
            return self.kill();
        }
        let at = Instant::now() + Duration::from_millis(grace_ms);
        // A second stop may shorten the first one's grace, not lengthen it.
        self.deadline = Some(self.deadline.map_or(at, |before| before.min(at)));
    }

    fn hear_init(&mut self) {
        for _ in 0..TURN {
            let Some(init) = &self.init else { return };
            match channel::receive::<FromInit>(init, FROM_INIT) {
                Ok(Received::Message(message, fds)) => self.believe(message, fds),
                Ok(Received::Nothing) => return,
                // Its end is seen by its pidfd.
                Ok(Received::Closed) | Err(_) => self.init = None,
            }
        }
    }

    fn believe(&mut self, message: FromInit, fds: Vec<OwnedFd>) {
        match message {
            FromInit::Built { listener, notify, syslog, files } => {
                self.times.built_us = Some(now_us());
                let mut fds = fds.into_iter();
                self.held = if listener { fds.next() } else { None };
                let mut quick = |there: bool| fds.next().filter(|fd| there && ioctl_fionbio(fd, true).is_ok());
                self.notify = if notify { quick(true) } else { None };
                self.syslog = if syslog { quick(true) } else { None };
                self.files =
                    if files { quick(true).and_then(|socket| Files::new(socket, self.log.directory())) } else { None };
            }
            // `Go` may have come before.
            FromInit::Framed if self.ahead => self.enter(ShimState::Prepared),
            FromInit::Framed => {}
            FromInit::Started => {
                self.times.executed_us = Some(now_us());
                // It may listen before init has seen that it was executed.
                if self.state == ShimState::Building {
                    self.enter(ShimState::Started);
                }
                if self.ready == Ready::Started {
                    self.up();
                }
            }
            FromInit::NotStarted { reason } => {
                self.log.say(&reason);
                self.not_started.get_or_insert(reason);
            }
            FromInit::ExecEnded { id: check::ID, status, error } => self.checked(status, error),
            FromInit::ExecEnded { id, status, error } => self.tell(&FromShim::ExecEnded { id, status, error }),
            FromInit::Ended { status } => {
                self.ended.get_or_insert(status);
            }
        }
    }

    fn hear_held(&mut self) {
        let Some(listener) = &self.held else { return };
        let port = match (&self.ready, self.state) {
            (Ready::Listen(port), ShimState::Building | ShimState::Started) => Some(*port),
            _ => None,
        };
        match listen::answer_one(listener.as_fd(), port) {
            Ok(Heard::Ready) => self.up(),
            Ok(Heard::Other) => {}
            Ok(Heard::Failed(why)) => self.log.say(&why),
            // No process has the filter any more, or the kernel lacks what is needed: calls fail with ENOSYS then.
            Err(error) => {
                self.log.say(&format!("listen calls are not seen any more: {error}"));
                self.held = None;
            }
        }
    }

    fn hear_notify(&mut self) {
        let mut text = [0; 4096];
        for _ in 0..TURN {
            let Some(socket) = &self.notify else { return };
            match read(socket, text.as_mut_slice()) {
                Ok(n) if text[..n].split(|b| *b == b'\n').any(|line| line == b"READY=1") => self.up(),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.notify = None,
            }
        }
    }

    /// Takes messages of `/dev/log`, always, so that who writes there never waits for long; a flood is counted, not kept.
    fn hear_syslog(&mut self) {
        let mut text = [0; MAX_LINE];
        for _ in 0..TURN {
            let Some(socket) = &self.syslog else { return };
            match read(socket, text.as_mut_slice()) {
                Ok(n) => {
                    let (wanted, missed) = self.budget.take(Instant::now());
                    self.missed(missed);
                    if wanted {
                        self.log.syslog(&text[..n]);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.syslog = None,
            }
        }
        self.log.flush();
    }

    fn hear_files(&mut self, most: usize) {
        let Some(mut files) = self.files.take() else { return };
        if files.hear(&mut self.log, most) {
            self.files = Some(files);
        } else if !files.is_done() && self.state != ShimState::Stopping {
            self.log.say("the files of `logs` are not followed any more: what followed them has ended");
        }
    }

    fn missed(&mut self, messages: u64) {
        if messages > 0 {
            self.log
                .say(&format!("{messages} messages of /dev/log were dropped: more than {PER_SECOND} came in a second"));
        }
    }

    fn pump(&mut self, from: From) {
        let (source, stream) = match from {
            From::Out => (Source::Out, &mut self.out),
            _ => (Source::Err, &mut self.err),
        };
        if stream.as_ref().is_some_and(|fd| self.log.pump(source, fd) == Pumped::End) {
            *stream = None;
        }
    }

    /// Init is dead, and the kernel has killed all others before: what is still to be read is bounded.
    fn finish(mut self) -> anyhow::Result<()> {
        self.hear_init();
        for (source, stream) in [(Source::Out, &self.out), (Source::Err, &self.err)] {
            // A pipe holds 64 KiB unless the tenant enlarged it, at most to 1 MiB.
            for _ in 0..256 {
                if stream.as_ref().is_none_or(|fd| self.log.pump(source, fd) != Pumped::Some) {
                    break;
                }
            }
        }
        for _ in 0..16 {
            self.hear_syslog();
        }
        // A socket holds some ten of its messages.
        self.state = ShimState::Stopping;
        self.hear_files(256);
        let missed = self.budget.rest();
        self.missed(missed);
        self.log.finish();
        let reaped = loop {
            match waitpid(Some(self.pid), WaitOptions::empty()) {
                Err(Errno::INTR) => {}
                done => break done.ok().flatten(),
            }
        };
        ioctl_fionbio(&self.daemon, false)?;
        match self.not_started.take() {
            Some(reason) => self.tell(&FromShim::NotStarted { reason }),
            None => {
                let of_init = reaped.map_or(ExitStatus::Signal(9), |(_, status)| exit_status(status));
                self.tell(&FromShim::Ended { status: self.ended.unwrap_or(of_init) });
            }
        }
        Ok(())
    }
}
