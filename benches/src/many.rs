//! 10,000 VPSs defined and asleep: memory of `control` and `gateway`, what a wake takes longer, and `ps`.

use std::{collections::BTreeMap, fs, time::Instant};

use anyhow::Result;
use bailiwick_system_tests::{Host, HostOptions};

use crate::{
    cold,
    measure::{Measure, median},
    memory::pss,
};

const VPSS: usize = 10_000;
const FILE: usize = 250;
const WAKES: usize = 30;
const LISTS: usize = 11;

/// The group.
pub fn run() -> Result<Vec<Measure>> {
    let host = Host::start(HostOptions::default())?;
    host.apply("web.toml", cold::SPEC)?;
    let wakes = || -> Result<f64> {
        cold::ours(&host)?;
        let times = (0..WAKES).map(|_| cold::ours(&host)).collect::<Result<Vec<_>>>()?;
        Ok(median(&times))
    };
    let alone = wakes()?;
    let mut files = Vec::new();
    for file in 0..VPSS / FILE {
        let mut text = String::from("tenant = \"bench\"\n");
        for number in (0..FILE).map(|n| file * FILE + n) {
            text.push_str(&format!(
                "[vps.v{number}]\nimage = \"debian:nginx-light\"\ncommand = [\"nginx\", \"-g\", \"daemon off;\"]\n\
                 routes = {{ \"http://v{number}.test:18080\" = 80 }}\nlimits = {{ memory = \"64MiB\" }}\n"
            ));
        }
        let path = host.root.join(format!("many-{file}.toml"));
        fs::write(&path, text)?;
        files.push(path.to_string_lossy().into_owned());
    }
    let start = Instant::now();
    for file in &files {
        host.run(&["apply", file])?;
    }
    println!("apply of {VPSS} in files of {FILE}: {:.1} s", start.elapsed().as_secs_f64());
    // The host's and the network's part follows, so that the first wake has nothing to wait for.
    loop {
        let rows = host.json(&["ps"])?;
        let placed = rows.as_array().map_or(0, |rows| rows.iter().filter(|row| !row["address"].is_null()).count());
        if placed > VPSS {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    println!("all have a place: {:.1} s", start.elapsed().as_secs_f64());
    let among = wakes()?;
    let list = || -> Result<f64> {
        let start = Instant::now();
        host.run(&["ps"])?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    };
    let lists = (0..LISTS).map(|_| list()).collect::<Result<Vec<_>>>()?;
    let memory = pss(&host, &["control", "gateway"])?;
    for vps in ["control", "gateway"] {
        println!("{vps}: {:.1} MiB", pss(&host, &[vps])?);
    }
    let measure =
        |what: &str, unit: &str, ours: f64, peers: &[(&str, f64)], ratio: f64, must: (&str, f64), aim: &str| {
            let peers: BTreeMap<_, _> = peers.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
            Measure {
                measure: format!("{VPSS} VPSs asleep: {what}"),
                unit: unit.to_owned(),
                ours,
                peers,
                ratio,
                must: must.0.to_owned(),
                aim: aim.to_owned(),
                ok: ratio <= must.1,
                runs: WAKES,
                failed: BTreeMap::new(),
            }
        };
    let ps = median(&lists);
    Ok(vec![
        measure("control and gateway (PSS)", "MiB", memory, &[], memory, ("<= 96 MiB", 96.0), "<= 48 MiB"),
        measure(
            "a wake among them",
            "ms",
            among,
            &[("alone", alone)],
            among / alone,
            ("<= 1.1 x alone", 1.1),
            "<= 1.0 x alone",
        ),
        measure("ps", "ms", ps, &[], ps, ("<= 300 ms", 300.0), "<= 100 ms"),
    ])
}
