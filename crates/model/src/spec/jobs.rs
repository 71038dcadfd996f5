//! `[[vps.NAME.job]]`: programs that are run inside at certain times.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toml::de::DeTable;

use crate::{
    JobName,
    document::{Get, Problems},
    limits::parse_duration_ms,
    schedule::Schedule,
};

/// Milliseconds a job may run where the spec does not say.
pub(super) const TIMEOUT_MS: u64 = 3_600_000;

/// A program that is run inside at certain times; a VPS that is asleep is woken for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// When.
    pub schedule: Schedule,
    /// Program and arguments.
    pub run: Vec<String>,
    /// Who it runs as; none: as the VPS's program does.
    #[serde(default)]
    pub user: Option<String>,
    /// Milliseconds until it is killed.
    pub timeout_ms: u64,
}

const WHEN: [&str; 3] = ["every", "at", "schedule"];

/// The jobs of a VPS, each with the place of its table.
fn tables<'t, 'd>(vps: &'t DeTable<'d>) -> impl Iterator<Item = (std::ops::Range<usize>, &'t DeTable<'d>)> {
    let list = vps.get("job").and_then(|jobs| jobs.get_ref().as_array());
    list.into_iter().flat_map(|list| list.iter()).filter_map(|job| Some((job.span(), job.get_ref().as_table()?)))
}

/// What is wrong with the jobs of one VPS beyond their types.
pub(super) fn within(problems: &mut Problems<'_>, vps: &DeTable<'_>) {
    let mut seen = BTreeMap::new();
    for (span, job) in tables(vps) {
        let hint = || Some("write one of every = \"15m\", at = \"03:30\", schedule = \"30 3 * * 1-5\"".to_owned());
        let mut said = WHEN.iter().filter_map(|word| job.get_key_value(*word));
        match (said.next(), said.next()) {
            (None, _) => problems.tell(span.clone(), "a job must say when it runs", hint()),
            (_, Some((key, _))) => problems.tell(key.span(), "a job says only once when it runs", hint()),
            _ => {}
        }
        if job.texts("run").is_some_and(|run| run.first().is_none_or(String::is_empty)) {
            let hint = Some("write: run = [\"program\", \"argument\"]".to_owned());
            problems.tell(job.get("run").map_or(span.clone(), |run| run.span()), "`run` names no program", hint);
        }
        if let Some(name) = job.text("name")
            && seen.insert(name.to_owned(), ()).is_some()
        {
            let at = job.get("name").map_or(span, |name| name.span());
            problems.tell(
                at,
                format!("another job is called `{name}` already"),
                Some("give it another name".to_owned()),
            );
        }
    }
}

/// The jobs of one VPS by name. One without a name is called after its program.
pub(super) fn read(vps: &DeTable<'_>) -> Option<BTreeMap<JobName, Job>> {
    let mut jobs = BTreeMap::new();
    let named: Vec<JobName> = tables(vps).filter_map(|(_, job)| job.parsed("name")).collect();
    for (_, table) in tables(vps) {
        let run = table.texts("run")?;
        let name = match table.parsed("name") {
            Some(name) => name,
            None => free_name(run.first()?, |name| jobs.contains_key(name) || named.contains(name))?,
        };
        let every = || Some(Schedule::Every(parse_duration_ms(table.text("every")?).ok()?));
        let at = || Some(Schedule::At(table.parsed("at")?));
        let cron = || Some(Schedule::Cron(table.parsed("schedule")?));
        let job = Job {
            schedule: every().or_else(at).or_else(cron)?,
            run,
            user: table.text("user").map(str::to_owned),
            timeout_ms: table.text("timeout").and_then(|text| parse_duration_ms(text).ok()).unwrap_or(TIMEOUT_MS),
        };
        jobs.insert(name, job);
    }
    Some(jobs)
}

/// `/usr/bin/Backup.sh` → `backup-sh`, `backup-sh-2`, …
fn free_name(program: &str, taken: impl Fn(&JobName) -> bool) -> Option<JobName> {
    let base = program.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let base: String = base.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(56).collect();
    let base = base.trim_matches('-');
    let base = if base.is_empty() { "job" } else { base };
    let names = (1..1000).map(|n| if n == 1 { base.to_owned() } else { format!("{base}-{n}") });
    names.filter_map(|name| name.parse().ok()).find(|name| !taken(name))
}
