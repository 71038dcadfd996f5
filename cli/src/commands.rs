//! The commands of a client, one file each where there is more to it than a request.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use crate::{
    arguments::{Arguments, Command, Services},
    client::Host,
    failure::{Failure, Result},
    output,
};
use clap::CommandFactory;
use hyper::Method;
use model::{
    VpsName,
    api::{ErrorKind, VpsRow},
};

mod apply;
mod archive;
mod content;
mod delete;
mod events;
mod exec;
pub mod faults;
mod follow;
mod images;
mod jobs;
mod logs;
pub mod manual;
mod network;
mod part;
pub mod passphrase;
mod ps;
mod routes;
mod secrets;
mod sent;
mod services;
mod shipping;
mod state;
mod time;
mod upgrade;
mod volumes;
mod why;

/// Carries out a command; answers the exit status.
pub async fn run(host: &Host, command: Command) -> Result<ExitCode> {
    match command {
        Command::Apply(apply) => apply::run(host, apply).await?,
        Command::Delete { names, volumes, yes } => delete::run(host, &names, volumes, yes).await?,
        Command::Get { name } => output::line(host.get_text(&format!("/v1/vps/{name}/spec")).await?.trim_end())?,
        Command::Ps { tenant, all, form } => {
            ps::run(host, tenant.as_ref(), all, form).await?;
            faults::warn(host).await;
        }
        Command::Inspect { name, .. } => output::json(&host.get::<VpsRow>(&format!("/v1/vps/{name}")).await?)?,
        Command::Why { name, form } => why::run(host, &name, form).await?,
        Command::Start(names) => act(host, "start", "started", &names.names).await?,
        Command::Stop(names) => act(host, "stop", "stopped", &names.names).await?,
        Command::Restart(names) => act(host, "restart", "restarted", &names.names).await?,
        Command::Freeze(names) => act(host, "freeze", "frozen", &names.names).await?,
        Command::Thaw(names) => act(host, "thaw", "thawed", &names.names).await?,
        Command::Logs { name, targets: _, follow, lines, source, since, form } => match name {
            Some(name) => logs::run(host, &name, logs::Which { follow, lines, source, since }, form).await?,
            None => shipping::run(host, form).await?,
        },
        Command::Exec(exec) => return exec::run(host, exec).await,
        Command::Images { form } => images::list(host, form).await?,
        Command::Image(image) => images::run(host, image).await?,
        Command::Volume(volume) => volumes::run(host, volume).await?,
        Command::Export { name, file, force, with_image, with_secrets, passphrase } => {
            let secrets = (with_secrets || passphrase.is_said()).then_some(passphrase);
            archive::export(host, &name, archive::To { file, force }, with_image, secrets).await?;
        }
        Command::Import(import) => archive::import(host, import).await?,
        Command::State(state) => state::run(host, state).await?,
        Command::Secret(secret) => secrets::run(host, secret).await?,
        Command::Jobs { name, form } => jobs::list(host, name.as_ref(), form).await?,
        Command::Job(job) => return jobs::run(host, job).await,
        Command::Network(network) => return network::run(host, network).await,
        Command::Routes { form } => routes::run(host, form).await?,
        Command::Services { action: Some(Services::Upgrade { name, directory }), .. } => {
            upgrade::one(host, &name, directory).await?;
        }
        Command::Services { action: None, form } => {
            services::run(host, form).await?;
            faults::warn(host).await;
        }
        Command::Upgrade(arguments) => upgrade::run(host, arguments).await?,
        Command::Events { follow, since, form } => events::run(host, follow, since.as_deref(), form).await?,
        Command::Names => {
            let rows: Vec<VpsRow> = host.get("/v1/vps?all=true").await?;
            output::raw(rows.iter().map(|row| format!("{}\n", row.name)).collect::<String>().as_bytes())?;
        }
        // Carried out before there is a runtime.
        Command::Manual { .. } | Command::Doctor { .. } | Command::Completions { .. } | Command::Serve { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Completions for a shell.
pub fn completions(shell: clap_complete::Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "bailiwick", &mut script);
    match shell {
        clap_complete::Shell::Bash => script.extend_from_slice(include_bytes!("completions/names.bash")),
        clap_complete::Shell::Fish => script.extend_from_slice(include_bytes!("completions/names.fish")),
        _ => {}
    }
    output::raw(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Does the same with each VPS, and goes on when one fails; the first failure is the command's.
async fn act(host: &Host, verb: &str, done: &str, names: &[VpsName]) -> Result<()> {
    let mut failed: Option<Failure> = None;
    for name in names {
        match host.act(Method::POST, &format!("/v1/vps/{name}/{verb}")).await {
            Ok(()) => output::line(&format!("{name}: {done}"))?,
            Err(failure) => keep_first(&mut failed, failure),
        }
    }
    failed.map_or(Ok(()), Err)
}

fn keep_first(first: &mut Option<Failure>, failure: Failure) {
    match first {
        // Several VPSs, several reasons: each is told.
        Some(_) => drop(failure.report()),
        None => *first = Some(failure),
    }
}

/// Asks before something is lost. `what` is what that is; without a terminal nobody can be asked.
fn confirmed(what: &str) -> Result<bool> {
    if !io::stdin().is_terminal() {
        let message = format!("{what} would be deleted, and nobody can be asked");
        return Err(Failure::new(ErrorKind::Invalid, message).next("add --yes"));
    }
    eprint!("Delete {what}? [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
