//! What the host daemon and a shim say to each other: CBOR in one seqpacket message, descriptors beside it.
//!
//! A shim may be months older than the daemon: fields may be added with a default, variants may be added at the end and
//! are sent only to who said a `version` that knows them, nothing is renamed or reused.
//! The daemon keeps a duplicate of its end with the keeper, so a new daemon goes on where the old one ended, with a
//! `Report`, whose answer is a `State`.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use model::{ExitStatus, RunSpec, run::WindowSize, state::ShimTimes};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::seqpacket::{recv_message, send_with_fds};

/// Version of this protocol.
pub const VERSION: u16 = 3;
/// The first version that knows `Exec` with a terminal.
pub const TERMINALS: u16 = 3;
/// Bytes of one message at most.
pub const MAX_MESSAGE: usize = 192 << 10;

/// From the daemon to a shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToShim {
    /// The first message: build this VPS and supervise it. Descriptors: as `Descriptors` counts them.
    Start {
        /// `VERSION` of the daemon.
        version: u16,
        /// What to run.
        run: Box<RunSpec>,
        /// Which descriptors came with this message, in this order.
        fds: Descriptors,
        /// Mounts that the host prepared under `/binds/N` of the shim's own root: target inside the VPS.
        binds: Vec<Bind>,
    },
    /// Send the stop signal; SIGKILL after so many milliseconds.
    Stop {
        /// 0: SIGKILL now.
        grace_ms: u64,
    },
    /// Run a program inside. Descriptors: stdin, stdout, stderr; with `terminal`, a socket as `Host.Exec` says.
    Exec {
        /// Chosen by the daemon; answers carry it.
        id: u64,
        /// Program and arguments.
        command: Vec<String>,
        /// More environment.
        env: BTreeMap<String, String>,
        /// Who it runs as.
        user: String,
        /// Working directory.
        cwd: String,
        /// The size of its terminal, if it gets one; version 3.
        #[serde(default)]
        terminal: Option<WindowSize>,
    },
    /// Send SIGKILL to a program that `Exec` started.
    ExecKill {
        /// Which.
        id: u64,
    },
    /// Say where you are (after a restart of the daemon).
    Report,
    /// As `Start`, but what is this program's own waits for `Go`; version 2.
    Prepare {
        /// `VERSION` of the daemon.
        version: u16,
        /// Of which what the frame of a VPS depends on counts: root, link, nesting.
        run: Box<RunSpec>,
        /// As for `Start`; no listening sockets.
        fds: Descriptors,
        /// As for `Start`.
        binds: Vec<Bind>,
    },
    /// To one that was prepared: run this; version 2. Descriptor, when it has secrets: what they say.
    Go {
        /// With the root, link and nesting that it was prepared with.
        run: Box<RunSpec>,
    },
}

/// Which descriptors come with `Start`, in this order: user namespace, network namespace (when `network`), log
/// directory, the directory of the VPS's v2 cgroup, `tasks` files of its v1 cgroups (open for writing), listening sockets
/// (one per name), what secrets say (when `secrets`; [`crate::secrets`]).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Descriptors {
    /// Whether there is a network namespace; else the VPS has the host's.
    pub network: bool,
    /// How many `tasks` files.
    pub tasks: usize,
    /// Names of the listening sockets, passed to the program as sd_listen_fds(3) says.
    pub listeners: Vec<String>,
    /// Whether secrets came.
    #[serde(default)]
    pub secrets: bool,
}

/// A mount that the host prepared.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute path inside the VPS; made (as a directory, or a file when the source is none) where the root is `Bare`.
    pub target: String,
    /// Whether the source is a directory.
    pub directory: bool,
    /// Whether it is a volume: what is mounted is its `data`, made of what the root has at `target` where it is missing.
    #[serde(default)]
    pub volume: bool,
}

/// From a shim to the daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromShim {
    /// Answer to `Start` and to `Report`, and every change since.
    State {
        /// `VERSION` of the shim.
        version: u16,
        /// Where the VPS is.
        state: ShimState,
        /// Its first process as the shim's namespace numbers it, once there is one.
        pid: Option<i32>,
        /// When it came there.
        #[serde(default)]
        times: ShimTimes,
    },
    /// A program that `Exec` started ended, or could not be started (127, 126 as a shell would say).
    ExecEnded {
        /// Which.
        id: u64,
        /// How.
        status: ExitStatus,
        /// Why it could not be started.
        error: Option<String>,
    },
    /// The VPS has no process any more; the shim ends after this.
    Ended {
        /// How its program ended.
        status: ExitStatus,
    },
    /// It could not be built; the shim ends after this.
    NotStarted {
        /// Which step failed and why, for a person.
        reason: String,
    },
}

/// Where a VPS is, as its shim sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShimState {
    /// Being built.
    Building,
    /// Its program was executed.
    Started,
    /// It is ready.
    Ready,
    /// It was asked to end.
    Stopping,
    /// All is there but what comes with `Go`; only after `Prepare`.
    Prepared,
}

/// Sends one message.
pub fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes =
        minicbor_serde::to_vec(message).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e.to_string()))?;
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too large"));
    }
    send_with_fds(socket, &bytes, fds).map(drop)
}

/// Receives one message; `None` when the other end is closed.
pub fn recv<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let (bytes, fds) = recv_message(socket, MAX_MESSAGE)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let message = minicbor_serde::from_slice(&bytes);
    Ok(Some((message.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?, fds)))
}
