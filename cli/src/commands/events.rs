//! `events`: what happened, as it happens.

use model::api::Event;

use super::{
    follow::{self, Timed},
    time::{self, utc},
};
use crate::{
    arguments::Form,
    client::{Host, segment},
    failure::Result,
    output,
};

/// Prints events.
pub async fn run(host: &Host, follow: bool, since: Option<&str>, form: Form) -> Result<()> {
    let since = since.map(|since| format!("&since={}", segment(&time::since(since))));
    let path = format!("/v1/events?follow={follow}{}", since.unwrap_or_default());
    let mut all = Vec::new();
    follow::lines(host, &path, follow.then_some(path.as_str()), |event: Event| match (form.json, follow) {
        (true, true) => output::json_line(&event),
        (true, false) => {
            all.push(event);
            Ok(())
        }
        (false, _) => output::line(&show(&event, true)),
    })
    .await?;
    if form.json && !follow { output::json(&all) } else { Ok(()) }
}

impl Timed for Event {
    type Time = u64;
    fn time(&self) -> u64 {
        self.at_ms
    }
}

/// One line about an event, with the name of its VPS where that is not clear.
pub fn show(event: &Event, named: bool) -> String {
    let mut text = utc(event.at_ms);
    if named {
        text.push_str(&format!("  {:<12}", event.vps.as_ref().map_or("-", |name| name.as_str())));
    }
    text.push_str(&format!("  {:<8}", event.what));
    if !event.detail.is_empty() {
        text.push_str(&format!("  {}", event.detail));
    }
    if !event.actor.is_empty() {
        text.push_str(&format!("  ({})", event.actor));
    }
    // One event is one line, whatever a command's arguments hold.
    text.replace('\n', " ")
}
