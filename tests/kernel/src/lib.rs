//! What a tenant sees: VPSs made by the real steps (`isolation::host`, `bailiwick-shim`), without the host daemon.
//!
//! Needs root and Debian's `busybox-static`. May touch: a temporary directory, cgroups named `bailiwick-kernel-*`, ids
//! above 1,500,000,000. Must never: leave any of them behind.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{PermissionsExt, chown, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use isolation::host::{
    Cgroup, Hierarchies, HostBind, IdRange, LAYER_IDS, Linker, ShimStart, layer_map, make_namespaces, spawn_shim,
};
use model::{ExitStatus, RunSpec, run::Root};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, Mode, makedev, mknodat},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{Signal, pidfd_send_signal},
};
use sys::process::Child;
use wire::shim::{Bind, Descriptors, FromShim, ShimState, ToShim, VERSION, recv, send};

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A program of this workspace, built.
fn built(arguments: &[&str], name: &str) -> PathBuf {
    let done = Command::new(env!("CARGO")).args(["build", "-q"]).args(arguments).status().expect("cargo runs");
    assert!(done.success(), "cargo build {arguments:?}");
    let target = std::env::current_exe().expect("a path");
    // …/debug/deps/test → …/debug
    target.ancestors().nth(2).expect("a target directory").join(name)
}

static SHIM: LazyLock<PathBuf> = LazyLock::new(|| built(&["-p", "bailiwick-shim"], "bailiwick-shim"));
static PROBE: LazyLock<PathBuf> =
    LazyLock::new(|| built(&["-p", "bailiwick-sys", "--example", "probe"], "examples/probe"));

/// A VPS to be: change what you need, then `start`.
pub struct Builder {
    /// What is run; the root is a layer with busybox and the probe.
    pub run: RunSpec,
    /// Whether it gets a network namespace of its own.
    pub network: bool,
    /// Files of a second layer over the first: path to content.
    pub second_layer: BTreeMap<String, String>,
    /// Prepared mounts.
    pub binds: Vec<HostBind>,
    /// Where the other end of its link is made; with `run.link`.
    pub outer: Option<OwnedFd>,
    /// Sockets for the program.
    pub listeners: Vec<(String, OwnedFd)>,
    /// What its secrets say (`run.secrets`).
    pub secrets: Option<OwnedFd>,
}

impl Builder {
    /// `command` in a shell of busybox.
    pub fn shell(command: &str) -> Self {
        let json = r#"{"name":"blog","root":{"layers":[]},"command":[],"ready":"started","stop":{"signal":15,"grace_ms":5000}}"#;
        let mut run: RunSpec = serde_json::from_str(json).expect("a run spec");
        run.command = vec!["sh".to_owned(), "-c".to_owned(), command.to_owned()];
        Self {
            run,
            network: true,
            second_layer: BTreeMap::new(),
            binds: Vec::new(),
            outer: None,
            listeners: Vec::new(),
            secrets: None,
        }
    }

    /// A VPS that waits to be asked.
    pub fn idle() -> Self {
        Self::shell("exec sleep 1000000")
    }

    /// Starts it.
    pub fn start(mut self) -> Vps {
        let n = COUNT.fetch_add(1, Ordering::Relaxed) + (std::process::id() % 1000) * 20;
        let directory = tempfile::Builder::new().prefix("bailiwick-kernel-").tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let (user, ids) = (900_000_000 + n, IdRange { first: 1_500_000_000 + (n << 16), count: 1 << 16 });
        for name in ["layer", "state/upper", "state/work", "log", "root"] {
            fs::create_dir_all(at(name)).expect("a directory");
        }
        for name in ["state", "state/upper", "state/work"] {
            chown(at(name), Some(ids.first), Some(ids.first)).expect("chown");
        }
        chown(at("log"), Some(user), Some(user)).expect("chown");
        layer(&at("layer"));

        let hierarchies = Hierarchies::find(&format!("bailiwick-kernel-{n}")).expect("cgroups");
        hierarchies.prepare().expect("a cgroup");
        // An earlier start may have left a group in which all were killed; who is born into that is killed too.
        hierarchies.create("blog", &self.run.limits, user).and_then(|left| left.kill()).expect("a cgroup");
        let cgroup = hierarchies.create("blog", &self.run.limits, user).expect("a cgroup");
        let namespaces = make_namespaces(user, ids, self.network).expect("namespaces");
        if let (Some(outer), Some(link), Some(inner)) = (&self.outer, &self.run.link, &namespaces.network) {
            Linker::new(outer.as_fd()).and_then(|mut l| l.create(link, inner.as_fd())).expect("a link");
        }
        let map = layer_map(ids.first).expect("a map");
        let mut layers = if self.run.root == Root::Bare { vec![] } else { vec![at("layer")] };
        if !self.second_layer.is_empty() {
            fs::create_dir(at("second")).expect("a directory");
            for (path, content) in &self.second_layer {
                let path = at("second").join(path);
                fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
                fs::write(path, content).expect("a file");
            }
            for entry in walk(&at("second")) {
                std::os::unix::fs::lchown(&entry, Some(LAYER_IDS), Some(LAYER_IDS)).expect("chown");
            }
            layers.push(at("second"));
        }
        if let Root::Layers(list) = &mut self.run.root {
            let id = serde_json::from_value("0".repeat(64).into()).expect("a layer id");
            list.resize(layers.len(), id);
        }
        let (daemon, shim) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("sockets");
        let binary = File::open(&*SHIM).expect("the shim");
        let child = spawn_shim(
            &ShimStart {
                binary: binary.as_fd(),
                socket: shim.as_fd(),
                cgroup: cgroup.shim_directory().expect("a directory").as_fd(),
                user,
                first: ids.first,
                mount_point: &at("root"),
                layers: &layers,
                layer_map: Some(map.as_fd()),
                state: &at("state"),
                binds: &self.binds,
                shown: &[],
            },
            |error| note(&error.explain()),
        )
        .expect("a shim");
        drop(shim);
        let log = File::open(at("log")).expect("a directory");
        let (birthplace, tasks) = (cgroup.directory().expect("a directory"), cgroup.tasks().expect("tasks"));
        let mut fds = vec![namespaces.user.as_fd()];
        fds.extend(namespaces.network.as_ref().map(AsFd::as_fd));
        fds.push(log.as_fd());
        fds.push(birthplace.as_fd());
        fds.extend(tasks.iter().map(AsFd::as_fd));
        fds.extend(self.listeners.iter().map(|(_, fd)| fd.as_fd()));
        fds.extend(self.secrets.iter().map(AsFd::as_fd));
        let binds = self
            .binds
            .iter()
            .map(|b| Bind { target: b.target.clone(), directory: b.source.is_dir(), volume: b.volume })
            .collect();
        let start = ToShim::Start {
            version: VERSION,
            run: Box::new(self.run),
            fds: Descriptors {
                network: self.network,
                tasks: tasks.len(),
                listeners: self.listeners.iter().map(|(name, _)| name.clone()).collect(),
                secrets: self.secrets.is_some(),
            },
            binds,
        };
        let started = Instant::now();
        send(daemon.as_fd(), &start, &fds).expect("the start message");
        Vps {
            daemon: Some(daemon),
            shim: Some(child),
            cgroup,
            hierarchies,
            directory,
            user,
            ids,
            execs: 0,
            started,
            _outer: self.outer,
        }
    }
}

/// The tenant's root: busybox under every name, and what tests need.
fn layer(root: &Path) {
    for name in ["bin", "etc", "tmp", "home", "proc", "dev"] {
        fs::create_dir_all(root.join(name)).expect("a directory");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox: apt-get install busybox-static");
    fs::copy(&*PROBE, root.join("bin/probe")).expect("the probe");
    let applets = Command::new("/bin/busybox").arg("--list").output().expect("busybox runs");
    for applet in String::from_utf8(applets.stdout).expect("names").lines().filter(|a| *a != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).expect("a link");
    }
    fs::copy(&*PROBE, root.join("bin/rootprobe")).expect("a copy");
    fs::write(root.join("etc/passwd"), "root:x:0:0::/home:/bin/sh\nweb:x:33:33::/tmp:/bin/sh\n").expect("passwd");
    fs::write(root.join("etc/group"), "root:x:0:\nweb:x:33:\nextra:x:77:web\n").expect("group");
    // What a hostile image could hold; mirrored from what `tar` as root would unpack.
    let directory = File::open(root).expect("a directory");
    mknodat(&directory, "null", FileType::CharacterDevice, Mode::from(0o666), makedev(1, 3)).expect("a node");
    for entry in walk(root) {
        std::os::unix::fs::lchown(&entry, Some(LAYER_IDS), Some(LAYER_IDS)).expect("chown");
    }
    fs::set_permissions(root.join("bin/rootprobe"), PermissionsExt::from_mode(0o4755)).expect("chmod");
    fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777)).expect("chmod");
}

fn walk(path: &Path) -> Vec<PathBuf> {
    let mut all = vec![path.to_owned()];
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).expect("a directory") {
            all.extend(walk(&entry.expect("an entry").path()));
        }
    }
    all
}

/// A VPS that was started.
pub struct Vps {
    daemon: Option<OwnedFd>,
    shim: Option<Child>,
    cgroup: Cgroup,
    hierarchies: Hierarchies,
    directory: tempfile::TempDir,
    /// The uid of its shim.
    pub user: u32,
    /// Its ids.
    pub ids: IdRange,
    execs: u64,
    /// When the start message went.
    pub started: Instant,
    /// The link is gone with the namespace of either end.
    _outer: Option<OwnedFd>,
}

/// What an exec did.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    /// How it ended.
    pub status: ExitStatus,
    /// Both its streams.
    pub output: String,
    /// Why it was not started.
    pub error: Option<String>,
}

impl Vps {
    /// The next message of the shim.
    pub fn next(&self) -> Option<FromShim> {
        let daemon = self.daemon.as_ref().expect("connected");
        let mut fds = [PollFd::new(daemon, PollFlags::IN)];
        let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        assert_eq!(poll(&mut fds, Some(&patience)), Ok(1), "the shim is silent; log:\n{}", self.log());
        recv(daemon.as_fd()).expect("a message").map(|(message, _)| message)
    }

    /// Waits until the VPS is in `state`; fails when it ends before.
    pub fn reach(&self, state: ShimState) -> &Self {
        loop {
            match self.next() {
                Some(FromShim::State { state: now, .. }) if now == state => return self,
                Some(FromShim::State { .. } | FromShim::ExecEnded { .. }) => {}
                other => panic!("not {state:?} but {other:?}; log:\n{}", self.log()),
            }
        }
    }

    /// Waits for its end.
    pub fn ended(&self) -> ExitStatus {
        loop {
            match self.next() {
                Some(FromShim::Ended { status }) => return status,
                Some(FromShim::State { .. } | FromShim::ExecEnded { .. }) => {}
                other => panic!("not ended but {other:?}; log:\n{}", self.log()),
            }
        }
    }

    /// Waits until it is said that it can't be started.
    pub fn not_started(&self) -> String {
        loop {
            match self.next() {
                Some(FromShim::NotStarted { reason }) => return reason,
                Some(FromShim::State { .. }) => {}
                other => panic!("not refused but {other:?}; log:\n{}", self.log()),
            }
        }
    }

    /// Sends the shim a message.
    pub fn tell(&self, message: &ToShim) {
        send(self.daemon.as_ref().expect("connected").as_fd(), message, &[]).expect("a message");
    }

    /// Runs a shell command inside as `user`.
    pub fn exec_as(&mut self, user: &str, command: &str) -> Done {
        self.run_as(user, &["sh", "-c", command])
    }

    /// Runs a program inside as `user`.
    pub fn run_as(&mut self, user: &str, command: &[&str]) -> Done {
        let (id, mut output) = self.begin(user, command);
        let mut text = String::new();
        output.read_to_string(&mut text).expect("output");
        loop {
            match self.next() {
                Some(FromShim::ExecEnded { id: ended, status, error }) if ended == id => {
                    return Done { status, output: text, error };
                }
                Some(FromShim::State { .. }) => {}
                other => panic!("{command:?}: {other:?}"),
            }
        }
    }

    /// Starts a command; its number and output.
    pub fn begin(&mut self, user: &str, command: &[&str]) -> (u64, File) {
        self.execs += 1;
        let id = self.execs;
        let (output, writer) = rustix::pipe::pipe().expect("a pipe");
        let null = File::open("/dev/null").expect("null");
        let message = ToShim::Exec {
            id,
            command: command.iter().map(|&c| c.to_owned()).collect(),
            env: BTreeMap::new(),
            user: user.to_owned(),
            cwd: "/".to_owned(),
            terminal: None,
        };
        let fds = [null.as_fd(), writer.as_fd(), writer.as_fd()];
        send(self.daemon.as_ref().expect("connected").as_fd(), &message, &fds).expect("a message");
        (id, File::from(output))
    }

    /// The output of a shell command as root, which must succeed.
    pub fn sh(&mut self, command: &str) -> String {
        let done = self.exec_as("root", command);
        assert_eq!(done.status, ExitStatus::Code(0), "{command}: {done:?}");
        done.output.trim_end().to_owned()
    }

    /// Its log, oldest first.
    pub fn log(&self) -> String {
        ["log.1", "log"]
            .iter()
            .filter_map(|name| fs::read_to_string(self.directory.path().join("log").join(name)).ok())
            .collect()
    }

    /// Waits until its log holds `text`.
    pub fn said(&mut self, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < until, "never said {text:?}:\n{}", self.log());
            // The shim answers after it has written what it had read by then.
            self.sh("true");
        }
    }

    /// The directory with its log.
    pub fn log_directory(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// The files of that name that it has written.
    pub fn find_on_disk(&self, name: &str) -> Vec<PathBuf> {
        let all = walk(&self.directory.path().join("state/upper"));
        all.into_iter().filter(|path| path.ends_with(name)).collect()
    }

    /// Its processes, as the host numbers them.
    pub fn processes(&self) -> Vec<i32> {
        let inside = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/uid_map"))
                .is_ok_and(|map| map.split_whitespace().nth(1) == Some(&self.ids.first.to_string()))
        };
        let pids = fs::read_dir("/proc").expect("proc").filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(inside).collect()
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The shim's process number.
    pub fn shim_pid(&self) -> i32 {
        self.shim.as_ref().expect("a shim").pid.as_raw_nonzero().get()
    }

    /// Sends the shim SIGKILL and reaps it.
    pub fn kill_shim(&mut self) {
        self.shim.take().expect("a shim").kill();
    }

    /// Closes the daemon's end.
    pub fn disconnect(&mut self) {
        self.daemon = None;
    }

    /// Waits until no process of it is left.
    pub fn gone(&self) {
        let until = Instant::now() + PATIENCE;
        while !self.processes().is_empty() {
            assert!(Instant::now() < until, "still there: {:?}", self.processes());
            // No event tells the end of a process that is nobody's child here.
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the shim's end; its exit code.
    pub fn shim_exit(&mut self) -> i32 {
        self.shim.take().expect("a shim").wait().expect("its status")
    }
}

impl Drop for Vps {
    fn drop(&mut self) {
        self.daemon = None;
        if let Some(shim) = self.shim.take() {
            let mut fds = [PollFd::new(&shim.pidfd, PollFlags::IN)];
            let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
            if poll(&mut fds, Some(&patience)) != Ok(1) {
                let _ = pidfd_send_signal(&shim.pidfd, Signal::KILL);
            }
            let _ = shim.wait();
        }
        let until = Instant::now() + PATIENCE;
        while !self.cgroup.is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        let removed = self.cgroup.remove().and_then(|()| self.hierarchies.remove());
        if let (Err(error), false) = (removed, std::thread::panicking()) {
            panic!("a cgroup is left: {}", error.explain());
        }
    }
}

/// Writes to standard error what a test wants to say.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
