//! `logs`: what a VPS's program wrote.

use model::{VpsName, api::LogLine};

use super::{
    follow::{self, Timed},
    time,
};
use crate::{
    arguments::Form,
    client::{Host, segment},
    failure::Result,
    output,
};

/// Lines that may be written while `control` is being restarted, and still be shown by `-f`.
const MISSED: u32 = 1000;

/// Which lines to print.
pub struct Which {
    /// Those to come, too.
    pub follow: bool,
    /// How many.
    pub lines: Option<u32>,
    /// Of which sources; empty: of all.
    pub source: Vec<String>,
    /// Since when.
    pub since: Option<String>,
}

/// Prints a log.
pub async fn run(host: &Host, name: &VpsName, which: Which, form: Form) -> Result<()> {
    let Which { follow, lines, source, since } = which;
    let mut filter = String::new();
    if !source.is_empty() {
        filter.push_str(&format!("&source={}", segment(&source.join(","))));
    }
    if let Some(since) = since {
        filter.push_str(&format!("&since={}", segment(&time::since(&since))));
    }
    let lines = lines.map(|lines| format!("&lines={lines}")).unwrap_or_default() + &filter;
    let path = format!("/v1/vps/{name}/logs?follow={follow}{lines}");
    let again = follow.then(|| format!("/v1/vps/{name}/logs?follow=true&lines={MISSED}{filter}"));
    let mut all = Vec::new();
    follow::lines(host, &path, again.as_deref(), |line: LogLine| match (form.json, follow) {
        (true, true) => output::json_line(&line),
        (true, false) => {
            all.push(line);
            Ok(())
        }
        (false, _) => output::line(&show(&line)),
    })
    .await?;
    if form.json && !follow { output::json(&all) } else { Ok(()) }
}

impl Timed for LogLine {
    // RFC 3339 in UTC: in order as texts, too.
    type Time = String;
    fn time(&self) -> String {
        self.at.clone()
    }
}

fn show(line: &LogLine) -> String {
    format!("{} {:<3} {}", to_the_millisecond(&line.at), line.stream, line.shown())
}

/// A time without what is finer. RFC 3339 in UTC has 23 characters up to there.
pub fn to_the_millisecond(at: &str) -> String {
    at.get(..23).map_or_else(|| at.to_owned(), |at| format!("{at}Z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_time_and_its_stream() {
        let line = LogLine::parse(b"2026-11-22T13:58:00.123456Z err no");
        assert_eq!(show(&line), "2026-11-22T13:58:00.123Z err no");
        let line = LogLine::parse(b"2026-11-22T13:58:00.123456Z log daemon.err sshd[12]: no");
        assert_eq!(show(&line), "2026-11-22T13:58:00.123Z log daemon.err sshd[12]: no");
    }
}
