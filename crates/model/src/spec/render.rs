//! Specs as TOML: what `get` prints, and what is parsed back to the same spec.

use std::collections::BTreeMap;

use super::{Idle, IdleAction, Job, ReadySpec, Restart, VpsSpec, directories, fields, jobs};
use crate::{
    ClientAddress, Ignore, RouteTarget, VpsName,
    run::{ReadyCheck, Stop, signal_name},
    schedule::Schedule,
};

/// A spec file that holds this one VPS. Fields that hold their default are left out.
pub fn render(name: &VpsName, spec: &VpsSpec) -> String {
    let mut text = format!("tenant = {}\n", quoted(spec.tenant.as_str()));
    let rules: Vec<_> = spec.allow(name).iter().map(ToString::to_string).collect();
    if !rules.is_empty() {
        text.push_str(&format!("allow = {}\n", list_of(&rules)));
    }
    text.push_str(&format!("\n[vps.{name}]\n"));
    for (field, value) in fields(spec) {
        text.push_str(&format!("{field} = {value}\n"));
    }
    // Files have lines of their own, so a table of their own.
    if !spec.files.is_empty() {
        text.push_str(&format!("\n[vps.{name}.files]\n"));
    }
    for (path, file) in &spec.files {
        text.push_str(&format!("{} = {}\n", quoted(path), content(file)));
    }
    for (job, about) in &spec.jobs {
        text.push_str(&format!("\n[[vps.{name}.job]]\nname = {}\n{}", quoted(job.as_str()), job_fields(about)));
    }
    for (name, size) in spec.volumes.iter().filter_map(|(name, volume)| Some((name, volume.size?))) {
        text.push_str(&format!("\n[volume.{name}]\nsize = {}\n", quoted(&exact_bytes(size))));
    }
    text
}

/// The fields that differ from their default, but for `files`, each with its value as TOML.
fn fields(spec: &VpsSpec) -> Vec<(&'static str, String)> {
    let mut list = vec![("image", quoted(&spec.image.to_string())), ("command", list_of(&spec.command))];
    let mut add = |field: &'static str, written: bool, value: String| {
        if written {
            list.push((field, value));
        }
    };
    add("cwd", spec.cwd != "/", quoted(&spec.cwd));
    add("user", spec.user != "root", quoted(&spec.user));
    add("hostname", spec.hostname.is_some(), quoted(spec.hostname.as_ref().map_or("", VpsName::as_str)));
    add("logs", !spec.logs.is_empty(), list_of(&spec.logs));
    let volumes = spec.volumes.iter().map(|(name, volume)| (name.to_string(), quoted(&volume.path)));
    add("volumes", !spec.volumes.is_empty(), table(volumes));
    let directories = spec.directories.iter().map(|(name, about)| (name.to_string(), directories::render(about)));
    add("directories", !spec.directories.is_empty(), table(directories));
    let secrets = spec.secrets.iter().map(|(name, path)| (name.to_string(), quoted(path)));
    add("secrets", !spec.secrets.is_empty(), table(secrets));
    let routes = spec.routes.iter().map(|(route, port)| (quoted(&route.to_string()), target(port)));
    add("routes", !spec.routes.is_empty(), table(routes));
    add("ignore", !spec.ignore.is_empty(), ignore(&spec.ignore));
    let labels: Vec<_> = spec.labels.iter().map(|label| label.to_string()).collect();
    add("labels", !labels.is_empty(), list_of(&labels));
    let wants: Vec<_> = spec.wants.iter().map(|name| name.to_string()).collect();
    add("wants", !wants.is_empty(), list_of(&wants));
    let egress: Vec<_> = spec.egress.iter().flatten().map(ToString::to_string).collect();
    add("egress", spec.egress.is_some(), list_of(&egress));
    add("env", !spec.env.is_empty(), texts(&spec.env));
    let limits = [
        ("memory", spec.limits.memory.map(|bytes| quoted(&exact_bytes(bytes)))),
        ("cpu", spec.limits.cpu_millis.map(cpus)),
        ("processes", spec.limits.processes.map(|n| n.to_string())),
        ("disk", spec.limits.disk.map(|bytes| quoted(&exact_bytes(bytes)))),
    ];
    let limits: Vec<_> = limits.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    add("limits", !limits.is_empty(), table(limits.into_iter()));
    add("ids", i64::from(spec.ids) != fields::BLOCK, spec.ids.to_string());
    add("idle", spec.idle != Idle::default_for(spec.wakeable()) || !spec.busy.is_empty(), idle(&spec.idle, &spec.busy));
    add("restart", spec.restart != Restart::OnFailure, quoted(restart(spec.restart)));
    let ready = ready(spec);
    add("ready", !ready.is_empty(), table(ready.into_iter()));
    let deadline = spec.start_deadline_ms;
    add("start_deadline", deadline != super::START_DEADLINE_MS, quoted(&exact_duration(deadline)));
    add("stop", spec.stop != Stop::default(), stop(&spec.stop));
    add("setuid", !spec.setuid, spec.setuid.to_string());
    add("nesting", spec.nesting, spec.nesting.to_string());
    list
}

fn ready(spec: &VpsSpec) -> Vec<(String, String)> {
    let mut list = Vec::new();
    match spec.ready {
        ReadySpec::Listen(Some(port)) => list.push(("listen".to_owned(), port.to_string())),
        ReadySpec::Listen(None) => {}
        ReadySpec::Notify => list.push(("notify".to_owned(), "true".to_owned())),
    }
    if let Some(check) = &spec.ready_check {
        list.push(("run".to_owned(), list_of(&check.command)));
        let times = [
            ("interval", check.interval_ms, ReadyCheck::INTERVAL_MS),
            ("timeout", check.timeout_ms, ReadyCheck::TIMEOUT_MS),
        ];
        for (name, ms, _) in times.into_iter().filter(|(_, ms, default)| ms != default) {
            list.push((name.to_owned(), quoted(&exact_duration(ms))));
        }
    }
    list
}

fn target(target: &RouteTarget) -> String {
    let word =
        ClientAddress::WORDS.iter().find(|(_, client)| *client == target.client && *client != Default::default());
    match word {
        Some((word, _)) => format!("{{ port = {}, client = {} }}", target.port, quoted(word)),
        None => target.port.to_string(),
    }
}

fn ignore(ignore: &Ignore) -> String {
    let agents: Vec<_> = ignore.user_agent.iter().map(ToString::to_string).collect();
    let networks: Vec<_> = ignore.from.iter().map(ToString::to_string).collect();
    let lists = [("user_agent", agents), ("from", networks)];
    let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
    table(lists.map(|(name, list)| (name.to_owned(), list_of(&list))))
}

fn job_fields(job: &Job) -> String {
    let mut text = match &job.schedule {
        Schedule::Every(ms) => format!("every = {}\n", quoted(&exact_duration(*ms))),
        Schedule::At(time) => format!("at = {}\n", quoted(&time.to_string())),
        Schedule::Cron(cron) => format!("schedule = {}\n", quoted(&cron.to_string())),
    };
    text.push_str(&format!("run = {}\n", list_of(&job.run)));
    if let Some(user) = &job.user {
        text.push_str(&format!("user = {}\n", quoted(user)));
    }
    if job.timeout_ms != jobs::TIMEOUT_MS {
        text.push_str(&format!("timeout = {}\n", quoted(&exact_duration(job.timeout_ms))));
    }
    text
}

fn idle(idle: &Idle, busy: &[String]) -> String {
    match idle {
        Idle::Never => quoted("never"),
        Idle::After { after_ms, then, quiet_ms } => {
            let then = if *then == IdleAction::Freeze { "freeze" } else { "stop" };
            let mut fields = vec![("after", quoted(&exact_duration(*after_ms))), ("then", quoted(then))];
            fields.extend(quiet_ms.map(|quiet| ("quiet", quoted(&exact_duration(quiet)))));
            if !busy.is_empty() {
                fields.push(("busy", list_of(busy)));
            }
            table(fields.into_iter().map(|(name, value)| (name.to_owned(), value)))
        }
    }
}

fn restart(restart: Restart) -> &'static str {
    match restart {
        Restart::OnFailure => "on-failure",
        Restart::Always => "always",
        Restart::Never => "never",
    }
}

fn stop(stop: &Stop) -> String {
    let signal = signal_name(stop.signal).unwrap_or("SIGTERM");
    format!("{{ signal = {}, grace = {} }}", quoted(signal), quoted(&exact_duration(stop.grace_ms)))
}

fn cpus(millis: u32) -> String {
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    let short = text.trim_end_matches('0');
    if short.ends_with('.') { format!("{short}0") } else { short.to_owned() }
}

/// The largest unit in which a quantity is a whole number.
fn exact(quantity: u64, units: &[(u64, &str)]) -> String {
    let fits = units.iter().find(|(factor, _)| quantity >= *factor && quantity.is_multiple_of(*factor));
    let (factor, unit) = fits.or(units.last()).copied().unwrap_or((1, ""));
    format!("{}{unit}", quantity / factor)
}

fn exact_bytes(bytes: u64) -> String {
    exact(bytes, &[(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")])
}

fn exact_duration(ms: u64) -> String {
    exact(ms, &[(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")])
}

fn table(entries: impl Iterator<Item = (String, String)>) -> String {
    let entries: Vec<_> = entries.map(|(key, value)| format!("{key} = {value}")).collect();
    format!("{{ {} }}", entries.join(", "))
}

fn texts(entries: &BTreeMap<String, String>) -> String {
    let bare = |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    table(entries.iter().map(|(key, value)| {
        let key = if bare(key) { key.clone() } else { quoted(key) };
        (key, content(value))
    }))
}

fn list_of(texts: &[String]) -> String {
    let quoted: Vec<_> = texts.iter().map(|text| content(text)).collect();
    format!("[{}]", quoted.join(", "))
}

/// A text of several lines as a literal, where that can hold it, so that a configuration file stays readable.
fn content(text: &str) -> String {
    let control = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains('\n') && !text.contains("''") && !text.ends_with('\'') && !text.contains(control) {
        return format!("'''\n{text}'''");
    }
    quoted(text)
}

pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => {
                out.push_str(&format!("\\u{:04X}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
