//! A spec: what a person wants to be there, and the parser of spec files.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    ClientAddress, DirectoryName, Egress, Ignore, ImageRef, JobName, LabelName, Limits, ListenAddress, Party, Route,
    RouteTarget, Rule, SecretName, TenantName, Transport, VolumeName, VpsName,
    run::{Directory, ReadyCheck, Stop, Volume},
};

mod directories;
mod env_file;
pub(crate) mod fields;
mod jobs;
mod parse;
mod problem;
mod render;
mod routes;
mod secrets;
#[cfg(test)]
mod tests;
mod volumes;

pub use env_file::{beside, env_files, parse_env};
pub use jobs::Job;
pub(crate) use parse::read_limits;
pub use parse::{image_paths, parse, parse_with};
pub use problem::Problem;
pub use render::render;

/// Milliseconds a start may take where the spec does not say.
const START_DEADLINE_MS: u64 = 30_000;
/// Milliseconds without use after which a VPS with routes is stopped, where the spec does not say.
const IDLE_AFTER_MS: u64 = 600_000;

/// The JSON schema of spec files.
pub fn json_schema() -> String {
    let about = "One tenant's VPSs: `bailiwick apply FILE`.";
    crate::document::schema("Bailiwick spec", about, &fields::FILE)
}

/// One spec file, parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Whose VPSs these are.
    pub tenant: TenantName,
    /// The VPSs by name.
    pub vps: BTreeMap<VpsName, VpsSpec>,
}

/// What a person wants one VPS to be. This is what `control` stores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VpsSpec {
    /// Whose it is.
    pub tenant: TenantName,
    /// Where its root filesystem comes from.
    pub image: ImageRef,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// Who the program runs as (see `RunSpec::user`).
    pub user: String,
    /// Host name inside; the VPS's own name where none is written.
    pub hostname: Option<VpsName>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Small files written before the program starts: absolute path to content.
    pub files: BTreeMap<String, String>,
    /// Files inside whose lines are part of its log: absolute paths, in which `*` and `?` stand for characters of a name.
    #[serde(default)]
    pub logs: Vec<String>,
    /// Directories that outlive it.
    #[serde(default)]
    pub volumes: BTreeMap<VolumeName, Volume>,
    /// Directories of the host's that it sees, as host.toml calls them.
    #[serde(default)]
    pub directories: BTreeMap<DirectoryName, Directory>,
    /// Secrets of its tenant, and the files that its program finds them in.
    #[serde(default)]
    pub secrets: BTreeMap<SecretName, String>,
    /// What leads to it, and to which port inside.
    pub routes: BTreeMap<Route, RouteTarget>,
    /// Clients it is not woken for.
    #[serde(default)]
    pub ignore: Ignore,
    /// Who of its tenant's may connect to it, and to which ports.
    #[serde(default)]
    pub admits: BTreeMap<Party, BTreeSet<u16>>,
    /// To whom it may connect, where the rule stands in its own file and not in that of the other.
    #[serde(default)]
    pub reaches: BTreeMap<Party, BTreeSet<u16>>,
    /// What it has in common with others of its tenant's, for rules.
    #[serde(default)]
    pub labels: BTreeSet<LabelName>,
    /// Who of its tenant's is woken together with it, since it will connect to them.
    #[serde(default)]
    pub wants: BTreeSet<VpsName>,
    /// What of the outside it may connect to; none: all that its tenant may.
    #[serde(default)]
    pub egress: Option<Vec<Egress>>,
    /// cgroup limits.
    pub limits: Limits,
    /// How many ids its user namespace has, a multiple of 65,536.
    pub ids: u32,
    /// What happens when nobody uses it.
    pub idle: Idle,
    /// A command that is asked before it is stopped or frozen since nobody uses it: exit 0 means that it is busy.
    #[serde(default)]
    pub busy: Vec<String>,
    /// Programs that are run inside at certain times.
    #[serde(default)]
    pub jobs: BTreeMap<JobName, Job>,
    /// What happens when its program ends by itself.
    pub restart: Restart,
    /// When it counts as ready.
    pub ready: ReadySpec,
    /// What has to succeed then, before it does.
    #[serde(default)]
    pub ready_check: Option<ReadyCheck>,
    /// Milliseconds a start may take until ready.
    pub start_deadline_ms: u64,
    /// How it is asked to end.
    pub stop: Stop,
    /// Whether setuid bits and file capabilities work inside.
    pub setuid: bool,
    /// Whether a VPS may run inside.
    pub nesting: bool,
}

impl VpsSpec {
    /// The ports inside that routes lead to.
    pub fn ports(&self) -> BTreeSet<u16> {
        self.routes.values().map(|target| target.port).collect()
    }

    /// The ports inside whose connections, or datagrams, come from clients' own addresses.
    pub fn transparent_ports(&self, transport: Transport) -> Vec<u16> {
        let shown = |(route, target): (&Route, &RouteTarget)| {
            let by_address = matches!(route, Route::Address(ListenAddress(_, of)) if *of == transport);
            (by_address && target.client == ClientAddress::Transparent).then_some(target.port)
        };
        let ports: BTreeSet<u16> = self.routes.iter().filter_map(shown).collect();
        ports.into_iter().collect()
    }

    /// The rules that stand in its file, with `name` as its name.
    pub fn allow(&self, name: &VpsName) -> BTreeSet<Rule> {
        let pairs = |map: &BTreeMap<Party, BTreeSet<u16>>| -> Vec<_> {
            map.iter().flat_map(|(other, ports)| ports.iter().map(|port| (other.clone(), *port))).collect()
        };
        let own = || Party::Vps(name.clone());
        let admits = pairs(&self.admits).into_iter().map(|(from, port)| Rule { from, to: own(), port });
        let reaches = pairs(&self.reaches).into_iter().map(|(to, port)| Rule { from: own(), to, port });
        admits.chain(reaches).collect()
    }

    /// Whether something leads to it, as far as its own file says.
    pub fn is_led_to(&self) -> bool {
        !self.routes.is_empty() || !self.admits.is_empty()
    }

    /// Whether something other than a person wakes it, as far as its own file says: a route, a neighbour or a job.
    pub fn wakeable(&self) -> bool {
        self.is_led_to() || !self.jobs.is_empty()
    }
}

/// What happens when nobody uses a VPS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Idle {
    /// It stays.
    Never,
    /// After so many milliseconds without a connection or request.
    After {
        /// Milliseconds.
        after_ms: u64,
        /// What then.
        then: IdleAction,
        /// Milliseconds of silence after which an open connection does not count any more; none: it always counts.
        #[serde(default)]
        quiet_ms: Option<u64>,
    },
}

impl Idle {
    /// Where the spec does not say: a VPS that something can wake (`VpsSpec::wakeable`) sleeps after ten minutes, another
    /// one stays.
    pub fn default_for(wakeable: bool) -> Self {
        match wakeable {
            true => Self::After { after_ms: IDLE_AFTER_MS, then: IdleAction::Stop, quiet_ms: None },
            false => Self::Never,
        }
    }
}

/// What an idle VPS does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IdleAction {
    /// No process, no memory.
    Stop,
    /// Its processes stand still; memory stays.
    Freeze,
}

/// What happens when a program ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Start again, with back-off, when it failed while in use; a clean exit means asleep.
    OnFailure,
    /// Start again, with back-off, whatever the exit status.
    Always,
    /// Wait for the next request or `start`.
    Never,
}

/// When a VPS counts as ready, as the spec says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReadySpec {
    /// When its program listens on this port; without a number, on the port of its first route, else on the lowest
    /// that a neighbour may connect to, and when there is neither, at once.
    Listen(Option<u16>),
    /// When it says `READY=1` on the notify socket.
    Notify,
}
