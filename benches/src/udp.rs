//! Datagrams by address, once the VPS is up: questions of dnsperf per second to a dnsmasq at an address that the network VPS owns, against
//! the VPS's own address over the same links, and through the gateway.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{Host, HostOptions, netns::Client};

use crate::{
    direct,
    measure::{Measure, Samples},
};

const RUNS: usize = 5;
const SECONDS: u32 = 2;
const OWNED: &str = "198.51.100.17";
/// Of the host's, at which the gateway takes datagrams.
const GATEWAY: (&str, u16) = ("127.0.0.1", 18053);

/// Two servers alike. Answers from a routed port go to the gateway, unless the network VPS led the flow there: the other one is for
/// the VPS's own address.
const SPEC: &str = r#"
tenant = "bench"
[vps.names]
image   = "debian:dnsmasq-base"
command = ["sh", "-c", "dnsmasq -u root -R -h -A /web.test/203.0.113.9 -p 54 -x /one; exec dnsmasq -k -u root -R -h -A /web.test/203.0.113.9 -x /two"]
routes  = { "udp://198.51.100.17:53" = 53, "udp://127.0.0.1:18053" = { port = 53, client = "gateway" } }
idle    = "never"
"#;

/// The group.
pub fn run() -> Result<Vec<Measure>> {
    let _outside = Client::new()?;
    let config = format!("[network]\nuplink = \"eth0\"\naddresses = [\"{OWNED}\"]\n");
    let host = Host::start(HostOptions { config, ..HostOptions::default() })?;
    host.apply("names.toml", SPEC)?;
    host.run(&["start", "names"])?;
    direct::await_way(&host, OWNED)?;
    let server = host.row("names")?["address"].as_str().context("an address")?.to_owned();
    let questions = host.root.join("questions");
    fs::write(&questions, "web.test A\n")?;
    let questions = questions.to_string_lossy().into_owned();
    let places = [("ours", OWNED, 53), ("direct", server.as_str(), 54), ("the gateway", GATEWAY.0, GATEWAY.1)];
    let candidates = places.map(|(name, at, port)| {
        let questions = &questions;
        (name, Box::new(move || rate(at, port, questions)) as Box<dyn FnMut() -> Result<f64>>)
    });
    let rates = Samples::take(RUNS, candidates.into_iter().collect());
    let ratio = rates.median("ours") / rates.median("direct");
    Ok(vec![Measure {
        measure: "datagrams by address, past the gateway: questions answered".to_owned(),
        unit: "/s".to_owned(),
        ours: rates.median("ours"),
        peers: rates.peers(),
        ratio,
        must: ">= 0.9 x direct".to_owned(),
        aim: ">= 0.97 x direct".to_owned(),
        ok: ratio >= 0.9,
        runs: RUNS,
        failed: rates.failed.clone(),
    }])
}

fn rate(at: &str, port: u16, questions: &str) -> Result<f64> {
    let (port, seconds) = (port.to_string(), SECONDS.to_string());
    let mut dnsperf = Command::new("dnsperf");
    let output = dnsperf.args(["-s", at, "-p", &port, "-d", questions, "-l", &seconds, "-c", "8", "-q", "64"]).output();
    let output = output.context("dnsperf")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && !said.contains("Queries completed:    0"), "dnsperf: {said}");
    let rate =
        said.lines().find_map(|line| line.trim().strip_prefix("Queries per second:")).context("dnsperf's rate")?;
    Ok(rate.trim().parse()?)
}
