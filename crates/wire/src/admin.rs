//! `io.bailiwick.Admin`: what the root of the host itself asks of the daemon, on a socket that only it can open. No designated VPS
//! holds this: who may exchange the daemon is the host.

use std::{fmt, path::PathBuf};

use model::VpsName;
use serde::{Deserialize, Serialize};

use crate::method;

method! {
    /// Has the host go on as the programs in a directory; `Progress` says the rest. With `vps` only that designated VPS is
    /// restarted with them, and the answer comes when it is ready.
    Upgrade {
        /// Where `bailiwickd`, `bailiwick-shim` and `bailiwick` are.
        directory: PathBuf,
        /// Only this one.
        vps: Option<VpsName>,
        /// Only say what would be done.
        check: bool,
    } = "io.bailiwick.Admin.Upgrade" -> Plan
}
method! {
    /// With `more`: the last upgrade, whenever there is something new of it, until it has ended.
    Progress {} = "io.bailiwick.Admin.Progress" -> Upgrading
}

/// The programs of one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Programs {
    /// Where they are.
    pub directory: PathBuf,
    /// As they say it.
    pub version: String,
    /// Differs between two builds: device, inode and time of `bailiwickd`.
    pub build: String,
}

impl fmt::Display for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.version, self.directory.display())
    }
}

/// What an upgrade does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// What runs.
    pub from: Programs,
    /// What is to run.
    pub to: Programs,
    /// Designated VPSs that are restarted, in this order.
    pub restarts: Vec<VpsName>,
    /// Server VPSs that are up, and go on under the shims they have.
    pub servers: usize,
    /// How long the restart of one designated VPS took, where only that was asked for, in milliseconds.
    #[serde(default)]
    pub took_ms: Option<u64>,
}

/// An upgrade that goes on or has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrading {
    /// What ran.
    pub from: Programs,
    /// What is to run.
    pub to: Programs,
    /// How far it is.
    pub step: Step,
    /// Why it goes back, or has ended without what was asked for.
    pub failed: Option<String>,
    /// What was done, for a person.
    pub said: Vec<String>,
}

/// How far an upgrade is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Keeper and daemon become the new version.
    Daemon,
    /// Designated VPSs are restarted with it.
    Services,
    /// All goes back to the old version.
    Back,
    /// Done.
    Done,
    /// The old version runs.
    Failed,
}

impl Step {
    /// Whether nothing follows.
    pub fn is_last(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }
}
