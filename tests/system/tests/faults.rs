//! SIGKILL of any process of the host: tenants go on, nothing is half done, nothing is left behind.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    census::Census,
    load::Load,
    spec::{ECHO, perl, server},
};

const LONG: Duration = Duration::from_secs(60);

fn echo_server(name: &str, port: u16) -> String {
    perl(name, port, &server("", ECHO), "idle = \"never\"")
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn echo(stream: &mut TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(LONG))?;
    stream.write_all(b"ping\n")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"ping\n");
    Ok(())
}

fn await_end(pid: i32) {
    let process = std::path::PathBuf::from(format!("/proc/{pid}"));
    while process.exists() {
        std::thread::yield_now();
    }
}

fn await_other_pid(host: &Host, victim: &str, old: i32) -> Result<()> {
    let deadline = std::time::Instant::now() + LONG;
    loop {
        let now = if victim == "bailiwickd" { host.daemon() } else { host.pid_of(victim) };
        if now.is_ok_and(|pid| pid != old) {
            return Ok(());
        }
        ensure!(std::time::Instant::now() < deadline, "{victim} did not come back\n{}", host.daemon_log());
        std::thread::yield_now();
    }
}

#[test]
fn whatever_of_the_administration_is_killed_the_server_and_its_connection_live_on() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("echo.toml", &echo_server("echo", 20200))?;
    let mut held = TcpStream::connect(local(20200))?;
    echo(&mut held)?;
    let server = host.pid_of("echo")?;
    for victim in ["bailiwickd", "control", "network", "apps", "bailiwickd", "control"] {
        let pid = if victim == "bailiwickd" { host.daemon()? } else { host.pid_of(victim)? };
        host.kill(pid)?;
        // The path of a packet does not need whoever was killed.
        echo(&mut held)?;
        echo(&mut TcpStream::connect(local(20200))?)?;
        await_other_pid(&host, victim, pid)?;
        ensure!(host.pid_of("echo")? == server, "the server was restarted when {victim} was killed");
    }
    let gateway = host.pid_of("gateway")?;
    host.kill(gateway)?;
    await_end(gateway);
    // Not one that the dying gateway may still have accepted.
    echo(&mut TcpStream::connect(local(20200))?)?;
    await_other_pid(&host, "gateway", gateway)?;
    ensure!(host.pid_of("echo")? == server);
    host.stop()
}

#[test]
fn killing_the_daemon_again_and_again_under_load_refuses_nobody() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let spec = r#"
tenant = "acme"
[vps.web]
image   = "debian:nginx-light"
command = ["nginx", "-g", "daemon off;"]
routes  = { "http://web.test:20210" = 80 }
files   = { "/var/www/html/index.html" = "hello from web\n" }
"#;
    host.apply("web.toml", spec)?;
    let load = Load::start(local(20210), &[("web.test", "from web"), ("web.test", "from web")]);
    for _ in 0..5 {
        let pid = host.daemon()?;
        host.kill(pid)?;
        await_other_pid(&host, "bailiwickd", pid)?;
    }
    let tally = load.finish();
    let clean = tally.refused + tally.late + tally.misrouted + tally.errors + tally.interrupted == 0;
    ensure!(clean && tally.answered > 0, "{tally:?}");
    host.stop()
}

#[test]
fn a_command_whose_daemon_is_killed_is_not_run_again() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("echo.toml", &echo_server("echo", 20206))?;
    // So that control has a connection to the daemon that it used before.
    host.run(&["exec", "echo", "--", "true"])?;
    let script = "echo run >> /count; echo began; exec sleep 1000000";
    let mut exec = host.command(&["exec", "echo", "--", "sh", "-c", script]).stdout(Stdio::piped()).spawn()?;
    let mut began = [0; 6];
    exec.stdout.as_mut().context("output")?.read_exact(&mut began)?;
    host.kill(host.daemon()?)?;
    let status = exec.wait()?;
    ensure!(!status.success(), "nobody knows how it ended");
    let count = host.run(&["exec", "echo", "--", "cat", "/count"])?;
    ensure!(count == "run\n", "it ran again: {count}");
    host.stop()
}

#[test]
fn a_vps_that_failed_has_failed_for_the_next_control_too() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let spec = |name: &str, command: &str| {
        format!(
            "[vps.{name}]\nimage = \"debian:\"\ncommand = [\"sh\", \"-c\", \"{command}\"]\n\
             restart = \"never\"\n"
        )
    };
    let all = ["late", "told", "clean"]
        .map(|name| spec(name, if name == "clean" { "sleep 0.1" } else { "sleep 0.1; exit 3" }));
    host.apply("failing.toml", &format!("tenant = \"acme\"\n{}", all.concat()))?;
    for name in ["late", "told", "clean"] {
        host.run(&["start", name])?;
        host.await_state(name, if name == "clean" { "asleep" } else { "failed" }, Duration::from_secs(20))?;
    }
    host.run(&["stop", "told"])?;
    let control = host.pid_of("control")?;
    host.kill(control)?;
    await_other_pid(&host, "control", control)?;
    host.await_state("late", "failed", Duration::from_secs(20))?;
    let row = host.row("late")?;
    ensure!(row["failure"].as_str().is_some_and(|failure| failure.starts_with("exit 3")), "{row}");
    let why = host.run(&["why", "late"])?;
    ensure!(why.starts_with("late: failed ") && why.contains("exit 3"), "{why}");
    for name in ["told", "clean"] {
        ensure!(host.row(name)?["state"] == "asleep", "{}", host.row(name)?);
    }
    // It can be started all the same.
    host.run(&["start", "late"])?;
    host.stop()
}

#[test]
fn killing_a_shim_ends_its_vps_and_the_next_request_starts_it_again() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("echo.toml", &echo_server("victim", 20220))?;
    host.apply("other.toml", &echo_server("other", 20221))?;
    echo(&mut TcpStream::connect(local(20220))?)?;
    echo(&mut TcpStream::connect(local(20221))?)?;
    let (server, other) = (host.pid_of("victim")?, host.pid_of("other")?);
    let status = std::fs::read_to_string(format!("/proc/{server}/status"))?;
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap_or_default().trim().parse()?;
    host.kill(shim)?;
    // Who connects while it is being torn down is cut off; who comes after that is not.
    await_end(server);
    echo(&mut TcpStream::connect(local(20220))?)?;
    ensure!(host.pid_of("victim")? != server && host.pid_of("other")? == other);
    host.stop()
}

#[test]
fn a_crashed_host_comes_back_with_what_was_applied_and_without_leftovers() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("echo.toml", &echo_server("again", 20230))?;
    echo(&mut TcpStream::connect(local(20230))?)?;
    let server = host.pid_of("again")?;
    host.crash()?;
    let mut host = host.again()?;
    ensure!(!std::path::Path::new(&format!("/proc/{server}")).exists(), "the old server lives");
    // The old daemon took them away at its end, when the new one was at work already.
    ensure!(host.root.join("run/vps/control").exists(), "the new host's records are gone\n{}", host.daemon_log());
    echo(&mut TcpStream::connect(local(20230))?)?;
    let spec = host.run(&["get", "again"])?;
    ensure!(spec.contains("tcp://127.0.0.1:20230"), "{spec}");
    host.stop()
}

#[test]
fn the_stop_of_a_deleted_vps_does_not_end_the_one_that_has_its_name_now() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let spec = format!("{}\nstop = {{ grace = \"1ms\" }}", echo_server("phoenix", 20250));
    host.apply("p.toml", &spec)?;
    echo(&mut TcpStream::connect(local(20250))?)?;
    host.run(&["delete", "--yes", "phoenix"])?;
    host.apply("p.toml", &spec)?;
    let mut held = TcpStream::connect(local(20250))?;
    echo(&mut held)?;
    // The daemon gives a shim 3 s more than the grace.
    held.set_read_timeout(Some(Duration::from_secs(4)))?;
    let cut = held.read(&mut [0]);
    ensure!(matches!(&cut, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock), "it ended: {cut:?}");
    host.stop()
}

#[test]
fn a_stopped_host_leaves_nothing_behind() -> Result<()> {
    let directory = tempfile::Builder::new().prefix("bailiwick-").tempdir_in("/var/tmp")?;
    let root = directory.path().to_owned();
    let options = || HostOptions { root: Some(root.clone()), ..HostOptions::default() };
    let before = Census::take(&root);
    let mut host = Host::start(options())?;
    host.apply("echo.toml", &echo_server("gone", 20240))?;
    echo(&mut TcpStream::connect(local(20240))?)?;
    let during = Census::take(&root);
    ensure!(during != before, "the census sees nothing, so it proves nothing: {during:?}");
    host.run(&["delete", "--yes", "gone"])?;
    ensure!(!root.join("lib/vps/gone").exists(), "its files are left");
    host.stop()?;
    let after = Census::take(&root);
    ensure!(before == after, "{before:?}\n{after:?}");
    Ok(())
}
