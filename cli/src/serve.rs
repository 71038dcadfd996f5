//! Services, run in this process: what a designated VPS executes.

use std::{
    future::Future,
    os::fd::OwnedFd,
    pin::Pin,
    process::ExitCode,
    sync::{Arc, Mutex},
};

use model::host::SERVICES;
use service::{Context, Unready};

type Running = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// Runs the named services until one of them ends, which is always a failure.
pub fn run(services: &[String], listeners: Vec<(String, OwnedFd)>) -> ExitCode {
    service::start_logging();
    sys::memory::one_tidy_heap();
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(serve(services, listeners)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(services: &[String], listeners: Vec<(String, OwnedFd)>) -> anyhow::Result<()> {
    for name in services {
        anyhow::ensure!(SERVICES.contains(&name.as_str()), "no service `{name}`; there are {}", SERVICES.join(", "));
    }
    let listeners = Arc::new(Mutex::new(listeners.into_iter().collect()));
    let unready = Unready::new(services.len());
    let mut running = Vec::new();
    for name in services {
        let context = Context::start(name, Arc::clone(&listeners), Arc::clone(&unready), sys::memory::trim).await?;
        running.push((name.clone(), start(name, context)?));
    }
    service::first_to_end(running).await
}

fn start(name: &str, context: Context) -> anyhow::Result<Running> {
    Ok(match name {
        "apps" => Box::pin(apps::run(context)),
        "control" => Box::pin(control::run(context)),
        "gateway" => Box::pin(gateway::run(context)),
        "logs" => Box::pin(logs::run(context)),
        "network" => Box::pin(network::run(context)),
        _ => anyhow::bail!("no service `{name}`"),
    })
}
