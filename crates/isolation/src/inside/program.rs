//! Starting one program inside a VPS.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use model::run::WindowSize;
use rustix::{
    fs::OFlags,
    io::{fcntl_dupfd_cloexec, read, write},
    pipe::{PipeFlags, pipe_with},
    process::{chdir, getpid, setsid},
    thread::{Gid, Uid, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};
use sys::process::{Child, default_signals, exec, place_fd, spawn_child};

use super::{account, terminal};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes of a failure's text.
const MAX_TEXT: usize = 1024;
/// The first descriptor of sd_listen_fds(3).
const LISTEN_START: i32 = 3;

/// A program to be started.
#[derive(Debug)]
pub struct Program<'a> {
    /// Program and arguments.
    pub command: &'a [String],
    /// Environment; `PATH`, `HOME` and `container` are added where missing.
    pub env: &'a BTreeMap<String, String>,
    /// Working directory.
    pub cwd: &'a str,
    /// As `RunSpec::user`.
    pub user: &'a str,
    /// What its standard streams are.
    pub stdio: Stdio<'a>,
    /// Listening sockets and their names (sd_listen_fds(3)).
    pub listeners: &'a [(String, OwnedFd)],
}

/// Standard input, output and error. Descriptors are above 2, as all other ones of the calling process.
#[derive(Debug, Clone, Copy)]
pub enum Stdio<'a> {
    /// These three.
    Fds([BorrowedFd<'a>; 3]),
    /// A terminal of the VPS's own of this size, which becomes its controlling one; the master goes to this socket.
    Terminal(WindowSize, BorrowedFd<'a>),
}

/// A child that is about to become a program.
#[derive(Debug)]
pub struct Starting {
    /// It.
    pub child: Child,
    /// Readable when it has become the program (end of file) or failed to.
    pub outcome: OwnedFd,
}

/// Why a program could not be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// As a shell would exit: 127 not found, 126 not executable.
    pub code: i32,
    /// For a person.
    pub reason: String,
}

impl Failure {
    fn new(code: i32, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

impl Starting {
    /// What became of it; call it when `outcome` is readable. `None`: it runs.
    pub fn outcome(&self) -> Option<Failure> {
        let mut bytes = [0; MAX_TEXT];
        match read(&self.outcome, bytes.as_mut_slice()) {
            Ok(n) if n > 0 => Some(Failure::new(i32::from(bytes[0]), String::from_utf8_lossy(&bytes[1..n]))),
            _ => None,
        }
    }
}

impl Program<'_> {
    /// Forks a child that becomes the program. Nothing of the VPS's files is touched in the calling process.
    pub fn start(&self) -> io::Result<Starting> {
        let (outcome, report) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&outcome, OFlags::NONBLOCK)?;
        let child = spawn_child(|| {
            // Out of the way of the descriptors that the program gets.
            let Ok(report) = fcntl_dupfd_cloexec(&report, LISTEN_START + self.listeners.len() as i32) else {
                return 126;
            };
            let Err(failure) = self.become_it();
            let mut message = vec![failure.code as u8];
            message.extend(failure.reason.bytes().take(MAX_TEXT - 1));
            let _ = write(&report, &message);
            failure.code
        })?;
        Ok(Starting { child, outcome })
    }

    fn become_it(&self) -> Result<std::convert::Infallible, Failure> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| Failure::new(126, format!("{what}: {error}"))
        };
        default_signals().map_err(failed("signals"))?;
        let _ = setsid();
        let account = account::look_up(self.user).map_err(|reason| Failure::new(126, reason))?;
        let slave = match self.stdio {
            Stdio::Fds(_) => None,
            Stdio::Terminal(size, socket) => {
                Some(terminal::open(size, account.uid, socket).map_err(failed("making a terminal"))?)
            }
        };
        let stdio = match (self.stdio, &slave) {
            (_, Some(slave)) => [slave.as_fd(); 3],
            (Stdio::Fds(fds), None) => fds,
            (Stdio::Terminal(_, socket), None) => [socket; 3],
        };
        self.descriptors(stdio).map_err(failed("descriptors"))?;
        let env = self.environment(&account.home);
        let path = env.get("PATH").cloned().unwrap_or_default();
        become_user(&account).map_err(failed(&format!("becoming user {:?}", self.user)))?;
        chdir(self.cwd).map_err(|e| failed(&format!("working directory {:?} inside the VPS", self.cwd))(e.into()))?;
        let environment = strings(env.iter().map(|(name, value)| format!("{name}={value}")))?;
        let arguments = strings(self.command.iter().cloned())?;
        let Some(program) = self.command.first().filter(|p| !p.is_empty()) else {
            return Err(Failure::new(126, "the command is empty"));
        };
        Err(execute(program, &path, &arguments, &environment))
    }

    fn descriptors(&self, stdio: [BorrowedFd<'_>; 3]) -> io::Result<()> {
        for (number, fd) in (0..).zip(stdio) {
            place_fd(fd, number)?;
        }
        let above = LISTEN_START + self.listeners.len() as i32;
        let copies =
            self.listeners.iter().map(|(_, fd)| fcntl_dupfd_cloexec(fd, above)).collect::<Result<Vec<_>, _>>()?;
        for (number, fd) in (LISTEN_START..).zip(&copies) {
            place_fd(fd.as_fd(), number)?;
        }
        Ok(())
    }

    fn environment(&self, home: &str) -> BTreeMap<String, String> {
        let mut env = self.env.clone();
        for (name, value) in [("PATH", PATH), ("HOME", home), ("container", "bailiwick")] {
            env.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
        if !self.listeners.is_empty() {
            let names: Vec<&str> = self.listeners.iter().map(|(name, _)| name.as_str()).collect();
            env.insert("LISTEN_FDS".to_owned(), self.listeners.len().to_string());
            env.insert("LISTEN_FDNAMES".to_owned(), names.join(":"));
            env.insert("LISTEN_PID".to_owned(), getpid().as_raw_nonzero().to_string());
        }
        env
    }
}

fn become_user(account: &account::Account) -> io::Result<()> {
    let id = |number: u32| (number != u32::MAX).then_some(number).ok_or(io::ErrorKind::InvalidInput);
    let groups = account.groups.iter().map(|g| Ok(Gid::from_raw(id(*g)?))).collect::<io::Result<Vec<_>>>()?;
    let (uid, gid) = (Uid::from_raw(id(account.uid)?), Gid::from_raw(id(account.gid)?));
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    Ok(set_thread_res_uid(uid, uid, uid)?)
}

fn strings(texts: impl Iterator<Item = String>) -> Result<Vec<CString>, Failure> {
    let made: Result<Vec<_>, _> = texts.map(CString::new).collect();
    made.map_err(|_| Failure::new(126, "a NUL character in the command or environment"))
}

/// Executes `program`, looked up in `path` where it is a plain name, as execvp(3) does.
fn execute(program: &str, path: &str, arguments: &[CString], environment: &[CString]) -> Failure {
    let attempt = |file: &CStr| exec(file, arguments, environment);
    if program.contains('/') {
        let Ok(file) = CString::new(program) else { return Failure::new(126, "a NUL character in the command") };
        let error = attempt(&file);
        return match error.kind() {
            io::ErrorKind::NotFound => {
                Failure::new(127, format!("program {program:?} not found inside the VPS, or what it is interpreted by"))
            }
            _ => Failure::new(126, format!("program {program:?} inside the VPS: {error}")),
        };
    }
    let mut denied = None;
    for directory in path.split(':').filter(|d| !d.is_empty()) {
        let file = format!("{}/{program}", directory.trim_end_matches('/'));
        let Ok(c_file) = CString::new(file.as_str()) else { continue };
        let error = attempt(&c_file);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            Some(libc::EACCES) => denied = Some((file, error)),
            _ => return Failure::new(126, format!("program {file:?} inside the VPS: {error}")),
        }
    }
    match denied {
        Some((file, error)) => Failure::new(126, format!("program {file:?} inside the VPS: {error}")),
        None => Failure::new(127, format!("program {program:?} not found in PATH inside the VPS ({path})")),
    }
}
