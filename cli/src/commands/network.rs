//! `network rules` and `network test`: what the firewall lets VPSs connect to.

use std::process::ExitCode;

use model::{
    VpsName,
    api::{FirewallKind, FirewallRow, FirewallTest, FirewallTested},
    limits::{show_bytes, show_duration_ms},
};

use crate::{
    arguments::{Form, Network},
    client::Host,
    failure::Result,
    output, table,
};

pub async fn run(host: &Host, network: Network) -> Result<ExitCode> {
    match network {
        Network::Rules { name, form } => rules(host, name.as_ref(), form).await.map(|()| ExitCode::SUCCESS),
        Network::Test { name, to, form } => test(host, FirewallTest { vps: name, to }, form).await,
    }
}

async fn rules(host: &Host, name: Option<&VpsName>, form: Form) -> Result<()> {
    let path = name.map_or("/v1/network/rules".to_owned(), |name| format!("/v1/network/rules?vps={name}"));
    let rows: Vec<FirewallRow> = host.get(&path).await?;
    if form.json { output::json(&rows) } else { output::own(&show(&rows)) }
}

fn show(rows: &[FirewallRow]) -> String {
    if rows.is_empty() {
        return "no rules: VPSs do not connect to each other, and all of the outside is open to them\n\
                a spec's `allow` and `egress` make some\n"
            .to_owned();
    }
    table::text(
        ["VPS", "RULE", "TO", "PACKETS", "BYTES", ""],
        rows.iter().map(|row| {
            let time = |ms| show_duration_ms(ms / 1000 * 1000);
            let note = match (row.kind, &row.name, row.left_ms) {
                (FirewallKind::Opened, Some(name), Some(left)) => format!("{name}, for {} more", time(left)),
                (FirewallKind::Refused, ..) => "in the last hour".to_owned(),
                _ => String::new(),
            };
            let number = |n: Option<u64>, show: &dyn Fn(u64) -> String| n.map_or("-".to_owned(), show);
            [
                row.vps.to_string(),
                row.kind.to_string(),
                row.to.clone(),
                number(row.packets, &|n| n.to_string()),
                number(row.bytes, &show_bytes),
                note,
            ]
        }),
    )
}

/// Says what decides, and what came of it.
async fn test(host: &Host, test: FirewallTest, form: Form) -> Result<ExitCode> {
    let tested: FirewallTested = host.post("/v1/network/test", &test).await?;
    if form.json {
        output::json(&tested)?;
    } else {
        output::own(&told(&test, &tested))?;
    }
    let well = tested.allowed && tested.reached != Some(false);
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn told(test: &FirewallTest, tested: &FirewallTested) -> String {
    let FirewallTest { vps, to } = test;
    let word = if tested.allowed { "allowed" } else { "refused" };
    let packet = match (&tested.address, &tested.sent) {
        (None, _) => format!("no packet was sent: {to} has no address"),
        (Some(_), None) => format!("no packet was sent: {vps} is not up; bailiwick start {vps}"),
        (Some(address), Some(sent)) => format!("a packet to {address}: {sent}"),
    };
    format!("{vps} -> {to}: {word}: {}\n{packet}\n", tested.rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_has_a_line() {
        let row = |kind, to: &str, packets: Option<u64>, name: Option<&str>, left_ms| FirewallRow {
            vps: "blog".parse().expect("a name"),
            kind,
            to: to.to_owned(),
            name: name.map(str::to_owned),
            packets,
            bytes: packets.map(|n| n * 512),
            left_ms,
        };
        let rows = [
            row(FirewallKind::Allow, "db:3306", Some(4), None, None),
            row(FirewallKind::Egress, "deb.debian.org:80", None, None, None),
            row(FirewallKind::Opened, "192.0.2.7:80", Some(2), Some("deb.debian.org"), Some(28_400)),
            row(FirewallKind::Refused, "192.0.2.9:25", Some(1), None, Some(3_000_000)),
        ];
        let expected = "\
VPS   RULE     TO                 PACKETS  BYTES
blog  allow    db:3306            4        2.0 KiB
blog  egress   deb.debian.org:80  -        -
blog  opened   192.0.2.7:80       2        1.0 KiB  deb.debian.org, for 28s more
blog  refused  192.0.2.9:25       1        512 B    in the last hour
";
        assert_eq!(show(&rows), expected);
    }
}
