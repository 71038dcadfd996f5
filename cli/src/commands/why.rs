//! `why`: why a VPS is as it is.

use model::{
    VpsName,
    api::{VpsRow, Why},
    limits::{show_bytes, show_duration_ms},
};

use super::{events, ps};
use crate::{arguments::Form, client::Host, failure::Result, output};

/// Events that are shown, the last ones; `--json` has all.
const STORY: usize = 16;

/// Says why.
pub async fn run(host: &Host, name: &VpsName, form: Form) -> Result<()> {
    let why: Why = host.get(&format!("/v1/vps/{name}/why")).await?;
    if form.json {
        return output::json(&why);
    }
    output::line(show(&why).trim_end())
}

fn show(why: &Why) -> String {
    let (name, summary) = (why.vps.name.as_str(), &why.summary);
    let mut text = if summary.starts_with(name) { format!("{summary}\n") } else { format!("{name}: {summary}\n") };
    text.push_str(&format!("  {}\n", facts(&why.vps)));
    if !why.story.is_empty() {
        text.push_str("\nWhat happened\n");
    }
    let earlier = why.story.len().saturating_sub(STORY);
    if earlier > 0 {
        text.push_str(&format!("  … {earlier} earlier: bailiwick events\n"));
    }
    for event in &why.story[earlier..] {
        text.push_str(&format!("  {}\n", events::show(event, false)));
    }
    if !why.log.is_empty() {
        text.push_str("\nIts last words\n");
    }
    for line in &why.log {
        text.push_str(&format!("  | {line}\n"));
    }
    if let Some(next) = &why.next {
        text.push_str(&format!("\nnext: {next}\n"));
    }
    text
}

fn facts(row: &VpsRow) -> String {
    let mut facts = vec![format!("{} for {}", ps::state(row.state), show_duration_ms(row.for_ms))];
    facts.extend(row.memory.map(|bytes| format!("{} of memory", show_bytes(bytes))));
    facts.extend(row.processes.map(|n| if n == 1 { "1 process".to_owned() } else { format!("{n} processes") }));
    facts.extend(row.address.as_ref().map(|address| format!("at {address}")));
    facts.extend(row.routes.iter().map(|(route, port)| format!("{route} -> {port}")));
    facts.join(" · ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn a_failure_is_told_with_its_story_and_its_log() {
        let why = json!({
            "vps": {
                "name": "shop", "tenant": "beta", "state": "failed", "for_ms": 30_000, "routes": { "http://shop.test": 80 },
                "memory": null, "memory_limit": null, "processes": null, "address": "10.80.0.17", "pid": null,
                "last_wake": null, "failure": "exit 1",
            },
            "summary": "failed: its program exits with 1",
            "story": vec![json!({ "at_ms": 0, "vps": "shop", "what": "exited", "detail": "exit 1", "actor": "host" }); 17],
            "log": ["no configuration"],
            "next": "bailiwick logs shop",
        });
        let expected = "\
shop: failed: its program exits with 1
  failed for 30s · at 10.80.0.17 · http://shop.test -> 80

What happened
  … 1 earlier: bailiwick events
  1970-01-01T00:00:00Z  exited    exit 1  (host)

Its last words
  | no configuration

next: bailiwick logs shop
";
        let event = "  1970-01-01T00:00:00Z  exited    exit 1  (host)\n";
        let expected = expected.replace(event, &event.repeat(super::STORY));
        assert_eq!(super::show(&serde_json::from_value(why).expect("an answer")), expected);
    }
}
