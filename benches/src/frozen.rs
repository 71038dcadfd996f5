//! The first answer of a frozen VPS through the gateway, and of the same one when it is up.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use bailiwick_system_tests::{
    Host, HostOptions,
    load::{Ended, http},
};

use crate::{
    api::post,
    measure::{Measure, Samples},
};

const RUNS: usize = 50;
const SPEC: &str = r#"
tenant = "bench"
[vps.web]
image   = "debian:nginx-light"
command = ["nginx", "-g", "daemon off;"]
routes  = { "http://web.test:18085" = 80 }
idle    = { after = "10m", then = "freeze" }
"#;

/// The group.
pub fn run() -> Result<Vec<Measure>> {
    let host = Host::start(HostOptions::default())?;
    host.apply("web.toml", SPEC)?;
    let socket = host.root.join("run/api.sock");
    answer()?;
    let frozen = || {
        post(&socket, "/v1/vps/web/freeze")?;
        answer()
    };
    let samples = Samples::take(RUNS, vec![("ours", Box::new(frozen)), ("the same, up", Box::new(answer))]);
    let ours = samples.median("ours");
    Ok(vec![Measure {
        measure: "first answer of a frozen nginx through the gateway".to_owned(),
        unit: "ms".to_owned(),
        ours,
        peers: samples.peers(),
        ratio: ours,
        must: "<= 3 ms".to_owned(),
        aim: "<= 1 ms".to_owned(),
        ok: ours <= 3.0,
        runs: RUNS,
        failed: samples.failed,
    }])
}

fn answer() -> Result<f64> {
    let start = Instant::now();
    let ended = http(SocketAddr::from(([127, 0, 0, 1], 18085)), "web.test", "/", Duration::from_secs(20));
    let took = start.elapsed();
    match ended {
        Ended::Answer(answer) if answer.starts_with(b"HTTP/1.1 200 ") => Ok(took.as_secs_f64() * 1e3),
        other => bail!("{other:?}"),
    }
}
