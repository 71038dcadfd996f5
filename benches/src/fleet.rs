//! Many at once: what each running VPS costs beyond its server, and a hundred different ones woken together, against as many
//! bare servers started together.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    load::{Ended, http},
};

use crate::{
    api::post,
    cold::bare_configuration,
    measure::{Measure, Samples},
    memory::pss_of,
};

const RUNNING: usize = 50;
const WOKEN: u16 = 100;
const RUNS: usize = 5;
/// For so long they have been asleep: what a stop leaves to be done is over, and what is prepared is prepared.
const ASLEEP: Duration = Duration::from_secs(2);
/// Of the VPSs' routes, and the first of the bare servers'.
const PORT: u16 = 18090;
const BARE_PORT: u16 = 19000;
/// Supervisors of peers at 50 containers, measured once on the reference machine.
const PEERS: [(&str, f64); 2] = [("conmon", 369.0), ("LXC monitor", 256.0)];

/// The group.
pub fn run() -> Result<Vec<Measure>> {
    Ok(vec![overhead()?, burst()?])
}

fn overhead() -> Result<Measure> {
    let host = Host::start(HostOptions::default())?;
    let one = |n: usize| {
        format!("[vps.sleeper-{n}]\nimage = \"debian:\"\ncommand = [\"sleep\", \"infinity\"]\nidle = \"never\"\n")
    };
    host.apply("sleepers.toml", &format!("tenant = \"bench\"\n{}", (0..RUNNING).map(one).collect::<String>()))?;
    let mut sum = 0.0;
    for n in 0..RUNNING {
        host.run(&["start", &format!("sleeper-{n}")])?;
    }
    for n in 0..RUNNING {
        let init = host.pid_of(&format!("sleeper-{n}"))?;
        sum += (pss_of(init)? + pss_of(parent(init)?)?) * 1024.0;
    }
    let ours = sum / RUNNING as f64;
    Ok(Measure {
        measure: format!("memory of a VPS beyond its server, {RUNNING} running (PSS)"),
        unit: "KiB".to_owned(),
        ours,
        peers: PEERS.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect::<BTreeMap<_, _>>(),
        ratio: ours,
        must: "<= 512 KiB".to_owned(),
        aim: "<= 256 KiB".to_owned(),
        ok: ours <= 512.0,
        runs: RUNNING,
        failed: BTreeMap::new(),
    })
}

/// The shim is its init's parent.
fn parent(pid: i32) -> Result<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("PPid")?;
    Ok(line.trim().parse()?)
}

fn burst() -> Result<Measure> {
    let host = Host::start(HostOptions::default())?;
    let one = |n: u16| {
        format!(
            "[vps.web-{n}]\nimage = \"debian:nginx-light\"\ncommand = [\"nginx\", \"-g\", \"daemon off;\"]\n\
             routes = {{ \"http://web-{n}.test:{PORT}\" = 80 }}\n"
        )
    };
    host.apply("webs.toml", &format!("tenant = \"bench\"\n{}", (0..WOKEN).map(one).collect::<String>()))?;
    let directory = tempfile::Builder::new().prefix("bailiwick-bench-").tempdir_in("/var/tmp")?;
    let configurations = (0..WOKEN).map(|n| -> Result<PathBuf> {
        let own = directory.path().join(n.to_string());
        fs::create_dir(&own)?;
        bare_configuration(&own, BARE_PORT + n)
    });
    let configurations: Vec<_> = configurations.collect::<Result<_>>()?;
    let samples = Samples::take(
        RUNS,
        vec![("ours", Box::new(|| ours(&host))), ("bare nginx", Box::new(|| bare(&configurations)))],
    );
    let (ours, bare) = (samples.median("ours"), samples.median("bare nginx"));
    Ok(Measure {
        measure: format!("{WOKEN} different nginx woken at once, all answered"),
        unit: "ms".to_owned(),
        ours,
        peers: samples.peers(),
        ratio: ours / bare,
        must: "<= 1.6 x bare".to_owned(),
        aim: "<= 1.2 x bare".to_owned(),
        ok: ours <= 1.6 * bare,
        runs: RUNS,
        failed: samples.failed,
    })
}

fn ours(host: &Host) -> Result<f64> {
    let socket = host.root.join("run/api.sock");
    for n in 0..WOKEN {
        post(&socket, &format!("/v1/vps/web-{n}/stop"))?;
    }
    std::thread::sleep(ASLEEP);
    let address = SocketAddr::from(([127, 0, 0, 1], PORT));
    let begun = Instant::now();
    let ask = |n: u16| match http(address, &format!("web-{n}.test"), "/", Duration::from_secs(60)) {
        Ended::Answer(answer) if answer.starts_with(b"HTTP/1.1 200 ") => Ok(()),
        Ended::Answer(answer) => bail!("{}", String::from_utf8_lossy(&answer)),
        other => bail!("{other:?}"),
    };
    together(ask)?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

fn bare(configurations: &[PathBuf]) -> Result<f64> {
    let begun = Instant::now();
    let servers = std::sync::Mutex::new(Vec::new());
    let start = |n: u16| -> Result<()> {
        let mut nginx = nginx(&configurations[usize::from(n)])?;
        let address = SocketAddr::from(([127, 0, 0, 1], BARE_PORT + n));
        while !matches!(http(address, "bare.test", "/", Duration::from_secs(10)), Ended::Answer(_)) {
            ensure!(nginx.try_wait()?.is_none(), "nginx ended");
            std::thread::sleep(Duration::from_millis(1));
        }
        servers.lock().map_err(|_| anyhow::anyhow!("a thread failed"))?.push(nginx);
        Ok(())
    };
    together(start)?;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    for mut nginx in servers.into_inner().map_err(|_| anyhow::anyhow!("a thread failed"))? {
        let asked = Command::new("sh").args(["-c", "kill -QUIT \"$0\"", &nginx.id().to_string()]).status()?;
        ensure!(asked.success(), "nginx could not be asked to end");
        nginx.wait()?;
    }
    Ok(took)
}

fn nginx(configuration: &Path) -> Result<Child> {
    Command::new("nginx").arg("-c").arg(configuration).stderr(Stdio::null()).spawn().context("nginx")
}

/// Runs `one` for each number on a thread of its own.
fn together(one: impl Fn(u16) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = (0..WOKEN).map(|n| scope.spawn(move || one(n))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread failed"))?)
    })
}
