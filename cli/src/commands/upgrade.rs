//! `upgrade`: the host goes on as another version; `services upgrade`: one designated VPS does.
//!
//! Asks the daemon itself, on a socket that only root can open: `control` is among what is exchanged, and holds no right to it.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use model::{VpsName, api::ErrorKind};
use wire::{
    Client, Fault,
    admin::{Plan, Progress, Step, Upgrade, Upgrading},
};

use crate::{
    arguments,
    client::Host,
    failure::{Failure, Result},
    output,
};

/// How long a host may be silent while it becomes another version.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pause before a connection that broke is made again.
const AGAIN: Duration = Duration::from_millis(20);

/// Upgrades the host.
pub async fn run(host: &Host, arguments: arguments::Upgrade) -> Result<()> {
    let arguments::Upgrade { directory, check, form } = arguments;
    let admin = Client::host(host.admin());
    let plan = ask(host, &admin, directory, None, check).await?;
    if check || plan.from.build == plan.to.build {
        return if form.json { output::json(&plan) } else { output::own(&show(&plan)) };
    }
    if !form.json {
        output::own(&format!("from {} to {}\n", plan.from, plan.to))?;
    }
    let ended = follow(&admin, &plan, form.json).await?;
    if form.json {
        output::json(&ended)?;
    }
    match ended.failed {
        None if ended.step == Step::Done => {
            let on = if plan.servers == 1 {
                "1 server VPS runs".to_owned()
            } else {
                format!("{} server VPSs run", plan.servers)
            };
            if form.json { Ok(()) } else { output::own(&format!("done; {on} on under the shims they have\n")) }
        }
        failed => {
            let reason = failed.unwrap_or_else(|| "no reason was said".to_owned());
            let message = format!("the upgrade to {} failed: {reason}", plan.to.version);
            Err(Failure::new(ErrorKind::Failed, message)
                .next(format!("the host runs {} as before; see `bailiwick services`", plan.from.version)))
        }
    }
}

/// Upgrades one designated VPS.
pub async fn one(host: &Host, name: &VpsName, directory: Option<PathBuf>) -> Result<()> {
    let admin = Client::host(host.admin());
    let plan = ask(host, &admin, directory, Some(name), false).await?;
    match plan.took_ms {
        Some(ms) => output::own(&format!("{name}: {}, ready after {ms} ms\n", plan.to.version)),
        None => output::own(&format!("{name}: runs {} already\n", plan.to)),
    }
}

async fn ask(
    host: &Host,
    admin: &Client,
    directory: Option<PathBuf>,
    vps: Option<&VpsName>,
    check: bool,
) -> Result<Plan> {
    let directory = match directory {
        Some(directory) => std::path::absolute(directory)?,
        // The version that is asked is the one that is wanted.
        None => std::env::current_exe()?.parent().unwrap_or(Path::new("/")).to_owned(),
    };
    admin.call(&Upgrade { directory, vps: vps.cloned(), check }).await.map_err(|fault| explained(host, fault))
}

fn explained(host: &Host, fault: Fault) -> Failure {
    let failure = Failure::new(fault.kind, &fault.message);
    let socket = host.admin();
    match fault.kind {
        ErrorKind::Unavailable if !rustix::process::geteuid().is_root() => failure.next("run it as root"),
        ErrorKind::Unavailable => {
            let message = format!("no host answers at {}: {}", socket.display(), fault.message);
            Failure::new(ErrorKind::Unavailable, message)
                .next("start one; a host of a version before 0.2 has to be restarted for its upgrade")
        }
        _ => failure,
    }
}

/// Tells what is done until all is; over the end of the old daemon.
async fn follow(admin: &Client, plan: &Plan, quiet: bool) -> Result<Upgrading> {
    let (mut told, mut heard) = (0, Instant::now());
    loop {
        let mut stream = match admin.stream(&Progress {}).await {
            Ok(stream) => stream,
            Err(fault) if heard.elapsed() > PATIENCE => return Err(Failure::new(fault.kind, fault.message)),
            Err(_) => {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        while let Ok(Some(now)) = stream.next().await {
            // Of the one before.
            if now.to.build != plan.to.build {
                break;
            }
            heard = Instant::now();
            for line in now.said.iter().skip(told).filter(|_| !quiet) {
                output::line(line)?;
            }
            told = now.said.len().max(told);
            if now.step.is_last() {
                return Ok(now);
            }
        }
        if heard.elapsed() > PATIENCE {
            return Err(Failure::new(ErrorKind::Unavailable, "the host says nothing of its upgrade any more")
                .next("its log says why: journalctl -u bailiwick"));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn show(plan: &Plan) -> String {
    if plan.from.build == plan.to.build && plan.restarts.is_empty() {
        return format!("nothing to do: the host runs {} already\n", plan.to);
    }
    let restarts: Vec<_> = plan.restarts.iter().map(ToString::to_string).collect();
    let restarts = if restarts.is_empty() { "nothing".to_owned() } else { restarts.join(", ") };
    format!(
        "runs       {}\nwould run  {}\nrestarted  keeper and daemon in place, then {restarts}\nrun on     {} server VPSs, under the shims they have\n",
        plan.from, plan.to, plan.servers
    )
}

#[cfg(test)]
mod tests {
    use wire::admin::Programs;

    use super::*;

    #[test]
    fn a_plan_says_what_is_restarted_and_what_runs_on() {
        let programs = |version: &str| Programs {
            directory: format!("/usr/lib/bailiwick/{version}").into(),
            version: version.to_owned(),
            build: version.to_owned(),
        };
        let restarts = ["network", "gateway"].map(|name| name.parse().expect("a name")).to_vec();
        let (from, to) = (programs("0.1.0"), programs("0.2.0"));
        let plan = Plan { from, to: to.clone(), restarts, servers: 2, took_ms: None };
        let expected = "\
runs       0.1.0 (/usr/lib/bailiwick/0.1.0)
would run  0.2.0 (/usr/lib/bailiwick/0.2.0)
restarted  keeper and daemon in place, then network, gateway
run on     2 server VPSs, under the shims they have
";
        assert_eq!(show(&plan), expected);
        let same = Plan { from: to, restarts: Vec::new(), ..plan };
        assert_eq!(show(&same), "nothing to do: the host runs 0.2.0 (/usr/lib/bailiwick/0.2.0) already\n");
    }
}
