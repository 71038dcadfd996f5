//! What is told of a VPS, and of all: it outlives whoever tells it, and stays within its bounds.

use std::{
    fs,
    io::Read,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    spec::{ECHO, perl, server},
};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);

fn greet(port: u16) -> Result<()> {
    let mut client = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
    client.set_read_timeout(Some(LONG))?;
    let mut hello = [0; 2];
    client.read_exact(&mut hello)?;
    ensure!(&hello == b"hi");
    Ok(())
}

fn kill_control(host: &Host) -> Result<()> {
    let old = host.pid_of("control")?;
    host.kill(old)?;
    let deadline = Instant::now() + LONG;
    while host.pid_of("control").ok().is_none_or(|pid| pid == old) {
        ensure!(Instant::now() < deadline, "control did not come back\n{}", host.daemon_log());
        std::thread::yield_now();
    }
    Ok(())
}

fn last(host: &Host, vps: &str) -> Result<Value> {
    Ok(host.json(&["why", vps])?["last"].take())
}

/// Waits for a failure's lines, which are kept a moment after it.
fn failure_with_lines(host: &Host, vps: &str) -> Result<Value> {
    let deadline = Instant::now() + LONG;
    loop {
        let failure = last(host, vps)?["failure"].take();
        if failure["log"].as_array().is_some_and(|lines| !lines.is_empty()) {
            return Ok(failure);
        }
        ensure!(Instant::now() < deadline, "{}", host.run(&["why", vps])?);
    }
}

/// Waits until the gateway has told of the first byte.
fn answered(host: &Host, vps: &str) -> Result<Value> {
    let deadline = Instant::now() + LONG;
    loop {
        let told = last(host, vps)?;
        if steps(&told["start"]).last().is_some_and(|(what, _)| what == "first byte of an answer") {
            return Ok(told);
        }
        ensure!(Instant::now() < deadline, "{}", host.run(&["why", vps])?);
    }
}

fn steps(start: &Value) -> Vec<(String, u64)> {
    let step = |step: &Value| Some((step["what"].as_str()?.to_owned(), step["after_us"].as_u64()?));
    start["steps"].as_array().into_iter().flatten().filter_map(step).collect()
}

#[test]
fn the_last_start_stop_and_failure_outlive_control_and_the_host() -> Result<()> {
    // A start that takes nothing prepared has all steps.
    let config = "pool = { memory = \"0B\" }".to_owned();
    let mut host = Host::start(HostOptions { config, ..HostOptions::default() })?;
    let greeting = server("", "print $c \"hi\"; close $c");
    let bad = "print \"reading\\n\"; print STDERR \"the table of stars is missing\\n\"; exit 3";
    host.apply("one.toml", &perl("one", 20640, bad, "restart = \"never\""))?;
    ensure!(host.cli(&["start", "one"])?.code != 0);
    let failure = failure_with_lines(&host, "one")?;
    ensure!(failure["exit"] == 3 && failure["by"] == "start by root", "{failure}");
    ensure!(failure["log"].to_string().contains("the table of stars is missing"), "{failure}");
    ensure!(steps(&failure).iter().any(|(what, _)| what == "program executed"), "{failure}");

    // It is mended, and runs well and writes much since.
    let mended = server("print \"line $_\\n\" for 1..200", "print $c \"hi\"; close $c");
    host.apply("one.toml", &perl("one", 20640, &mended, "idle = \"never\""))?;
    host.run(&["stop", "one"])?;
    greet(20640)?;
    let told = answered(&host, "one")?;
    ensure!(told["failure"] == failure, "{told}");
    let start = &told["start"];
    ensure!(start["by"].as_str().is_some_and(|by| by.starts_with("connection from 127.0.0.1")), "{start}");
    let steps = steps(start);
    let order: Vec<_> = ["memory granted", "namespaces, cgroup and link made", "program executed", "listens", "ready"]
        .into_iter()
        .map(|word| {
            steps.iter().position(|(what, _)| what.starts_with(word)).with_context(|| format!("{word}: {start}"))
        })
        .collect::<Result<_>>()?;
    ensure!(order.is_sorted() && steps.is_sorted_by_key(|(_, after)| *after), "{steps:?}");
    let (took, ready) = (start["took_ms"].as_u64().context("took_ms")?, steps[*order.last().context("ready")?].1);
    ensure!(ready.abs_diff(took * 1000) < 50_000, "{start}");
    host.run(&["stop", "one"])?;
    host.apply("two.toml", &perl("two", 20641, &greeting, "idle = \"never\""))?;
    greet(20641)?;
    answered(&host, "two")?;

    let (one, two) = (last(&host, "one")?, last(&host, "two")?);
    ensure!(one["stop"]["why"] == "stop by root" && one["stop"]["ended"] == "signal 15", "{one}");
    kill_control(&host)?;
    ensure!(last(&host, "one")? == one && last(&host, "two")? == two);
    let why = host.run(&["why", "one"])?;
    ensure!(why.starts_with("one: asleep for ") && why.contains(": stop by root\n"), "{why}");
    ensure!(why.contains("the table of stars is missing") && why.contains("program executed"), "{why}");
    let why = host.run(&["why", "two"])?;
    ensure!(why.contains("connection from 127.0.0.1, ready after"), "{why}");

    host.crash()?;
    let mut host = host.again()?;
    ensure!(last(&host, "one")? == one, "{one}");
    // Events from before are there, too.
    let events = host.json(&["events"])?;
    let of_one = |what: &str| events.as_array().into_iter().flatten().any(|e| e["vps"] == "one" && e["what"] == what);
    ensure!(of_one("failed") && of_one("asleep"), "{events}");
    let mut host = {
        host.stop()?;
        host.again()?
    };
    ensure!(last(&host, "one")? == one, "{one}");
    // What is deleted has no story, whoever gets its name.
    host.run(&["delete", "one", "--yes"])?;
    host.apply("one.toml", &perl("one", 20640, &greeting, ""))?;
    let told = host.json(&["why", "one"])?;
    ensure!(told["last"]["start"].is_null() && told["last"]["failure"].is_null(), "{told}");
    host.stop()
}

#[test]
fn a_start_that_wakes_a_neighbour_tells_how_long_it_waited_for_it() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    // Both ways of a connection: while it starts, and later.
    let connect = "my $db = IO::Socket::INET->new(PeerAddr => 'db:7') or die $!; $db->read(my $hi, 2)";
    let db = server("", "print $c \"hi\"; close $c");
    let web = server(connect, &format!("{connect}; print $c \"hi\"; close $c"));
    let spec =
        format!(
            "{}allow = [\"web -> db:7\"]\n[vps.db]\nimage = \"debian:\"\ncommand = [\"perl\", \"-e\", {db:?}]\n",
            "tenant = \"acme\"\n",
        ) + perl("web", 20680, &web, "idle = { after = \"1h\" }").trim_start().trim_start_matches("tenant = \"acme\"");
    host.apply("a.toml", &spec)?;
    greet(20680)?;
    let start = last(&host, "web")?["start"].take();
    let wait = &start["waits"][0];
    ensure!(wait["on"] == "db" && wait["took_ms"].as_u64() > Some(0), "{start}");
    ensure!(last(&host, "db")?["start"]["by"] == "connection from web");
    let why = host.run(&["why", "web"])?;
    ensure!(why.contains("for db: it connected to it, which woke it"), "{why}");
    host.run(&["stop", "db"])?;
    greet(20680)?;
    let why = host.run(&["why", "web"])?;
    ensure!(why.contains("woke      db, ready after"), "{why}");
    host.stop()
}

#[test]
fn a_failure_while_control_is_away_is_told() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("a.toml", &perl("gone", 20650, &server("", ECHO), "restart = \"never\"\nidle = \"never\""))?;
    host.apply("b.toml", &perl("back", 20652, &server("", ECHO), "idle = \"never\""))?;
    host.run(&["start", "gone", "back"])?;
    // `control` stands still: it sees nothing of it, and is killed before it does.
    let (control, gone, back) = (host.pid_of("control")?, host.pid_of("gone")?, host.pid_of("back")?);
    signal(control, rustix::process::Signal::STOP)?;
    await_stopped(control)?;
    for pid in [gone, back] {
        host.kill(pid)?;
        while Path::new(&format!("/proc/{pid}")).exists() {
            std::thread::yield_now();
        }
    }
    host.kill(control)?;
    let deadline = Instant::now() + LONG;
    while last(&host, "gone").map_or(true, |last| last["failure"].is_null()) {
        ensure!(Instant::now() < deadline, "{}", host.run(&["why", "gone"])?);
    }
    let told = last(&host, "gone")?;
    ensure!(told["failure"]["signal"] == 9 && told["failure"]["by"] == "start by root", "{told}");
    let events = host.run(&["events"])?;
    ensure!(events.contains("signal 9, while control was away"), "{events}");
    // Each as its `restart` says: who is not started again is not so for never sleeping.
    host.await_state("back", "running", LONG)?;
    ensure!(host.row("gone")?["state"] == "failed", "{events}");
    let woken = |name: &str| events.lines().filter(|line| line.contains(name) && line.contains("waking")).count();
    ensure!(woken("gone") == 1, "{events}");
    host.stop()
}

/// Waits until each thread of a process stands still: a signal is sent before it is acted on.
fn await_stopped(pid: i32) -> Result<()> {
    let deadline = Instant::now() + LONG;
    let stopped = || -> Result<bool> {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let stat = fs::read_to_string(thread?.path().join("stat"))?;
            // proc_pid_stat(5): the state follows the name in parentheses.
            if !stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')) {
                return Ok(false);
            }
        }
        Ok(true)
    };
    while !stopped()? {
        ensure!(Instant::now() < deadline, "process {pid} does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn signal(pid: i32, signal: rustix::process::Signal) -> Result<()> {
    Ok(rustix::process::kill_process(rustix::process::Pid::from_raw(pid).context("a pid")?, signal)?)
}

#[test]
fn events_since_a_time_are_those_since_then() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("a.toml", &perl("a", 20660, &server("", ECHO), ""))?;
    let at =
        host.json(&["events"])?.as_array().and_then(|events| events.last()?["at_ms"].as_u64()).context("an event")?;
    // The next second, so that what was before is before it.
    let next = at / 1000 + 1;
    while std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() < next {
        std::thread::sleep(Duration::from_millis(20));
    }
    host.apply("b.toml", &perl("b", 20661, &server("", ECHO), ""))?;
    let time = bailiwick_system_tests::netns::sh(&format!("date -u -d @{next} +%Y-%m-%dT%H:%M:%SZ"))?;
    let since = |since: &str| -> Result<Vec<String>> {
        let events = host.json(&["events", "--since", since])?;
        let events = events.as_array().cloned().unwrap_or_default().into_iter();
        Ok(events.filter(|e| e["what"] == "created").filter_map(|e| Some(e["vps"].as_str()?.to_owned())).collect())
    };
    ensure!(since(time.trim())? == ["b"], "{time}: {:?}", since(time.trim())?);
    ensure!(since("10m")? == ["a", "b"]);
    ensure!(since("2100")?.is_empty());
    let refused = host.cli(&["events", "--since", "yesterday"])?;
    ensure!(refused.code == 2 && refused.err.contains("`yesterday` is not a time"), "{refused:?}");
    host.stop()
}

/// Where `control` keeps what it tells.
fn data(directory: &Path) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name() == "events.jsonl" {
            return Ok(Some(directory.to_owned()));
        }
        if entry.file_type()?.is_dir()
            && let Some(found) = data(&entry.path())?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

#[test]
fn thousands_of_events_take_a_bounded_place_and_the_loss_is_said() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("a.toml", &perl("busy", 20670, &server("", ECHO), "idle = \"never\""))?;
    host.run(&["start", "busy"])?;
    let store = data(&host.root.join("lib"))?.context("no events on disk")?;
    // Each is an event with a long detail.
    let socket = host.root.join("run/api.sock");
    let exec = |n: usize| -> Result<()> {
        use std::{io::Write as _, os::unix::net::UnixStream};
        let body = serde_json::json!({ "command": ["true", "中".repeat(950), n.to_string()] }).to_string();
        let mut stream = UnixStream::connect(&socket)?;
        let length = body.len();
        write!(
            stream,
            "POST /v1/vps/busy/exec HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: Upgrade\r\n\
             Upgrade: bailiwick-exec\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        ensure!(&answer == b"HTTP/1.1 101", "{}", String::from_utf8_lossy(&answer));
        Ok(())
    };
    const EACH: usize = 600;
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> =
            (0..4).map(|t| scope.spawn(move || (0..EACH).try_for_each(|n| exec(t * EACH + n)))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("it panicked"))?)
    })?;
    // Whoever reads has what is pending written.
    let events = host.json(&["events", "--since", "1h"])?;
    let events = events.as_array().context("events")?;
    ensure!(events.len() > 600 && events.len() < 3 * EACH, "{} events", events.len());
    ensure!(events[0]["what"] == "lost", "{}", events[0]);
    ensure!(events[0]["detail"].as_str().is_some_and(|text| text.ends_with("older events are not kept any more")));
    let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    let journal = size(&store.join("events.jsonl")) + size(&store.join("events.older.jsonl"));
    ensure!((2 << 20..5 << 20).contains(&journal), "{journal} bytes of events");
    let story = size(&store.join("story/busy.jsonl"));
    ensure!((1..=32 << 10).contains(&story), "{story} bytes of one story");
    ensure!(last(&host, "busy")?["start"]["by"] == "start by root", "its start was driven out");

    // Damage costs what it hit.
    fs::write(store.join("story/busy.jsonl"), [0xff; 100])?;
    kill_control(&host)?;
    ensure!(last(&host, "busy")?["start"].is_null());
    host.run(&["stop", "busy"])?;
    ensure!(last(&host, "busy")?["stop"]["why"] == "stop by root");
    ensure!(host.run(&["logs", "control"])?.contains("its story is damaged"));
    host.stop()
}
