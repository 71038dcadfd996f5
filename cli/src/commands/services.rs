//! `services`: the administrative jobs and the designated VPSs that do them.

use model::{api::ServiceRow, limits::show_bytes};

use super::ps;
use crate::{arguments::Form, client::Host, failure::Result, output, table};

/// Lists services.
pub async fn run(host: &Host, form: Form) -> Result<()> {
    let rows: Vec<ServiceRow> = host.get("/v1/services").await?;
    if form.json { output::json(&rows) } else { output::own(&show(&rows)) }
}

fn show(rows: &[ServiceRow]) -> String {
    table::text(
        ["SERVICE", "VPS", "STATE", "STARTS", "PID", "MEMORY", "GRANTS"],
        rows.iter().map(|row| {
            let dash = || "-".to_owned();
            let grants = if row.grants.is_empty() { dash() } else { row.grants.join("; ") };
            [
                row.service.clone(),
                row.vps.to_string(),
                ps::state(row.state).to_owned(),
                row.starts.to_string(),
                row.pid.map_or_else(dash, |pid| pid.to_string()),
                row.memory.map_or_else(dash, show_bytes),
                grants,
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn a_service_is_shown_with_its_grants() {
        let rows = json!([
            {
                "service": "gateway", "vps": "gateway", "state": "running", "starts": 2, "memory": 3 << 20, "pid": 71,
                "grants": ["wake : *", "listen : *"],
            },
            { "service": "network", "vps": "net", "state": "starting", "starts": 1, "memory": null, "pid": null, "grants": [] },
        ]);
        let rows: Vec<_> = serde_json::from_value(rows).expect("rows");
        let expected = "\
SERVICE  VPS      STATE     STARTS  PID  MEMORY   GRANTS
gateway  gateway  running   2       71   3.0 MiB  wake : *; listen : *
network  net      starting  1       -    -        -
";
        assert_eq!(super::show(&rows), expected);
    }
}
