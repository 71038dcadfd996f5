//! `bailiwickd`: the keeper, and under it the host daemon.
//!
//! The keeper starts the daemon again when it dies, and holds what must outlive it. The daemon makes VPSs, kills them,
//! and serves `io.bailiwick.Host` to designated VPSs within their grants. May touch: everything on the host, as root; that is
//! why it is small. Must never: hold policy, read what a tenant wrote, or wait on a service.
#![forbid(unsafe_code)]

mod config;
mod daemon;
mod designated;
mod events;
mod format;
mod grants;
mod held;
mod host;
mod ids;
mod keeper;
mod layers;
mod life;
mod listeners;
mod place;
mod prepared;
mod programs;
mod record;
mod serve;
mod shim;
mod spares;
mod start;
mod stop;
mod table;
mod transfer;
mod upgrade;
mod uplink;
mod watch;

use std::{path::PathBuf, process::ExitCode};

use model::host::Paths;

const USAGE: &str = "usage: bailiwickd [--root DIR]";
const HELP: &str = "\
Runs a host in the foreground until SIGTERM or SIGINT. Needs root.

  --root DIR   all its files under DIR (host.toml, lib, run) instead of /etc, /var/lib and /run/bailiwick
  --version    the version

Afterwards: bailiwick [--root DIR] ps, apply, …; configuration: packaging/host.toml";

/// What bailiwickd is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The keeper; `list` is the number of a list of what an earlier one held.
    Keeper { list: Option<i32> },
    /// The daemon under it.
    Daemon,
    /// Neither: says whether this version could take a host over.
    Check,
}

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("--help" | "-h") => {
            println!("{USAGE}\n\n{HELP}");
            return ExitCode::SUCCESS;
        }
        Some("--version" | "-V") => {
            println!("bailiwickd {}", model::version());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let (role, root) = match arguments(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("bailiwickd: {message}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let paths = Paths::new(root.as_deref());
    let ended = match role {
        Role::Keeper { list } => keeper::run(&paths, root.as_deref(), list),
        Role::Daemon => daemon::run(paths.clone()).inspect_err(|error| upgrade::note_failure(&paths, error)),
        Role::Check => upgrade::check_here(&paths),
    };
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("bailiwickd: {error:#}");
            ExitCode::from(if error.is::<config::Refused>() { 2 } else { 1 })
        }
    }
}

/// What this is to be, and the root if one is given, absolute.
fn arguments(mut words: impl Iterator<Item = String>) -> Result<(Role, Option<PathBuf>), String> {
    let (mut role, mut root) = (Role::Keeper { list: None }, None);
    while let Some(word) = words.next() {
        match word.as_str() {
            "daemon" => role = Role::Daemon,
            "check" => role = Role::Check,
            // What a keeper of another version executes.
            "keep" => {}
            "--held" => {
                let number = words.next().and_then(|number| number.parse().ok());
                role = Role::Keeper { list: Some(number.ok_or("--held needs the number of a descriptor")?) };
            }
            "--root" => {
                let path = words.next().ok_or("--root needs a directory")?;
                root = Some(std::path::absolute(&path).map_err(|e| format!("--root {path}: {e}"))?);
            }
            other => return Err(format!("unknown argument `{other}`")),
        }
    }
    Ok((role, root))
}
