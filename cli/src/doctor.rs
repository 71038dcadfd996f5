//! `doctor`: what this machine has and lacks. Nothing is believed that can be tried.

use std::{path::Path, process::ExitCode};

use model::{api::ErrorKind, host::Paths};
use serde::Serialize;

use crate::{client::Host, commands, failure::Result, output};

mod cgroup;
mod kernel;
mod programs;
mod room;

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

/// Looks at everything and tells it; with `host_toml` at that file in place of the host's.
pub fn run(paths: &Paths, host_toml: Option<&Path>, json: bool) -> Result<ExitCode> {
    let mut findings = vec![
        kernel::root(),
        kernel::version(),
        kernel::namespaces(),
        kernel::overlay(),
        kernel::links(),
        kernel::idmapped(&paths.state),
    ];
    findings.push(kernel::seccomp());
    findings.extend(cgroup::all());
    findings.push(kernel::sizes(&paths.state));
    findings.push(kernel::copies(&paths.state));
    findings.extend([programs::mmdebstrap(), programs::nft()]);
    findings.extend([room::disk(&paths.state), room::memory(), room::files()]);
    findings.extend(programs::configuration(host_toml.unwrap_or(&paths.config)));
    findings.push(programs::host(paths));
    findings.extend(faults(paths)?);
    if json {
        output::json(&findings)?;
    } else {
        output::own(&show(&findings, output::colored()))?;
    }
    let lacking = findings.iter().any(|finding| finding.state == Verdict::Missing);
    Ok(if lacking { ExitCode::from(ErrorKind::Lacking as u8) } else { ExitCode::SUCCESS })
}

/// What a host that runs says of its host.toml. Asked last: until here nothing may have a thread.
fn faults(paths: &Paths) -> Result<Vec<Finding>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let faults = runtime.block_on(commands::faults::ask(&Host::new(paths.api())));
    let note = |fault: String| {
        if let Some((seen, next)) = fault.split_once(". next: ").filter(|(seen, _)| seen.starts_with("logs to ")) {
            let means = "lines wait in their logs, and are lost when those are rotated away";
            return Finding::note("logs", seen, means, next);
        }
        if fault.starts_with("the host's directory ") {
            let next = "put the directory right; or change its table in host.toml, then restart the host";
            return Finding::note("directory", fault, "VPSs that are to see it, or to write there, do not start", next);
        }
        let next = "put host.toml right, then restart the host: systemctl restart bailiwick";
        Finding::note("host.toml", fault, "the host does not run as the file says", next)
    };
    Ok(faults.into_iter().map(note).collect())
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
