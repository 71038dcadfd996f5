//! Jobs, busy checks and short memory: what keeps a VPS awake or asleep besides requests.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    load::{Ended, http},
    spec::{ECHO, perl, server},
};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);

/// A VPS that does nothing, with `more` fields and tables.
fn sleeper(name: &str, more: &str) -> String {
    format!("tenant = \"acme\"\n[vps.{name}]\nimage = \"debian:\"\ncommand = [\"sleep\", \"1000\"]\n{more}\n")
}

/// Waits until an event of that word has come about the VPS.
fn await_event(host: &Host, vps: &str, what: &str) -> Result<()> {
    use std::process::Stdio;
    let mut follow = host.command(&["events", "-f", "--json"]).stdout(Stdio::piped()).spawn()?;
    let (sender, receiver) = std::sync::mpsc::channel();
    let lines = BufReader::new(follow.stdout.take().context("events")?).lines();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    loop {
        let line = receiver.recv_timeout(LONG).with_context(|| format!("no `{what}` about {vps}"))?;
        let event: Value = serde_json::from_str(&line)?;
        if event["vps"] == vps && event["what"] == what {
            break;
        }
    }
    follow.kill()?;
    follow.wait()?;
    Ok(())
}

#[test]
fn a_job_wakes_its_vps_runs_and_lets_it_sleep_again() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let job = r#"
user = "www-data"
env = { WHO = "tidy" }
[[vps.night.job]]
name = "tidy"
every = "2s"
run = ["sh", "-c", "echo $WHO is $(id -un)"]
[[vps.night.job]]
name = "broken"
at = "00:00"
run = ["sh", "-c", "echo it is broken; exit 3"]
"#;
    host.apply("a.toml", &sleeper("night", job))?;
    await_event(&host, "night", "job-done")?;
    host.await_state("night", "asleep", LONG)?;
    let why = host.run(&["why", "night"])?;
    ensure!(why.contains("only a job needed it") && why.contains("tidy: exit 0"), "{why}");

    let run = host.cli(&["job", "run", "night", "broken"])?;
    ensure!(run.code == 3 && run.out.contains("it is broken"), "{run:?}");
    let jobs = host.json(&["jobs", "night"])?;
    let row = |name: &str| jobs.as_array().and_then(|jobs| jobs.iter().find(|job| job["job"] == name)).cloned();
    let (tidy, broken) = (row("tidy").context("tidy")?, row("broken").context("broken")?);
    ensure!(tidy["last"]["output"] == "tidy is www-data\n" && tidy["last"]["status"] == 0, "{tidy}");
    ensure!(broken["failures"] == 1 && broken["last"]["result"] == "exit 3", "{broken}");
    ensure!(broken["next_ms"].as_u64() > broken["last"]["at_ms"].as_u64(), "{broken}");
    let ps = host.run(&["ps"])?;
    ensure!(ps.contains("job broken: exit 3") && !ps.contains("failed"), "{ps}");
    ensure!(host.cli(&["job", "run", "night", "no-such"])?.code == 3);

    // What a person has up stays up after a job.
    host.run(&["start", "night"])?;
    host.run(&["job", "run", "night", "tidy"])?;
    ensure!(host.state("night")? == "running");
    host.stop()
}

#[test]
fn a_job_is_killed_in_time_runs_once_at_a_time_and_is_made_up_for_after_a_restart() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let job = r#"
[[vps.slow.job]]
name = "hang"
at = "00:00"
timeout = "2s"
run = ["sleep", "100"]
[[vps.slow.job]]
name = "tick"
every = "3s"
run = ["true"]
"#;
    host.apply("a.toml", &sleeper("slow", job))?;
    std::thread::scope(|scope| -> Result<()> {
        let first = scope.spawn(|| host.cli(&["job", "run", "slow", "hang"]));
        await_event(&host, "slow", "job")?;
        while host.json(&["jobs", "slow"])?[0]["running"] != true {}
        let second = host.cli(&["job", "run", "slow", "hang"])?;
        ensure!(second.code == 4 && second.err.contains("runs already"), "{second:?}");
        let first = first.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
        ensure!(first.code == 1 && first.out.contains("killed after 2s"), "{first:?}");
        Ok(())
    })?;
    host.stop()?;
    // Longer than a period: the time that was missed is made up for.
    std::thread::sleep(Duration::from_secs(4));
    let mut host = host.again()?;
    await_event(&host, "slow", "job-done")?;
    host.stop()
}

#[test]
fn one_that_says_it_is_busy_is_not_stopped() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let more = "idle = { after = \"1s\", busy = [\"test\", \"-e\", \"/work\"] }";
    host.apply("a.toml", &perl("worker", 20610, &server("", ECHO), more))?;
    let mut client = TcpStream::connect(("127.0.0.1", 20610))?;
    client.write_all(b"one\n")?;
    let mut line = String::new();
    BufReader::new(&client).read_line(&mut line)?;
    host.run(&["exec", "worker", "--", "touch", "/work"])?;
    drop(client);
    await_event(&host, "worker", "busy")?;
    ensure!(host.state("worker")? == "running");
    let why = host.run(&["why", "worker"])?;
    ensure!(why.contains("its `busy` command says that it is busy"), "{why}");
    host.run(&["exec", "worker", "--", "rm", "/work"])?;
    host.await_state("worker", "asleep", LONG)?;
    host.stop()
}

#[test]
fn starts_wait_for_memory_and_are_refused_when_there_is_none_in_time() -> Result<()> {
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let total: u64 = meminfo.lines().next().and_then(|line| line.split_whitespace().nth(1)).context("kB")?.parse()?;
    let config = format!("reserve = {{ memory = \"{}KiB\" }}", total - (600 << 10));
    let mut host = Host::start(HostOptions { config, ..HostOptions::default() })?;
    let site = |name: &str, port: u16, deadline: &str| {
        format!(
            "tenant = \"{name}\"\n[vps.{name}]\nimage = \"debian:nginx-light\"\ncommand = [\"nginx\", \"-g\", \"daemon off;\"]\n\
             limits = {{ memory = \"400MiB\" }}\nstart_deadline = \"{deadline}\"\nidle = {{ after = \"1h\" }}\n\
             routes = {{ \"http://{name}.test:{port}\" = 80 }}\n"
        )
    };
    for (name, deadline) in [("one", "30s"), ("two", "30s"), ("three", "1s")] {
        host.apply(&format!("{name}.toml"), &site(name, 20620, deadline))?;
    }
    let at = ([127, 0, 0, 1], 20620).into();
    let text = |ended: Ended| match ended {
        Ended::Answer(answer) => Ok(String::from_utf8_lossy(&answer).into_owned()),
        other => Err(anyhow::anyhow!("{other:?}")),
    };
    host.run(&["start", "one"])?;
    let full = text(http(at, "three.test", "/", LONG))?;
    ensure!(full.starts_with("HTTP/1.1 503") && full.contains("this host is full"), "{full}");
    ensure!(full.to_lowercase().contains("retry-after"), "{full}");
    let why = host.run(&["why", "three"])?;
    ensure!(why.contains("waits for 400 MiB") && why.contains("are in use"), "{why}");
    ensure!(host.cli(&["start", "three"])?.code == 7);

    std::thread::scope(|scope| -> Result<()> {
        let waits = scope.spawn(|| http(at, "two.test", "/", LONG));
        host.await_state("two", "waiting", LONG)?;
        let ps = host.run(&["ps"])?;
        ensure!(ps.contains("waiting") && ps.contains("waits for 400 MiB"), "{ps}");
        host.run(&["stop", "one"])?;
        let answer = text(waits.join().map_err(|_| anyhow::anyhow!("it panicked"))?)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(())
    })?;
    let wait = host.json(&["why", "two"])?["last"]["start"]["waits"][0].take();
    ensure!(wait["on"] == "memory" && wait["took_ms"].as_u64() > Some(0), "{wait}");
    ensure!(wait["detail"].as_str().is_some_and(|detail| detail.contains("are in use")), "{wait}");
    host.stop()
}
