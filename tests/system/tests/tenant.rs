//! What a tenant sees, and what it can't reach.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    spec::{perl, server},
};

const HELLO: &str = "print $c qq(hello\\n); close $c";

/// A server that says hello.
fn spec(name: &str, port: u16, more: &str) -> String {
    perl(name, port, &server("", HELLO), more)
}

fn hello(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer == "hello\n", "{answer:?}");
    Ok(())
}

fn inside(host: &Host, name: &str, script: &str) -> Result<String> {
    host.run(&["exec", name, "--", "sh", "-c", script])
}

#[test]
fn neighbours_do_not_see_signal_or_reach_each_other() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("a.toml", &spec("left", 20400, ""))?;
    host.apply("b.toml", &spec("right", 20401, ""))?;
    hello(20400)?;
    hello(20401)?;
    let address = host.row("right")?["address"].as_str().context("an address")?.to_owned();
    let connect = |to: &str| {
        format!(
            "perl -MIO::Socket::INET -e 'print IO::Socket::INET->new(PeerAddr=>\"{to}\",PeerPort=>7,Timeout=>3) ? 1 : 0'"
        )
    };
    ensure!(inside(&host, "right", &connect("127.0.0.1"))? == "1", "the probe itself does not work");
    ensure!(inside(&host, "left", &connect(&address))? == "0", "left reached right at {address}");
    let processes = inside(&host, "left", "ls /proc | grep -c '^[0-9]'")?;
    ensure!(processes.trim().parse::<u32>()? < 10, "{processes}");
    ensure!(inside(&host, "left", "cat /proc/sys/kernel/hostname")?.trim() == "left");
    let maps = (inside(&host, "left", "cat /proc/self/uid_map")?, inside(&host, "right", "cat /proc/self/uid_map")?);
    ensure!(maps.0 != maps.1, "both have the ids {}", maps.0);
    host.stop()
}

#[test]
fn files_of_one_are_not_the_files_of_another_and_outlive_a_stop() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("a.toml", &spec("one", 20410, ""))?;
    host.apply("b.toml", &spec("two", 20411, ""))?;
    hello(20410)?;
    hello(20411)?;
    inside(&host, "one", "echo mine > /root/file; rm /etc/issue")?;
    ensure!(inside(&host, "two", "test -e /root/file || cat /etc/issue")?.contains("Debian"));
    host.run(&["restart", "one"])?;
    ensure!(inside(&host, "one", "cat /root/file; test -e /etc/issue || echo gone")? == "mine\ngone\n");
    host.stop()
}

#[test]
fn limits_hold() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("a.toml", &spec("small", 20420, "limits = { memory = \"64MiB\", cpu = 0.5, processes = 20 }"))?;
    hello(20420)?;
    let eater = host.cli(&["exec", "small", "--", "perl", "-e", "my $x = 'x' x (200 << 20); print length $x"])?;
    ensure!(eater.code != 0 && !eater.out.contains("209715200"), "{eater:?}");
    let forks =
        inside(&host, "small", "for i in $(seq 40); do sleep 20 >/dev/null 2>&1 & done 2>&1 | grep -ci fork || true")?;
    ensure!(forks.trim() != "0", "forty processes were possible: {forks}");
    host.stop()
}

/// A number of a cgroup of this host, whichever hierarchy has it.
fn number(host: &Host, controller: &str, group: &str, names: [&str; 2]) -> Result<u64> {
    let config = std::fs::read_to_string(host.root.join("host.toml"))?;
    let own = config.lines().find_map(|line| line.strip_prefix("cgroup = ")).context("a cgroup")?;
    let own = format!("{}{group}", own.trim_matches('"'));
    let files = [format!("{controller}/{own}/{}", names[0]), format!("{own}/{}", names[1])];
    let found = files.iter().find_map(|file| std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok());
    Ok(found.with_context(|| format!("none of {files:?}"))?.trim().parse()?)
}

#[test]
fn without_limits_a_vps_leaves_the_machine_its_memory_and_processes() -> Result<()> {
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    let total: u64 = total.context("MemTotal")?.trim().parse::<u64>()? << 10;
    // What is left for all VPSs together is less than one of them asks for.
    let reserve = total.saturating_sub(800 << 20) >> 20;
    let config = format!("reserve = {{ memory = \"{reserve}MiB\", disk = \"0%\" }}");
    let mut host = Host::start(HostOptions { config, ..HostOptions::default() })?;
    host.apply("a.toml", &spec("eater", 20422, "restart = \"never\""))?;
    host.apply("b.toml", &spec("other", 20423, ""))?;
    hello(20422)?;
    hello(20423)?;
    let (pid, services) =
        (host.pid_of("other")?, ["apps", "control", "gateway", "network"].map(|name| host.pid_of(name)));
    let eaten = host.cli(&["exec", "eater", "--", "perl", "-e", "my $x = 'x' x (1200 << 20); print length $x"])?;
    ensure!(eaten.code != 0 && !eaten.out.contains("1258291200"), "{eaten:?}");
    hello(20423)?;
    ensure!(host.pid_of("other")? == pid, "the other one paid for it");
    for (name, pid) in ["apps", "control", "gateway", "network"].into_iter().zip(services) {
        ensure!(host.pid_of(name)? == pid?, "{name} paid for it");
    }
    let all = number(&host, "memory", "", ["memory.limit_in_bytes", "memory.max"])?;
    ensure!(all <= total - (reserve << 20), "{all} of {total} bytes");

    // That the kernel holds such a number, `limits_hold` shows.
    let machine = |file: &str| -> Result<u64> {
        Ok(std::fs::read_to_string(format!("/proc/sys/kernel/{file}"))?.trim().parse()?)
    };
    let machine = machine("pid_max")?.min(machine("threads-max")?);
    let own = number(&host, "pids", "/other", ["pids.max"; 2])?;
    let all = number(&host, "pids", "", ["pids.max"; 2])?;
    ensure!((1..=machine * 15 / 100).contains(&own), "{own} of {machine} processes");
    ensure!((own..=machine * 85 / 100).contains(&all), "{all} of {machine} processes");
    host.stop()
}

#[test]
fn a_log_flood_is_bounded() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let setup = "print qq(x) x 200, qq(\\n) for 1..200000";
    let flood = perl("flood", 20430, &server(setup, HELLO), "");
    host.apply("a.toml", &flood)?;
    hello(20430)?;
    let directory = host.root.join("lib/vps/flood/log");
    let mut total = 0;
    for entry in std::fs::read_dir(&directory)? {
        total += entry?.metadata()?.len();
    }
    ensure!((1 << 20..40 << 20).contains(&total), "{total} bytes of logs");
    let mut follow = host.command(&["logs", "-f", "-n", "1", "flood"]).stdout(std::process::Stdio::piped()).spawn()?;
    let mut out = follow.stdout.take().context("stdout")?;
    let mut first = [0; 16];
    out.read_exact(&mut first)?;
    let mut exec = host.command(&["exec", "flood", "--", "sh", "-c", "echo late > /proc/1/fd/1 || true"]).spawn()?;
    exec.wait()?;
    follow.kill()?;
    follow.wait()?;
    let _ = std::io::stdout().flush();
    host.stop()
}
