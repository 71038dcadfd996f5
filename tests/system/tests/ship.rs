//! Logs that are shipped: JSON lines, syslog, journald.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{Host, HostOptions};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

/// What cannot look like two lines, or like another tenant's.
const HOSTILE: &str = r#"","tenant":"beta"} <0>1 - beta x - - - forged"#;

fn app(name: &str, tenant: &str) -> String {
    format!(
        "tenant = \"{tenant}\"\n[vps.{name}]\nimage = \"debian:\"\nlogs = [\"/var/log/*.log\"]\n\
         command = [\"sh\", \"-c\", \"echo started; exec sleep 1000\"]\n"
    )
}

/// A host that ships to `targets`, each with the directory in it.
fn host(targets: &[&str]) -> Result<(tempfile::TempDir, Host)> {
    let directory = tempfile::Builder::new().prefix("bailiwick-ship-").tempdir_in("/var/tmp")?;
    let quoted: Vec<_> = targets
        .iter()
        .map(|target| format!("{:?}", target.replace("DIR", &directory.path().to_string_lossy())))
        .collect();
    let config = format!("[logs]\nship = [{}]\n", quoted.join(", "));
    Ok((directory, Host::start(HostOptions { config, ..HostOptions::default() })?))
}

/// Waits until `look` finds it.
fn until<T>(what: &str, host: &Host, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        ensure!(Instant::now() < end, "no {what}\n{}", host.run(&["logs", "logs"])?);
        // A file of another program's: nothing tells of it that is worth its code here.
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn objects(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect()
}

fn say(host: &Host, vps: &str, command: &str) -> Result<()> {
    host.run(&["exec", vps, "--", "sh", "-c", command]).map(drop)
}

#[test]
fn json_lines_have_everybodys_lines_once() -> Result<()> {
    let (directory, mut host) = host(&["json:DIR/all.jsonl"])?;
    let file = directory.path().join("all.jsonl");
    host.apply("a.toml", &app("blog", "acme"))?;
    host.apply("b.toml", &app("shop", "beta"))?;
    host.run(&["start", "blog", "shop"])?;
    let find = |text: &str, vps: &str| objects(&file).into_iter().find(|o| o["text"] == text && o["vps"] == vps);
    let started = until("started", &host, || find("started", "blog"))?;
    ensure!(started["tenant"] == "acme" && started["source"] == "out" && started["severity"] == "info", "{started}");
    ensure!(until("started", &host, || find("started", "shop"))?["tenant"] == "beta");

    say(&host, "blog", "logger -p daemon.err -t probe it broke; echo in a file > /var/log/x.log")?;
    let line = until("syslog", &host, || find("it broke", "blog"))?;
    ensure!(line["severity"] == "err" && line["facility"] == "daemon" && line["tag"] == "probe", "{line}");
    let line = until("a file's line", &host, || find("in a file", "blog"))?;
    ensure!(line["source"] == "file" && line["file"] == "/var/log/x.log", "{line}");
    say(&host, "blog", &format!("printf '%s\\n' '{HOSTILE}' >> /var/log/x.log"))?;
    ensure!(until("hostile text", &host, || find(HOSTILE, "blog"))?["tenant"] == "acme");

    // Who ships is killed, then its file is rotated: nothing is missed, and what was sent last may come twice.
    let shipper = host.pid_of("logs")?;
    host.kill(shipper)?;
    say(&host, "blog", "echo after the kill >> /var/log/x.log")?;
    until("the line after the kill", &host, || find("after the kill", "blog"))?;
    fs::rename(&file, directory.path().join("old.jsonl"))?;
    until("a new file", &host, || {
        say(&host, "shop", "echo again >> /var/log/y.log").ok()?;
        find("again", "shop")
    })?;
    // The whole host stops and starts.
    host.run(&["stop", "blog", "shop"])?;
    host.stop()?;
    let host = host.again()?;
    host.run(&["start", "blog"])?;
    until("started again", &host, || find("started", "blog"))?;
    let again = objects(&file).into_iter().filter(|o| o["text"] == "started" || o["text"] == "after the kill").count();
    ensure!(again == 1, "{:#?}", objects(&file));
    ensure!(!host.run(&["doctor"]).context("doctor")?.contains("logs to json"), "a fault where there is none");
    Ok(())
}
