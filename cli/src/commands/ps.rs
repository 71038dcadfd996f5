//! `ps`: the VPSs, one line each, and a line about all of them.

use model::{
    TenantName,
    api::{State, VpsRow},
    limits::{show_bytes, show_duration_ms},
};

use crate::{arguments::Form, client::Host, failure::Result, output, table};

/// Characters of a failure's reason at most; `why` has all.
const REASON: usize = 60;

/// Lists VPSs.
pub async fn run(host: &Host, tenant: Option<&TenantName>, all: bool, form: Form) -> Result<()> {
    let mut rows: Vec<VpsRow> = host.get("/v1/vps?all=true").await?;
    rows.retain(|row| match (tenant, &row.tenant) {
        (Some(asked), Some(tenant)) => asked.as_str() == tenant,
        (None, Some(_)) => true,
        (tenant, None) => all && tenant.is_none(),
    });
    if form.json {
        return output::json(&rows);
    }
    if let (true, Some(tenant)) = (rows.is_empty(), tenant) {
        return output::own(&format!("tenant {tenant} has no VPSs\n"));
    }
    output::own(&show(&rows, available_memory()))
}

fn show(rows: &[VpsRow], free: Option<u64>) -> String {
    let header = ["NAME", "TENANT", "STATE", "FOR", "ROUTE", "MEMORY", "LAST WAKE"];
    let mut text = if rows.is_empty() { String::new() } else { table::text(header, rows.iter().map(cells)) };
    text.push_str(&summary(rows, free));
    text
}

fn cells(row: &VpsRow) -> [String; 7] {
    [
        row.name.to_string(),
        row.tenant.clone().unwrap_or_else(|| "-".to_owned()),
        state(row.state).to_owned(),
        show_duration_ms(row.for_ms),
        route(row),
        memory(row.memory, row.memory_limit),
        last(row),
    ]
}

/// The word for a state.
pub fn state(state: State) -> &'static str {
    match state {
        State::Asleep => "asleep",
        State::Starting => "starting",
        State::Running => "running",
        State::Frozen => "frozen",
        State::Stopping => "stopping",
        State::Failed => "failed",
        State::Waiting => "waiting",
    }
}

fn route(row: &VpsRow) -> String {
    if !row.services.is_empty() {
        return format!("({})", row.services.join(", "));
    }
    let internal = row.internal.iter().map(|port| format!("(internal) :{port}"));
    let mut all = row.routes.keys().cloned().chain(internal);
    match (all.next(), all.count()) {
        (Some(first), 0) => first,
        (Some(first), more) => format!("{first} +{more}"),
        (None, _) => "-".to_owned(),
    }
}

/// What is used of what may be used, in the limit's unit: `88/512M`.
fn memory(used: Option<u64>, limit: Option<u64>) -> String {
    let Some(used) = used else { return "-".to_owned() };
    let units = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];
    let of = limit.unwrap_or(used);
    let (unit, shift) = units.into_iter().find(|(_, shift)| of >> shift > 0).unwrap_or(("B", 0));
    let show = |bytes: u64| {
        let value = bytes as f64 / (1u64 << shift) as f64;
        let text = if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") };
        text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
    };
    match limit {
        Some(limit) => format!("{}/{}{unit}", show(used), show(limit)),
        None => format!("{}{unit}", show(used)),
    }
}

fn last(row: &VpsRow) -> String {
    if let (State::Failed | State::Frozen, Some(failure)) = (row.state, &row.failure) {
        return format!("{}: bailiwick why {}", shortened(failure), row.name);
    }
    let wake = row.last_wake.as_ref().map(|wake| {
        let took = wake.took_ms.map_or("-".to_owned(), show_duration_ms);
        format!("{took:<5} {}", wake.by)
    });
    // What it waits for, or what of it fails, comes before who woke it once.
    match (&row.note, wake) {
        (Some(note), _) => format!("{}: bailiwick why {}", shortened(note), row.name),
        (None, wake) => wake.unwrap_or_else(|| "-".to_owned()),
    }
}

/// A failure with its reason in so few characters that a line stays one; what follows the reason is kept.
fn shortened(failure: &str) -> String {
    let (reason, rest) = failure.rsplit_once(", ").unwrap_or((failure, ""));
    if reason.chars().count() <= REASON {
        return failure.to_owned();
    }
    let reason: String = reason.chars().take(REASON - 1).collect();
    let comma = if rest.is_empty() { "" } else { ", " };
    format!("{}…{comma}{rest}", reason.trim_end())
}

fn summary(rows: &[VpsRow], free: Option<u64>) -> String {
    let count = |wanted: State| rows.iter().filter(|row| row.state == wanted).count();
    let order =
        [State::Running, State::Starting, State::Waiting, State::Stopping, State::Frozen, State::Asleep, State::Failed];
    let states = order.into_iter().map(|s| (count(s), s)).filter(|(n, _)| *n > 0);
    let states: Vec<_> = states.map(|(n, s)| format!("{n} {}", state(s))).collect();
    let mut text = match rows.len() {
        0 => return "no VPSs; `bailiwick apply FILE` makes some\n".to_owned(),
        1 => format!("1 VPS: {}", states.join(", ")),
        n => format!("{n} VPSs: {}", states.join(", ")),
    };
    let used: u64 = rows.iter().filter_map(|row| row.memory).sum();
    text.push_str(&format!(" · {} in use", show_bytes(used)));
    if let Some(free) = free {
        text.push_str(&format!(" · {} free", show_bytes(free)));
    }
    text + "\n"
}

/// Bytes of memory that new programs could have (proc_meminfo(5)); this machine is the host's, since its socket is here.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(change: serde_json::Value) -> VpsRow {
        let mut row = json!({
            "name": "blog", "tenant": "acme", "state": "asleep", "for_ms": 7_300_000, "routes": {}, "memory": null,
            "memory_limit": null, "processes": null, "address": null, "pid": null, "last_wake": null, "failure": null,
        });
        row.as_object_mut().expect("an object").extend(change.as_object().expect("an object").clone());
        serde_json::from_value(row).expect("a row")
    }

    #[test]
    fn a_long_failure_leaves_a_line_one_line() {
        assert_eq!(shortened("exit 1, 5th try in 40s"), "exit 1, 5th try in 40s");
        let long = format!("program \"{}\" not found, the next request tries again", "x".repeat(200));
        let short = shortened(&long);
        assert!(short.starts_with("program \"xxx") && short.ends_with("x…, the next request tries again"), "{short}");
        assert_eq!(short.chars().count(), REASON + ", the next request tries again".len());
    }

    #[test]
    fn the_listing_is_as_the_interface_says() {
        let wake = |took: u64, by: &str| json!({ "took_ms": took, "by": by, "at_ms": 0 });
        let rows = [
            row(json!({
                "routes": { "https://blog.example.org": 80 }, "last_wake": wake(31, "GET / from 203.0.113.9"),
            })),
            row(json!({
                "name": "db", "state": "running", "for_ms": 240_000, "internal": [3306],
                "memory": 88 << 20, "memory_limit": 512 << 20, "last_wake": wake(212, "connection from blog"),
            })),
            row(json!({
                "name": "shop", "tenant": "beta", "state": "failed", "for_ms": 30_000,
                "routes": { "https://shop.example.org": 80 }, "failure": "exit 1, 5th try in 40s",
            })),
        ];
        let expected = "\
NAME  TENANT  STATE    FOR  ROUTE                     MEMORY   LAST WAKE
blog  acme    asleep   2h   https://blog.example.org  -        31ms  GET / from 203.0.113.9
db    acme    running  4m   (internal) :3306          88/512M  212ms connection from blog
shop  beta    failed   30s  https://shop.example.org  -        exit 1, 5th try in 40s: bailiwick why shop
3 VPSs: 1 running, 1 asleep, 1 failed · 88 MiB in use · 7.1 GiB free
";
        assert_eq!(show(&rows, Some(7_623_566_336)), expected);
        assert_eq!(show(&[], None), "no VPSs; `bailiwick apply FILE` makes some\n");
    }

    #[test]
    fn memory_is_shown_in_the_unit_of_the_limit() {
        assert_eq!(memory(Some(800 << 10), Some(512 << 20)), "0.8/512M");
        assert_eq!(memory(Some(700 << 20), Some(2 << 30)), "0.7/2G");
        assert_eq!(memory(Some(88 << 20), None), "88M");
        assert_eq!(memory(Some(0), None), "0B");
    }
}
