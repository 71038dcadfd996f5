//! What strangers send, read strictly: hosts and paths.

use hyper::{HeaderMap, Uri, Version, header::HOST};
use model::{ListenAddress, VpsName};
use proptest::prelude::*;
use wire::control::RouteEntry;

use super::rig::{http_route, tcp_route};
use crate::{
    detect::{NoHost, host},
    forward,
    route::{Site, Table},
    wake::Vps,
};

fn listen() -> ListenAddress {
    "[::]:80".parse().unwrap()
}

fn table(routes: &[(&str, &str)]) -> Table {
    let entries: Vec<RouteEntry> = routes.iter().map(|(route, name)| http_route(listen(), route, name, 80)).collect();
    Table::new(&entries, &[], |name| Vps::new(name.clone(), None))
}

fn found(table: &Table, host: &str, path: &str) -> Option<VpsName> {
    table.site(listen())?.content(host, path).map(|target| target.vps.name.clone())
}

fn read(fields: &[&[u8]], uri: &str) -> Result<String, NoHost> {
    let mut headers = HeaderMap::new();
    for field in fields {
        headers.append(HOST, hyper::header::HeaderValue::from_bytes(field).unwrap());
    }
    host(Version::HTTP_11, &uri.parse::<Uri>().unwrap(), &headers).map(|host| host.name)
}

#[test]
fn the_longest_prefix_of_whole_segments_wins() {
    let table =
        table(&[("a.example", "root"), ("a.example/api", "api"), ("a.example/api/v2", "v2"), ("b.example/x", "x")]);
    let name = |host, path| found(&table, host, path).map(|name| name.to_string());
    assert_eq!(name("a.example", "/").as_deref(), Some("root"));
    assert_eq!(name("a.example", "/api").as_deref(), Some("api"));
    assert_eq!(name("a.example", "/api/").as_deref(), Some("api"));
    assert_eq!(name("a.example", "/apis").as_deref(), Some("root"));
    assert_eq!(name("a.example", "/api/v2/x").as_deref(), Some("v2"));
    assert_eq!(name("a.example", "*").as_deref(), Some("root"));
    assert_eq!(name("b.example", "/"), None);
    assert_eq!(name("c.example", "/"), None);
}

#[test]
fn a_tcp_route_wins_its_address() {
    let vps = |name: &VpsName| Vps::new(name.clone(), None);
    let (http, tcp) = (http_route(listen(), "a.example", "web", 80), tcp_route(listen(), "db", 3306));
    for entries in [[http.clone(), tcp.clone()], [tcp, http]] {
        assert!(
            matches!(Table::new(&entries, &[], vps).site(listen()), Some(Site::Address(target)) if target.port == 3306)
        );
    }
}

#[test]
fn hosts_are_read_strictly() {
    assert_eq!(read(&[b"Blog.Example.ORG:8080"], "/"), Ok("blog.example.org".into()));
    assert_eq!(read(&[b"blog.example.org."], "/"), Ok("blog.example.org".into()));
    assert_eq!(read(&[b"[2001:DB8::1]:80"], "/"), Ok("[2001:db8::1]".into()));
    assert_eq!(read(&[b"other"], "http://A.example/x"), Ok("a.example".into()));
    assert_eq!(read(&[], "/"), Err(NoHost::Missing));
    assert_eq!(read(&[], "http://a.example/"), Err(NoHost::Missing));
    assert_eq!(read(&[b"a", b"a"], "/"), Err(NoHost::Several));
    for illegal in ["", ".", ":80", "a:b", "a:80:80", "a b", "a,b", "u@a", "a/b", "[::1", "a:999999", "[x]", "\"a"] {
        assert_eq!(read(&[illegal.as_bytes()], "/"), Err(NoHost::Illegal), "{illegal}");
    }
    assert_eq!(read(&[b"a\xff"], "/"), Err(NoHost::Illegal));
}

proptest! {
    #[test]
    fn no_host_confuses(bytes in proptest::collection::vec(prop_oneof![Just(b'.'), Just(b':'), Just(b'['), 32u8..=255], 0..300)) {
        prop_assume!(hyper::header::HeaderValue::from_bytes(&bytes).is_ok());
        if let Ok(name) = read(&[&bytes], "/") {
            prop_assert!(!name.is_empty() && name.len() < 254);
            prop_assert!(name.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase() && !b"\",;@/".contains(&b)));
            // Reading a name again changes nothing but a second final dot.
            prop_assert!(name.ends_with('.') || read(&[name.as_bytes()], "/") == Ok(name.clone()));
        }
    }

    #[test]
    fn a_path_goes_where_its_segments_say(path in "/[a-c/%.]{0,12}") {
        let table = table(&[("h", "root"), ("h/a", "a"), ("h/a/b", "b"), ("h/ab", "ab")]);
        let segments: Vec<&str> = path[1..].split('/').collect();
        let expected = match segments.as_slice() {
            ["a", "b", ..] => "b",
            ["a", ..] => "a",
            ["ab", ..] => "ab",
            _ => "root",
        };
        let name = found(&table, "h", &path).unwrap();
        prop_assert_eq!(name.as_str(), expected);
    }

    #[test]
    fn what_a_client_claims_ends_here(connection in "[a-zA-Z, -]{0,40}", claim in "[a-z0-9=;,\"]{0,20}") {
        let builder = hyper::Request::builder().uri("/").header("connection", connection);
        let builder = builder.header("forwarded", &claim).header("x-forwarded-for", &claim).header("x-real-ip", &claim);
        let (mut parts, ()) = builder.header("content-length", "3").body(()).unwrap().into_parts();
        let client = forward::Client::new("::ffff:203.0.113.9".parse().unwrap());
        forward::request(&mut parts, "a.example".parse().unwrap(), &client, None);
        prop_assert_eq!(&parts.headers["x-forwarded-for"], "203.0.113.9");
        prop_assert_eq!(&parts.headers["forwarded"], "for=203.0.113.9;host=\"a.example\";proto=http");
        prop_assert_eq!(&parts.headers["content-length"], "3");
        prop_assert_eq!(&parts.headers["host"], "a.example");
        prop_assert!(!parts.headers.contains_key("x-real-ip") && !parts.headers.contains_key("connection"));
        prop_assert_eq!(parts.headers.get_all("forwarded").iter().count(), 1);
    }
}
