//! What the HTTP API of `control` says: one type per request or answer body, JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{JobName, SecretName, TenantName, VolumeName, VpsName, spec::Problem, story::Story};

/// `POST /v1/apply`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ApplyRequest {
    /// Spec files.
    pub files: Vec<SpecFile>,
    /// Only say what would change.
    #[serde(default)]
    pub dry_run: bool,
    /// Take routes from the VPSs that have them.
    #[serde(default)]
    pub take_routes: bool,
}

/// One spec file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SpecFile {
    /// Its name, for messages.
    pub name: String,
    /// Its content, TOML.
    pub text: String,
    /// What the `env_file`s hold that it names, by their paths as they are written there.
    #[serde(default)]
    pub env_files: BTreeMap<String, String>,
    /// For each archive and directory that it names as an image, as it is written there: the image it is.
    #[serde(default)]
    pub images: crate::image::SentImages,
}

/// Answer to `POST /v1/apply`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ApplyAnswer {
    /// What changed, or would change.
    pub changes: Vec<Change>,
    /// Images that are not there yet; they are built before anything changes.
    #[serde(default)]
    pub missing_images: Vec<String>,
    /// What is not as the files may lead one to expect.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// One change to one VPS.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Change {
    /// Which VPS.
    pub vps: VpsName,
    /// `create`, `change` or `none`.
    pub kind: ChangeKind,
    /// The fields that change: name, old value, new value, as TOML.
    #[serde(default)]
    pub fields: Vec<FieldChange>,
    /// Whether a running VPS keeps its old spec until its next start.
    #[serde(default)]
    pub at_next_start: bool,
    /// Secrets that were set since it was started; it has them at its next start.
    #[serde(default)]
    pub secrets: Vec<SecretName>,
}

/// What happens to a VPS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum ChangeKind {
    Create,
    Change,
    None,
}

/// One field that changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FieldChange {
    /// Its name, such as `limits.memory`.
    pub field: String,
    /// Before, as TOML; none: it was not there.
    pub old: Option<String>,
    /// After, as TOML; none: it is gone.
    pub new: Option<String>,
}

/// Every answer that is not a success (HTTP status 4xx or 5xx).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorAnswer {
    /// What was wrong.
    pub message: String,
    /// What to do next.
    #[serde(default)]
    pub next: Option<String>,
    /// Problems in files that were sent.
    #[serde(default)]
    pub problems: Vec<Problem>,
    /// Its kind, which decides the exit status of the CLI.
    pub kind: ErrorKind,
}

/// Kinds of errors. The CLI's exit status is the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// 1: something failed inside.
    Failed = 1,
    /// 2: the request is wrong (usage, a bad spec).
    Invalid = 2,
    /// 3: no such VPS, image or route.
    NotFound = 3,
    /// 4: it conflicts with what is there (a route that is taken, an image in use, a port in use).
    Conflict = 4,
    /// 5: it is not permitted.
    Denied = 5,
    /// 6: the host is not there or not answering.
    Unavailable = 6,
    /// 7: the machine lacks something (memory, a kernel feature).
    Lacking = 7,
}

/// A VPS's state in the words a person reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Defined, no process, no memory.
    Asleep,
    /// On its way.
    Starting,
    /// Ready.
    Running,
    /// Its processes stand still.
    Frozen,
    /// On its way down.
    Stopping,
    /// It could not be started or keeps ending; `why` says more.
    Failed,
    /// It is to be started and waits for memory.
    Waiting,
}

/// `GET /v1/vps`: one row; `GET /v1/vps/{name}` adds `spec`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VpsRow {
    /// Its name.
    pub name: VpsName,
    /// Whose it is; none: a designated VPS.
    pub tenant: Option<String>,
    /// Its state.
    pub state: State,
    /// Milliseconds in that state.
    pub for_ms: u64,
    /// What leads to it, and the port inside.
    pub routes: BTreeMap<String, u16>,
    /// The ports that neighbours may connect to.
    #[serde(default)]
    pub internal: Vec<u16>,
    /// Bytes of memory in use; none: asleep.
    pub memory: Option<u64>,
    /// Limit of memory in bytes.
    pub memory_limit: Option<u64>,
    /// Processes inside.
    pub processes: Option<u32>,
    /// Its address.
    pub address: Option<String>,
    /// First process as the host numbers it.
    pub pid: Option<i32>,
    /// Whether it sleeps with all but its program in place, so that its next start takes less time.
    #[serde(default)]
    pub prepared: bool,
    /// Its last wake.
    pub last_wake: Option<LastWake>,
    /// What is wrong, when it failed: one line.
    pub failure: Option<String>,
    /// What else a person should know, such as a job that fails or what it waits for: one line.
    #[serde(default)]
    pub note: Option<String>,
    /// The services it runs, when it is a designated VPS.
    #[serde(default)]
    pub services: Vec<String>,
    /// The stored spec as TOML (only in `GET /v1/vps/{name}`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<String>,
}

/// How a VPS was woken.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastWake {
    /// Milliseconds from the wake to ready.
    pub took_ms: Option<u64>,
    /// What woke it: `GET / from 203.0.113.9`, `start by root`.
    pub by: String,
    /// Unix time in milliseconds.
    pub at_ms: u64,
}

/// `GET /v1/vps/{name}/why`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Why {
    /// The row.
    pub vps: VpsRow,
    /// One sentence: why it is as it is.
    pub summary: String,
    /// Clients it was not woken for; none: there were none, or the gateway does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignored: Option<Ignored>,
    /// Its last start, stop and failure.
    #[serde(default)]
    pub last: Story,
    /// What happened lately, oldest first.
    pub story: Vec<Event>,
    /// The last lines of its log.
    pub log: Vec<String>,
    /// What to do next.
    pub next: Option<String>,
}

/// How clients were served that a spec says to `ignore`, since the gateway was started: requests, or connections of `tcp://`
/// routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ignored {
    /// By the VPS, which was up.
    pub served: u64,
    /// With its last answer, while it was not.
    pub from_cache: u64,
    /// With a 503, or closed.
    pub refused: u64,
}

/// One thing that happened. `GET /v1/events` is a stream of these, one JSON object a line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    /// Unix time in milliseconds.
    pub at_ms: u64,
    /// Which VPS; none: the host.
    pub vps: Option<VpsName>,
    /// A word: `applied`, `deleted`, `waking`, `started`, `ready`, `idle`, `stopping`, `exited`, `failed`, `frozen`, …; `lost` where
    /// events are missing.
    pub what: String,
    /// More, for a person.
    pub detail: String,
    /// Who or what caused it.
    pub actor: String,
}

/// `GET /v1/images`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageRow {
    /// `debian:nginx-light`
    pub reference: String,
    /// Ids of its layers, the base first.
    pub layers: Vec<String>,
    /// Bytes of all its layers.
    pub size: u64,
    /// Bytes of layers no other image has.
    pub own_size: u64,
    /// Unix time of the build, seconds.
    pub built: u64,
    /// The VPSs that use it.
    pub used_by: Vec<VpsName>,
}

/// One line of the stream that `POST /v1/images/build` answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuildLine {
    /// It goes on.
    Progress {
        /// What is being done: `base layer`, `packages`, `storing`.
        step: String,
        /// How much of the step is done, of `total`.
        done: u64,
        /// 0 when it is not known.
        total: u64,
    },
    /// It is there.
    Done(ImageRow),
    /// It failed.
    Failed(ErrorAnswer),
}

/// `POST /v1/images/build`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BuildRequest {
    /// `debian:nginx-light`
    pub image: String,
    /// Build again although it is there.
    #[serde(default)]
    pub refresh: bool,
    /// Do not prune it for half a minute after: an apply that names it comes.
    #[serde(default)]
    pub keep: bool,
}

/// `POST /v1/images/prune`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PruneRequest {
    /// Only say what would be removed.
    #[serde(default)]
    pub dry_run: bool,
}

/// Answer to `POST /v1/images/prune`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PruneAnswer {
    /// Images that no spec names.
    pub images: Vec<String>,
    /// Ids of layers that nothing uses.
    pub layers: Vec<String>,
}

/// Answer to `POST /v1/images/{reference}/verify`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VerifyAnswer {
    /// The image.
    pub image: String,
    /// Each damaged or missing layer, and what is wrong with it.
    pub damaged: BTreeMap<String, String>,
    /// The other images that have one of these layers.
    #[serde(default)]
    pub others: Vec<String>,
    /// What mends it.
    pub next: Option<String>,
}

/// `GET /v1/routes`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RouteRow {
    /// `http://blog.example.org`; `(internal) db:3306` for what a tenant's VPSs have among each other.
    pub route: String,
    /// Where it leads.
    pub vps: VpsName,
    /// The port inside.
    pub port: u16,
    /// The address listened on.
    pub listen: String,
    /// Whether that address is being listened on, else why not.
    pub fault: Option<String>,
    /// The only VPSs it is for, where it is internal.
    #[serde(default)]
    pub from: Vec<VpsName>,
}

/// `GET /v1/network/rules`: one thing that the firewall lets a VPS connect to, or kept it from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallRow {
    /// Who connects.
    pub vps: VpsName,
    /// What the row is.
    pub kind: FirewallKind,
    /// To whom: `db:3306`, `deb.debian.org:80`, `192.0.2.7:25`.
    pub to: String,
    /// The name for whose sake an address is open.
    pub name: Option<String>,
    /// Packets in both directions, of what was kept away those that came; none: it is not counted by itself.
    pub packets: Option<u64>,
    /// Bytes of those.
    pub bytes: Option<u64>,
    /// For how long it stays so, in milliseconds; none: until the rule is changed.
    pub left_ms: Option<u64>,
}

/// What a row of the firewall is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirewallKind {
    /// A rule between two VPSs of a tenant.
    Allow,
    /// A rule about the outside.
    Egress,
    /// An address that a name of such a rule has at the moment.
    Opened,
    /// What it tried in the last hour, and no rule lets it.
    Refused,
}

impl std::fmt::Display for FirewallKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Egress => "egress",
            Self::Opened => "opened",
            Self::Refused => "refused",
        })
    }
}

/// Body of `POST /v1/network/test`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FirewallTest {
    /// Who would connect.
    pub vps: VpsName,
    /// To whom: `db:3306`, `deb.debian.org:80`, `udp://192.0.2.53:53`.
    pub to: String,
}

/// Its answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FirewallTested {
    /// Whether a rule lets it.
    pub allowed: bool,
    /// Which one decides, and where it stands.
    pub rule: String,
    /// The address that was tried; none: none was.
    pub address: Option<String>,
    /// What came of a true packet; none: it was not sent.
    pub sent: Option<String>,
    /// Whether that packet found somebody; for datagrams: nobody sent it back.
    pub reached: Option<bool>,
}

/// `GET /v1/volumes`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VolumeRow {
    /// Whose it is.
    pub tenant: TenantName,
    /// Its name.
    pub name: VolumeName,
    /// Bytes it may hold at most, as a spec says it.
    pub size: Option<u64>,
    /// Bytes in it; none: the file system does not count them, and the size is not enforced.
    #[serde(default)]
    pub used: Option<u64>,
    /// The VPSs whose specs use it, and where they see it.
    pub used_by: BTreeMap<VpsName, String>,
}

/// Answer to `PUT /v1/volumes/{tenant}/{name}/content`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct VolumeMoved {
    /// Files, directories, links and pipes.
    pub entries: u64,
    /// Bytes of files, holes left out.
    pub bytes: u64,
    /// Devices and sockets that were left out.
    pub left_out: u64,
    /// Files that changed while they were read.
    pub changed: u64,
}

/// `GET /v1/secrets`; what a secret says is never answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SecretRow {
    /// Whose it is.
    pub tenant: TenantName,
    /// Its name.
    pub name: SecretName,
    /// When it was set, Unix time in milliseconds.
    pub set_ms: u64,
    /// The VPSs whose specs use it, and where they see it.
    pub used_by: BTreeMap<VpsName, String>,
}

/// Answer to `PUT /v1/secrets/{tenant}/{name}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SecretSet {
    /// Whether there was one before.
    pub replaced: bool,
    /// VPSs that are up and use it: they have it at their next start.
    pub at_next_start: Vec<VpsName>,
}

/// The header that holds, in hexadecimal, the passphrase that secrets are sealed with, or opened by.
pub const PASSPHRASE: &str = "bailiwick-passphrase";

/// Answer to `PUT /v1/state`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StateImported {
    /// VPSs that are new, or changed.
    pub vps: Vec<VpsName>,
    /// How many secrets were set.
    pub secrets: u64,
    /// Images that they need and this host does not have.
    pub missing_images: Vec<String>,
    /// VPSs that have another address than before: theirs is somebody else's here, or not of this host's subnet.
    #[serde(default)]
    pub readdressed: Vec<VpsName>,
}

/// Answer to `PUT /v1/archive`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Imported {
    /// What the VPS is called here.
    pub vps: VpsName,
    /// Whose it is here.
    pub tenant: TenantName,
    /// Its volumes: as they were called, and as they are here.
    pub volumes: BTreeMap<VolumeName, VolumeName>,
    /// What its image is called here.
    #[serde(default)]
    pub image: String,
    /// Whether its image here is another build than the one it was exported with.
    pub other_image: bool,
    /// Rules about VPSs that the tenant does not have here; they were left out.
    pub left_out: Vec<String>,
}

/// `GET /v1/jobs`, and `GET /v1/vps/{name}/jobs`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobRow {
    /// Where it runs.
    pub vps: VpsName,
    /// Its name.
    pub job: JobName,
    /// When it runs, as the spec says it: `every 15m`.
    pub when: String,
    /// Program and arguments.
    pub run: Vec<String>,
    /// When it runs next, Unix time in milliseconds.
    pub next_ms: Option<u64>,
    /// Whether it runs now.
    pub running: bool,
    /// How often in a row it has failed.
    pub failures: u32,
    /// Its last run.
    pub last: Option<JobRun>,
}

/// One run of a job that has ended. `POST /v1/vps/{name}/jobs/{job}/run`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobRun {
    /// When it began, Unix time in milliseconds.
    pub at_ms: u64,
    /// How long it took.
    pub took_ms: u64,
    /// How it ended: `exit 0`, `exit 1`, `killed after 1h`, or why it could not be run.
    pub result: String,
    /// Its exit status as a shell says it; none: it could not be run, or was killed.
    pub status: Option<i32>,
    /// The end of what it wrote.
    pub output: String,
    /// Who asked for it: `every 15m`, `root`.
    pub by: String,
}

impl JobRun {
    /// Whether it did what it should.
    pub fn success(&self) -> bool {
        self.status == Some(0)
    }
}

/// `GET /v1/services`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceRow {
    /// `gateway`
    pub service: String,
    /// The designated VPS that runs it.
    pub vps: VpsName,
    /// That VPS's state.
    pub state: State,
    /// How often it has been started since the host was.
    pub starts: u64,
    /// Its grants.
    pub grants: Vec<String>,
    /// Bytes of memory in use.
    pub memory: Option<u64>,
    /// First process as the host numbers it.
    pub pid: Option<i32>,
}

/// `GET /v1/logs/targets`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogTargetRow {
    /// As host.toml has it.
    pub target: String,
    /// Why it takes no lines now; none: it does.
    pub away: Option<String>,
    /// Since when that is so, Unix time in milliseconds.
    pub since_ms: u64,
    /// Lines that were sent since the service was started.
    pub sent: u64,
    /// Bytes that wait in logs.
    pub waiting: u64,
    /// Lines that were lost, ever: their log was rotated away before they could be sent.
    pub lost: u64,
    /// How often lines were lost of which nobody knows the number.
    pub gaps: u64,
    /// When lines were lost last, Unix time in milliseconds.
    pub lost_ms: Option<u64>,
}

/// `POST /v1/vps/{name}/exec`, upgraded to `bailiwick-exec`: frames of one kind byte (0 stdin, 1 stdout, 2 stderr, 3
/// exit, 4 size), a big-endian 32-bit length, and so many bytes. An empty stdin frame closes it; `exit` holds the decimal
/// code; `size`, only with a terminal, its rows and columns, 16 bits each, big-endian.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// More environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Who it runs as; none: root.
    #[serde(default)]
    pub user: Option<String>,
    /// Working directory; none: `/`.
    #[serde(default)]
    pub cwd: Option<String>,
    /// A terminal of this size, as its controlling one and its three streams; all output comes as stdout then.
    #[serde(default)]
    pub terminal: Option<crate::run::WindowSize>,
}

/// `GET /v1/vps/{name}/logs?lines=N&follow=true` answers a stream of these, one JSON object a line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// RFC 3339, UTC, microseconds.
    pub at: String,
    /// `out` or `err` of the program, `log` for `/dev/log`, `file` for a file of the spec's `logs`, `vps` for what its
    /// shim says.
    pub stream: String,
    /// Which file.
    #[serde(default)]
    pub file: Option<String>,
    /// Of a message of `/dev/log`, as syslog(3) calls it: `daemon`, `mail`.
    #[serde(default)]
    pub facility: Option<String>,
    /// Of a message of `/dev/log`, as syslog(3) calls it: `err`, `info`.
    #[serde(default)]
    pub severity: Option<String>,
    /// What the program of such a message calls itself.
    #[serde(default)]
    pub tag: Option<String>,
    /// The process that such a message names.
    #[serde(default)]
    pub pid: Option<u32>,
    /// The line without its end, and without what the other fields hold.
    pub text: String,
}
