//! `routes` and `ignore` of a spec: what the types of their fields do not say.

use toml::de::{DeTable, DeValue};

use crate::{
    ClientAddress, Ignore, ListenAddress, Route, RouteTarget, Transport,
    document::{Get, Problems, Value, integer},
    ignore::parse_network,
};

/// Tells what is wrong in one VPS's routes and in whom it ignores.
pub(super) fn within(problems: &mut Problems<'_>, vps: &DeTable<'_>) {
    let routes = vps.table("routes");
    for (key, value) in routes.into_iter().flatten() {
        let route = key.get_ref().parse().ok();
        let Some((client, word)) = value.get_ref().as_table().and_then(|t| t.get_key_value("client")) else { continue };
        let (message, hint) = match route {
            Some(Route::Http { .. }) => (
                "`client` is for tcp:// and udp:// routes",
                "leave it out: behind http:// the server reads X-Forwarded-For and Forwarded",
            ),
            Some(Route::Address(ListenAddress(_, Transport::Udp)))
                if word.get_ref().as_str().is_some_and(|word| word.starts_with("proxy-")) =>
            {
                ("there is no PROXY protocol for datagrams", "leave it out, or write: client = \"gateway\"")
            }
            _ => continue,
        };
        problems.tell(client.span(), message, Some(hint.to_owned()));
    }
    let Some((key, ignore)) = vps.get_key_value("ignore") else { return };
    let Some(ignore) = ignore.get_ref().as_table() else { return };
    let mut tell = |message: &str, hint: &str| problems.tell(key.span(), message, Some(hint.to_owned()));
    let routes: Vec<Route> = routes.into_iter().flatten().filter_map(|(key, _)| key.get_ref().parse().ok()).collect();
    if routes.is_empty() {
        tell("`ignore` is about clients, and nothing leads to this VPS", "write routes, or leave it out");
    } else if ignore.contains_key("user_agent") && routes.iter().all(|route| matches!(route, Route::Address(_))) {
        tell("`ignore.user_agent` needs an http:// route", "write: ignore = { from = [\"203.0.113.0/24\"] }");
    } else if ignore.is_empty() {
        tell(
            "`ignore` names nobody",
            "write: ignore = { user_agent = [\"*bot*\"] }, or { from = [\"203.0.113.0/24\"] }",
        );
    }
}

/// A port, or `{ port = …, client = … }`.
pub(super) fn target(value: &Value<'_>) -> Option<RouteTarget> {
    let DeValue::Table(table) = value.get_ref() else { return Some(u16::try_from(integer(value)?).ok()?.into()) };
    let word = table.text("client");
    let client = ClientAddress::WORDS.iter().find(|(known, _)| Some(*known) == word);
    let client = client.map_or_else(ClientAddress::default, |(_, client)| *client);
    Some(RouteTarget { port: u16::try_from(table.integer("port")?).ok()?, client })
}

/// Whom a VPS ignores.
pub(super) fn ignore(table: Option<&DeTable<'_>>) -> Ignore {
    let Some(table) = table else { return Ignore::default() };
    let texts = |name: &str| table.texts(name).unwrap_or_default();
    Ignore {
        user_agent: texts("user_agent").iter().filter_map(|text| text.parse().ok()).collect(),
        from: texts("from").iter().filter_map(|text| parse_network(text).ok()).collect(),
    }
}
