//! `make bench`: ours and the peers, interleaved in one run; medians; a table and `target/bench.json`.
#![forbid(unsafe_code)]

mod api;
mod app;
mod cold;
mod direct;
mod fleet;
mod frozen;
mod idle;
mod many;
mod measure;
mod memory;
mod peers;
mod rules;
mod start;
mod udp;
mod warm;

use anyhow::{Result, ensure};
use bailiwick_system_tests::host::project;
use measure::Measure;

/// A group of measures.
type Group = (&'static str, fn() -> Result<Vec<Measure>>);

/// All groups, by name.
const GROUPS: &[Group] = &[
    ("start", start::run),
    ("cold", cold::run),
    ("fleet", fleet::run),
    ("app", app::run),
    ("frozen", frozen::run),
    ("warm", warm::run),
    ("direct", direct::run),
    ("udp", udp::run),
    ("rules", rules::run),
    ("idle", idle::run),
    ("many", many::run),
];

fn main() -> Result<()> {
    let only = std::env::args().nth(1);
    let chosen: Vec<_> = GROUPS.iter().filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name)).collect();
    let names: Vec<_> = GROUPS.iter().map(|(name, _)| *name).collect();
    ensure!(!chosen.is_empty(), "no such group; there are: {}", names.join(", "));
    let (mut measures, mut failed) = (Vec::new(), Vec::new());
    for (name, run) in chosen {
        println!("== {name}");
        // What the others measure is not lost with it.
        match run() {
            Ok(measured) => measures.extend(measured),
            Err(error) => failed.push(format!("{name}: {error:#}")),
        }
    }
    measure::print(&measures);
    measure::store(&project().join("target/bench.json"), &measures)?;
    ensure!(failed.is_empty(), "not measured: {}", failed.join("; "));
    Ok(())
}
