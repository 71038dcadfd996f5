//! `events`: what happened, as it happens.

use hyper::Method;
use model::api::Event;

use super::time::utc;
use crate::{arguments::Form, client::Host, failure::Result, output};

/// Prints events.
pub async fn run(host: &Host, follow: bool, form: Form) -> Result<()> {
    let mut lines = host.stream(Method::GET, &format!("/v1/events?follow={follow}"), None::<&()>).await?;
    let mut all = Vec::new();
    while let Some(event) = lines.next::<Event>().await? {
        match (form.json, follow) {
            (true, true) => output::json_line(&event)?,
            (true, false) => all.push(event),
            (false, _) => output::line(&show(&event, true))?,
        }
    }
    if form.json && !follow { output::json(&all) } else { Ok(()) }
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
    text
}
