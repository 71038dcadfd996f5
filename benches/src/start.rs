//! Start to exit of `/bin/true` in a new VPS, everything on, asked for through the API.

use std::time::Instant;

use anyhow::Result;
use bailiwick_system_tests::{Host, HostOptions};

use crate::{
    api::{Events, post},
    measure::{Measure, Samples},
    peers,
};

const RUNS: usize = 30;
const SPEC: &str = r#"
tenant = "bench"
[vps.true]
image   = "debian:"
command = ["/bin/true"]
restart = "never"
limits  = { memory = "64MiB", cpu = 1.0, processes = 50 }
"#;

/// The group.
pub fn run() -> Result<Vec<Measure>> {
    let host = Host::start(HostOptions::default())?;
    host.apply("true.toml", SPEC)?;
    let directory = tempfile::Builder::new().prefix("bailiwick-bench-").tempdir_in("/var/tmp")?;
    let root = peers::root_directory(&host, "debian:", directory.path())?;
    let socket = host.root.join("run/api.sock");
    let mut events = Events::follow(&socket)?;
    let mut ours = || {
        let start = Instant::now();
        post(&socket, "/v1/vps/true/start")?;
        events.await_any("true", &["asleep", "failed"])?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    let samples = Samples::take(
        RUNS,
        vec![
            ("ours", Box::new(&mut ours)),
            ("runc", Box::new(peers::runc(directory.path())?)),
            ("lxc-start", Box::new(peers::lxc(directory.path(), &root)?)),
            ("bwrap", Box::new(peers::bwrap(&root))),
        ],
    );
    peers::clean_up();
    let (ours, runc) = (samples.median("ours"), samples.median("runc"));
    Ok(vec![Measure {
        measure: "start to exit of /bin/true in a new VPS".to_owned(),
        unit: "ms".to_owned(),
        ours,
        peers: samples.peers(),
        ratio: ours / runc,
        must: "<= 0.25 x runc".to_owned(),
        aim: "<= 1.0 x bwrap".to_owned(),
        ok: ours <= 0.25 * runc,
        runs: RUNS,
        failed: samples.failed,
    }])
}
