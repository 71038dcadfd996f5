//! What of host.toml is not in force: told beside every list of what the host has.

use serde::Deserialize;

use crate::{
    client::Host,
    output::{harmless, paint},
};

#[derive(Deserialize)]
struct Health {
    #[serde(default)]
    faults: Vec<String>,
}

/// The faults, as the host says them; none where it does not answer.
pub async fn ask(host: &Host) -> Vec<String> {
    host.get::<Health>("/v1/health").await.map(|health| health.faults).unwrap_or_default()
}

/// Warns of them on standard error, so that what reads the list is not disturbed.
pub async fn warn(host: &Host) {
    let color = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    for fault in ask(host).await {
        eprintln!("{}: {}", paint(color, "1;33", "warning"), harmless(&fault));
    }
}
