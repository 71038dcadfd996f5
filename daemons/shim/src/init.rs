//! Process 1 of a VPS: builds the inside, starts the program and what `exec` asks for, reaps, and ends with the program.
//!
//! Forked from the shim and never executed anew, it belongs to no one inside: the tenant's root can neither trace nor
//! read it. It holds the socket to the shim, its children's outcomes, and no other descriptor of the host.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use isolation::{
    inside::{Live, Program, Secret, Setting, Starting, Stdio, build, finish, frame},
    lack::cause,
};
use model::{ExitStatus, RunSpec, SecretName, run::Ready};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Mode, OFlags, open},
    io::{Errno, read},
    process::{
        Pid, Signal, WaitOptions, WaitStatus, kill_process, kill_process_group, set_parent_process_death_signal, umask,
        wait,
    },
};
use sys::process::{child_events, close_all_but, place_fd, send_signal};

use crate::{
    channel::{self, FromInit, Received, ToInit, bounded},
    follow::Following,
};

/// Init's ends of what leads to the shim.
pub struct Streams<'a> {
    pub shim: &'a OwnedFd,
    pub output: &'a OwnedFd,
    pub errors: &'a OwnedFd,
}

/// Programs that `exec` may run at the same time.
const MAX_EXECS: usize = 64;

/// What is to be built and run.
pub struct Task<'a> {
    pub run: &'a RunSpec,
    pub setting: Setting<'a>,
    /// Whether the frame is built ahead: what is run comes with `ToInit::Go`.
    pub ahead: bool,
    pub listeners: &'a [(String, OwnedFd)],
    /// What its secrets say ([`wire::secrets`]).
    pub secrets: Option<&'a OwnedFd>,
    /// How far the files of `logs` were taken before.
    pub known: &'a [u8],
}

/// Runs as init; the exit code.
pub fn run(task: &Task<'_>, streams: &Streams<'_>) -> i32 {
    match begin(task, streams) {
        Ok(mut init) => {
            // What it took to build the VPS is not needed any more; its program runs already.
            sys::memory::trim();
            init.serve()
        }
        Err(reason) => {
            let _ = channel::send(streams.shim, &FromInit::NotStarted { reason: bounded(reason) }, &[]);
            1
        }
    }
}

struct Init<'a> {
    shim: BorrowedFd<'a>,
    children: OwnedFd,
    programs: Vec<Running>,
    following: Option<Following>,
}

/// A program of the VPS or of an `Exec`.
struct Running {
    /// None: the VPS's own program.
    exec: Option<u64>,
    pid: Pid,
    /// Until it is known what became of it.
    starting: Option<Starting>,
    error: Option<(i32, String)>,
}

fn begin<'a>(task: &Task<'_>, streams: &Streams<'a>) -> Result<Init<'a>, String> {
    let Task { run, setting, ahead, listeners, secrets, known } = *task;
    let fault = |what: &'static str| move |error: std::io::Error| format!("{what}: {}", cause(&error));
    // After the last change of ids, which would undo it. Should the shim have died before, the socket says so.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(|e| fault("binding init to its shim")(e.into()))?;
    let mut keep = vec![streams.shim.as_fd(), streams.output.as_fd(), streams.errors.as_fd()];
    keep.extend(listeners.iter().map(|(_, fd)| fd.as_fd()));
    keep.extend(secrets.map(AsFd::as_fd));
    close_all_but(&keep).map_err(fault("closing descriptors"))?;
    // So that no descriptor that comes later is 0, 1 or 2.
    let null = || open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let standard = |fd: OwnedFd| (0..3).try_for_each(|number| place_fd(fd.as_fd(), number)).map(|()| fd);
    let first = null().map_err(Into::into).and_then(standard).map_err(fault("opening /dev/null"))?;

    let mut live = Live::default();
    umask(Mode::empty());
    build(&frame(run, setting), &mut live).map_err(|e| e.explain())?;
    let (told, came) = if ahead { await_go(streams.shim).map(|(run, came)| (Some(run), came))? } else { (None, None) };
    let run = told.as_ref().unwrap_or(run);
    // The step that takes them closes it: all that is open later is known.
    live.secrets = match came {
        Some(came) => Some(came),
        None => secrets.map(OwnedFd::try_clone).transpose().map_err(fault("taking secrets"))?,
    };
    let secrets = find_secrets(run, live.secrets.as_ref()).map_err(fault("taking secrets"))?;
    build(&finish(run, setting, &secrets), &mut live).map_err(|e| e.explain())?;
    umask(Mode::from(0o022));
    let second = null().map_err(Into::into).and_then(standard).map_err(fault("opening /dev/null of the VPS"))?;
    // One of the two may be one of the three.
    std::mem::forget((first, second));
    let following = (!run.logs.is_empty()).then(|| Following::start(&run.logs, known)).transpose();
    let (following, files) = following.map_err(fault("following the files of `logs`"))?.unzip();
    let fds: Vec<BorrowedFd<'_>> =
        live.listener.iter().chain(&live.notify).chain(&live.syslog).chain(&files).map(AsFd::as_fd).collect();
    let built = FromInit::Built {
        listener: live.listener.is_some(),
        notify: live.notify.is_some(),
        syslog: live.syslog.is_some(),
        files: files.is_some(),
    };
    channel::send(streams.shim, &built, &fds).map_err(fault("answering the shim"))?;
    drop((live, files));

    let children = child_events().map_err(fault("watching children"))?;
    let mut env = run.env.clone();
    if run.ready == Ready::Notify {
        env.insert("NOTIFY_SOCKET".to_owned(), "/run/notify".to_owned());
    }
    let input = null().map_err(|e| fault("opening /dev/null of the VPS")(e.into()))?;
    let starting = Program {
        command: &run.command,
        env: &env,
        cwd: &run.cwd,
        user: &run.user,
        stdio: Stdio::Fds([input.as_fd(), streams.output.as_fd(), streams.errors.as_fd()]),
        listeners,
    }
    .start()
    .map_err(fault("forking the program"))?;
    drop(input);
    // The program's from here on: whoever holds them keeps the log, or a socket, open.
    let (null_in, null_out, null_err) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let mut keep = vec![
        null_in.as_fd(),
        null_out.as_fd(),
        null_err.as_fd(),
        streams.shim.as_fd(),
        children.as_fd(),
        starting.child.pidfd.as_fd(),
        starting.outcome.as_fd(),
    ];
    keep.extend(following.iter().flat_map(Following::descriptors));
    close_all_but(&keep).map_err(fault("closing descriptors"))?;
    let program = Running { exec: None, pid: starting.child.pid, starting: Some(starting), error: None };
    Ok(Init { shim: streams.shim.as_fd(), children, programs: vec![program], following })
}

/// Where each secret is in what came: never in this process's memory.
fn find_secrets(run: &RunSpec, came: Option<&OwnedFd>) -> io::Result<Vec<Secret>> {
    let ranges = match came {
        Some(file) => wire::secrets::ranges(file, run.secrets.len())?,
        None if run.secrets.is_empty() => Vec::new(),
        None => return Err(io::Error::other("none came")),
    };
    let secret = |((name, path), range): ((&SecretName, &String), wire::secrets::Range)| Secret {
        name: name.clone(),
        path: path.clone(),
        start: range.start,
        length: range.length,
    };
    Ok(run.secrets.iter().zip(ranges).map(secret).collect())
}

/// Says that the frame is there, and waits for what is to run in it, with what its secrets say.
fn await_go(shim: &OwnedFd) -> Result<(RunSpec, Option<OwnedFd>), String> {
    let fault = |error: std::io::Error| format!("waiting in the frame: {error}");
    channel::send(shim, &FromInit::Framed, &[]).map_err(fault)?;
    loop {
        match poll(&mut [PollFd::new(shim, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(fault(error.into())),
        }
        match channel::receive::<ToInit>(shim, channel::TO_INIT).map_err(fault)? {
            Received::Message(ToInit::Go { run }, fds) => return Ok((*run, fds.into_iter().next())),
            // Nothing runs that it could be meant for.
            Received::Message(..) | Received::Nothing => {}
            Received::Closed => return Err("the shim is gone".to_owned()),
        }
    }
}

impl Init<'_> {
    /// Until the program has ended or the shim is gone.
    fn serve(&mut self) -> i32 {
        loop {
            let mut fds =
                vec![PollFd::from_borrowed_fd(self.shim, PollFlags::IN), PollFd::new(&self.children, PollFlags::IN)];
            let starting = self.programs.iter().filter_map(|p| p.starting.as_ref());
            fds.extend(starting.map(|s| PollFd::new(&s.outcome, PollFlags::IN)));
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return 1,
            }
            let asked = !fds[0].revents().is_empty();
            if asked && !self.ask() {
                return 1;
            }
            self.outcomes();
            if let Some(status) = self.reap() {
                if let Some(following) = self.following.take() {
                    following.finish();
                }
                self.say(&FromInit::Ended { status });
                return status.shell_code();
            }
        }
    }

    fn say(&self, message: &FromInit) {
        // A shim that does not take this is one that dies.
        let _ = channel::send(self.shim, message, &[]);
    }

    /// Takes one message from the shim; `false` when it is gone.
    fn ask(&mut self) -> bool {
        match channel::receive::<ToInit>(self.shim, channel::TO_INIT) {
            Ok(Received::Message(message, fds)) => self.obey(message, &fds),
            Ok(Received::Nothing) => {}
            Ok(Received::Closed) | Err(_) => return false,
        }
        true
    }

    fn obey(&mut self, message: ToInit, fds: &[OwnedFd]) {
        match message {
            ToInit::Signal { number } => {
                let program = self.programs.iter().find(|p| p.exec.is_none());
                if let Some(program) = program {
                    let _ = send_signal(program.pid, number);
                }
            }
            ToInit::ExecKill { id } => {
                if let Some(program) = self.programs.iter().find(|p| p.exec == Some(id)) {
                    let _ = kill_process_group(program.pid, Signal::KILL);
                    let _ = kill_process(program.pid, Signal::KILL);
                }
            }
            // It runs already.
            ToInit::Go { .. } => {}
            ToInit::Exec { id, command, env, user, cwd, terminal } => {
                let stdio = match (terminal, fds) {
                    (None, [input, output, errors]) => Ok(Stdio::Fds([input.as_fd(), output.as_fd(), errors.as_fd()])),
                    (Some(size), [socket]) => Ok(Stdio::Terminal(size, socket.as_fd())),
                    _ => Err("other descriptors came with the request than it needs".to_owned()),
                };
                let program =
                    |stdio| Program { command: &command, env: &env, cwd: &cwd, user: &user, stdio, listeners: &[] };
                if let Err(reason) = stdio.map(program).and_then(|program| self.exec(id, &program)) {
                    let status = ExitStatus::Code(126);
                    self.say(&FromInit::ExecEnded { id, status, error: Some(bounded(reason)) });
                }
            }
        }
    }

    fn exec(&mut self, id: u64, program: &Program<'_>) -> Result<(), String> {
        if self.programs.len() > MAX_EXECS {
            return Err(format!("{MAX_EXECS} programs are being run already"));
        }
        let starting = program.start().map_err(|e| format!("forking: {}", cause(&e)))?;
        self.programs.push(Running { exec: Some(id), pid: starting.child.pid, starting: Some(starting), error: None });
        Ok(())
    }

    /// Looks which programs have been executed, or could not be.
    fn outcomes(&mut self) {
        for n in 0..self.programs.len() {
            let program = &mut self.programs[n];
            let Some(starting) = &program.starting else { continue };
            let mut fds = [PollFd::new(&starting.outcome, PollFlags::IN)];
            if !matches!(poll(&mut fds, Some(&rustix::event::Timespec::default())), Ok(1)) {
                continue;
            }
            program.error = starting.outcome().map(|failure| (failure.code, failure.reason));
            program.starting = None;
            if let (None, error) = (program.exec, &program.error) {
                let said = match error {
                    None => FromInit::Started,
                    Some((_, reason)) => FromInit::NotStarted { reason: bounded(reason.clone()) },
                };
                self.say(&said);
            }
        }
    }

    /// Reaps whoever has ended; the program's status when it was among them.
    fn reap(&mut self) -> Option<ExitStatus> {
        // What it says is only that there is something to reap.
        let _ = read(&self.children, &mut [0; 128]);
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(at) = self.programs.iter().position(|p| p.pid == pid) else { continue };
            // Its outcome is older than its end.
            self.outcomes();
            let program = self.programs.swap_remove(at);
            let status = exit_status(status);
            match program.exec {
                None => return Some(status),
                Some(id) => {
                    let (status, error) = match program.error {
                        Some((code, reason)) => (ExitStatus::Code(code), Some(bounded(reason))),
                        None => (status, None),
                    };
                    self.say(&FromInit::ExecEnded { id, status, error });
                }
            }
        }
        None
    }
}

/// How a process ended.
pub fn exit_status(status: WaitStatus) -> ExitStatus {
    match status.terminating_signal() {
        Some(signal) => ExitStatus::Signal(signal),
        None => ExitStatus::Code(status.exit_status().unwrap_or(0)),
    }
}
