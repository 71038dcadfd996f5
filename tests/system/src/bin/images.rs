//! `bailiwick-images REFERENCE…`: builds images into the store that tests, demo and bench share, unless they are there.
#![forbid(unsafe_code)]

use std::process::Stdio;

use anyhow::{Result, ensure};
use bailiwick_system_tests::{Host, HostOptions};

fn main() -> Result<()> {
    let images: Vec<String> = std::env::args().skip(1).collect();
    let host = Host::start(HostOptions::default())?;
    for image in &images {
        let mut command = host.command(&["image", "build", image]);
        let status = command.stdout(Stdio::inherit()).stderr(Stdio::inherit()).status()?;
        ensure!(status.success(), "building {image} failed; the daemon said:\n{}", host.daemon_log());
    }
    Ok(())
}
