//! Logs: from files that the spec names, over restarts.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bailiwick_system_tests::{Host, HostOptions};

const PATIENCE: Duration = Duration::from_secs(20);

/// Writes a line more into its log at each start.
const APP: &str = r#"tenant = "acme"
[vps.app]
image   = "debian:"
command = ["sh", "-c", "mkdir -p /var/log/app; n=$(cat /n || echo 0); echo $((n + 1)) > /n; echo start $n >> /var/log/app/main.log; exec sleep 1000"]
restart = "never"
logs    = ["/var/log/app/*.log", "/var/log/dpkg.log"]
"#;

/// The texts of the lines of that source, once there are so many.
fn texts(host: &Host, source: &str, count: usize) -> Result<Vec<String>> {
    let until = Instant::now() + PATIENCE;
    loop {
        let lines = host.json(&["logs", "app", "--source", source])?;
        let texts: Vec<_> =
            lines.as_array().into_iter().flatten().filter_map(|l| Some(l["text"].as_str()?.to_owned())).collect();
        if texts.len() >= count {
            return Ok(texts);
        }
        ensure!(Instant::now() < until, "{}", host.run(&["logs", "app"])?);
    }
}

#[test]
fn lines_of_files_are_part_of_the_log_and_none_comes_twice() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("a.toml", APP)?;
    host.run(&["start", "app"])?;
    ensure!(texts(&host, "file", 1)? == ["start 0"]);
    host.run(&["restart", "app"])?;
    ensure!(texts(&host, "/var/log/app/main.log", 2)? == ["start 0", "start 1"]);
    // Killed, so that nothing is read at its end: the next run goes on where this one was.
    host.run(&["exec", "app", "--", "sh", "-c", "echo between >> /var/log/app/main.log"])?;
    host.kill(host.pid_of("app")?)?;
    host.await_state("app", "failed", PATIENCE)?;
    host.run(&["start", "app"])?;
    ensure!(texts(&host, "file", 4)? == ["start 0", "start 1", "between", "start 2"]);
    let line = &host.json(&["logs", "app", "--source", "file", "-n", "1"])?[0];
    ensure!(line["stream"] == "file" && line["file"] == "/var/log/app/main.log", "{line}");

    host.run(&["exec", "app", "--", "logger", "-p", "daemon.err", "-t", "probe", "what: it broke"])?;
    texts(&host, "log", 1)?;
    let line = &host.json(&["logs", "app", "--source", "log"])?[0];
    ensure!(line["severity"] == "err" && line["facility"] == "daemon" && line["tag"] == "probe", "{line}");
    ensure!(line["text"] == "what: it broke", "{line}");
    ensure!(host.run(&["logs", "app", "--source", "log"])?.contains("log daemon.err probe: what: it broke"));
    let answer = host.cli(&["logs", "app", "--source", "files"])?;
    ensure!(answer.code == 2 && answer.err.contains("file"), "{}", answer.err);
    host.stop()
}
