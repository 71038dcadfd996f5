//! Starting, driving and stopping a host.

use std::{
    fs,
    os::unix::{net::UnixDatagram, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How a host is to be.
#[derive(Debug, Clone, Default)]
pub struct HostOptions {
    /// Its root; none: a fresh temporary directory.
    pub root: Option<PathBuf>,
    /// Lines put before the designated VPSs of the default `host.toml`.
    pub config: String,
    /// Another layer store than the shared one (`layers_store`).
    pub layers: Option<PathBuf>,
}

/// A running host.
#[derive(Debug)]
pub struct Host {
    /// Its `--root`.
    pub root: PathBuf,
    keeper: Child,
    temporary: Option<tempfile::TempDir>,
}

/// What a CLI call answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Exit status.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Where the built programs are: `BAILIWICK_BIN`, or beside this one.
pub fn programs() -> PathBuf {
    if let Some(path) = std::env::var_os("BAILIWICK_BIN") {
        return path.into();
    }
    let exe = std::env::current_exe().unwrap_or_default();
    let directory = exe.parent().unwrap_or(Path::new("."));
    if directory.ends_with("deps") { directory.parent().unwrap_or(directory).into() } else { directory.into() }
}

/// The layer store that tests and the demo share, so that images are built once.
pub fn layers_store() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
    cache.unwrap_or_else(home).join("bailiwick/layers")
}

/// Hosts that this process has started, so that each has a cgroup of its own.
static HOSTS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);

impl Host {
    /// Starts a host and waits until its designated VPSs are up.
    pub fn start(options: HostOptions) -> Result<Self> {
        let temporary = match options.root {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("bailiwick-").tempdir_in("/var/tmp")?),
        };
        let root = options.root.clone().or(temporary.as_ref().map(|t| t.path().to_owned())).context("a root")?;
        fs::create_dir_all(&root)?;
        let layers = options.layers.clone().unwrap_or_else(layers_store);
        fs::create_dir_all(&layers)?;
        let default = fs::read_to_string(project().join("packaging/host.toml"))?;
        let designated = default.find("[designated.").context("packaging/host.toml has designated VPSs")?;
        let number = HOSTS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let cgroup = format!("bailiwick-{}-{number}", std::process::id());
        // How full this machine's disk is must not matter.
        let reserve = if options.config.contains("reserve") { "" } else { "reserve = { disk = \"0%\" }\n" };
        let head = format!("{reserve}cgroup = {cgroup:?}\nlayers = {layers:?}\n{}\n", options.config);
        fs::write(root.join("host.toml"), head + &default[designated..])?;
        Self::launch(root, temporary)
    }

    fn launch(root: PathBuf, temporary: Option<tempfile::TempDir>) -> Result<Self> {
        let notify = root.join("notify");
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify)?;
        let log = fs::File::create(root.join("bailiwickd.log"))?;
        let keeper = Command::new(programs().join("bailiwickd"))
            .arg("--root")
            .arg(&root)
            .env("NOTIFY_SOCKET", &notify)
            .process_group(0) // Ctrl-C is for us; we stop it in order
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting bailiwickd")?;
        let mut host = Self { root, keeper, temporary };
        host.await_ready(&socket)?;
        Ok(host)
    }

    fn await_ready(&mut self, socket: &UnixDatagram) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut buffer = [0; 256];
        loop {
            if let Ok(n) = socket.recv(&mut buffer)
                && buffer[..n].split(|b| *b == b'\n').any(|line| line == b"READY=1")
            {
                return Ok(());
            }
            if let Some(status) = self.keeper.try_wait()? {
                bail!("bailiwickd ended ({status}) before it was ready:\n{}", self.daemon_log());
            }
            ensure!(Instant::now() < deadline, "bailiwickd was not ready in time:\n{}", self.daemon_log());
        }
    }

    /// The end of what keeper and daemon wrote.
    pub fn daemon_log(&self) -> String {
        let text = fs::read_to_string(self.root.join("bailiwickd.log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// The keeper's pid.
    pub fn keeper(&self) -> i32 {
        self.keeper.id() as i32
    }

    /// The daemon's pid: the keeper's child of that name.
    pub fn daemon(&self) -> Result<i32> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.keeper.id()))?;
        let is_daemon = |pid: &&str| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|b| *b == 0).nth(1) == Some(b"daemon")
        };
        let found = children.split_whitespace().find(is_daemon).context("the keeper has no daemon")?;
        Ok(found.parse()?)
    }

    /// The first process of a VPS, as the host numbers it.
    pub fn pid_of(&self, vps: &str) -> Result<i32> {
        let rows = self.json(&["ps", "--all"])?;
        let row = rows.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == vps));
        let pid = row.and_then(|row| row["pid"].as_i64());
        Ok(pid.with_context(|| format!("vps {vps} has no process: {rows}"))? as i32)
    }

    /// Runs the CLI.
    pub fn cli(&self, args: &[&str]) -> Result<Answer> {
        Ok(self.command(args).output().context("running bailiwick")?.into())
    }

    /// A CLI call that has not been made yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(programs().join("bailiwick"));
        command.arg("--root").arg(&self.root).args(args).stdin(Stdio::null());
        command
    }

    /// Runs the CLI and takes its output; an error when it fails.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let answer = self.cli(args)?;
        let said = || format!("bailiwick {}: exit {}\n{}{}", args.join(" "), answer.code, answer.out, answer.err);
        ensure!(answer.code == 0, "{}\n--- daemon\n{}", said(), self.daemon_log());
        Ok(answer.out)
    }

    /// Runs the CLI with `--json`.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let out = self.run(&[args, &["--json"]].concat())?;
        serde_json::from_str(&out).with_context(|| format!("not JSON: {out}"))
    }

    /// One row of `ps --all`.
    pub fn row(&self, vps: &str) -> Result<Value> {
        let rows = self.json(&["ps", "--all"])?;
        let found = rows.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == vps)).cloned();
        found.with_context(|| format!("no vps {vps} in {rows}"))
    }

    /// A VPS's state.
    pub fn state(&self, vps: &str) -> Result<String> {
        Ok(self.row(vps)?["state"].as_str().unwrap_or_default().to_owned())
    }

    /// Follows `bailiwick events -f` until the VPS is in `state`, which may already be so.
    pub fn await_state(&self, vps: &str, state: &str, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        let mut follow = self.command(&["events", "-f", "--json"]).stdout(Stdio::piped()).spawn()?;
        let events = follow.stdout.take().context("events")?;
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            use std::io::BufRead as _;
            for _ in std::io::BufReader::new(events).lines().map_while(Result::ok) {
                if sender.send(()).is_err() {
                    return;
                }
            }
        });
        let result = loop {
            let now = self.state(vps)?;
            if now == state {
                break Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Err(anyhow::anyhow!("vps {vps} is {now}, not {state}\n{}", self.run(&["why", vps])?));
            }
            let _ = receiver.recv_timeout(left.min(Duration::from_millis(500)));
        };
        let _ = follow.kill();
        let _ = follow.wait();
        result
    }

    /// Writes a spec under the root and applies it.
    pub fn apply(&self, name: &str, text: &str) -> Result<String> {
        let path = self.root.join(name);
        fs::write(&path, text)?;
        self.run(&["apply", &path.to_string_lossy()])
    }

    /// Kills a process of this host.
    pub fn kill(&self, pid: i32) -> Result<()> {
        let pid = Pid::from_raw(pid).context("a pid")?;
        Ok(kill_process(pid, Signal::KILL)?)
    }

    /// Ends the keeper by SIGKILL and waits for it: as if the machine's init had done it.
    pub fn crash(&mut self) -> Result<()> {
        self.kill(self.keeper())?;
        self.keeper.wait()?;
        Ok(())
    }

    /// Starts it again on the same root after it ended.
    pub fn again(mut self) -> Result<Self> {
        let temporary = self.temporary.take();
        let root = self.root.clone();
        drop(self);
        Self::launch(root, temporary)
    }

    /// Asks the host to end and waits until it has.
    pub fn stop(&mut self) -> Result<()> {
        if self.keeper.try_wait()?.is_some() {
            return Ok(());
        }
        kill_process(Pid::from_raw(self.keeper()).context("a pid")?, Signal::TERM)?;
        let deadline = Instant::now() + Duration::from_secs(60);
        // A child's end is a SIGCHLD, which a library must not catch: look at a short interval.
        let status = loop {
            if let Some(status) = self.keeper.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                let log = self.daemon_log();
                self.crash()?;
                bail!("bailiwickd did not stop within 60 s:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        ensure!(status.success(), "bailiwickd stopped with {status}:\n{}", self.daemon_log());
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("stopping the host: {error:#}");
        }
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The project's directory: `BAILIWICK_PROJECT`, or where this was built.
pub fn project() -> PathBuf {
    if let Some(path) = std::env::var_os("BAILIWICK_PROJECT") {
        return path.into();
    }
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
