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
