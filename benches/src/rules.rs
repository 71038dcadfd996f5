//! A firewall with 10,000 rules over 1,000 VPSs: requests per second by address, against a host that has none; and how long one change of a
//! rule takes, until it is in force.

use std::{fmt::Write as _, fs, time::Instant};

use anyhow::{Context, Result};
use bailiwick_system_tests::{Host, HostOptions, netns::Client};

use crate::{
    direct::{self, requests},
    measure::{Measure, Samples, median},
};

const RUNS: usize = 5;
const CHANGES: usize = 25;
const FILES: usize = 40;
/// VPSs of a file, and rules of each.
const OF_FILE: usize = 25;
const RULES: usize = 10;

/// The group.
pub fn run() -> Result<Vec<Measure>> {
    let _outside = Client::new()?;
    let full = start("198.51.100.17", "10.81.0.0/16", "fd81::/96")?;
    let _empty = start("198.51.100.18", "10.82.0.0/16", "fd82::/96")?;
    let mut files = Vec::new();
    for file in 0..FILES {
        let path = full.root.join(format!("rules-{file}.toml"));
        fs::write(&path, spec(file, 1000))?;
        files.push(path.to_string_lossy().into_owned());
    }
    let begun = Instant::now();
    for file in &files {
        full.run(&["apply", file])?;
    }
    println!("{} rules over {} VPSs: {:.1} s", FILES * OF_FILE * RULES, FILES * OF_FILE, begun.elapsed().as_secs_f64());
    // Once all have addresses all rules are in force.
    loop {
        let rules = full.json(&["network", "rules"])?;
        if rules.as_array().map_or(0, Vec::len) >= FILES * OF_FILE * RULES {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    println!("all are in force: {:.1} s", begun.elapsed().as_secs_f64());
    let places = [("ours", "http://198.51.100.17"), ("none", "http://198.51.100.18")];
    let candidates = |more: &'static [&'static str]| {
        let one = |(name, url): (&'static str, &'static str)| {
            (name, Box::new(move || requests(url, more)) as Box<dyn FnMut() -> Result<f64>>)
        };
        places.into_iter().map(one).collect()
    };
    let kept = Samples::take(RUNS, candidates(&[]));
    let single = Samples::take(RUNS, candidates(&["-H", "Connection: close"]));
    let mut times = Vec::new();
    for change in 0..CHANGES {
        fs::write(&files[0], spec(0, 1001 + change % 2))?;
        let begun = Instant::now();
        full.run(&["apply", &files[0]])?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let against_none = |what: &str, samples: &Samples| {
        let ratio = samples.median("ours") / samples.median("none");
        Measure {
            measure: format!("10,000 rules: {what}"),
            unit: "/s".to_owned(),
            ours: samples.median("ours"),
            peers: samples.peers(),
            ratio,
            must: ">= 0.97 x none".to_owned(),
            aim: "1 x none".to_owned(),
            ok: ratio >= 0.97,
            runs: RUNS,
            failed: samples.failed.clone(),
        }
    };
    let time = median(&times);
    Ok(vec![
        against_none("requests by address, kept connections", &kept),
        against_none("requests by address, a connection each", &single),
        Measure {
            measure: "10,000 rules: one is changed, from apply until it is in force".to_owned(),
            unit: "ms".to_owned(),
            ours: time,
            peers: [("slowest".to_owned(), times.iter().copied().fold(0.0, f64::max))].into(),
            ratio: time,
            must: "<= 100 ms".to_owned(),
            aim: "<= 20 ms".to_owned(),
            ok: time <= 100.0,
            runs: CHANGES,
            failed: Default::default(),
        },
    ])
}

fn start(address: &str, subnet: &str, subnet6: &str) -> Result<Host> {
    let config = format!(
        "[network]\nuplink = \"eth0\"\naddresses = [\"{address}\"]\nsubnet = \"{subnet}\"\nsubnet6 = \"{subnet6}\"\n"
    );
    let host = Host::start(HostOptions { config, ..HostOptions::default() })?;
    host.apply("web.toml", &direct::spec(address))?;
    host.run(&["start", "web"])?;
    direct::await_way(&host, address).context("its way")?;
    Ok(host)
}

/// VPSs that may each connect to ten others; the first to a port that changes.
fn spec(file: usize, first: usize) -> String {
    let mut rules = String::new();
    for from in 0..OF_FILE {
        for rule in 0..RULES {
            let to = (from + 1 + rule) % OF_FILE;
            let port = if (from, rule) == (0, 0) { first } else { 1000 + rule };
            let _ = write!(rules, "\"f{file}-{from} -> f{file}-{to}:{port}\", ");
        }
    }
    let mut text = format!("tenant = \"bench\"\nallow = [{rules}]\n");
    for vps in 0..OF_FILE {
        let _ = write!(text, "[vps.f{file}-{vps}]\nimage = \"debian:\"\ncommand = [\"sleep\", \"infinity\"]\n");
    }
    text
}
