//! `routes`: what leads where.

use model::api::RouteRow;

use crate::{arguments::Form, client::Host, failure::Result, output, table};

/// Lists routes.
pub async fn run(host: &Host, form: Form) -> Result<()> {
    let rows: Vec<RouteRow> = host.get("/v1/routes").await?;
    if form.json { output::json(&rows) } else { output::own(&show(&rows)) }
}

fn show(rows: &[RouteRow]) -> String {
    if rows.is_empty() {
        return "no routes; a spec's `routes` make some\n".to_owned();
    }
    table::text(
        ["ROUTE", "VPS", "PORT", "LISTENING AT"],
        rows.iter().map(|row| {
            let listen = match &row.fault {
                Some(fault) => format!("not at {}: {fault}", row.listen),
                None if row.from.is_empty() => row.listen.clone(),
                None => {
                    let from: Vec<_> = row.from.iter().map(ToString::to_string).collect();
                    format!("{} for {}", row.listen, from.join(", "))
                }
            };
            [row.route.clone(), row.vps.to_string(), row.port.to_string(), listen]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_beside_its_address() {
        let row = |route: &str, fault: Option<&str>| RouteRow {
            route: route.into(),
            vps: "blog".parse().expect("a name"),
            port: 80,
            listen: "[::]:80".into(),
            fault: fault.map(str::to_owned),
            from: Vec::new(),
        };
        let expected = "\
ROUTE               VPS   PORT  LISTENING AT
http://a            blog  80    [::]:80
http://b.c          blog  80    not at [::]:80: address in use
(internal) blog:80  blog  80    10.80.0.17:80 for web, shop
";
        let from = vec!["web".parse().expect("a name"), "shop".parse().expect("a name")];
        let internal = RouteRow { listen: "10.80.0.17:80".into(), from, ..row("(internal) blog:80", None) };
        assert_eq!(show(&[row("http://a", None), row("http://b.c", Some("address in use")), internal]), expected);
    }
}
