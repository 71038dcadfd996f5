//! Routes: an address, or a content match on an address, that leads to a VPS.

use std::{
    fmt,
    net::{AddrParseError, IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

mod target;

pub use target::{ClientAddress, RouteTarget};

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// An address that is listened on, on the host or where the network VPS has it: `127.0.0.1:80`, `udp://127.0.0.1:53`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ListenAddress(pub SocketAddr, pub Transport);

impl ListenAddress {
    /// Of TCP.
    pub fn tcp(address: impl Into<SocketAddr>) -> Self {
        Self(address.into(), Transport::Tcp)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.0.port()
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Transport::Tcp => self.0.fmt(f),
            Transport::Udp => write!(f, "{UDP}{}", self.0),
        }
    }
}

impl FromStr for ListenAddress {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, AddrParseError> {
        match text.strip_prefix(UDP) {
            Some(address) => Ok(Self(address.parse()?, Transport::Udp)),
            None => Ok(Self::tcp(text.parse::<SocketAddr>()?)),
        }
    }
}

impl TryFrom<String> for ListenAddress {
    type Error = AddrParseError;
    fn try_from(text: String) -> Result<Self, AddrParseError> {
        text.parse()
    }
}

impl From<ListenAddress> for String {
    fn from(address: ListenAddress) -> String {
        address.to_string()
    }
}

/// What routes by address begin with.
const TCP: &str = "tcp://";
const UDP: &str = "udp://";

/// Which connections or requests are meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Route {
    /// `tcp://ADDRESS:PORT`: every connection to that address; `*` is every address of the host. `udp://ADDRESS:PORT`: every
    /// datagram.
    Address(ListenAddress),
    /// `http://HOST[:PORT][/PREFIX]`: requests for that host under that path, on the host's addresses.
    Http {
        /// Host name in lower case, without port.
        host: String,
        /// Port listened on; 80 where none is written.
        port: u16,
        /// Path prefix, beginning with `/`, matched on whole segments; `/` where none is written.
        prefix: String,
    },
}

/// Why a text is no route.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// Not one of the schemes there are.
    #[error(
        "`{0}` is not a route: write \"http://HOST[:PORT][/PREFIX]\", \"tcp://ADDRESS:PORT\" or \"udp://ADDRESS:PORT\""
    )]
    UnknownScheme(String),
    /// The address of a `tcp://` or `udp://` route.
    #[error("`{0}` is not an address with a port, such as 127.0.0.1:6379, [::1]:6379 or *:6379")]
    IllegalAddress(String),
    /// The host, port or prefix of an `http://` route.
    #[error("`{0}` is not a host name with an optional port and path")]
    IllegalHost(String),
}

impl Route {
    /// The address that has to be listened on. HTTP routes listen on every address of the host (`[::]`, both families).
    pub fn listen(&self) -> ListenAddress {
        match self {
            Self::Address(address) => *address,
            Self::Http { port, .. } => ListenAddress::tcp((IpAddr::V6(Ipv6Addr::UNSPECIFIED), *port)),
        }
    }
}

impl FromStr for Route {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<Self, RouteError> {
        let transports = [(TCP, Transport::Tcp), (UDP, Transport::Udp)];
        let by_address = transports.iter().find_map(|(word, transport)| Some((text.strip_prefix(word)?, *transport)));
        if let Some((address, transport)) = by_address {
            let illegal = || RouteError::IllegalAddress(address.to_owned());
            let parsed = match address.strip_prefix("*:") {
                Some(port) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, parse_port(port).ok_or_else(illegal)?)),
                None => address.parse().map_err(|_| illegal())?,
            };
            return if parsed.port() == 0 {
                Err(illegal())
            } else {
                Ok(Self::Address(ListenAddress(parsed, transport)))
            };
        }
        let rest = text.strip_prefix("http://").ok_or_else(|| RouteError::UnknownScheme(text.to_owned()))?;
        let illegal = || RouteError::IllegalHost(rest.to_owned());
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, parse_port(port).ok_or_else(illegal)?),
            None => (authority, 80),
        };
        let host = host.to_ascii_lowercase();
        let label = |l: &str| {
            let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
            !l.is_empty() && l.len() <= 63 && l.bytes().all(legal)
        };
        if host.len() > 253 || !host.split('.').all(label) {
            return Err(illegal());
        }
        let legal_path = path.bytes().all(|b| b.is_ascii_graphic() && !b"?#%\\\"<>".contains(&b));
        if !legal_path || path.split('/').any(|s| s == "." || s == "..") || path.contains("//") {
            return Err(illegal());
        }
        let prefix = format!("/{}", path.trim_matches('/'));
        Ok(Self::Http { host, port, prefix })
    }
}

/// A port in digits, not 0; the parser of integers would also take `+80`.
pub(crate) fn parse_port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

impl TryFrom<String> for Route {
    type Error = RouteError;
    fn try_from(text: String) -> Result<Self, RouteError> {
        text.parse()
    }
}

impl From<Route> for String {
    fn from(route: Route) -> String {
        route.to_string()
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ListenAddress(address, transport)) => {
                f.write_str(if *transport == Transport::Tcp { TCP } else { UDP })?;
                match address.ip() == Ipv6Addr::UNSPECIFIED {
                    true => write!(f, "*:{}", address.port()),
                    false => address.fmt(f),
                }
            }
            Self::Http { host, port, prefix } => {
                write!(f, "http://{host}")?;
                if *port != 80 {
                    write!(f, ":{port}")?;
                }
                f.write_str(if prefix == "/" { "" } else { prefix })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_shown_as_they_are_parsed() {
        for (text, shown) in [
            ("http://Blog.Example.org", "http://blog.example.org"),
            ("http://a:80/", "http://a"),
            ("http://a:8080/x/y/", "http://a:8080/x/y"),
            ("tcp://*:6379", "tcp://*:6379"),
            ("tcp://[::]:6379", "tcp://*:6379"),
            ("tcp://[::1]:1", "tcp://[::1]:1"),
            ("tcp://127.0.0.1:65535", "tcp://127.0.0.1:65535"),
            ("udp://*:53", "udp://*:53"),
            ("udp://192.0.2.1:53", "udp://192.0.2.1:53"),
        ] {
            assert_eq!(text.parse::<Route>().map(|route| route.to_string()), Ok(shown.to_owned()));
        }
    }

    #[test]
    fn what_is_no_route_is_refused() {
        for text in [
            "",
            "a",
            "https://a",
            "http://",
            "http://a:0",
            "http://a:+80",
            "http://a:",
            "http://a b",
            "http://a..b",
            "http://a/../b",
            "http://a//b",
            "http://a/%2e",
            "http://a/?q",
            "http://user@a",
            "tcp://*",
            "tcp://*:0",
            "tcp://*:+1",
            "tcp://a:1",
            "udp://*",
            "udp://a:1",
        ] {
            assert!(text.parse::<Route>().is_err(), "{text}");
        }
    }
}
