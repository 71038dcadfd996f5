//! What of a request and of its answer is handed on: fields that concern one connection end here (RFC 9110, 7.6.1), and
//! where the client is said by the gateway alone.

use std::net::IpAddr;

use hyper::{
    HeaderMap, StatusCode, Uri, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
    },
    http::{request, response},
};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Fields by which servers are told of the client, besides the ones that are set here.
const CLAIMS: [HeaderName; 5] = [
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-forwarded-prefix"),
    HeaderName::from_static("x-forwarded-ssl"),
    HeaderName::from_static("x-real-ip"),
];
const HOP: [HeaderName; 4] =
    [HeaderName::from_static("keep-alive"), HeaderName::from_static("proxy-connection"), TE, UPGRADE];

/// A client, as servers are told of it.
#[derive(Debug)]
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    plain: HeaderValue,
    node: String,
}

impl Client {
    /// The client at `address`.
    pub fn new(address: IpAddr) -> Self {
        let address = address.to_canonical();
        let node = match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("\"[{address}]\""),
        };
        let plain = HeaderValue::from_str(&address.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        Self { address, plain, node }
    }
}

/// The protocol a request wants to go on with, when it asks for one. `h2c` is not handed on: its requests would pass
/// by the routes.
pub fn upgrade(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(UPGRADE)?;
    let asked = version == Version::HTTP_11 && names(headers).any(|name| name.eq_ignore_ascii_case("upgrade"));
    let h2c = protocol.to_str().map_or(true, |p| p.split(',').any(|p| p.trim().eq_ignore_ascii_case("h2c")));
    (asked && !h2c).then(|| protocol.clone())
}

/// Makes a client's request one to the server.
pub fn request(parts: &mut request::Parts, host: HeaderValue, client: &Client, upgrade: Option<HeaderValue>) {
    if parts.uri.authority().is_some() {
        parts.uri = parts.uri.path_and_query().cloned().map_or(Uri::from_static("/"), Uri::from);
    }
    parts.version = Version::HTTP_11;
    let headers = &mut parts.headers;
    end_hop(headers);
    // The gateway itself answers with `100 Continue` once the server takes the body.
    headers.remove(EXPECT);
    headers.remove(PROXY_AUTHORIZATION);
    for claim in &CLAIMS {
        headers.remove(claim);
    }
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
    // `host` was parsed: it holds nothing that ends a quoted string.
    let text = host.to_str().unwrap_or_default();
    let forwarded = format!("for={};host=\"{text}\";proto=http", client.node);
    if let Ok(forwarded) = HeaderValue::try_from(forwarded) {
        headers.insert(FORWARDED, forwarded);
    }
    headers.insert(X_FORWARDED_FOR, client.plain.clone());
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    headers.insert(X_FORWARDED_HOST, host.clone());
    headers.insert(HOST, host);
}

/// Makes a server's answer one to the client.
pub fn response(parts: &mut response::Parts) {
    parts.version = Version::HTTP_11;
    let protocol = match parts.status {
        StatusCode::SWITCHING_PROTOCOLS => parts.headers.get(UPGRADE).cloned(),
        _ => None,
    };
    end_hop(&mut parts.headers);
    parts.headers.remove(TRANSFER_ENCODING);
    parts.headers.remove(PROXY_AUTHENTICATE);
    if let Some(protocol) = protocol {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, protocol);
    }
}

/// Removes the fields of one connection, and those `Connection` names, except for the ones that say where a message ends.
fn end_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let plain =
            |name: &&str| !["close", "keep-alive", "upgrade"].iter().any(|plain| name.eq_ignore_ascii_case(plain));
        let named: Vec<HeaderName> = names(headers)
            .filter(plain)
            .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
            .filter(|name| ![HOST, CONTENT_LENGTH, TRANSFER_ENCODING].contains(name))
            .collect();
        headers.remove(CONNECTION);
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP {
        headers.remove(name);
    }
}

fn names(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let fields = headers.get_all(CONNECTION).iter().filter_map(|field| field.to_str().ok());
    fields.flat_map(|field| field.split(',')).map(str::trim).filter(|name| !name.is_empty())
}
