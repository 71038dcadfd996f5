//! Warm HTTP: requests per second and CPU time per request of the gateway, against haproxy and nginx as proxies of the same
//! server. Each proxy has one thread, on a CPU of its own; load and server share the other one.
//!
//! So that the proxy is what is measured:
//! - The server answers from memory. One that opens a file for each request is slower than any of the proxies: they idle then.
//! - The load runs in a cgroup beside the server's, with the same weight. A group's weight is shared out among the CPUs it
//!   runs on (sched/sched-design-CFS.rst), so a server whose group the proxy is in as well would count half on its CPU against
//!   a load in the root group, which would interrupt it for each answer; beside a proxy in the root group it would not.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{Host, HostOptions};

use crate::measure::{Measure, Samples};

const RUNS: usize = 5;
const SECONDS: u32 = 3;
const CONNECTIONS: u32 = 64;
/// CPU of the proxy, and of all else.
const CPUS: [&str; 2] = ["0", "1"];

const SPEC: &str = r#"
tenant = "bench"
[vps.web]
image   = "debian:nginx-light"
command = ["nginx", "-c", "/etc/nginx.conf", "-g", "daemon off;"]
routes  = { "http://web.test:18082" = 80 }
idle    = "never"
files   = { "/etc/nginx.conf" = '''
worker_processes 1; error_log stderr; events { worker_connections 1024; }
http { access_log off; keepalive_requests 100000000; server { listen 80; location /1k { return 200 KILOBYTE; } } }
''' }
"#;

const HAPROXY: &str = "
global
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option forwardfor
  http-reuse always
frontend f
  bind 127.0.0.1:18083
  default_backend b
backend b
  server s SERVER:80
";

const NGINX: &str = "
daemon off; worker_processes 1; error_log stderr; pid DIRECTORY/nginx.pid;
events { worker_connections 1024; }
http {
  access_log off; keepalive_requests 100000000;
  upstream b { server SERVER:80; keepalive 64; keepalive_requests 100000000; }
  server { listen 127.0.0.1:18084; location / {
    proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection \"\";
    proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto http;
  } }
}
";

/// A proxy that runs: its processes, and where it listens.
pub struct Proxy {
    pids: Vec<i32>,
    port: u16,
    /// A process in whose network namespace it listens; none: the host's.
    namespace: Option<i32>,
}

/// A peer's process, ended with this.
pub struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        // Its workers end by themselves when it is asked in order.
        let _ = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}

/// Where the load runs: a cgroup beside the server's.
struct Beside(PathBuf);

impl Beside {
    /// Beside the VPS that a process is in.
    fn of(pid: i32) -> Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        // cgroups(7): the hierarchy of the controller `cpu`, or the one that has all.
        let lines = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        let (controllers, path) = lines
            .filter(|(controllers, _)| controllers.is_empty() || controllers.split(',').any(|one| one == "cpu"))
            .max_by_key(|(controllers, _)| controllers.len())
            .context("the server's cgroup")?;
        let host = Path::new(path).components().take(2).collect::<PathBuf>();
        let hierarchy = Path::new("/sys/fs/cgroup").join(controllers);
        let group = hierarchy.join(host.strip_prefix("/")?).join("load");
        fs::create_dir(&group).with_context(|| format!("making {}", group.display()))?;
        Ok(Self(group))
    }

    /// Has a command run in it.
    fn run(&self, command: Command) -> Command {
        let mut inside = Command::new("sh");
        inside.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(&self.0);
        inside.arg(command.get_program()).args(command.get_args());
        inside
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// The group.
pub fn run() -> Result<Vec<Measure>> {
    let host = Host::start(HostOptions::default())?;
    host.apply("web.toml", &SPEC.replace("KILOBYTE", &"x".repeat(1024)))?;
    host.run(&["start", "web"])?;
    let directory = tempfile::Builder::new().prefix("bailiwick-bench-").tempdir_in("/var/tmp")?;
    let server = host.row("web")?["address"].as_str().context("an address")?.to_owned();
    let namespace = host.pid_of("gateway")?;
    let beside = Beside::of(host.pid_of("web")?)?;
    for pid in descendants(host.pid_of("web")?) {
        pin(pid, CPUS[1])?;
    }
    let ours = Proxy { pids: descendants(namespace), port: 18082, namespace: None };
    let written = |name: &str, text: &str| -> Result<String> {
        let path = directory.path().join(name);
        fs::write(&path, text.replace("SERVER", &server).replace("DIRECTORY", &directory.path().to_string_lossy()))?;
        Ok(path.to_string_lossy().into_owned())
    };
    let (haproxy_file, nginx_file) = (written("haproxy.cfg", HAPROXY)?, written("nginx.conf", NGINX)?);
    let (_one, haproxy) = peer(&["haproxy", "-db", "-f", &haproxy_file], 18083, namespace)?;
    let (_two, nginx) = peer(&["nginx", "-c", &nginx_file], 18084, namespace)?;
    let proxies = [("ours", &ours), ("haproxy", &haproxy), ("nginx", &nginx)];
    for pid in proxies.iter().flat_map(|(_, proxy)| &proxy.pids) {
        pin(*pid, CPUS[0])?;
    }

    let costs = std::cell::RefCell::new(Samples::default());
    let run = |name: &'static str, proxy: &Proxy| -> Result<f64> {
        let before = proxy.cpu();
        let (rate, requests) = load(proxy, &beside)?;
        let cost = (proxy.cpu() - before) / requests;
        costs.borrow_mut().add(name, cost);
        Ok(rate)
    };
    let run = &run;
    let candidates =
        proxies.map(|(name, proxy)| (name, Box::new(move || run(name, proxy)) as Box<dyn FnMut() -> Result<f64>>));
    let rates = Samples::take(RUNS, candidates.into_iter().collect());
    let costs = costs.into_inner();
    let measure = |what: &str, unit: &str, samples: &Samples, factor: f64| Measure {
        measure: format!("{what}, 1 KiB, {CONNECTIONS} connections, one proxy thread"),
        unit: unit.to_owned(),
        ours: samples.median("ours"),
        peers: samples.peers(),
        // How many times as good as haproxy.
        ratio: (samples.median("ours") / samples.median("haproxy")).powf(factor),
        must: ">= 0.8 x haproxy".to_owned(),
        aim: ">= 1.0 x haproxy".to_owned(),
        ok: (samples.median("ours") / samples.median("haproxy")).powf(factor) >= 0.8,
        runs: RUNS,
        failed: rates.failed.clone(),
    };
    Ok(vec![
        measure("warm HTTP requests", "/s", &rates, 1.0),
        measure("CPU of the proxy per warm HTTP request", "us", &costs, -1.0),
    ])
}

/// Starts a peer in a network namespace, and waits until it answers.
pub fn peer(command: &[&str], port: u16, namespace: i32) -> Result<(Peer, Proxy)> {
    let mut run = Command::new("nsenter");
    run.args(["-t", &namespace.to_string(), "-n"]).args(command).stdin(Stdio::null()).stdout(Stdio::null());
    let child = run.stderr(Stdio::null()).spawn().context("nsenter")?;
    let pid = child.id() as i32;
    let peer = Peer(child);
    let mut proxy = Proxy { pids: vec![pid], port, namespace: Some(namespace) };
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while proxy.command("curl").args(["-sf", "-o", "/dev/null", &proxy.url()]).status()?.code() != Some(0) {
        ensure!(std::time::Instant::now() < end, "{} did not answer", command[0]);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    proxy.pids = descendants(pid);
    Ok((peer, proxy))
}

impl Proxy {
    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/1k", self.port)
    }

    /// A command beside it.
    fn command(&self, program: &str) -> Command {
        match self.namespace {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.args(["-t", &namespace.to_string(), "-n", program]);
                command
            }
        }
    }

    /// Microseconds of CPU that its threads have used.
    fn cpu(&self) -> f64 {
        let threads = self.pids.iter().flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten());
        let used = |thread: fs::DirEntry| {
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<f64>().ok()
        };
        threads.flatten().filter_map(used).sum::<f64>() / 1e3
    }
}

/// Requests per second, and how many there were.
fn load(proxy: &Proxy, beside: &Beside) -> Result<(f64, f64)> {
    let mut command = proxy.command("taskset");
    command.args(["-c", CPUS[1], "wrk", "-t", "1", "-c", &CONNECTIONS.to_string(), "-d", &format!("{SECONDS}s")]);
    command.args(["-H", "Host: web.test", &proxy.url()]);
    let output = beside.run(command).output().context("wrk")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && !said.contains("Non-2xx") && !said.contains("Socket errors"), "wrk: {said}");
    let rate =
        said.lines().find_map(|line| line.strip_prefix("Requests/sec:")).context("wrk's rate")?.trim().parse()?;
    let count = said.lines().find_map(|line| line.split_once(" requests in ")).context("wrk's count")?.0;
    Ok((rate, count.trim().parse()?))
}

/// A process and all below it.
pub fn descendants(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(pid) = all.get(at) {
        let path = format!("/proc/{pid}/task/{pid}/children");
        let children = fs::read_to_string(Path::new(&path)).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        at += 1;
    }
    all
}

fn pin(pid: i32, cpu: &str) -> Result<()> {
    let output = Command::new("taskset").args(["-a", "-c", "-p", cpu, &pid.to_string()]).output().context("taskset")?;
    ensure!(output.status.success(), "taskset: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
