//! `logs`: what a VPS's program wrote.

use hyper::Method;
use model::{VpsName, api::LogLine};

use crate::{arguments::Form, client::Host, failure::Result, output};

/// Prints a log.
pub async fn run(host: &Host, name: &VpsName, follow: bool, lines: Option<u32>, form: Form) -> Result<()> {
    let lines = lines.map(|lines| format!("&lines={lines}")).unwrap_or_default();
    let mut stream =
        host.stream(Method::GET, &format!("/v1/vps/{name}/logs?follow={follow}{lines}"), None::<&()>).await?;
    let mut all = Vec::new();
    while let Some(line) = stream.next::<LogLine>().await? {
        match (form.json, follow) {
            (true, true) => output::json_line(&line)?,
            (true, false) => all.push(line),
            (false, _) => output::line(&show(&line))?,
        }
    }
    if form.json && !follow { output::json(&all) } else { Ok(()) }
}

fn show(line: &LogLine) -> String {
    let LogLine { at, stream, text } = line;
    // To the millisecond; RFC 3339 in UTC has 23 characters up to there.
    let at = at.get(..23).map_or_else(|| at.clone(), |at| format!("{at}Z"));
    format!("{at} {stream:<3} {text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_time_and_its_stream() {
        let line = LogLine { at: "2026-11-22T13:58:00.123456Z".into(), stream: "err".into(), text: "no".into() };
        assert_eq!(show(&line), "2026-11-22T13:58:00.123Z err no");
    }
}
