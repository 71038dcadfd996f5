//! `doctor`: what this machine has and lacks. Nothing is believed that can be tried.

use std::process::ExitCode;

use model::{api::ErrorKind, host::Paths};
use serde::Serialize;

use crate::{failure::Result, output};

mod cgroup;
mod kernel;
mod programs;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// How it is.
    pub state: Verdict,
    /// What was seen.
    pub seen: String,
    /// What it means when it is not there.
    pub means: &'static str,
    /// What to do about it.
    pub next: Option<String>,
}

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is there.
    Ok,
    /// It is not there; something works less well, or not yet.
    Note,
    /// It is not there, and nothing works without it.
    Missing,
}

impl Finding {
    fn ok(what: &'static str, seen: impl Into<String>) -> Self {
        Self { what, state: Verdict::Ok, seen: seen.into(), means: "", next: None }
    }

    fn missing(what: &'static str, seen: impl Into<String>, means: &'static str, next: impl Into<String>) -> Self {
        Self { what, state: Verdict::Missing, seen: seen.into(), means, next: Some(next.into()) }
    }

    fn note(what: &'static str, seen: impl Into<String>, means: &'static str, next: impl Into<String>) -> Self {
        Self { state: Verdict::Note, ..Self::missing(what, seen, means, next) }
    }
}

/// Looks at everything and tells it.
pub fn run(paths: &Paths, json: bool) -> Result<ExitCode> {
    let mut findings = vec![
        kernel::root(),
        kernel::version(),
        kernel::namespaces(),
        kernel::overlay(),
        kernel::idmapped(&paths.state),
    ];
    findings.push(kernel::seccomp());
    findings.extend(cgroup::all());
    findings.push(programs::mmdebstrap());
    findings.push(programs::configuration(&paths.config));
    findings.push(programs::host(paths));
    if json {
        output::json(&findings)?;
    } else {
        output::own(&show(&findings, output::colored()))?;
    }
    let lacking = findings.iter().any(|finding| finding.state == Verdict::Missing);
    Ok(if lacking { ExitCode::from(ErrorKind::Lacking as u8) } else { ExitCode::SUCCESS })
}

fn show(findings: &[Finding], color: bool) -> String {
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { what, state, seen, means, next } in findings {
        let seen = seen.replace('\n', "\n         ");
        let (word, code) = match state {
            Verdict::Ok => ("ok     ", "32"),
            Verdict::Note => ("note   ", "33"),
            Verdict::Missing => ("missing", "31"),
        };
        text.push_str(&format!("{}  {what:<width$}  {seen}\n", output::paint(color, code, word)));
        if *state != Verdict::Ok {
            text.push_str(&format!("         {means}\n"));
        }
        text.extend(next.iter().map(|next| format!("         next: {next}\n")));
    }
    let missing = findings.iter().filter(|finding| finding.state == Verdict::Missing).count();
    text.push_str(&match missing {
        0 => "this machine can be a host\n".to_owned(),
        1 => "this machine cannot be a host: 1 thing is missing\n".to_owned(),
        n => format!("this machine cannot be a host: {n} things are missing\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_the_next_step() {
        let findings = [
            Finding::ok("kernel", "6.18"),
            Finding::missing("root", "uid 1000", "VPSs need it once", "sudo bailiwick doctor"),
        ];
        let expected = "\
ok       kernel  6.18
missing  root    uid 1000
         VPSs need it once
         next: sudo bailiwick doctor
this machine cannot be a host: 1 thing is missing
";
        assert_eq!(show(&findings, false), expected);
    }
}
