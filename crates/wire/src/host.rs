//! `io.bailiwick.Host`: what designated VPSs may ask of the host daemon, within their grants.

use std::collections::{BTreeMap, BTreeSet};

use model::{
    DirectoryName, ExitStatus, HostConfig, LayerId, ListenAddress, RunSpec, TenantName, VolumeName, VpsName, VpsStatus,
    host::LogTarget,
    run::{Link, WindowSize},
};
use serde::{Deserialize, Serialize};

use crate::{method, varlink::Empty};

method! {
    /// The host's configuration. Everyone may ask.
    Config {} = "io.bailiwick.Host.Config" -> HostConfig
}
method! {
    /// Makes a VPS's place on disk and its range of ids, which are its own until `Delete`. Grant: `create`.
    Create {
        /// Its name.
        name: VpsName,
        /// Whose it is.
        tenant: TenantName,
        /// Ids it needs, a multiple of 65,536.
        ids: u32,
        /// A spare that it is made of; when there is none of that number any more, it is made anew.
        #[serde(default)]
        spare: Option<u64>,
    } = "io.bailiwick.Host.Create" -> Empty
}
method! {
    /// Does ahead, for a VPS that has no process, all of a start but its program: a `Start` with the same root, link,
    /// volumes and nesting goes on from there. It stays down for everybody. Answers when that is done. Grant: `start`.
    Prepare {
        /// What is likely to be run.
        run: RunSpec,
    } = "io.bailiwick.Host.Prepare" -> Empty
}
method! {
    /// Takes down what `Prepare` made. Grant: `start`.
    Discard {
        /// Which.
        name: VpsName,
    } = "io.bailiwick.Host.Discard" -> Empty
}
method! {
    /// Makes a spare: a prepared VPS of one block of ids that is nobody's until a `Create` names it. Grant: `create`, on all.
    MakeSpare {
        /// Its layers, the lowest first.
        layers: Vec<LayerId>,
        /// Its link.
        link: Link,
    } = "io.bailiwick.Host.MakeSpare" -> SpareMade
}
method! {
    /// Takes a spare down. Grant: `create`, on all.
    DropSpare {
        /// Which; none: all.
        spare: Option<u64>,
    } = "io.bailiwick.Host.DropSpare" -> Empty
}
method! {
    /// Starts a VPS that has no process; answers as soon as its shim has been spawned. `Events` says the rest.
    /// Grant: `start`. Answers the number of the run. Descriptor 0, when the run has secrets: what they say, in the order
    /// of their names ([`crate::secrets`]).
    Start {
        /// What to run.
        run: RunSpec,
    } = "io.bailiwick.Host.Start" -> Started
}
method! {
    /// Asks a VPS to end by its stop signal, and kills it after its grace. Answers at once. Grant: `stop`.
    Stop {
        /// Which.
        name: VpsName,
        /// Milliseconds before SIGKILL; none: as its run spec says; 0: SIGKILL now.
        grace_ms: Option<u64>,
    } = "io.bailiwick.Host.Stop" -> Empty
}
method! {
    /// Freezes all processes of a ready VPS. Grant: `freeze`.
    Freeze {
        /// Which.
        name: VpsName,
    } = "io.bailiwick.Host.Freeze" -> Empty
}
method! {
    /// Lets a frozen VPS go on. Grant: `freeze`.
    Thaw {
        /// Which.
        name: VpsName,
    } = "io.bailiwick.Host.Thaw" -> Empty
}
method! {
    /// Removes a VPS that has no process: its files and its range of ids. Grant: `delete`.
    Delete {
        /// Which.
        name: VpsName,
    } = "io.bailiwick.Host.Delete" -> Empty
}
method! {
    /// All volumes of the tenants that the grants show. Grant: `watch`.
    Volumes {} = "io.bailiwick.Host.Volumes" -> AllVolumes
}
method! {
    /// Removes a volume with all that is in it. A VPS that is up and uses it keeps what it sees until it ends.
    /// Grant: `delete`, on the whole tenant.
    DeleteVolume {
        /// Whose.
        tenant: TenantName,
        /// Which.
        name: VolumeName,
        /// Only one that was imported with this mark, and that no VPS has used since. Any other is as one that is not there.
        #[serde(default)]
        mark: Option<u64>,
    } = "io.bailiwick.Host.DeleteVolume" -> Empty
}
method! {
    /// Fills a volume with a tar stream (descriptor 0, a pipe, a socket or a file, read to its end), ids as VPSs see them.
    /// The volume has all of it or is as it was: it appears, or changes, when the stream has ended well. No VPS that is up
    /// may use it, and none that uses it starts meanwhile. Ends when the caller goes. To be called once
    /// (`Client::call_once`): a stream has one end. Grants: `create`, and with `replace` also `delete`, on the whole tenant.
    ImportVolume {
        /// Whose.
        tenant: TenantName,
        /// Which; made where it is missing.
        name: VolumeName,
        /// Who owns all of it, user and group; none: whom the stream says.
        #[serde(default)]
        owner: Option<(u32, u32)>,
        /// Whether it takes the place of what is there; else a volume that has something is refused.
        #[serde(default)]
        replace: bool,
        /// Bytes that it may have, where they can be counted.
        #[serde(default)]
        size: Option<u64>,
        /// What it is known by to `DeleteVolume` until a VPS uses it: a number that no other import has.
        #[serde(default)]
        mark: Option<u64>,
    } = "io.bailiwick.Host.ImportVolume" -> Moved
}
method! {
    /// Writes a volume as a tar stream (descriptor 0, a pipe, a socket or a file), ids as VPSs see them. What a VPS that is
    /// up writes meanwhile is in it or not. Ends when the caller goes. Grant: `exec`, on the whole tenant: who may run
    /// programs inside may read what they read.
    ExportVolume {
        /// Whose.
        tenant: TenantName,
        /// Which.
        name: VolumeName,
    } = "io.bailiwick.Host.ExportVolume" -> Moved
}
method! {
    /// Copies a volume as it is now, for its stream to be read later: two files, with which it shares blocks where the file
    /// system can (`archive::replay` knows what is in them). They are the answer's descriptors, to be read only, and gone with
    /// the last of these. What can't be copied in a moment is refused. Nothing that a VPS that is up does meanwhile may count:
    /// it should stand still. Ends when the caller goes. Grant: `exec`, on the whole tenant.
    CopyVolume {
        /// Whose.
        tenant: TenantName,
        /// Which.
        name: VolumeName,
    } = "io.bailiwick.Host.CopyVolume" -> Moved
}
method! {
    /// Which of the directories that host.toml shows to VPSs can't be shown as they are now. Grant: `watch`.
    Directories {} = "io.bailiwick.Host.Directories" -> DirectoryFaults
}
method! {
    /// Which ports are open in a VPS that is up, other than for itself. Grant: `watch`, on it.
    OpenPorts {
        /// Which.
        name: VpsName,
    } = "io.bailiwick.Host.OpenPorts" -> Ports
}
method! {
    /// Connects from inside a VPS that is up, and ends that at once; of UDP: sends an empty datagram. Grant: `exec`, on it.
    Probe {
        /// Which.
        name: VpsName,
        /// To whom.
        to: ListenAddress,
    } = "io.bailiwick.Host.Probe" -> Probed
}
method! {
    /// What is left of the disk that VPSs write to, and who writes. Grant: `watch`.
    Disk {} = "io.bailiwick.Host.Disk" -> DiskStatus
}
method! {
    /// All VPSs that the grants show, with memory and processes. Grant: `watch`.
    List {
        /// Only designated ones, and those that have processes: of others there are no figures.
        #[serde(default)]
        up: bool,
        /// Those that are prepared as well.
        #[serde(default)]
        prepared: bool,
    } = "io.bailiwick.Host.List" -> Statuses
}
method! {
    /// With `more`: first the statuses of all VPSs that the grants show, then each change. Grant: `watch`.
    Events {} = "io.bailiwick.Host.Events" -> Statuses
}
method! {
    /// Runs a program inside a VPS that is up, with three descriptors (stdin, stdout, stderr); answers when it ended.
    /// When the caller goes away it is killed. With `terminal` the one descriptor is a stream socket: the master of a terminal
    /// inside comes there with one byte, and one byte back has the program start. Grant: `exec`.
    Exec {
        /// Which.
        name: VpsName,
        /// Program and arguments.
        command: Vec<String>,
        /// More environment.
        env: BTreeMap<String, String>,
        /// Who it runs as.
        user: String,
        /// Working directory.
        cwd: String,
        /// The size of its terminal, if it gets one.
        #[serde(default)]
        terminal: Option<WindowSize>,
    } = "io.bailiwick.Host.Exec" -> ExecEnded
}
method! {
    /// A VPS's log files, read-only, oldest first (descriptors 0..n); the last one is being written. Grant: `logs`.
    Logs {
        /// Which.
        name: VpsName,
    } = "io.bailiwick.Host.Logs" -> Empty
}
method! {
    /// What writes to a target of `logs.ship` that is the host's own (descriptor 0): a connected unix socket, a stream's or for
    /// datagrams, or a file that is open to be added to. Grant: `ship`, on all.
    OpenTarget {
        /// Which; host.toml names it.
        target: LogTarget,
    } = "io.bailiwick.Host.OpenTarget" -> Empty
}
method! {
    /// A listening TCP socket on the host's address (descriptor 0), bound if it is not yet. Grant: `listen`.
    Listen {
        /// Where.
        address: ListenAddress,
    } = "io.bailiwick.Host.Listen" -> Empty
}
method! {
    /// Closes a listening socket for good. Grant: `listen`.
    Unlisten {
        /// Where.
        address: ListenAddress,
    } = "io.bailiwick.Host.Unlisten" -> Empty
}
method! {
    /// The addresses that are being listened on. Grant: `listen`.
    Listening {} = "io.bailiwick.Host.Listening" -> Addresses
}
method! {
    /// A connection to another service (descriptor 0). It waits there while that service is being restarted.
    /// Grant: `connect`.
    Connect {
        /// Which.
        service: String,
    } = "io.bailiwick.Host.Connect" -> Empty
}
method! {
    /// A narrower capability (descriptor 0, a connected socket), to hand on. It lives as long as the daemon.
    Narrow {
        /// What it may do: each must be within the caller's own.
        grants: Vec<model::Grant>,
    } = "io.bailiwick.Host.Narrow" -> Empty
}

/// Answer of `Start`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Started {
    /// The number of this run.
    pub run: u64,
}

/// Answer of `MakeSpare`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SpareMade {
    /// Its number.
    pub spare: u64,
}

/// Answer of `Volumes`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AllVolumes {
    /// One each, in the order of tenants and names.
    pub volumes: Vec<VolumeStatus>,
}

/// Answer of `Disk`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Why nothing more may be written, for a person: less is free than is reserved.
    pub lacks: Option<String>,
    /// Why sizes of volumes and limits of the disk are not enforced, if they are not.
    #[serde(default)]
    pub uncounted: Option<String>,
    /// Bytes that are free.
    pub free: u64,
    /// Bytes that are free above the reserve.
    pub room: u64,
    /// Whether there is so much room that who was held may go on.
    pub ample: bool,
    /// What the processes of each VPS that is up have written, in bytes; those that the grants show.
    pub wrote: BTreeMap<VpsName, u64>,
}

/// Answer of `ImportVolume`, `ExportVolume` and `CopyVolume`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// Files, directories, links and pipes.
    pub entries: u64,
    /// Bytes of files, holes left out.
    pub bytes: u64,
    /// Devices and sockets that were left out.
    pub left_out: u64,
    /// Files that changed while they were read.
    pub changed: u64,
}

/// Answer of `Probe`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Probed {
    /// Why it did not come there, as the kernel says it; none: it did, or nobody says otherwise of a datagram.
    pub error: Option<String>,
}

/// Answer of `OpenPorts`. What is open for both families is open for IPv6.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Ports {
    /// TCP ports that are listened on by IPv6.
    pub tcp6: BTreeSet<u16>,
    /// UDP ports that are bound by IPv4.
    pub udp: BTreeSet<u16>,
    /// UDP ports that are bound by IPv6.
    pub udp6: BTreeSet<u16>,
}

/// Answer of `Directories`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DirectoryFaults {
    /// What is wrong with each that can't be seen.
    pub seen: BTreeMap<DirectoryName, String>,
    /// What is wrong with each that can't be written, though host.toml allows it.
    pub written: BTreeMap<DirectoryName, String>,
}

/// One volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Whose.
    pub tenant: TenantName,
    /// Its name.
    pub name: VolumeName,
    /// Bytes in it; none: they are not counted.
    #[serde(default)]
    pub used: Option<u64>,
}

/// Some VPSs' statuses.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Statuses {
    /// One each. In an event: those that changed.
    pub vps: Vec<VpsStatus>,
    /// VPSs that were deleted (only in events).
    #[serde(default)]
    pub gone: Vec<VpsName>,
}

/// Answer of `Exec`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecEnded {
    /// How it ended; 126 or 127, as a shell says it, when it could not be run.
    pub status: ExitStatus,
    /// Why it could not be run.
    #[serde(default)]
    pub error: Option<String>,
}

/// Answer of `Listening`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Addresses {
    /// Each address.
    pub addresses: Vec<ListenAddress>,
}
