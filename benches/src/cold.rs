//! The first answer of a cold nginx: through the gateway, against bare nginx from exec.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    load::{Ended, http},
};

use crate::measure::{Measure, Samples};

const RUNS: usize = 30;
/// For so long it has been asleep: what a stop leaves to be done is over, and its next start is prepared.
pub const ASLEEP: Duration = Duration::from_millis(100);
pub const SPEC: &str = r#"
tenant = "bench"
[vps.web]
image   = "debian:nginx-light"
command = ["nginx", "-g", "daemon off;"]
routes  = { "http://web.test:18080" = 80 }
idle    = { after = "10m", then = "stop" }
"#;

/// The group.
pub fn run() -> Result<Vec<Measure>> {
    let host = Host::start(HostOptions::default())?;
    host.apply("web.toml", SPEC)?;
    let directory = tempfile::Builder::new().prefix("bailiwick-bench-").tempdir_in("/var/tmp")?;
    let config = bare_configuration(directory.path(), 18081)?;
    let samples =
        Samples::take(RUNS, vec![("ours", Box::new(|| ours(&host))), ("bare nginx", Box::new(|| bare(&config)))]);
    let (ours, bare) = (samples.median("ours"), samples.median("bare nginx"));
    Ok(vec![Measure {
        measure: "first answer of a cold nginx through the gateway".to_owned(),
        unit: "ms".to_owned(),
        ours,
        peers: samples.peers(),
        ratio: ours - bare,
        must: "<= bare + 15 ms".to_owned(),
        aim: "<= bare + 5 ms".to_owned(),
        ok: ours <= bare + 15.0,
        runs: RUNS,
        failed: samples.failed,
    }])
}

pub fn ours(host: &Host) -> Result<f64> {
    host.run(&["stop", "web"])?;
    std::thread::sleep(ASLEEP);
    let address = SocketAddr::from(([127, 0, 0, 1], 18080));
    let start = Instant::now();
    let ended = http(address, "web.test", "/", Duration::from_secs(20));
    let took = start.elapsed();
    match ended {
        Ended::Answer(answer) if answer.starts_with(b"HTTP/1.1 200 ") => Ok(took.as_secs_f64() * 1e3),
        Ended::Answer(answer) => bail!("{}", String::from_utf8_lossy(&answer)),
        other => bail!("{other:?}"),
    }
}

/// A configuration of an nginx in the foreground that listens on a port of the loopback interface.
pub fn bare_configuration(directory: &Path, port: u16) -> Result<std::path::PathBuf> {
    let path = directory.join("nginx.conf");
    let text = format!(
        "daemon off; pid {0}/nginx.pid; error_log {0}/error.log; worker_processes auto;\n\
         events {{ worker_connections 768; }}\n\
         http {{ access_log {0}/access.log; server {{ listen 127.0.0.1:{port}; root /usr/share/nginx/html; }} }}\n",
        directory.display()
    );
    std::fs::write(&path, text)?;
    Ok(path)
}

fn bare(config: &Path) -> Result<f64> {
    let address = SocketAddr::from(([127, 0, 0, 1], 18081));
    let start = Instant::now();
    let mut nginx = Command::new("nginx").arg("-c").arg(config).stderr(Stdio::null()).spawn().context("nginx")?;
    let took = loop {
        match http(address, "bare.test", "/", Duration::from_secs(1)) {
            Ended::Answer(_) => break start.elapsed(),
            _ => {
                ensure!(nginx.try_wait()?.is_none(), "nginx ended");
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    };
    // SIGQUIT lets the workers go in order, so that the port is free for the next run.
    let pid = nginx.id().to_string();
    let asked = Command::new("sh").args(["-c", "kill -QUIT \"$0\"", &pid]).status()?;
    ensure!(asked.success(), "nginx could not be asked to end");
    nginx.wait()?;
    Ok(took.as_secs_f64() * 1e3)
}
