//! One measure: what was run, how often, and how it compares.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// One row of the table and of `target/bench.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measure {
    /// What was measured.
    pub measure: String,
    /// Of all numbers here.
    pub unit: String,
    /// Our median.
    pub ours: f64,
    /// The peers' medians; a peer that did not run has its error in `failed`.
    pub peers: BTreeMap<String, f64>,
    /// Ours against the peer that `must` names, or the difference where `must` is a sum.
    pub ratio: f64,
    /// The bar, as the issue says it.
    pub must: String,
    /// The aim, as the issue says it.
    pub aim: String,
    /// Whether `must` holds.
    pub ok: bool,
    /// Runs of each.
    pub runs: usize,
    /// Peers that could not run here, with their errors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<String, String>,
}

/// Runs of several candidates, one after the other in turn, so that all see the same noise.
#[derive(Debug, Default)]
pub struct Samples {
    times: BTreeMap<&'static str, Vec<f64>>,
    /// Candidates that failed, with the error of their first run.
    pub failed: BTreeMap<String, String>,
}

/// A candidate: one run, which answers milliseconds.
pub type Run<'a> = (&'static str, Box<dyn FnMut() -> Result<f64> + 'a>);

impl Samples {
    /// Runs each candidate `runs` times in turn, after one run that does not count.
    pub fn take(runs: usize, mut candidates: Vec<Run<'_>>) -> Self {
        let mut samples = Self::default();
        for round in 0..=runs {
            for (name, run) in &mut candidates {
                if samples.failed.contains_key(*name) {
                    continue;
                }
                match run() {
                    Ok(ms) if round > 0 => samples.times.entry(name).or_default().push(ms),
                    Ok(_) => {}
                    Err(error) => {
                        eprintln!("{name} does not run here: {error:#}");
                        samples.failed.insert((*name).to_owned(), format!("{error:#}"));
                    }
                }
            }
        }
        samples
    }

    /// Adds one run of a candidate.
    pub fn add(&mut self, name: &'static str, value: f64) {
        self.times.entry(name).or_default().push(value);
    }

    /// A candidate's median; NaN when it did not run.
    pub fn median(&self, name: &str) -> f64 {
        let Some(times) = self.times.get(name) else { return f64::NAN };
        median(times)
    }

    /// The medians of all but ours.
    pub fn peers(&self) -> BTreeMap<String, f64> {
        let peer = |name: &&'static str| (*name != "ours").then(|| ((*name).to_owned(), self.median(name)));
        self.times.keys().filter_map(peer).collect()
    }
}

/// The median; NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Prints the table.
pub fn print(measures: &[Measure]) {
    println!();
    for m in measures {
        let peers: Vec<_> = m.peers.iter().map(|(name, value)| format!("{name} {value:.1}")).collect();
        println!("{:<52} {:>8.2} {}   {}", m.measure, m.ours, m.unit, peers.join(", "));
        let verdict = if m.ok { "ok" } else { "MISSED" };
        println!("{:<52} {verdict}: {:.2}, must {}, aim {}; medians of {}", "", m.ratio, m.must, m.aim, m.runs);
        for (name, error) in &m.failed {
            println!("{:<52} {name} did not run: {error}", "");
        }
    }
}

/// Puts the measures into the list of an earlier run, in place of the same ones.
pub fn store(path: &Path, measures: &[Measure]) -> Result<()> {
    let old = std::fs::read(path).ok().and_then(|text| serde_json::from_slice::<Vec<Measure>>(&text).ok());
    let mut list: Vec<_> = old.unwrap_or_default();
    list.retain(|m| !measures.iter().any(|new| new.measure == m.measure));
    list.extend(measures.iter().cloned());
    std::fs::write(path, serde_json::to_string_pretty(&list)?)?;
    Ok(())
}
