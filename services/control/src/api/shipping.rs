//! `/v1/logs/targets`: how it is with the targets that logs are shipped to.

use std::{sync::Arc, time::Duration};

use axum::{Json, extract::State};
use model::api::LogTargetRow;
use wire::{Fault, logs::Status};

use super::error::ApiError;
use crate::{calls::insist, clock::unix_ms, shared::Control};

/// How long who ships is asked.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long lists warn of lines that were lost, in milliseconds.
const WARNED: u64 = 86_400_000;

/// `GET /v1/logs/targets`
pub async fn targets(State(control): State<Arc<Control>>) -> Result<Json<Vec<LogTargetRow>>, ApiError> {
    Ok(Json(ask(&control).await?))
}

async fn ask(control: &Control) -> Result<Vec<LogTargetRow>, Fault> {
    if control.config.logs.ship.is_empty() {
        return Ok(Vec::new());
    }
    Ok(insist(&control.logs, &Status {}, PATIENCE).await?.targets)
}

/// What a person must know of them.
pub async fn faults(control: &Control) -> Vec<String> {
    match ask(control).await {
        Ok(rows) => rows.iter().filter_map(|row| fault_of(row, unix_ms())).collect(),
        Err(fault) => {
            vec![format!("logs to all targets: who ships them does not answer ({fault}). next: bailiwick logs logs")]
        }
    }
}

fn fault_of(row: &LogTargetRow, now_ms: u64) -> Option<String> {
    let LogTargetRow { target, away, lost, gaps, lost_ms, waiting, .. } = row;
    let mut said = Vec::new();
    if let Some(reason) = away {
        said.push(format!("it takes no lines ({reason}); {waiting} bytes wait in logs"));
    }
    if lost_ms.is_some_and(|at| now_ms.saturating_sub(at) < WARNED) {
        said.push(match gaps {
            0 => format!("{lost} lines were lost while it took none"),
            gaps => format!("{lost} lines were lost while it took none, and {gaps} times an unknown number"),
        });
    }
    (!said.is_empty()).then(|| format!("logs to {target}: {}. next: bailiwick logs logs", said.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_told_of_while_it_is_away_and_for_a_day_after_a_loss() {
        let fine = LogTargetRow {
            target: "journald".into(),
            away: None,
            since_ms: 0,
            sent: 1,
            waiting: 7,
            lost: 3,
            gaps: 0,
            lost_ms: Some(1000),
        };
        assert_eq!(fault_of(&fine, WARNED + 1000), None);
        let told = fault_of(&fine, 2000).unwrap();
        assert_eq!(told, "logs to journald: 3 lines were lost while it took none. next: bailiwick logs logs");
        let away = LogTargetRow { away: Some("no".into()), lost_ms: None, ..fine };
        let told = fault_of(&away, 2000).unwrap();
        assert_eq!(told, "logs to journald: it takes no lines (no); 7 bytes wait in logs. next: bailiwick logs logs");
    }
}
