//! `bailiwick-torture [SECONDS [SEED]]`: kills processes of a host by chance, and looks at what that leaves.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result};
use bailiwick_system_tests::torture::{Dice, Options, run};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.is_empty());
    let number = |text: String| text.parse::<u64>().with_context(|| format!("`{text}` is no number"));
    let seconds = arguments.next().map(number).transpose()?.unwrap_or(120);
    let seed = arguments.next().map(number).transpose()?.unwrap_or_else(Dice::seed);
    println!("seed {seed}; the same again: make torture SECONDS={seconds} SEED={seed}");
    let report = run(&Options { seed, time: Duration::from_secs(seconds) })?;
    println!("{report}");
    Ok(())
}
