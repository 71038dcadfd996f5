//! `make demo`: the main job on this machine, from real clients' point of view. `--check` verifies each step, cleans up and
//! exits non-zero if one failed.
#![forbid(unsafe_code)]

mod report;
mod steps;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use bailiwick_system_tests::{Host, HostOptions, census::Census, host::project};
use report::Report;

fn main() -> ExitCode {
    let check = std::env::args().any(|arg| arg == "--check");
    match demo(check) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("demo: {failed} steps failed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(check: bool) -> Result<u32> {
    let root: PathBuf = project().canonicalize()?.join("target/demo");
    let mut report = Report::default();
    report.say("Bailiwick: servers that sleep until somebody asks for them.");
    report
        .say("The first run builds four images from Debian packages, about three minutes; the next ones take seconds.");
    std::fs::create_dir_all(&root)?;
    let before = Census::take(&root);
    let mut host = Host::start(HostOptions { root: Some(root.clone()), ..HostOptions::default() })?;
    report.say(&format!("A host runs under --root {}.", root.display()));

    steps::apply(&host, &mut report)?;
    steps::asleep(&host, &mut report)?;
    steps::first_requests(&mut report)?;
    steps::awake(&host, &mut report)?;
    steps::nobody_notices(&host, &mut report)?;
    steps::idle(&host, &mut report)?;
    steps::neighbours(&host, &mut report)?;

    if !check {
        steps::invite(&host, &mut report)?;
        wait_for_signal()?;
    }
    report.title("Stopping the host");
    steps::delete(&host, &mut report)?;
    host.stop()?;
    let after = Census::take(&root);
    report.check("no mount, cgroup, process or link is left", before == after, &format!("{before:?}\n{after:?}"));
    report.summary();
    Ok(report.failed)
}

/// Until Ctrl-C, SIGTERM, or `q` and Enter.
fn wait_for_signal() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let asked = std::io::stdin().lines().map_while(Result::ok).any(|line| line.trim() == "q");
        // Without a terminal the input ends at once: that asks for nothing.
        if asked {
            sender.send(())
        } else {
            std::mem::forget(sender);
            Ok(())
        }
    });
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            result = tokio::signal::ctrl_c() => result?,
            _ = terminate.recv() => {}
            _ = receiver => {}
        }
        Ok(())
    })
}
