//! `why`: why a VPS is as it is.

use model::{
    VpsName,
    api::{Event, Ignored, State, VpsRow, Why},
    limits::show_bytes,
};

use super::events;
use crate::{arguments::Form, client::Host, failure::Result, output};

mod chapters;

/// Events that are shown, the last ones; `--json` has all.
const STORY: usize = 16;

/// Lines of the log that are shown of a VPS that did not fail; `bailiwick logs` has more.
const LINES: usize = 5;

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
    let facts = facts(&why.vps);
    if !facts.is_empty() {
        text.push_str(&format!("  {facts}\n"));
    }
    if let Some(ignored) = &why.ignored {
        text.push_str(&format!("  {}\n", self::ignored(ignored)));
    }
    text.push_str(&chapters::show(&why.last));
    if !why.story.is_empty() {
        text.push_str("\nWhat happened\n");
    }
    let earlier = why.story.len().saturating_sub(STORY);
    if earlier > 0 {
        text.push_str(&format!("  … {earlier} earlier: bailiwick events\n"));
    }
    text.push_str(&told(&why.story[earlier..]));
    // What a failed one wrote was told with its failure.
    let failure = why.last.failure.as_ref().filter(|_| why.vps.state == State::Failed);
    if !why.log.is_empty() && failure.is_none_or(|failure| failure.log.is_empty()) {
        text.push_str("\nThe last it wrote\n");
        // Who failed said why; of others a few lines show that they live.
        let lines = if why.vps.state == State::Failed { chapters::LINES } else { LINES };
        text.push_str(&chapters::log(&why.log, lines));
    }
    if let Some(next) = &why.next {
        text.push_str(&format!("\nnext: {next}\n"));
    }
    text
}

/// The story, with tries that failed like the one before counted instead of repeated.
fn told(story: &[Event]) -> String {
    let mut text = String::new();
    let mut rest = story;
    while let [event, after @ ..] = rest {
        text.push_str(&format!("  {}\n", events::show(event, false)));
        rest = after;
        let (mut more, mut last) = (0, None);
        while let [waking, failed, later @ ..] = rest {
            if event.what != "failed"
                || waking.what != "waking"
                || failed.what != "failed"
                || failed.detail != event.detail
            {
                break;
            }
            (more, last, rest) = (more + 1, Some((waking, failed)), later);
        }
        if let Some((waking, failed)) = last {
            let times = if more == 1 { "once more".to_owned() } else { format!("{more} times more") };
            let event = Event { detail: format!("the same, {times}"), actor: waking.actor.clone(), ..failed.clone() };
            text.push_str(&format!("  {}\n", events::show(&event, false)));
        }
    }
    text
}

fn ignored(Ignored { served, from_cache, refused }: &Ignored) -> String {
    let all = served + from_cache + refused;
    format!(
        "ignored clients came {all} times: {served} served while it was up, {from_cache} with its last answer, {refused} refused"
    )
}

fn facts(row: &VpsRow) -> String {
    let mut facts = Vec::new();
    facts.extend(row.memory.map(|bytes| format!("{} of memory", show_bytes(bytes))));
    facts.extend(row.processes.map(|n| if n == 1 { "1 process".to_owned() } else { format!("{n} processes") }));
    facts.extend(row.address.as_ref().map(|address| format!("at {address}")));
    facts.extend(row.routes.iter().map(|(route, port)| format!("{route} -> {port}")));
    facts.join(" · ")
}

#[cfg(test)]
mod tests {
    use model::api::Event;
    use serde_json::json;

    #[test]
    fn tries_that_fail_alike_are_counted() {
        let event = |what: &str, detail: &str, actor: &str| Event {
            at_ms: 0,
            vps: None,
            what: what.into(),
            detail: detail.into(),
            actor: actor.into(),
        };
        let (again, same) = (event("waking", "", "its restart policy"), event("failed", "exit 3", ""));
        let first = event("waking", "", "GET /");
        let other = event("failed", "exit 4", "");
        let story =
            [first, same.clone(), again.clone(), same.clone(), again.clone(), same.clone(), again.clone(), other];
        let text = super::told(&story).replace("  1970-01-01T00:00:00Z  ", "");
        assert_eq!(
            text,
            "waking    (GET /)\nfailed    exit 3\nfailed    the same, 2 times more  (its restart policy)\n\
             waking    (its restart policy)\nfailed    exit 4\n"
        );
    }

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
            "log": ["2026-11-22T13:58:00.123456Z err no", "2026-11-22T13:58:01.123456Z err no"],
            "next": "bailiwick logs shop",
        });
        let expected = "\
shop: failed: its program exits with 1
  at 10.80.0.17 · http://shop.test -> 80

What happened
  … 1 earlier: bailiwick events
  1970-01-01T00:00:00Z  exited    exit 1  (host)

The last it wrote
  | 2026-11-22T13:58:01.123Z err no

next: bailiwick logs shop
";
        let event = "  1970-01-01T00:00:00Z  exited    exit 1  (host)\n";
        let expected = expected.replace(event, &event.repeat(super::STORY));
        assert_eq!(super::show(&serde_json::from_value(why).expect("an answer")), expected);
    }
}
