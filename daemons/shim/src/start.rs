//! From the start message to a VPS that is being built (steps 5 to 7 of docs/ARCHITECTURE.md).

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use isolation::inside::{Entrance, Prepared, Setting, enter};
use model::RunSpec;
use rustix::{
    io::{read, write},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, waitpid},
};
use sys::process::{spawn_child_in, spawn_sibling};
use wire::shim::{Bind, ToShim};

use crate::{
    channel, files,
    init::{self, Streams, Task},
};

/// `Start`, with its descriptors sorted.
#[derive(Debug)]
pub struct Request {
    pub run: RunSpec,
    binds: Vec<Bind>,
    entrance: Entrance,
    /// The VPS's v2 cgroup, which init is born in.
    cgroup: OwnedFd,
    log: OwnedFd,
    listeners: Vec<(String, OwnedFd)>,
    secrets: Option<OwnedFd>,
    /// Whether it was a `Prepare`.
    ahead: bool,
}

/// A VPS whose init was started.
#[derive(Debug)]
pub struct Vps {
    pub run: RunSpec,
    /// Its init, as the shim's namespace numbers it.
    pub pid: Pid,
    pub pidfd: OwnedFd,
    /// The shim's end of the socket to init.
    pub init: OwnedFd,
    /// Read ends of the program's streams.
    pub output: OwnedFd,
    pub errors: OwnedFd,
    /// The directory for its log.
    pub log: OwnedFd,
    /// Whether what it runs comes with `Go`.
    pub ahead: bool,
}

impl Request {
    /// From the first message and its descriptors. Fails when it is no start, or the daemon's count is not theirs.
    pub fn new(message: ToShim, fds: Vec<OwnedFd>) -> anyhow::Result<Self> {
        let (run, count, binds, ahead) = match message {
            ToShim::Start { run, fds, binds, .. } => (*run, fds, binds, false),
            ToShim::Prepare { run, fds, binds, .. } => (*run, fds, binds, true),
            _ => anyhow::bail!("the first message is not a start"),
        };
        let expected =
            3 + usize::from(count.network) + count.tasks + count.listeners.len() + usize::from(count.secrets);
        anyhow::ensure!(fds.len() == expected, "{} descriptors came with the start, not {expected}", fds.len());
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or_else(|| anyhow::anyhow!("a descriptor is missing"));
        let user = next()?;
        let network = count.network.then(&mut next).transpose()?;
        let log = next()?;
        let cgroup = next()?;
        let tasks = (0..count.tasks).map(|_| next()).collect::<Result<_, _>>()?;
        let listeners =
            count.listeners.iter().map(|name| Ok((name.clone(), next()?))).collect::<anyhow::Result<_>>()?;
        let secrets = count.secrets.then(&mut next).transpose()?;
        Ok(Self { run, binds, entrance: Entrance { user, network, tasks }, cgroup, log, listeners, secrets, ahead })
    }
}

/// Forks init into the VPS. The error is for a person.
pub fn start(request: Request) -> Result<Vps, String> {
    let fault = |what: &'static str| move |error: io::Error| format!("{what}: {}", isolation::lack::cause(&error));
    let (ours, theirs) = channel::pair().map_err(fault("making the socket to init"))?;
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|e| fault("making a pipe")(e.into()));
    let ((output, output_writer), (errors, errors_writer)) = (pipe()?, pipe()?);
    let (answer, report) = pipe()?;

    let prepared =
        |bind: &Bind| Prepared { target: bind.target.clone(), directory: bind.directory, volume: bind.volume };
    let binds: Vec<_> = request.binds.iter().map(prepared).collect();
    let setting = Setting { network: request.entrance.network.is_some(), binds: &binds };
    let Request { run, ahead, listeners, secrets, .. } = &request;
    let known = files::known(&request.log);
    let task = Task { run, setting, ahead: *ahead, listeners, secrets: secrets.as_ref(), known: &known };
    let streams = Streams { shim: &theirs, output: &output_writer, errors: &errors_writer };
    let entering = spawn_child_in(request.cgroup.as_fd(), || {
        let entered = enter(&request.entrance)
            .map_err(|e| e.explain())
            .and_then(|()| spawn_sibling(|| init::run(&task, &streams)).map_err(fault("forking init")));
        let answer = match entered {
            Ok(pid) => format!("+{}", pid.as_raw_nonzero()),
            Err(reason) => format!("-{}", channel::bounded(reason)),
        };
        i32::from(write(&report, answer.as_bytes()).is_err())
    })
    .map_err(fault("forking"))?;
    drop((theirs, output_writer, errors_writer, report));

    let mut bytes = [0; 2048];
    // The child ran nothing of the tenant's: it answers or dies.
    let n = read(&answer, bytes.as_mut_slice()).map_err(|e| fault("waiting for init to be forked")(e.into()))?;
    entering.wait().map_err(fault("waiting for init to be forked"))?;
    let answer = String::from_utf8_lossy(&bytes[..n]);
    let pid = match answer.split_at_checked(1) {
        Some(("+", pid)) => pid.parse().ok().and_then(Pid::from_raw).ok_or("init has no process id")?,
        Some((_, reason)) => return Err(reason.to_owned()),
        None => return Err("the child that enters the VPS died".to_owned()),
    };
    // A child of this process that nobody has reaped: the number is its.
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        let _ = waitpid(Some(pid), WaitOptions::empty());
        fault("opening init")(error.into())
    })?;
    let Request { run, log, ahead, .. } = request;
    rustix::io::ioctl_fionbio(output.as_fd(), true).map_err(|e| fault("preparing the log")(e.into()))?;
    rustix::io::ioctl_fionbio(errors.as_fd(), true).map_err(|e| fault("preparing the log")(e.into()))?;
    Ok(Vps { run, pid, pidfd, init: ours, output, errors, log, ahead })
}
