//! Memory of designated VPSs' processes: proportional set sizes, so that pages that several share count once in all.

use std::fs;

use anyhow::{Context, Result};
use bailiwick_system_tests::Host;

use crate::warm::descendants;

/// MiB of all processes of these VPSs.
pub fn pss(host: &Host, vps: &[&str]) -> Result<f64> {
    let mut sum = 0.0;
    for name in vps {
        for pid in descendants(host.pid_of(name)?) {
            // One that has just ended has none.
            sum += pss_of(pid).unwrap_or_default();
        }
    }
    Ok(sum)
}

/// MiB of one process.
pub fn pss_of(pid: i32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("Pss in smaps_rollup")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
}
