//! The last start, stop and failure, as they are told.

use model::{
    limits::show_duration_ms,
    story::{Failure, Start, Step, Stop, Story, Wait},
};

use crate::commands::{logs::to_the_millisecond, time::utc};

/// Lines of the log that are shown of a failure.
pub const LINES: usize = 12;

/// All that is known of the three.
pub fn show(Story { start, stop, failure }: &Story) -> String {
    let mut text = String::new();
    text.extend(start.as_ref().map(started));
    text.extend(stop.as_ref().map(stopped));
    text.extend(failure.as_ref().map(failed));
    text
}

fn started(start: &Start) -> String {
    let (word, done) = if start.thawed { ("thaw", "it went on") } else { ("start", "it was ready") };
    let (at, by, took) = (utc(start.at_ms), &start.by, show_duration_ms(start.took_ms));
    format!("\nLast {word}: {at}, {by}; {done} after {took}\n{}{}", steps(&start.steps), waits(&start.waits))
}

/// A table of the times of steps.
fn steps(steps: &[Step]) -> String {
    let line = |step: &Step| format!("  {:>9.1}ms  {}\n", step.after_us as f64 / 1000.0, step.what);
    steps.iter().map(line).collect()
}

fn waits(waits: &[Wait]) -> String {
    let line = |wait: &Wait| {
        let Wait { on, took_ms, detail } = wait;
        let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        format!("  it waited {} for {on}{detail}\n", show_duration_ms(*took_ms))
    };
    waits.iter().map(line).collect()
}

fn stopped(stop: &Stop) -> String {
    let (at, took) = (utc(stop.at_ms), show_duration_ms(stop.took_ms));
    let done = if stop.frozen { "it stood still" } else { "it had ended" };
    let ended = stop.ended.as_ref().map(|ended| format!(", {ended}")).unwrap_or_default();
    format!("\nLast stop: {at}, {}; {done} after {took}{ended}\n", stop.why)
}

fn failed(failure: &Failure) -> String {
    let mut text = format!("\nLast failure: {}, {}\n", utc(failure.at_ms), failure.what);
    if let Some(began_ms) = failure.began_ms {
        let after = show_duration_ms(failure.at_ms.saturating_sub(began_ms));
        let by = if failure.by.is_empty() { "a start" } else { &failure.by };
        text.push_str(&format!("  {after} after {by} at {}\n", utc(began_ms)));
    }
    text.push_str(&steps(&failure.steps));
    text.push_str(&log(&failure.log, LINES));
    text
}

/// The last lines of a log.
pub fn log(lines: &[String], most: usize) -> String {
    let mut log: Vec<_> = lines.iter().map(|line| line.split_once(' ').unwrap_or(("", line))).collect();
    // The last time of what was said again and again.
    log.reverse();
    log.dedup_by_key(|(_, said)| *said);
    let mut text = String::new();
    for (at, said) in log.into_iter().take(most).rev() {
        let line = format!("{} {said}", to_the_millisecond(at));
        text.push_str(&format!("  | {}\n", line.trim_start()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_story_is_told_in_its_three_parts() {
        let step = |what: &str, after_us| Step { what: what.to_owned(), after_us };
        let start = Start {
            at_ms: 1_795_355_880_000,
            by: "GET / from 203.0.113.9".to_owned(),
            took_ms: 31,
            thawed: false,
            steps: vec![step("memory granted", 120), step("ready", 31_240)],
            waits: vec![Wait {
                on: "db".to_owned(),
                took_ms: 212,
                detail: "it connected to it, which woke it".to_owned(),
            }],
        };
        let stop =
            Stop { took_ms: 12, why: "stop by root".to_owned(), ended: Some("exit 0".to_owned()), ..Stop::default() };
        let failure = Failure {
            at_ms: 1500,
            what: "exit 1".to_owned(),
            began_ms: Some(1000),
            by: "its restart policy".to_owned(),
            steps: vec![step("program executed", 1_000_000)],
            log: ["1970-01-01T00:00:01.400000Z err no", "1970-01-01T00:00:01.500000Z err no"].map(str::to_owned).into(),
            ..Failure::default()
        };
        let told = show(&Story { start: Some(start), stop: Some(stop), failure: Some(failure) });
        let expected = "
Last start: 2026-11-22T13:58:00Z, GET / from 203.0.113.9; it was ready after 31ms
        0.1ms  memory granted
       31.2ms  ready
  it waited 212ms for db: it connected to it, which woke it

Last stop: 1970-01-01T00:00:00Z, stop by root; it had ended after 12ms, exit 0

Last failure: 1970-01-01T00:00:01Z, exit 1
  500ms after its restart policy at 1970-01-01T00:00:01Z
     1000.0ms  program executed
  | 1970-01-01T00:00:01.500Z err no
";
        assert_eq!(told, expected);
    }
}
