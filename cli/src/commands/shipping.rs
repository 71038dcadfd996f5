//! `logs --targets`: where logs are shipped, and how that goes.

use model::{api::LogTargetRow, limits::show_bytes};

use crate::{arguments::Form, client::Host, failure::Result, output, table};

/// Lists targets.
pub async fn run(host: &Host, form: Form) -> Result<()> {
    let rows: Vec<LogTargetRow> = host.get("/v1/logs/targets").await?;
    if form.json { output::json(&rows) } else { output::own(&show(&rows)) }
}

fn show(rows: &[LogTargetRow]) -> String {
    if rows.is_empty() {
        return "logs are shipped nowhere; host.toml says where: [logs] ship = [\"syslog+tcp://HOST:PORT\"]\n"
            .to_owned();
    }
    table::text(
        ["TARGET", "SENT", "WAITING", "LOST", "STATE"],
        rows.iter().map(|row| {
            let more = if row.gaps > 0 { "+" } else { "" };
            let state = row.away.as_ref().map_or("ok".to_owned(), |reason| output::harmless(reason));
            [row.target.clone(), row.sent.to_string(), show_bytes(row.waiting), format!("{}{more}", row.lost), state]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_shown_with_what_waits_and_what_is_lost() {
        let row = LogTargetRow {
            target: "syslog+tcp://192.0.2.1:601".into(),
            away: Some("Connection refused".into()),
            since_ms: 0,
            sent: 12,
            waiting: 3 << 20,
            lost: 7,
            gaps: 1,
            lost_ms: Some(1),
        };
        let here = LogTargetRow { target: "journald".into(), away: None, waiting: 0, lost: 0, gaps: 0, ..row.clone() };
        let expected = "\
TARGET                      SENT  WAITING  LOST  STATE
syslog+tcp://192.0.2.1:601  12    3.0 MiB  7+    Connection refused
journald                    12    0 B      0     ok
";
        assert_eq!(show(&[row, here]), expected);
        assert!(show(&[]).contains("[logs] ship"));
    }
}
