//! Upgrades: two versions of the programs follow each other under load, and a version with a fault is taken back.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    host::programs,
    load::{Load, Tally},
    versions,
};
use rustix::process::{Pid, Signal, kill_process};

const WEB: &str = r#"
tenant = "acme"
[vps.web]
image   = "debian:nginx-light"
command = ["nginx", "-g", "daemon off;"]
routes  = { "http://web.test:PORT" = 80 }
files   = { "/var/www/html/index.html" = "hello from web\n" }
"#;

fn web(host: &Host, port: u16) -> Result<Load> {
    host.apply("web.toml", &WEB.replace("PORT", &port.to_string()))?;
    host.run(&["start", "web"])?;
    Ok(Load::start(SocketAddr::from(([127, 0, 0, 1], port)), &[("web.test", "from web"), ("web.test", "from web")]))
}

fn clean(tally: &Tally) -> Result<()> {
    let bad = tally.refused + tally.late + tally.misrouted + tally.errors + tally.interrupted;
    ensure!(bad == 0 && tally.answered > 0, "{tally:?}");
    Ok(())
}

fn keeper_program(host: &Host) -> Result<std::path::PathBuf> {
    Ok(fs::read_link(format!("/proc/{}/exe", host.keeper()))?)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

#[test]
fn an_upgrade_and_the_way_back_refuse_nobody_and_restart_no_server() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let new = versions::copy(&host.root.join("new"))?;
    let load = web(&host, 20700)?;
    let (server, daemon) = (host.pid_of("web")?, host.daemon()?);
    let designated = ["network", "apps", "control", "gateway"];
    let before: Vec<_> = designated.iter().map(|name| host.pid_of(name)).collect::<Result<_>>()?;

    let plan = host.run(&["upgrade", "--check", text(&new)])?;
    ensure!(plan.contains(&versions::other()) && plan.contains("network, apps, control, gateway"), "{plan}");
    ensure!(host.daemon()? == daemon, "--check did something");

    let said = host.run(&["upgrade", text(&new)])?;
    ensure!(said.ends_with("done; 1 server VPS runs on under the shims they have\n"), "{said}");
    ensure!(keeper_program(&host)? == new.join("bailiwickd"), "{:?}", keeper_program(&host)?);
    ensure!(host.pid_of("web")? == server, "the server was restarted");
    for (name, pid) in designated.iter().zip(before) {
        ensure!(host.pid_of(name)? != pid, "{name} runs the old version");
        ensure!(said.contains(&format!("{name}: {}, ready after", versions::other())), "{said}");
    }
    // The adopted shim is the old version's, and does as the new daemon asks.
    ensure!(host.run(&["exec", "web", "--", "hostname"])? == "web\n");
    ensure!(host.run(&["upgrade", text(&new)])?.starts_with("nothing to do"), "a second time");

    let back = host.run(&["upgrade", text(&programs())])?;
    ensure!(back.contains("done; 1 server VPS"), "{back}");
    ensure!(host.pid_of("web")? == server, "the server was restarted on the way back");
    clean(&load.finish())?;
    host.run(&["restart", "web"])?;
    host.stop()
}

#[test]
fn a_version_whose_daemon_does_not_come_up_is_taken_back() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let new = versions::copy(&host.root.join("new"))?;
    // What the daemon looks for its cgroups in.
    let daemon = new.join("bailiwickd");
    versions::patch(&daemon, &daemon, b"/proc/self/mountinfo", b"/proc/self/mountnifo", true)?;
    let load = web(&host, 20710)?;
    let server = host.pid_of("web")?;
    let answer = host.cli(&["upgrade", text(&new)])?;
    ensure!(answer.code == 1, "{answer:?}");
    ensure!(answer.err.contains("mountnifo") && answer.err.contains("as before"), "{answer:?}");
    ensure!(keeper_program(&host)? == fs::canonicalize(programs().join("bailiwickd"))?);
    ensure!(host.pid_of("web")? == server);
    clean(&load.finish())?;
    host.stop()
}

#[test]
fn a_version_whose_services_do_not_come_up_is_taken_back() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let new = versions::copy(&host.root.join("new"))?;
    let service = new.join("bailiwick");
    fs::write(&service, format!("#!/bin/sh\necho bailiwick {}\n", versions::other()))?;
    fs::set_permissions(&service, fs::Permissions::from_mode(0o755))?;
    let load = web(&host, 20720)?;
    let server = host.pid_of("web")?;
    // Of one alone first.
    let one = host.cli(&["services", "upgrade", "apps", text(&new)])?;
    ensure!(one.code == 1 && one.err.contains("it runs"), "{one:?}");
    let answer = host.cli(&["upgrade", text(&new)])?;
    ensure!(answer.code == 1, "{answer:?}");
    ensure!(answer.err.contains("vps \"network\" does not become ready"), "{answer:?}");
    ensure!(answer.out.contains("going back to"), "{answer:?}");
    ensure!(keeper_program(&host)? == fs::canonicalize(programs().join("bailiwickd"))?);
    ensure!(host.pid_of("web")? == server);
    for name in ["network", "apps", "control", "gateway"] {
        host.pid_of(name)?;
    }
    clean(&load.finish())?;
    host.stop()
}

#[test]
fn programs_that_can_not_follow_are_refused_before_anything_is_done() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let new = versions::copy(&host.root.join("new"))?;
    let daemon = host.daemon()?;
    let refused = |words: &[&str], expected: &str| -> Result<()> {
        let answer = host.cli(words)?;
        ensure!(answer.code != 0 && answer.err.contains(expected), "{words:?}: {answer:?}");
        Ok(())
    };
    fs::set_permissions(new.join("bailiwick-shim"), fs::Permissions::from_mode(0o777))?;
    refused(&["upgrade", text(&new)], "can be changed by others than root")?;
    fs::remove_file(new.join("bailiwick-shim"))?;
    refused(&["upgrade", text(&new)], "bailiwick-shim")?;
    refused(&["services", "upgrade", "web"], "no designated VPS")?;
    // Files of a version that is newer than the programs.
    fs::remove_dir_all(&new)?;
    versions::copy(&new)?;
    fs::write(host.root.join("lib/format"), r#"{"format":99,"by":"77.0.0"}"#)?;
    refused(&["upgrade", text(&new)], "was written by 77.0.0")?;
    ensure!(host.daemon()? == daemon, "the daemon was exchanged");
    host.stop()
}

#[test]
fn a_host_after_a_crash_runs_its_own_programs() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let new = versions::copy(&host.root.join("new"))?;
    host.run(&["upgrade", text(&new)])?;
    // Nobody is left to put the run directory in order.
    kill_process(Pid::from_raw(host.keeper()).context("a pid")?, Signal::STOP)?;
    host.kill(host.daemon()?)?;
    host.crash()?;
    let mut host = host.again()?;
    for name in ["network", "apps", "control", "gateway"] {
        let record = fs::read_to_string(host.root.join("run/vps").join(name))?;
        ensure!(!record.contains(text(&new)), "{name} runs what the host before it ran: {record}");
    }
    host.stop()
}
