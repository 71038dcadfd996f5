//! What a VPS can be, as the host daemon sees it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{TenantName, VpsName};

/// How a VPS's program ended (wait(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitStatus {
    /// It called exit.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

impl ExitStatus {
    /// Exit code 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }

    /// The status a shell would report: the code, or 128 + signal.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// Why a VPS has no process any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// Its program ended.
    Exited {
        /// How.
        status: ExitStatus,
        /// Whether the memory limit killed one of its processes.
        oom: bool,
        /// Whether it had been asked to stop or was killed by request.
        asked: bool,
    },
    /// It could not be built.
    NotStarted {
        /// What failed, for a person.
        reason: String,
    },
    /// Its shim ended without a word.
    ShimLost,
}

/// Where a VPS is in its life. The host daemon knows no others; "asleep" or "failed" are `control`'s words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// No process. `ended` says how the last run ended, if there was one since the daemon's host started.
    Down {
        /// The end of the last run.
        ended: Option<Ended>,
    },
    /// Its shim builds it, or its program has started but is not ready.
    Starting,
    /// Ready.
    Ready,
    /// All its processes stand still (cgroup freezer).
    Frozen,
    /// It was asked to end.
    Stopping,
}

impl Phase {
    /// Whether it has processes.
    pub fn is_up(&self) -> bool {
        !matches!(self, Self::Down { .. })
    }
}

/// When what belongs to a start was done, Unix time in microseconds; none: not yet, or nobody could tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartSteps {
    /// The host was asked for it.
    pub asked_us: u64,
    /// Whether all but the program had been prepared.
    #[serde(default)]
    pub prepared: bool,
    /// Namespaces, cgroup and link were there.
    #[serde(default)]
    pub made_us: Option<u64>,
    /// What its shim did.
    #[serde(default, flatten)]
    pub shim: ShimTimes,
}

/// When a start came how far in its shim, Unix time in microseconds; none: not yet, or this shim does not say it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimTimes {
    /// Root and mounts were there.
    #[serde(default)]
    pub built_us: Option<u64>,
    /// The program was executed.
    #[serde(default)]
    pub executed_us: Option<u64>,
    /// It listened on its port, or said READY=1.
    #[serde(default)]
    pub heard_us: Option<u64>,
    /// Its `ready` command succeeded.
    #[serde(default)]
    pub checked_us: Option<u64>,
}

/// One VPS, as the host daemon sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VpsStatus {
    /// Its name.
    pub name: VpsName,
    /// Where it is in its life.
    pub phase: Phase,
    /// Counts the starts since it was created; each start is one `run`.
    pub run: u64,
    /// Whether it is a designated VPS.
    pub designated: bool,
    /// Whose it is.
    #[serde(default)]
    pub tenant: Option<TenantName>,
    /// First process, as the host numbers it.
    pub pid: Option<i32>,
    /// Unix time in milliseconds of the last change of phase.
    pub since_ms: u64,
    /// Milliseconds from the start request until ready, of the last start that got there.
    pub start_ms: Option<u64>,
    /// Bytes of memory charged to its cgroup; only in answers to `Inspect` and `List`, not in events.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Processes and threads in its cgroup.
    #[serde(default)]
    pub processes: Option<u32>,
    /// CPU time used since this start, microseconds.
    #[serde(default)]
    pub cpu_us: Option<u64>,
    /// Whether its next start has only its program to start.
    #[serde(default)]
    pub prepared: bool,
    /// Of the run that goes on, or of the last one if that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<StartSteps>,
}
