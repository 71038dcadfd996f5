//! What a host does when it comes up again: with what ran before, and with a host.toml that is wrong.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    spec::{ECHO, perl, server},
};

const LONG: Duration = Duration::from_secs(60);

fn echo(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(LONG))?;
    stream.write_all(b"ping\n")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"ping\n");
    Ok(())
}

/// What a command warns of; it must succeed.
fn warned(host: &Host, words: &[&str]) -> Result<String> {
    let answer = host.cli(words)?;
    ensure!(answer.code == 0, "{words:?}: {answer:?}");
    Ok(answer.err)
}

#[test]
fn what_never_sleeps_is_up_again_after_a_restart_and_what_was_stopped_is_not() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    for (name, port, idle) in
        [("always", 20800, "idle = \"never\""), ("stopped", 20801, "idle = \"never\""), ("sleeper", 20802, "")]
    {
        host.apply(&format!("{name}.toml"), &perl(name, port, &server("", ECHO), idle))?;
        echo(port)?;
    }
    host.run(&["stop", "stopped"])?;
    // As the machine's own end would: nothing is asked to stop.
    host.crash()?;
    let mut host = host.again()?;
    host.await_state("always", "running", LONG)?;
    ensure!(host.state("stopped")? != "running" && host.state("sleeper")? == "asleep");
    echo(20802)?;
    host.stop()
}

#[test]
fn a_start_and_a_stop_that_were_answered_are_known_after_a_crash() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("echo.toml", &perl("echo", 20803, &server("", ECHO), "idle = \"never\""))?;
    // A crash is a moment: what is written a moment later was not always missed.
    for round in 0..8 {
        host.run(&["start", "echo"])?;
        host.crash()?;
        host = host.again()?;
        host.await_state("echo", "running", LONG)?;
        host.run(&["stop", "echo"])?;
        host.crash()?;
        host = host.again()?;
        let events = host.run(&["why", "echo"])?;
        ensure!(host.state("echo")? == "asleep", "round {round}: {events}");
    }
    host.stop()
}

#[test]
fn a_broken_host_toml_keeps_no_host_down_and_is_told() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("echo.toml", &perl("echo", 20810, &server("", ECHO), ""))?;
    ensure!(warned(&host, &["ps"])?.is_empty());
    host.stop()?;
    let file = host.root.join("host.toml");
    let good = fs::read_to_string(&file)?;
    fs::write(&file, format!("resreve = {{}}\n{good}"))?;
    let host = host.again()?;
    echo(20810)?;
    for words in [["ps"], ["services"]] {
        let told = warned(&host, &words)?;
        ensure!(told.contains("host.toml:1:1  unknown field `resreve`"), "{words:?}: {told}");
    }
    ensure!(
        host.daemon_log().contains("resreve")
            || fs::read_to_string(host.root.join("bailiwickd.log"))?.contains("resreve")
    );
    let doctor = host.cli(&["doctor"])?;
    ensure!(doctor.code == 7 && doctor.out.contains("host.toml:1:1  unknown field `resreve`"), "{doctor:?}");
    // The one that would be right is checked before it is used.
    let new = host.root.join("new.toml");
    fs::write(&new, &good)?;
    let checked = host.cli(&["doctor", "--host-toml", new.to_str().unwrap_or_default()])?;
    ensure!(!checked.out.contains("missing  configuration"), "{checked:?}");
    fs::rename(&new, &file)?;
    let mut host = host.again()?;
    ensure!(warned(&host, &["ps"])?.is_empty());
    host.stop()
}

#[test]
fn a_host_whose_uplink_is_gone_comes_up_without() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.stop()?;
    let file = host.root.join("host.toml");
    let good = fs::read_to_string(&file)?;
    fs::write(&file, format!("network = {{ uplink = \"wan7\" }}\n{good}"))?;
    let mut host = host.again()?;
    let told = warned(&host, &["ps"])?;
    ensure!(told.contains("uplink = \"wan7\": the host has no such network interface"), "{told}");
    host.stop()
}
