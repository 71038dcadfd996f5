//! On-demand start: from asleep to an answer, and every way that can go wrong.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    load::{Ended, http},
    spec::{ECHO, perl, server},
};

const LONG: Duration = Duration::from_secs(60);

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn get(port: u16, host: &str, path: &str) -> Result<(u16, String)> {
    match http(local(port), host, path, LONG) {
        Ended::Answer(answer) => {
            let text = String::from_utf8_lossy(&answer).into_owned();
            let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).context("a status line")?;
            Ok((status, text))
        }
        other => anyhow::bail!("{other:?}"),
    }
}

fn nginx(name: &str, port: u16, more: &str) -> String {
    format!(
        r#"
tenant = "acme"
[vps.{name}]
image   = "debian:nginx-light"
command = ["nginx", "-g", "daemon off;"]
routes  = {{ "http://{name}.test:{port}" = 80 }}
files   = {{ "/var/www/html/index.html" = "hello from {name}\n" }}
{more}
"#
    )
}

fn echo(stream: &mut TcpStream, line: &str) -> Result<String> {
    stream.set_read_timeout(Some(LONG))?;
    stream.write_all(line.as_bytes())?;
    let mut answer = vec![0; line.len()];
    stream.read_exact(&mut answer)?;
    Ok(String::from_utf8(answer)?)
}

#[test]
fn the_first_request_starts_the_server_and_idleness_stops_it() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("a.toml", &nginx("one", 20100, "idle = { after = \"1s\", then = \"stop\" }"))?;
    ensure!(host.state("one")? == "asleep", "{}", host.row("one")?);
    let (status, text) = get(20100, "one.test", "/")?;
    ensure!(status == 200 && text.ends_with("hello from one\n"), "{text}");
    let row = host.row("one")?;
    ensure!(row["state"] == "running" && row["last_wake"]["by"] == "GET / from 127.0.0.1", "{row}");
    host.await_state("one", "asleep", LONG)?;
    ensure!(host.row("one")?["pid"].is_null());
    let why = host.run(&["why", "one"])?;
    ensure!(why.contains("idle"), "{why}");
    host.stop()
}

#[test]
fn a_thousand_first_requests_cause_one_start_and_all_get_answers() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("a.toml", &nginx("crowd", 20110, ""))?;
    let before = host.json(&["inspect", "crowd"])?;
    let clients: Vec<_> = (0..1000)
        .map(|_| {
            let thread = std::thread::Builder::new().stack_size(128 << 10);
            thread.spawn(|| matches!(get(20110, "crowd.test", "/"), Ok((200, _))))
        })
        .collect::<Result<_, _>>()?;
    let answered = clients.into_iter().filter_map(|client| client.join().ok()).filter(|ok| *ok).count();
    ensure!(answered == 1000, "{answered} of 1000 were answered; before: {before}");
    let events = host.json(&["events"])?;
    let starts = events.as_array().context("events")?.iter().filter(|e| e["vps"] == "crowd" && e["what"] == "ready");
    let starts = starts.count();
    ensure!(starts == 1, "{starts} starts: {events}");
    host.stop()
}

#[test]
fn an_idle_vps_is_frozen_and_thawed_by_the_next_request() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("a.toml", &nginx("icy", 20120, "idle = { after = \"1s\", then = \"freeze\" }"))?;
    ensure!(get(20120, "icy.test", "/")?.0 == 200);
    let pid = host.pid_of("icy")?;
    host.await_state("icy", "frozen", LONG)?;
    ensure!(get(20120, "icy.test", "/")?.0 == 200);
    ensure!(host.pid_of("icy")? == pid, "it was started again instead of thawed");
    host.run(&["freeze", "icy"])?;
    ensure!(host.state("icy")? == "frozen");
    host.run(&["stop", "icy"])?;
    ensure!(host.state("icy")? == "asleep");
    host.stop()
}

#[test]
fn a_request_while_it_stops_waits_for_the_next_start() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    // It takes a second to end after it was asked to.
    let setup = "$SIG{TERM} = sub { select(undef, undef, undef, 1.0); exit 0 }";
    host.apply("a.toml", &perl("slow", 20130, &server(setup, ECHO), "idle = \"never\""))?;
    ensure!(echo(&mut TcpStream::connect(local(20130))?, "one\n")? == "one\n");
    let first = host.pid_of("slow")?;
    std::thread::scope(|scope| -> Result<()> {
        let stop = scope.spawn(|| host.run(&["stop", "slow"]));
        host.await_state("slow", "stopping", LONG)?;
        ensure!(echo(&mut TcpStream::connect(local(20130))?, "two\n")? == "two\n");
        stop.join().map_err(|_| anyhow::anyhow!("stop panicked"))??;
        Ok(())
    })?;
    ensure!(host.pid_of("slow")? != first);
    host.stop()
}

#[test]
fn a_server_that_fails_gives_503_without_internals_and_a_reason_in_why() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let spec = nginx("broken", 20140, "restart = \"never\"").replace("daemon off;", "no_such_directive on;");
    host.apply("a.toml", &spec)?;
    let (status, text) = get(20140, "broken.test", "/")?;
    ensure!(status == 503, "{text}");
    ensure!(!text.contains("no_such_directive") && !text.contains("/var/"), "it tells internals: {text}");
    ensure!(text.to_lowercase().contains("retry-after:"), "{text}");
    let why = host.run(&["why", "broken"])?;
    ensure!(why.contains("exit 1") && why.contains("no_such_directive"), "{why}");
    let ps = host.run(&["ps"])?;
    ensure!(ps.contains("failed") && ps.contains("exit 1"), "{ps}");
    let row = host.row("broken")?;
    ensure!(row["state"] == "failed", "{row}");
    host.stop()
}

#[test]
fn a_server_that_never_listens_is_ended_at_its_deadline() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply(
        "a.toml",
        &perl("mute", 20150, &server("sleep 1000", ""), "start_deadline = \"1s\"\nrestart = \"never\""),
    )?;
    let start = Instant::now();
    let mut client = TcpStream::connect(local(20150))?;
    client.set_read_timeout(Some(LONG))?;
    let mut nothing = Vec::new();
    let _ = client.read_to_end(&mut nothing);
    ensure!(nothing.is_empty() && start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    host.await_state("mute", "failed", LONG)?;
    let why = host.run(&["why", "mute"])?;
    ensure!(why.contains("1s") || why.contains("deadline"), "{why}");
    ensure!(host.row("mute")?["pid"].is_null());
    host.stop()
}

#[test]
fn a_missing_program_is_named() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let spec = nginx("typo", 20160, "").replace("[\"nginx\"", "[\"ngniks\"");
    host.apply("a.toml", &spec)?;
    let answer = host.cli(&["start", "typo"])?;
    ensure!(answer.code != 0 && answer.err.contains("ngniks"), "{answer:?}");
    host.stop()
}

#[test]
fn hosts_and_prefixes_on_one_port_lead_to_their_own_vps() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let a = nginx("a", 20170, "");
    let b = nginx("b", 20170, "").replace("http://b.test:20170", "http://a.test:20170/b");
    host.apply("a.toml", &a)?;
    let b = b.replace("/var/www/html/index.html", "/var/www/html/b/index.html");
    host.apply("b.toml", &b)?;
    ensure!(get(20170, "a.test", "/")?.1.ends_with("hello from a\n"));
    ensure!(get(20170, "A.TEST.:20170", "/b/")?.1.ends_with("hello from b\n"));
    ensure!(get(20170, "a.test", "/bb/")?.0 == 404 && !get(20170, "a.test", "/bb/")?.1.contains("hello from b"));
    ensure!(get(20170, "other.test", "/")?.0 == 404);
    host.stop()
}

#[test]
fn redis_answers_on_its_own_port() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let spec = std::fs::read_to_string(bailiwick_system_tests::host::project().join("examples/cache.toml"))?;
    host.apply("cache.toml", &spec.replace("16379", "20180"))?;
    let run = |args: &[&str]| -> Result<String> {
        let output = std::process::Command::new("redis-cli").args(["-p", "20180"]).args(args).output()?;
        Ok(String::from_utf8(output.stdout)?)
    };
    ensure!(run(&["SET", "greeting", "hello"])? == "OK\n");
    ensure!(run(&["GET", "greeting"])? == "hello\n");
    let user = host.run(&["exec", "cache", "--", "sh", "-c", "stat -c %U /proc/$(pidof redis-server || echo 2)"])?;
    ensure!(user.trim() == "redis", "redis runs as {user}");
    host.stop()
}
