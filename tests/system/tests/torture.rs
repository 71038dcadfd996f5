//! A short run of the torture; `make torture` is the long one.

use std::time::Duration;

use anyhow::Result;
use bailiwick_system_tests::torture::{Dice, Options, run};

#[test]
fn whoever_is_killed_the_state_is_the_one_before_or_the_one_after() -> Result<()> {
    let seed = Dice::seed();
    let report = run(&Options { seed, time: Duration::from_secs(15) })?;
    println!("seed {seed}: {report}");
    Ok(())
}
