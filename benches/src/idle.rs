//! Memory of a host on which nothing happens: all designated VPSs together.

use std::collections::BTreeMap;

use anyhow::Result;
use bailiwick_system_tests::{Host, HostOptions};

use crate::{
    measure::{Measure, median},
    memory::pss,
};

const RUNS: usize = 3;
/// Resident memory of peers' daemons, measured once on the reference machine: they need systemd or a store of their own.
const PEERS: [(&str, f64); 2] = [("LXD's daemon", 95.0), ("containerd", 46.0)];

/// The group.
pub fn run() -> Result<Vec<Measure>> {
    let mut sizes = Vec::new();
    for _ in 0..RUNS {
        let host = Host::start(HostOptions::default())?;
        // Whatever start-up left to do is done when a whole command has gone through.
        host.run(&["ps", "--all"])?;
        sizes.push(pss(&host, &["control", "gateway", "network", "apps"])?);
    }
    let ours = median(&sizes);
    Ok(vec![Measure {
        measure: "all designated VPSs together, idle (PSS)".to_owned(),
        unit: "MiB".to_owned(),
        ours,
        peers: PEERS.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect::<BTreeMap<_, _>>(),
        ratio: ours,
        must: "<= 64 MiB".to_owned(),
        aim: "<= 32 MiB".to_owned(),
        ok: ours <= 64.0,
        runs: RUNS,
        failed: BTreeMap::new(),
    }])
}
