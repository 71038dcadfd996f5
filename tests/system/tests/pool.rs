//! VPSs that are prepared for their next start, and spares that new ones are made of.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    load::{Ended, http},
};

const SPEC: &str = r#"tenant = "acme"
[vps.NAME]
image   = "debian:"
command = ["sh", "-c", "cat /etc/said > /tmp/told; exec sleep infinity"]
files   = { "/etc/said" = "first" }
"#;

fn host() -> Result<Host> {
    Host::start(HostOptions { config: "pool = { memory = \"4MiB\" }".to_owned(), ..HostOptions::default() })
}

fn apply(host: &Host, name: &str) -> Result<()> {
    host.apply("s.toml", &SPEC.replace("NAME", name)).map(drop)
}

/// Nothing tells when a VPS is prepared, since nobody waits for it: look at a short interval.
fn await_prepared(host: &Host, name: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while host.row(name)?["prepared"] != true {
        ensure!(Instant::now() < deadline, "{name} is not prepared: {}\n{}", host.row(name)?, host.daemon_log());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn told(host: &Host, name: &str) -> Result<String> {
    // It is ready as soon as it runs, a moment before it has written that.
    let told = "until [ -s /tmp/told ]; do sleep 0.01; done; cat /tmp/told";
    Ok(host.run(&["exec", name, "--", "sh", "-c", told])?.trim().to_owned())
}

/// A shim that holds a prepared VPS: the only one that runs as this VPS's uid.
fn shim_of(host: &Host, name: &str) -> Result<i32> {
    let ids = fs::read_to_string(host.root.join("lib/vps").join(name).join("ids"))?;
    let block = serde_json::from_str::<serde_json::Value>(&ids)?["first"].as_u64().unwrap_or_default();
    let uid = format!("Uid:\t{}\t", 600_000 + block);
    let is_shim = |pid: &i32| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        read("status").contains(&uid)
            && read("comm").starts_with("bailiwick-shim")
            && read("cgroup").contains(&cgroup(host))
    };
    let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    pids.into_iter().find(is_shim).ok_or_else(|| anyhow::anyhow!("no shim of {name}"))
}

/// Waits until a process that is nobody's child here is gone.
fn await_end(pid: i32) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::metadata(format!("/proc/{pid}")).is_ok() {
        ensure!(Instant::now() < deadline, "process {pid} does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn cgroup(host: &Host) -> String {
    let config = fs::read_to_string(host.root.join("host.toml")).unwrap_or_default();
    config.lines().find_map(|line| line.strip_prefix("cgroup = ")).unwrap_or_default().trim_matches('"').to_owned()
}

#[test]
fn a_prepared_vps_runs_what_its_spec_says_when_it_is_started() -> Result<()> {
    let mut host = host()?;
    apply(&host, "one")?;
    await_prepared(&host, "one")?;
    let row = host.row("one")?;
    ensure!(row["state"] == "asleep" && row["memory"].is_null() && row["pid"].is_null(), "{row}");

    // What is its program's own may change until the last moment.
    host.apply("s.toml", &SPEC.replace("NAME", "one").replace("first", "second"))?;
    host.run(&["start", "one"])?;
    ensure!(told(&host, "one")? == "second");
    ensure!(host.row("one")?["prepared"] == false);

    host.run(&["stop", "one"])?;
    await_prepared(&host, "one")?;
    // What a frame is made of too: it is made again then.
    let nested = SPEC.replace("NAME", "one").replace("files", "nesting = true\nfiles");
    host.apply("s.toml", &nested)?;
    host.run(&["start", "one"])?;
    host.run(&["exec", "one", "--", "unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"])?;

    host.run(&["delete", "one", "--yes"])?;
    ensure!(!host.root.join("lib/vps/one").exists());
    host.stop()?;
    let left: Vec<_> = fs::read_dir(host.root.join("lib/vps"))?.flatten().map(|e| e.file_name()).collect();
    ensure!(left.iter().all(|name| !name.to_string_lossy().contains("spare")), "{left:?}");
    Ok(())
}

#[test]
fn a_new_vps_takes_a_spare_and_keeps_its_ids_and_its_address() -> Result<()> {
    let mut host = host()?;
    // The first one of an image says that there are to be spares.
    apply(&host, "one")?;
    let spare = |host: &Host| -> Result<bool> {
        let entries = fs::read_dir(host.root.join("lib/vps"))?.flatten();
        Ok(entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(".new-spare_")))
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while !spare(&host)? {
        ensure!(Instant::now() < deadline, "no spare is made\n{}", host.daemon_log());
        std::thread::sleep(Duration::from_millis(5));
    }
    await_prepared(&host, "one")?;
    apply(&host, "two")?;
    await_prepared(&host, "two")?;
    let pid = shim_of(&host, "two")?;
    host.run(&["start", "two"])?;
    ensure!(shim_of(&host, "two")? == pid, "it was not started from what was prepared");
    ensure!(told(&host, "two")? == "first");
    let seen = |host: &Host| host.run(&["exec", "two", "--", "sh", "-c", "hostname -I; cat /proc/self/uid_map"]);
    let first = seen(&host)?;

    // It is adopted by a new daemon, under the cgroup of the spare that it was.
    host.kill(host.daemon()?)?;
    host.await_state("two", "running", Duration::from_secs(10))?;
    ensure!(seen(&host)? == first);
    host.run(&["restart", "two"])?;
    ensure!(seen(&host)? == first, "ids and address are a VPS's own as long as it exists");
    host.stop()
}

#[test]
fn a_dead_daemon_or_shim_takes_what_is_prepared_with_it() -> Result<()> {
    let mut host = host()?;
    apply(&host, "one")?;
    await_prepared(&host, "one")?;
    let shim = shim_of(&host, "one")?;
    host.kill(host.daemon()?)?;
    await_end(shim)?;
    await_prepared(&host, "one")?;

    let shim = shim_of(&host, "one")?;
    host.kill(shim)?;
    await_end(shim)?;
    host.run(&["start", "one"])?;
    ensure!(told(&host, "one")? == "first");
    host.stop()
}

#[test]
fn a_volume_that_was_replaced_is_not_the_one_that_was_prepared() -> Result<()> {
    let mut host = host()?;
    let spec = SPEC.replace("NAME", "one").replace("files ", "volumes = { data = \"/srv\" }\nfiles ");
    host.apply("s.toml", &spec)?;
    host.run(&["start", "one"])?;
    host.run(&["exec", "one", "--", "sh", "-c", "echo old > /srv/kept"])?;
    host.run(&["stop", "one"])?;
    await_prepared(&host, "one")?;
    // As an import does: another directory in the same place.
    let volume = host.root.join("lib/volumes/acme/data");
    fs::rename(volume.join("data"), host.root.join("elsewhere"))?;
    host.run(&["start", "one"])?;
    let seen = host.run(&["exec", "one", "--", "ls", "/srv"])?;
    ensure!(seen.trim().is_empty(), "it sees what was taken away: {seen}");
    host.stop()
}

#[test]
fn without_memory_for_it_nothing_is_prepared() -> Result<()> {
    let mut host =
        Host::start(HostOptions { config: "pool = { memory = \"0B\" }".to_owned(), ..HostOptions::default() })?;
    apply(&host, "one")?;
    host.run(&["start", "one"])?;
    host.run(&["stop", "one"])?;
    ensure!(host.row("one")?["prepared"] == false);
    ensure!(shim_of(&host, "one").is_err(), "a process of a VPS that sleeps");
    host.stop()
}

/// How many VPSs are woken at once, and how often.
const CROWD: usize = 60;
const ROUNDS: usize = 3;

/// Some of them start from what is prepared, some while it is being prepared or taken down for others.
#[test]
fn a_crowd_that_is_woken_again_and_again_is_answered_every_time() -> Result<()> {
    let mut host =
        Host::start(HostOptions { config: "pool = { memory = \"32MiB\" }".to_owned(), ..HostOptions::default() })?;
    let one = |n: usize| {
        format!(
            "[vps.n{n}]\nimage = \"debian:nginx-light\"\ncommand = [\"nginx\", \"-g\", \"daemon off;\"]\n\
             routes = {{ \"http://n{n}.test:20900\" = 80 }}\nfiles = {{ \"/var/www/html/index.html\" = \"from {n}.\" }}\n"
        )
    };
    let specs: String = (0..CROWD).map(one).collect();
    host.apply("crowd.toml", &format!("tenant = \"acme\"\n{specs}"))?;
    let names: Vec<_> = (0..CROWD).map(|n| format!("n{n}")).collect();
    let stop: Vec<_> = std::iter::once("stop").chain(names.iter().map(String::as_str)).collect();
    for round in 0..ROUNDS {
        let ask = |n: usize| {
            let patience = Duration::from_secs(60);
            std::thread::spawn(move || http(([127, 0, 0, 1], 20900).into(), &format!("n{n}.test"), "/", patience))
        };
        let asked: Vec<_> = (0..CROWD).map(ask).collect();
        for (n, client) in asked.into_iter().enumerate() {
            let end = client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
            let answered =
                matches!(&end, Ended::Answer(text) if String::from_utf8_lossy(text).contains(&format!("from {n}.")));
            ensure!(
                answered,
                "round {round}, n{n}: {end:?}\n{}\n{}",
                host.run(&["why", &format!("n{n}")])?,
                host.daemon_log()
            );
        }
        host.run(&stop)?;
    }
    host.stop()
}

/// So many prepared VPSs that the daemon's descriptors have numbers above those that a program may begin with.
const MANY: usize = 450;

#[test]
fn one_starts_beside_hundreds_that_are_prepared() -> Result<()> {
    let mut host =
        Host::start(HostOptions { config: "pool = { memory = \"512MiB\" }".to_owned(), ..HostOptions::default() })?;
    let one = |n: usize| format!("[vps.n{n}]\nimage = \"debian:\"\ncommand = [\"sleep\", \"infinity\"]\n");
    for (file, first) in (0..MANY).step_by(MANY / 2).enumerate() {
        let half: String = (first..first + MANY / 2).map(one).collect();
        host.apply(&format!("many-{file}.toml"), &format!("tenant = \"acme\"\n{half}"))?;
    }
    let daemon = format!("/proc/{}/fd", host.daemon()?);
    let highest = || -> Result<u32> {
        let numbers = fs::read_dir(&daemon)?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Ok(numbers.max().unwrap_or(0))
    };
    let deadline = Instant::now() + Duration::from_secs(120);
    while highest()? <= 1024 + 64 {
        ensure!(Instant::now() < deadline, "{} prepared VPSs need no more descriptors", highest()?);
        std::thread::sleep(Duration::from_millis(50));
    }
    // With volumes it is not prepared.
    host.apply(
        "one.toml",
        "tenant = \"acme\"\n[vps.one]\nimage = \"debian:\"\ncommand = [\"sleep\", \"infinity\"]\nvolumes = { v = \"/v\" }\n",
    )?;
    host.run(&["start", "one"])?;
    ensure!(host.run(&["exec", "one", "--", "sh", "-c", "ulimit -Sn"])?.trim() == "1024");
    host.stop()
}
