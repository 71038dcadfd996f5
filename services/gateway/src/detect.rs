//! Who a request is for: its host, read strictly. Nothing that two readers could read differently goes on.

use hyper::{
    HeaderMap, Uri, Version,
    header::{HOST, HeaderValue},
};

/// Bytes of a host name at most (RFC 1035), with a final dot.
const MAX_HOST: usize = 254;

/// A host as a client wrote it, and the name in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Host {
    /// In lower case, without port and final dot.
    pub name: String,
    /// As written; what the server behind is told.
    pub written: HeaderValue,
}

/// Why a request is for nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoHost {
    /// No `Host` field, and none in the request's target.
    #[error("the request names no host")]
    Missing,
    /// More than one `Host` field.
    #[error("the request names more than one host")]
    Several,
    /// Not a name or address with an optional port.
    #[error("the request's host is not a name")]
    Illegal,
}

/// Who a request is for. An absolute target counts more than `Host` (RFC 9112, 3.2.2), which must be there all the same.
pub fn host(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<Host, NoHost> {
    let mut fields = headers.get_all(HOST).iter();
    let field = fields.next();
    if fields.next().is_some() {
        return Err(NoHost::Several);
    }
    if field.is_none() && version == Version::HTTP_11 {
        return Err(NoHost::Missing);
    }
    let written = match uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).map_err(|_| NoHost::Illegal)?,
        None => field.ok_or(NoHost::Missing)?.clone(),
    };
    Ok(Host { name: name(written.as_bytes()).ok_or(NoHost::Illegal)?, written })
}

fn name(written: &[u8]) -> Option<String> {
    let written = std::str::from_utf8(written).ok()?;
    let split = match written.find(']') {
        Some(end) => end + 1,
        None => written.find(':').unwrap_or(written.len()),
    };
    let (name, port) = written.split_at(split);
    let digits = |port: &str| port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
    if !(port.is_empty() || port.strip_prefix(':').is_some_and(digits)) {
        return None;
    }
    let legal = match name.strip_prefix('[') {
        Some(address) => address.strip_suffix(']')?.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    (legal && !name.is_empty() && name.len() < MAX_HOST).then(|| name.to_ascii_lowercase())
}
