//! By address, once the VPS is up: requests and bytes per second at an address that the network VPS owns, against the VPS's own
//! address over the same links, and against haproxy in TCP mode before it. Both ask at another port, since answers from a routed one go to
//! the gateway. No CPU is anybody's own: all that each way takes counts.

use std::{fs, process::Command, time::Instant};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    netns::{Client, sh},
};

use crate::{
    measure::{Measure, Samples},
    warm,
};

const RUNS: usize = 5;
const SECONDS: u32 = 2;
const CONNECTIONS: u32 = 64;
const OWNED: &str = "198.51.100.17";
const HAPROXY_PORT: u16 = 18086;
/// Bytes of the large answer.
const LARGE: u64 = 64 << 20;

const SPEC: &str = r#"
tenant = "bench"
[vps.web]
image   = "debian:nginx-light"
command = ["sh", "-c", "head -c 67108864 /dev/zero > /var/www/html/large; exec nginx -c /etc/nginx.conf -g 'daemon off;'"]
routes  = { "tcp://198.51.100.17:80" = 80 }
idle    = "never"
files   = { "/etc/nginx.conf" = '''
worker_processes 1; error_log stderr; events { worker_connections 1024; }
http { access_log off; keepalive_requests 100000000; sendfile on;
       server { listen 80; listen 81; root /var/www/html; location /1k { return 200 KILOBYTE; } } }
''' }
"#;

const HAPROXY: &str = "
global
  nbthread 1
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend f
  bind 127.0.0.1:18086
  default_backend b
backend b
  server s SERVER:81
";

/// The group.
pub fn run() -> Result<Vec<Measure>> {
    let _outside = Client::new()?;
    let config = format!("[network]\nuplink = \"eth0\"\naddresses = [\"{OWNED}\"]\n");
    let host = Host::start(HostOptions { config, ..HostOptions::default() })?;
    host.apply("web.toml", &spec(OWNED))?;
    host.run(&["start", "web"])?;
    let server = host.row("web")?["address"].as_str().context("an address")?.to_owned();
    await_way(&host, OWNED)?;
    let directory = tempfile::Builder::new().prefix("bailiwick-bench-").tempdir_in("/var/tmp")?;
    let file = directory.path().join("haproxy.cfg");
    fs::write(&file, HAPROXY.replace("SERVER", &server))?;
    let (_peer, _) =
        warm::peer(&["haproxy", "-db", "-f", &file.to_string_lossy()], HAPROXY_PORT, host.keeper() as i32)?;
    let places = [
        ("ours", format!("http://{OWNED}")),
        ("direct", format!("http://{server}:81")),
        ("haproxy", format!("http://127.0.0.1:{HAPROXY_PORT}")),
    ];
    let samples = |take: &dyn Fn(&str) -> Result<f64>| {
        let candidates = places
            .iter()
            .map(|(name, url)| (*name, Box::new(move || take(url)) as Box<dyn FnMut() -> Result<f64>>))
            .collect();
        Samples::take(RUNS, candidates)
    };
    let kept = samples(&|url| requests(url, &[]));
    let single = samples(&|url| requests(url, &["-H", "Connection: close"]));
    let per_cpu = std::cell::RefCell::new(Samples::default());
    let bytes = samples(&|url| {
        let (rate, cpu) = megabytes(url)?;
        let name = places.iter().find(|(_, place)| place == url).context("a place")?.0;
        per_cpu.borrow_mut().add(name, cpu);
        Ok(rate)
    });
    let per_cpu = per_cpu.into_inner();
    let measure = |what: &str, unit: &str, samples: &Samples, peer: &str, must: f64, aim: &str| {
        let ratio = samples.median("ours") / samples.median(peer);
        Measure {
            measure: format!("by address, past the gateway: {what}"),
            unit: unit.to_owned(),
            ours: samples.median("ours"),
            peers: samples.peers(),
            ratio,
            must: format!(">= {must} x {peer}"),
            aim: format!(">= {aim} x {peer}"),
            ok: ratio >= must,
            runs: RUNS,
            failed: samples.failed.clone(),
        }
    };
    Ok(vec![
        measure("requests, kept connections", "/s", &kept, "direct", 0.92, "0.98"),
        measure("requests, a connection each", "/s", &single, "direct", 0.92, "0.98"),
        measure("one large answer after another", "MB/s", &bytes, "direct", 0.92, "0.98"),
        measure("the same for each second of CPU", "MB/s", &per_cpu, "haproxy", 1.3, "2"),
    ])
}

/// A web server that is reached by that address.
pub fn spec(address: &str) -> String {
    SPEC.replace("KILOBYTE", &"x".repeat(1024)).replace(OWNED, address)
}

/// Waits until what comes for that address is led past the gateway.
pub fn await_way(host: &Host, address: &str) -> Result<()> {
    let list = format!("nsenter -t {} -n nft list map inet bailiwick ways4", host.pid_of("network")?);
    while !sh(&list)?.contains(address) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(())
}

/// Requests per second, as wrk counts them.
pub fn requests(url: &str, more: &[&str]) -> Result<f64> {
    let mut wrk = Command::new("wrk");
    wrk.args(["-t", "1", "-c", &CONNECTIONS.to_string(), "-d", &format!("{SECONDS}s")]).args(more);
    let output = wrk.arg(format!("{url}/1k")).output().context("wrk")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && !said.contains("Non-2xx"), "wrk: {said}");
    let rate = said.lines().find_map(|line| line.strip_prefix("Requests/sec:")).context("wrk's rate")?;
    Ok(rate.trim().parse()?)
}

/// Megabytes per second, and per second of CPU that the whole machine spent meanwhile.
fn megabytes(url: &str) -> Result<(f64, f64)> {
    const ANSWERS: u64 = 12;
    let (begun, busy) = (Instant::now(), busy()?);
    let url = format!("{url}/large?[1-{ANSWERS}]");
    let status = Command::new("curl").args(["-sf", "-o", "/dev/null", &url]).status()?;
    ensure!(status.success(), "curl: {status}");
    let bytes = (ANSWERS * LARGE) as f64 / 1e6;
    Ok((bytes / begun.elapsed().as_secs_f64(), bytes / (self::busy()? - busy)))
}

/// Seconds of CPU that were not idle, of all CPUs (proc(5), `/proc/stat`).
fn busy() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("a line")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
    ensure!(ticks.len() == 8, "{line}");
    // All but idle, the wait for a disk, and what others stole.
    Ok((ticks.iter().sum::<f64>() - ticks[3] - ticks[4] - ticks[7]) / 100.0)
}
