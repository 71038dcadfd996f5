//! `ready = { run = … }`: a program inside that is run again until it succeeds, and what it said last.
//!
//! Nothing is run before the VPS could be ready without it. Bounded: one run at a time, a deadline for each, the end of its
//! output. Control's deadline for the start ends it all.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use model::{ExitStatus, RunSpec, run::ReadyCheck};
use rustix::{
    io::{Errno, ioctl_fionbio, read},
    pipe::{PipeFlags, pipe_with},
};

use crate::channel::ToInit;

/// Names its runs to init; the daemon's own numbers do not get there.
pub const ID: u64 = u64::MAX;
/// Bytes that are kept of what it says.
const KEPT: usize = 512;
/// The longest pause.
const PAUSE: Duration = Duration::from_secs(1);

/// A check that has not succeeded yet.
#[derive(Debug)]
pub struct Check {
    spec: ReadyCheck,
    env: BTreeMap<String, String>,
    user: String,
    cwd: String,
    /// When the first run began; none: it is not its turn yet.
    began: Option<Instant>,
    run: Run,
    said: Vec<u8>,
    last: String,
}

#[derive(Debug)]
enum Run {
    /// The next one begins then, or not before `begin`.
    Pause(Option<Instant>),
    /// It goes on; killed then.
    On { output: Option<OwnedFd>, until: Option<Instant> },
}

/// What is to be done when a check's time has come.
pub enum Due {
    /// Ask this of init, with these descriptors.
    Run(Box<ToInit>, [OwnedFd; 3]),
    /// The run takes too long.
    Kill,
}

impl Check {
    /// That of a start; it does nothing yet.
    pub fn of(run: &RunSpec) -> Option<Box<Self>> {
        let spec = run.ready_check.clone()?;
        let (env, user, cwd) = (run.env.clone(), run.user.clone(), run.cwd.clone());
        let (run, said, last) = (Run::Pause(None), Vec::new(), String::new());
        Some(Box::new(Self { spec, env, user, cwd, began: None, run, said, last }))
    }

    /// From now on it is run.
    pub fn begin(&mut self) {
        if self.began.is_none() {
            let now = Instant::now();
            (self.began, self.run) = (Some(now), Run::Pause(Some(now)));
        }
    }

    /// When there is something to do.
    pub fn at(&self) -> Option<Instant> {
        match &self.run {
            Run::Pause(at) => *at,
            Run::On { until, .. } => *until,
        }
    }

    /// Where its output comes.
    pub fn output(&self) -> Option<&OwnedFd> {
        match &self.run {
            Run::On { output, .. } => output.as_ref(),
            Run::Pause(_) => None,
        }
    }

    /// What is to be done now, if anything.
    pub fn due(&mut self) -> std::io::Result<Option<Due>> {
        if self.at().is_none_or(|at| Instant::now() < at) {
            return Ok(None);
        }
        if let Run::On { until, .. } = &mut self.run {
            *until = None;
            self.said.extend_from_slice(format!("(killed after {} ms)", self.spec.timeout_ms).as_bytes());
            return Ok(Some(Due::Kill));
        }
        self.run = Run::Pause(None);
        // Its input is at its end at once.
        let (input, _) = pipe_with(PipeFlags::CLOEXEC)?;
        let (output, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        ioctl_fionbio(&output, true)?;
        let errors = writer.try_clone()?;
        let until = Instant::now() + Duration::from_millis(self.spec.timeout_ms);
        self.run = Run::On { output: Some(output), until: Some(until) };
        self.said.clear();
        let (env, user, cwd) = (self.env.clone(), self.user.clone(), self.cwd.clone());
        let ask = ToInit::Exec { id: ID, command: self.spec.command.clone(), env, user, cwd, terminal: None };
        Ok(Some(Due::Run(Box::new(ask), [input, writer, errors])))
    }

    /// Takes what it says, of which the end is kept.
    pub fn hear(&mut self) {
        let mut chunk = [0; 4096];
        let Run::On { output, .. } = &mut self.run else { return };
        let Some(pipe) = output else { return };
        match read(pipe, chunk.as_mut_slice()) {
            Ok(n) if n > 0 => {
                self.said.extend_from_slice(&chunk[..n]);
                self.said.drain(..self.said.len().saturating_sub(KEPT));
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Its end, or what can't be read: nothing more comes.
            _ => *output = None,
        }
    }

    /// A run ended. Whether it succeeded, and a line for the log where that differs from the last one.
    pub fn ended(&mut self, status: ExitStatus, error: Option<String>) -> (bool, Option<String>) {
        // What it wrote is there by now, at most as much as the pipe holds.
        for _ in 0..32 {
            self.hear();
        }
        let now = Instant::now();
        let waited = self.began.map_or(Duration::ZERO, |began| now - began);
        let least = Duration::from_millis(self.spec.interval_ms);
        self.run = Run::Pause(Some(now + (waited / 10).min(PAUSE).max(least)));
        if status.success() {
            return (true, None);
        }
        let said = error.unwrap_or_else(|| one_line(&self.said));
        let line = format!("not ready: `{}`: {status}{}{said}", self.spec.command.join(" "), sep(&said));
        let new = line != self.last;
        self.last.clone_from(&line);
        (false, new.then_some(line))
    }

    /// A line for the log when the VPS is ended while a run goes on.
    pub fn unfinished(mut self) -> Option<String> {
        self.hear();
        let Run::On { .. } = self.run else { return None };
        let said = one_line(&self.said);
        Some(format!("not ready: `{}` has not ended{}{said}", self.spec.command.join(" "), sep(&said)))
    }
}

fn sep(said: &str) -> &'static str {
    if said.is_empty() { "" } else { ": " }
}

/// The last words of a program in one line.
fn one_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(" / ").replace(|c: char| c.is_control(), "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> Box<Check> {
        let json = r#"{"name":"db","root":"bare","command":["x"],"ready":"started","stop":{"signal":15,"grace_ms":1},
            "ready_check":{"command":["pg_isready"],"interval_ms":10,"timeout_ms":50}}"#;
        Check::of(&serde_json::from_str(json).expect("a run spec")).expect("a check")
    }

    #[test]
    fn it_waits_for_its_turn_then_runs_until_it_succeeds() {
        let mut check = check();
        assert!(check.at().is_none() && matches!(check.due(), Ok(None)));
        check.begin();
        let Ok(Some(Due::Run(ask, fds))) = check.due() else { panic!("no run") };
        let ToInit::Exec { id: ID, command, .. } = *ask else { panic!("no exec") };
        assert_eq!(command, ["pg_isready"]);
        let flood = [b'a'; 3000];
        rustix::io::write(&fds[1], &flood).expect("written");
        rustix::io::write(&fds[2], b"\nstarting\x1b up\n").expect("written");
        let (ready, line) = check.ended(ExitStatus::Code(2), None);
        let line = line.expect("a line");
        assert!(!ready && line.starts_with("not ready: `pg_isready`: exit 2: aaa"), "{line}");
        assert!(line.ends_with("a / starting? up") && line.len() < 600, "{line}");
        assert!(check.at().is_some_and(|at| at > Instant::now()));
        assert_eq!(check.ended(ExitStatus::Code(0), None), (true, None));
    }

    #[test]
    fn the_same_is_said_once() {
        let mut check = check();
        check.begin();
        assert!(check.ended(ExitStatus::Code(127), Some("not found".to_owned())).1.is_some());
        assert!(check.ended(ExitStatus::Code(127), Some("not found".to_owned())).1.is_none());
        assert!(check.ended(ExitStatus::Code(1), None).1.is_some());
    }
}
