//! `jobs` and `job run`: what is run inside VPSs at certain times.

use std::process::ExitCode;

use model::{
    VpsName,
    api::{JobRow, JobRun},
    limits::show_duration_ms,
};

use super::time::now_ms;
use crate::{
    arguments::{Form, Job},
    client::Host,
    failure::Result,
    output, table,
};

/// Lists jobs.
pub async fn list(host: &Host, name: Option<&VpsName>, form: Form) -> Result<()> {
    let path = name.map_or("/v1/jobs".to_owned(), |name| format!("/v1/vps/{name}/jobs"));
    let rows: Vec<JobRow> = host.get(&path).await?;
    if form.json { output::json(&rows) } else { output::own(&show(&rows, now_ms())) }
}

/// Runs one.
pub async fn run(host: &Host, job: Job) -> Result<ExitCode> {
    let Job::Run { name, job, form } = job;
    let run: JobRun = host.post(&format!("/v1/vps/{name}/jobs/{job}/run"), &()).await?;
    if form.json {
        output::json(&run)?;
    } else {
        if !run.output.is_empty() {
            output::line(run.output.trim_end())?;
        }
        output::line(&format!("{name}: job {job}: {} after {}", run.result, show_duration_ms(run.took_ms)))?;
    }
    Ok(match run.status {
        Some(status) => ExitCode::from(status.clamp(0, 255) as u8),
        None => ExitCode::FAILURE,
    })
}

fn show(rows: &[JobRow], now: u64) -> String {
    if rows.is_empty() {
        return "no jobs; [[vps.NAME.job]] in a spec makes some\n".to_owned();
    }
    table::text(
        ["VPS", "JOB", "WHEN", "NEXT", "LAST", "RESULT"],
        rows.iter().map(|row| {
            let next = match row.next_ms {
                _ if row.running => "runs now".to_owned(),
                Some(at) if at <= now => "now".to_owned(),
                Some(at) => format!("in {}", show_duration_ms(at - now)),
                None => "never".to_owned(),
            };
            let ago = |run: &JobRun| format!("{} ago", show_duration_ms(now.saturating_sub(run.at_ms)));
            let mut result = row
                .last
                .as_ref()
                .map_or("-".to_owned(), |run| format!("{} after {}", run.result, show_duration_ms(run.took_ms)));
            if row.failures > 1 {
                result.push_str(&format!(", {} times in a row", row.failures));
            }
            let last = row.last.as_ref().map_or("-".to_owned(), ago);
            [row.vps.to_string(), row.job.to_string(), row.when.clone(), next, last, result]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_says_when_it_ran_and_when_it_will() {
        let run = |result: &str| JobRun {
            at_ms: 60_000,
            took_ms: 1200,
            result: result.to_owned(),
            status: Some(1),
            output: String::new(),
            by: "root".to_owned(),
        };
        let row = |job: &str, next_ms, running, failures, last| JobRow {
            vps: "blog".parse().expect("a name"),
            job: job.parse().expect("a name"),
            when: "every 15m".to_owned(),
            run: vec![job.to_owned()],
            next_ms,
            running,
            failures,
            last,
        };
        let rows = [row("tidy", Some(960_000), false, 3, Some(run("exit 1"))), row("new", Some(0), true, 0, None)];
        let expected = "\
VPS   JOB   WHEN       NEXT      LAST    RESULT
blog  tidy  every 15m  in 14m    1m ago  exit 1 after 1s, 3 times in a row
blog  new   every 15m  runs now  -       -
";
        assert_eq!(show(&rows, 120_000), expected);
    }
}
