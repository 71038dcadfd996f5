//! The main job, step by step.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{Host, host::project, load, site};

use crate::report::Report;

const WEB: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
const CACHE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 16379);
const TENANTS: [&str; 3] = ["blog", "cache", "shop"];

/// Builds the images and applies `examples/`.
pub fn apply(host: &Host, report: &mut Report) -> Result<()> {
    report.title("Apply examples/: two web sites on one port, a redis on a port of its own");
    let examples = project().canonicalize()?.join("examples");
    let files: Vec<_> = TENANTS.iter().map(|name| examples.join(format!("{name}.toml"))).collect();
    let mut args = vec!["apply"];
    args.extend(files.iter().map(|file| file.to_str().unwrap_or_default()));
    // Its own output, so that a person sees the progress of the first build.
    let status = host.command(&args).stdout(Stdio::inherit()).stderr(Stdio::inherit()).status()?;
    report.check("apply succeeded", status.success(), &host.daemon_log());
    ensure!(status.success(), "without images there is nothing to show");
    let again = host.run(&args)?;
    let rows = host.json(&["ps"])?;
    report.check("applying again changes nothing", !again.contains("create"), &again);
    report.check("three VPSs are defined", rows.as_array().is_some_and(|rows| rows.len() == 3), &rows.to_string());
    Ok(())
}

/// Everything asleep, no process.
pub fn asleep(host: &Host, report: &mut Report) -> Result<()> {
    report.title("Everything asleep: no process, no memory");
    for name in TENANTS {
        host.run(&["stop", name])?;
    }
    show_ps(host, report)?;
    for name in TENANTS {
        let row = host.row(name)?;
        let asleep = row["state"] == "asleep" && row["pid"].is_null() && row["memory"].is_null();
        report.check(&format!("{name} is asleep and has no process"), asleep, &row.to_string());
    }
    Ok(())
}

fn show_ps(host: &Host, report: &Report) -> Result<()> {
    report.shown("bailiwick ps", &host.run(&["ps"])?);
    Ok(())
}

/// The first request to each (cold), and the second (warm).
pub fn first_requests(report: &mut Report) -> Result<()> {
    report.title("The first request starts the server");
    for name in ["blog", "shop"] {
        let command = format!("curl -H 'Host: {name}.test' http://{WEB}/");
        let (cold, body) = timed(|| curl(name))?;
        let (warm, again) = timed(|| curl(name))?;
        report.shown(&command, &format!("{}   cold {cold:.1?}, warm {warm:.1?}", body.trim_end()));
        let expected = format!("hello from {name}\n");
        report.check(
            &format!("{name} answered twice"),
            body == expected && again == expected,
            &format!("{body}{again}"),
        );
    }
    let (cold, pong) = timed(redis)?;
    let (warm, again) = timed(redis)?;
    let shown = format!("{}   cold {cold:.1?}, warm {warm:.1?}", pong.trim_end());
    report.shown(&format!("redis-cli -p {} PING", CACHE.port()), &shown);
    report.check("cache answered twice", pong == "PONG\n" && again == "PONG\n", &format!("{pong}{again}"));
    Ok(())
}

fn timed<T>(run: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let start = Instant::now();
    let value = run()?;
    Ok((start.elapsed(), value))
}

fn curl(name: &str) -> Result<String> {
    let host = format!("Host: {name}.test");
    let url = format!("http://{WEB}/");
    output(Command::new("curl").args(["-sS", "--max-time", "30", "-H", &host, &url]))
}

fn redis() -> Result<String> {
    output(Command::new("redis-cli").args(["-h", "127.0.0.1", "-p", &CACHE.port().to_string(), "PING"]))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// All awake.
pub fn awake(host: &Host, report: &mut Report) -> Result<()> {
    report.title("All awake");
    show_ps(host, report)?;
    for name in TENANTS {
        let state = host.state(name)?;
        report.check(&format!("{name} is running"), state == "running", &state);
    }
    Ok(())
}

/// SIGKILL of the daemon and of each designated VPS, while new connections keep coming.
pub fn nobody_notices(host: &Host, report: &mut Report) -> Result<()> {
    report.title("SIGKILL of the host daemon and of each designated VPS, while new connections keep coming");
    let before: Vec<_> = TENANTS.iter().map(|name| host.pid_of(name)).collect::<Result<_>>()?;
    for victim in ["bailiwickd", "control", "gateway", "network", "apps"] {
        // Long enough apart that each is back from its last restart.
        let held = TcpStream::connect(CACHE)?;
        let load = load::Load::start(WEB, &[("blog.test", "from blog"), ("shop.test", "from shop")]);
        let pid = if victim == "bailiwickd" { host.daemon()? } else { host.pid_of(victim)? };
        std::thread::sleep(Duration::from_millis(400));
        host.kill(pid)?;
        std::thread::sleep(Duration::from_millis(1600));
        let tally = load.finish();
        let back = await_new(host, victim, pid)?;
        report.say(&format!(
            "SIGKILL {victim:<10} {:>6} answered, {} refused, {} over 1.5 s, {} misrouted, {} errors, {} interrupted in flight; worst {:.0?}; back as pid {back}",
            tally.answered, tally.refused, tally.late, tally.misrouted, tally.errors, tally.interrupted, tally.worst,
        ));
        let clean = tally.refused == 0 && tally.late == 0 && tally.misrouted == 0 && tally.errors == 0;
        let only_gateway = victim == "gateway" || tally.interrupted == 0;
        let enough = tally.answered > 20;
        report.check(&format!("nobody noticed {victim}'s end"), clean && only_gateway && enough, &format!("{tally:?}"));
        if victim != "gateway" {
            report.check("a connection that was open goes on", ping(held).is_ok(), "the redis connection broke");
        }
    }
    let after: Vec<_> = TENANTS.iter().map(|name| host.pid_of(name)).collect::<Result<_>>()?;
    report.check("no server was restarted", before == after, &format!("{before:?} {after:?}"));
    Ok(())
}

fn ping(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"+PONG\r\n", "{answer:?}");
    Ok(())
}

fn await_new(host: &Host, victim: &str, old: i32) -> Result<i32> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let now = if victim == "bailiwickd" { host.daemon() } else { host.pid_of(victim) };
        match now {
            Ok(pid) if pid != old => return Ok(pid),
            Err(error) if Instant::now() > deadline => return Err(error),
            _ => ensure!(Instant::now() < deadline, "{victim} did not come back"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A few seconds without a request.
pub fn idle(host: &Host, report: &mut Report) -> Result<()> {
    report.title("Nobody asks for 5 seconds");
    for name in TENANTS {
        let slept = host.await_state(name, "asleep", Duration::from_secs(20));
        report.check(&format!("{name} fell asleep"), slept.is_ok(), &format!("{slept:?}"));
    }
    show_ps(host, report)?;
    report.shown("bailiwick why blog", &host.run(&["why", "blog"])?);
    Ok(())
}

/// A web application that wakes its database.
pub fn neighbours(host: &Host, report: &mut Report) -> Result<()> {
    report.title("A web application and its database: WordPress and MariaDB, as Debian has them, in two VPSs");
    let file = project().canonicalize()?.join("examples/site.toml");
    let args = ["apply", file.to_str().unwrap_or_default()];
    let status = host.command(&args).stdout(Stdio::inherit()).stderr(Stdio::inherit()).status()?;
    report.check("apply succeeded", status.success(), &host.daemon_log());
    ensure!(status.success(), "without images there is nothing to show");
    let installed = site::install(site::PORT);
    report.check("its installer made the tables", installed.is_ok(), &format!("{installed:?}"));
    both_asleep(host, report, "before")?;
    let (cold, page) = timed(|| Ok(site::page(site::PORT)))?;
    let (warm, again) = timed(|| Ok(site::page(site::PORT)))?;
    let shown = format!("A page from two VPSs   cold, both asleep {cold:.1?}, warm {warm:.1?}");
    report.shown(&format!("curl -H 'Host: site.test:{0}' http://127.0.0.1:{0}/", site::PORT), &shown);
    report.check("the page came twice", page.is_ok() && again.is_ok(), &format!("{page:?}{again:?}"));
    show_ps(host, report)?;
    report.shown("bailiwick routes", &host.run(&["routes"])?);
    let woken_by = |by: &str| -> Result<_> {
        let row = host.row("db")?;
        Ok((row["last_wake"]["by"] == by, row.to_string()))
    };
    let (together, row) = woken_by("wanted by site")?;
    report.check("the database was woken together with the application", together, &row);
    host.run(&["stop", "db"])?;
    let (alone, page) = timed(|| Ok(site::page(site::PORT)))?;
    report.say(&format!("  Only the database asleep   {alone:.1?}"));
    let (connection, row) = woken_by("connection from site")?;
    report.check("the application's connection woke the database", page.is_ok() && connection, &row);
    both_asleep(host, report, "after")
}

fn both_asleep(host: &Host, report: &mut Report, when: &str) -> Result<()> {
    for name in site::VPSS {
        let slept = host.await_state(name, "asleep", Duration::from_secs(30));
        report.check(&format!("{name} is asleep {when}"), slept.is_ok(), &format!("{slept:?}"));
    }
    Ok(())
}

/// What a person can try.
pub fn invite(host: &Host, report: &mut Report) -> Result<()> {
    let programs = bailiwick_system_tests::host::programs();
    report.title("It is yours: try, in another terminal");
    report.say(&format!("  export BAILIWICK_ROOT={} PATH={}:$PATH", host.root.display(), programs.display()));
    report.say(&format!("  curl -H 'Host: blog.test' http://{WEB}/"));
    report.say(&format!(
        "  curl -H 'Host: site.test:{0}' http://{WEB}/        # in a browser: site.test in /etc/hosts",
        site::PORT
    ));
    report.say(&format!("  redis-cli -p {} SET greeting hello", CACHE.port()));
    for command in ["ps --all", "why blog", "logs -f blog", "exec blog -- nginx -T", "events -f", "services", "--help"]
    {
        report.say(&format!("  bailiwick {command}"));
    }
    let images = bailiwick_system_tests::host::layers_store();
    report.say(&format!("Ctrl-C, or `q` and Enter, ends it; only images are left, in {}.", images.display()));
    Ok(())
}

/// Removes what was applied, so that the next run begins from nothing but the images.
pub fn delete(host: &Host, report: &mut Report) -> Result<()> {
    let answer = host.cli(&[&["delete", "--yes", "--volumes"], &TENANTS[..], &site::VPSS].concat())?;
    report.check("the VPSs are deleted", answer.code == 0, &answer.err);
    Ok(())
}
