//! `bailiwick`: what a person types, and the one program that all services are (`bailiwick serve NAME…`).
//!
//! A client only speaks the HTTP API of `control` on the host's `api.sock`; `doctor` looks at this machine itself, and
//! `upgrade` asks the daemon, on a socket of root's. May touch: those sockets, the files it is given, standard input and output. Must never: reach around the API.
#![forbid(unsafe_code)]

mod arguments;
mod client;
mod commands;
mod doctor;
mod failure;
mod frame;
mod output;
mod serve;
mod table;

use std::process::ExitCode;

use arguments::{Arguments, Command};
use clap::Parser;
use failure::Result;

fn main() -> ExitCode {
    // Before anything opens a descriptor: the numbers are what was passed.
    let listeners = sys::listen_fds::listen_fds();
    let arguments = Arguments::parse();
    if let Command::Serve { services } = &arguments.command {
        return serve::run(services, listeners);
    }
    drop(listeners);
    match run(arguments) {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

/// Carries out a client's command; answers the exit status.
fn run(arguments: Arguments) -> Result<ExitCode> {
    let paths = arguments.paths();
    match arguments.command {
        // Both without a thread or a runtime: `doctor` forks to try what it reports.
        Command::Doctor { json, host_toml } => doctor::run(&paths, host_toml.as_deref(), json),
        Command::Manual { directory } => commands::manual::run(&directory),
        Command::Completions { shell } => commands::completions(shell),
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let host = client::Host::new(paths.api());
            let ended = runtime.block_on(commands::run(&host, command));
            // A thread may still be reading standard input; it must not keep the process.
            runtime.shutdown_background();
            ended
        }
    }
}
