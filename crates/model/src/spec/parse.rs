//! Spec files, parsed: everything that is wrong is told at once.

use std::collections::{BTreeMap, BTreeSet};

use toml::de::{DeTable, DeValue};

use super::{
    Idle, IdleAction, Problem, ReadySpec, Restart, Spec, VpsSpec, directories, env_file, fields, jobs, routes, secrets,
    volumes,
};
use crate::{
    ImageRef, LabelName, Limits, Party, Route, RouteTarget, Rule, TenantName, VpsName,
    api::SpecFile,
    document::{Get, Problems, Source, Value, check, number},
    image::{ImageSource, SentImages, SentKind},
    limits::{parse_bytes, parse_duration_ms},
    run::{ReadyCheck, Stop, signal_number},
};

/// Bytes of one of `files` at most.
const MAX_CONTENT: usize = 64 << 10;
/// Bytes of all `files` together.
const MAX_CONTENTS: usize = 128 << 10;
/// Bytes of `command`, and of `env`.
const MAX_ARGUMENTS: usize = 64 << 10;

/// Bytes of `ready`'s `run`.
const MAX_CHECK: usize = 4 << 10;

/// Parses the text of a spec file; `file` is its name for messages.
///
/// # Errors
/// All problems that were found, in the order of the file.
pub fn parse(file: &str, text: &str) -> Result<Spec, Vec<Problem>> {
    parse_with(&SpecFile { name: file.to_owned(), text: text.to_owned(), ..Default::default() })
}

/// The same, where who sent the file has read what it names beside it: variables, archives and directories.
///
/// # Errors
/// As `parse`.
pub fn parse_with(sent: &SpecFile) -> Result<Spec, Vec<Problem>> {
    let SpecFile { name: file, text, env_files, images } = sent;
    let mut beside = Vec::new();
    let source = Source { file, text };
    let document = source.parse()?;
    let document = document.get_ref();
    let mut problems = Problems::new(&source);
    check(&mut problems, document, &fields::FILE);
    if let Some(vpss) = document.table("vps") {
        across(&mut problems, vpss);
        about_others(&mut problems, document, vpss);
        for value in vpss.values().filter_map(|v| v.get_ref().as_table()) {
            within(&mut problems, value);
            routes::within(&mut problems, value);
            self::sent(&mut problems, value, images);
            volumes::within(&mut problems, value);
            directories::within(&mut problems, value);
            secrets::within(&mut problems, value);
            env_file::within(&mut problems, file, value, env_files, &mut beside);
            jobs::within(&mut problems, value);
        }
        volumes::unused(&mut problems, document, vpss);
    }
    match problems.or(|| read(document, env_files, images)) {
        Ok(spec) if beside.is_empty() => Ok(spec),
        Ok(_) => Err(beside),
        Err(own) => Err(own.into_iter().chain(beside).collect()),
    }
}

/// What is wrong between the VPSs of one file: a route written twice.
fn across(problems: &mut Problems<'_>, vpss: &DeTable<'_>) {
    let mut routes = Vec::new();
    for (name, vps) in vpss {
        let table = vps.get_ref().as_table().and_then(|vps| vps.table("routes"));
        for key in table.into_iter().flat_map(|table| table.keys()) {
            if let Ok(route) = key.get_ref().parse::<Route>() {
                routes.push((key.span(), route, name.get_ref().as_ref()));
            }
        }
    }
    // In the order of the file, so that the first keeps the route and the later one is wrong.
    routes.sort_by_key(|(span, ..)| span.start);
    let mut owners = BTreeMap::<Route, &str>::new();
    for (span, route, name) in routes {
        match owners.get(&route) {
            Some(owner) => {
                let message = format!("route {route} belongs to vps \"{owner}\" already");
                problems.tell(span, message, Some("a route leads to one VPS".to_owned()));
            }
            None => drop(owners.insert(route, name)),
        }
    }
}

/// Rules that are about no VPS of the file: they would belong to none of them.
fn about_others(problems: &mut Problems<'_>, document: &DeTable<'_>, vpss: &DeTable<'_>) {
    let rules = document.get("allow").and_then(|rules| rules.get_ref().as_array());
    for rule in rules.into_iter().flat_map(|rules| rules.iter()) {
        let Some(Ok(Rule { from, to, .. })) = rule.get_ref().as_str().map(str::parse) else { continue };
        let labelled = |label: &LabelName| {
            let mut tables = vpss.values().filter_map(|vps| vps.get_ref().as_table());
            tables.any(|vps| vps.texts("labels").unwrap_or_default().iter().any(|one| one == label.as_str()))
        };
        let is_here = |party: &Party| match party {
            Party::Vps(name) => vpss.contains_key(name.as_str()),
            Party::Label(label) => labelled(label),
        };
        if ![&from, &to].into_iter().any(is_here) {
            let names = || vpss.keys().map(|key| key.get_ref().as_ref());
            let near = |party: &Party| crate::nearest(&party.to_string(), names()).map(str::to_owned);
            let near = near(&to).or_else(|| near(&from));
            let hint =
                near.map_or("write it in the file of one of the two".to_owned(), |n| format!("did you mean `{n}`?"));
            problems.tell(rule.span(), format!("neither `{from}` nor `{to}` is a vps of this file"), Some(hint));
        }
    }
}

/// The paths that a file names as images. A file that can't be parsed names none.
pub fn image_paths(text: &str) -> Vec<(String, SentKind, String)> {
    let source = Source { file: "", text };
    let Ok(document) = source.parse() else { return Vec::new() };
    let mut found = Vec::new();
    for vps in document.get_ref().table("vps").into_iter().flat_map(|vpss| vpss.values()) {
        let written = vps.get_ref().as_table().and_then(|vps| vps.text("image"));
        if let Some(written) = written
            && let Ok(ImageSource::Path(kind, path)) = written.parse()
        {
            found.push((written.to_owned(), kind, path));
        }
    }
    found
}

/// A path must have been read by who sent the file: nothing here opens it.
fn sent(problems: &mut Problems<'_>, vps: &DeTable<'_>, images: &SentImages) {
    let Some(written) = vps.text("image") else { return };
    if let Ok(ImageSource::Path(kind, _)) = written.parse()
        && !image_of(written, images).is_some_and(|image| matches!(image, ImageRef::Sent { kind: k, .. } if k == kind))
    {
        let span = vps.get_key_value("image").map_or(0..0, |(_, value)| value.span());
        let message = format!("`{written}` was not sent with this file");
        let hint =
            "apply it with `bailiwick apply`, or build the image first and write its name, as `image ls` shows it";
        problems.tell(span, message, Some(hint.to_owned()));
    }
}

fn image_of(written: &str, images: &SentImages) -> Option<ImageRef> {
    images.get(written).cloned().or_else(|| written.parse().ok())
}

/// What is wrong in one VPS beyond the types of its fields.
fn within(problems: &mut Problems<'_>, vps: &DeTable<'_>) {
    let mut tell = |name: &str, message: String, hint: Option<&str>| {
        let span = vps.get_key_value(name).map_or(0..0, |(key, _)| key.span());
        problems.tell(span, message, hint.map(str::to_owned));
    };
    if let Some(command) = vps.texts("command") {
        if command.first().is_none_or(String::is_empty) {
            tell(
                "command",
                "`command` names no program".to_owned(),
                Some("write: command = [\"program\", \"argument\"]"),
            );
        }
        if command.iter().map(|argument| argument.len() + 1).sum::<usize>() > MAX_ARGUMENTS {
            tell("command", "`command` is longer than 64 KiB".to_owned(), None);
        }
    }
    let length = |(key, value): (&str, &str)| key.len() + value.len() + 2;
    if vps.table("env").is_some_and(|env| texts_of(env).map(length).sum::<usize>() > MAX_ARGUMENTS) {
        tell("env", "`env` is larger than 64 KiB".to_owned(), None);
    }
    if let Some(files) = vps.table("files") {
        for (path, _) in texts_of(files).filter(|(_, content)| content.len() > MAX_CONTENT) {
            let hint = "put it into the image, or have the program fetch it";
            tell("files", format!("the content of `{path}` is larger than 64 KiB"), Some(hint));
        }
        if texts_of(files).map(length).sum::<usize>() > MAX_CONTENTS {
            tell("files", "`files` hold more than 128 KiB together".to_owned(), None);
        }
        for (path, _) in texts_of(files).filter(|(path, _)| path.ends_with('/')) {
            tell("files", format!("`{path}` is a directory: name the file"), None);
        }
    }
    if let Some(ids) =
        vps.integer("ids").filter(|ids| (1..=64 * fields::BLOCK).contains(ids) && ids % fields::BLOCK != 0)
    {
        let blocks = ids / fields::BLOCK + 1;
        let hint = format!("write: ids = {}", blocks * fields::BLOCK);
        tell("ids", format!("`ids` must be a multiple of 65536, and {ids} is not"), Some(&hint));
    }
    let busy = vps.table("idle").and_then(|idle| idle.texts("busy"));
    if busy.is_some_and(|busy| busy.first().is_none_or(String::is_empty)) {
        tell("idle", "`busy` names no program".to_owned(), Some("write: busy = [\"program\", \"argument\"]"));
    }
    if let Some(ready) = vps.table("ready") {
        let (listen, notify) = (ready.contains_key("listen"), ready.boolean("notify").unwrap_or(false));
        let run = ready.contains_key("run");
        let says = listen || notify || run;
        if (listen && notify) || !says {
            let hint = "write: ready = { listen = PORT }, or { notify = true }, or { run = [\"program\"] }";
            tell("ready", "`ready` must say one thing, and `run` besides".to_owned(), Some(hint));
        }
        if let Some(command) = ready.texts("run") {
            if command.first().is_none_or(String::is_empty) {
                tell("ready", "`run` names no program".to_owned(), Some("write: run = [\"program\", \"argument\"]"));
            }
            if command.iter().map(|argument| argument.len() + 1).sum::<usize>() > MAX_CHECK {
                tell("ready", "`run` is longer than 4 KiB".to_owned(), Some("put it into a script of `files`"));
            }
        }
        if let Some(field) = ["interval", "timeout"].into_iter().find(|field| !run && ready.contains_key(*field)) {
            tell("ready", format!("`{field}` is about `run`, which is not there"), None);
        }
    }
}

/// The texts of a table, by key.
pub(super) fn texts_of<'t>(table: &'t DeTable<'_>) -> impl Iterator<Item = (&'t str, &'t str)> {
    table.iter().filter_map(|(key, value)| Some((key.get_ref().as_ref(), value.get_ref().as_str()?)))
}

fn read(document: &DeTable<'_>, env_files: &BTreeMap<String, String>, images: &SentImages) -> Option<Spec> {
    let tenant: TenantName = document.parsed("tenant")?;
    let vpss = document.table("vps")?;
    let rules: Vec<Rule> = document.texts("allow").unwrap_or_default().iter().filter_map(|r| r.parse().ok()).collect();
    let mut vps = BTreeMap::new();
    for (name, value) in vpss {
        let name: VpsName = name.get_ref().parse().ok()?;
        let table = value.get_ref().as_table()?;
        let labels: BTreeSet<LabelName> =
            table.texts("labels").unwrap_or_default().iter().map(|label| label.parse().ok()).collect::<Option<_>>()?;
        let is_own = |party: &Party| match party {
            Party::Vps(other) => *other == name,
            Party::Label(label) => labels.contains(label),
        };
        let elsewhere = |party: &Party| match party {
            Party::Vps(other) => !vpss.contains_key(other.as_str()),
            Party::Label(_) => true,
        };
        let itself = Party::Vps(name.clone());
        let mut admits = BTreeMap::<_, BTreeSet<u16>>::new();
        let mut reaches = BTreeMap::<_, BTreeSet<u16>>::new();
        for Rule { from, to, port } in &rules {
            if is_own(to) && *from != itself {
                admits.entry(from.clone()).or_default().insert(*port);
            }
            // Where the other's file does not say it.
            if is_own(from) && elsewhere(to) {
                reaches.entry(to.clone()).or_default().insert(*port);
            }
        }
        let volumes = volumes::read(document, table);
        let spec = read_vps(&tenant, table, !admits.is_empty(), images)?;
        let wants = table.texts("wants").unwrap_or_default();
        let wants = wants.iter().map(|other| other.parse().ok()).collect::<Option<_>>()?;
        let env = env_file::read(table, env_files);
        vps.insert(name, VpsSpec { env, volumes, admits, reaches, labels, wants, ..spec });
    }
    Some(Spec { tenant, vps })
}

fn read_vps(tenant: &TenantName, table: &DeTable<'_>, admits: bool, images: &SentImages) -> Option<VpsSpec> {
    let owned = |name: &str, default: &str| table.text(name).unwrap_or(default).to_owned();
    let map = |name: &str| -> BTreeMap<String, String> {
        let entries = table.table(name).into_iter().flat_map(|t| texts_of(t));
        entries.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    };
    let mut routes = BTreeMap::new();
    let mut first: Option<(usize, u16)> = None;
    for (key, value) in table.table("routes").into_iter().flatten() {
        let target = routes::target(value)?;
        first = first.filter(|(at, _)| *at < key.span().start).or(Some((key.span().start, target.port)));
        routes.insert(key.get_ref().parse().ok()?, target);
    }
    let jobs = jobs::read(table)?;
    Some(VpsSpec {
        tenant: tenant.clone(),
        image: image_of(table.text("image")?, images)?,
        command: table.texts("command")?,
        cwd: owned("cwd", "/"),
        user: owned("user", "root"),
        hostname: table.parsed("hostname"),
        env: BTreeMap::new(),
        files: map("files"),
        logs: table.texts("logs").unwrap_or_default(),
        volumes: BTreeMap::new(),
        admits: BTreeMap::new(),
        reaches: BTreeMap::new(),
        labels: BTreeSet::new(),
        wants: BTreeSet::new(),
        egress: match table.texts("egress") {
            Some(all) => Some(all.iter().map(|one| one.parse().ok()).collect::<Option<_>>()?),
            None => None,
        },
        directories: directories::read(table),
        secrets: secrets::read(table),
        limits: table.table("limits").map(read_limits).unwrap_or_default(),
        ids: u32::try_from(table.integer("ids").unwrap_or(fields::BLOCK)).ok()?,
        idle: read_idle(table.get("idle"), admits || !routes.is_empty() || !jobs.is_empty()),
        ignore: routes::ignore(table.table("ignore")),
        busy: table.table("idle").and_then(|idle| idle.texts("busy")).unwrap_or_default(),
        jobs,
        restart: match table.text("restart") {
            Some("always") => Restart::Always,
            Some("never") => Restart::Never,
            _ => Restart::OnFailure,
        },
        ready: read_ready(table.table("ready"), &routes, first.map(|(_, port)| port)),
        ready_check: table.table("ready").and_then(read_check),
        start_deadline_ms: duration(table, "start_deadline").unwrap_or(super::START_DEADLINE_MS),
        stop: read_stop(table.table("stop")),
        setuid: table.boolean("setuid").unwrap_or(true),
        nesting: table.boolean("nesting").unwrap_or(false),
        routes,
    })
}

fn duration(table: &DeTable<'_>, name: &str) -> Option<u64> {
    parse_duration_ms(table.text(name)?).ok()
}

/// `limits`, also those of host.toml.
pub(crate) fn read_limits(table: &DeTable<'_>) -> Limits {
    Limits {
        memory: table.text("memory").and_then(|text| parse_bytes(text).ok()),
        cpu_millis: table.get("cpu").and_then(number).map(|cpus| (cpus * 1000.0).round() as u32),
        processes: table.integer("processes").and_then(|n| u32::try_from(n).ok()),
        disk: table.text("disk").and_then(|text| parse_bytes(text).ok()),
    }
}

fn read_idle(value: Option<&Value<'_>>, wakeable: bool) -> Idle {
    match value.map(|value| value.get_ref()) {
        Some(DeValue::Table(table)) => Idle::After {
            after_ms: duration(table, "after").unwrap_or(super::IDLE_AFTER_MS),
            then: if table.text("then") == Some("freeze") { IdleAction::Freeze } else { IdleAction::Stop },
            quiet_ms: duration(table, "quiet"),
        },
        Some(_) => Idle::Never,
        None => Idle::default_for(wakeable),
    }
}

/// Where routes lead to several ports, the one that is written first counts; later nobody knows the order any more.
fn read_ready(ready: Option<&DeTable<'_>>, routes: &BTreeMap<Route, RouteTarget>, first: Option<u16>) -> ReadySpec {
    if ready.is_some_and(|ready| ready.boolean("notify") == Some(true)) {
        return ReadySpec::Notify;
    }
    let port = ready.and_then(|ready| ready.integer("listen")).and_then(|port| u16::try_from(port).ok());
    let several = routes.values().any(|target| Some(target.port) != first);
    ReadySpec::Listen(port.or(first.filter(|_| several)))
}

fn read_check(ready: &DeTable<'_>) -> Option<ReadyCheck> {
    Some(ReadyCheck {
        command: ready.texts("run")?,
        interval_ms: duration(ready, "interval").unwrap_or(ReadyCheck::INTERVAL_MS),
        timeout_ms: duration(ready, "timeout").unwrap_or(ReadyCheck::TIMEOUT_MS),
    })
}

fn read_stop(table: Option<&DeTable<'_>>) -> Stop {
    let default = Stop::default();
    let Some(table) = table else { return default };
    Stop {
        signal: table.text("signal").and_then(signal_number).unwrap_or(default.signal),
        grace_ms: duration(table, "grace").unwrap_or(default.grace_ms),
    }
}
