//! `egress`: what of the outside a VPS may connect to.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Transport;

/// Bytes of a name at most (RFC 1035, 2.3.4).
const NAME: usize = 253;
const LABEL: usize = 63;
const UDP: &str = "udp://";
const TCP: &str = "tcp://";

/// `deb.debian.org:80`, `*.example.org:443`, `udp://192.0.2.53:53`, `192.0.2.0/24`, `*:25`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Egress {
    /// Whom.
    pub to: Outside,
    /// By which protocol, and at which ports; none: by any, at any. Names have one.
    pub at: Option<Ports>,
}

/// Ports of a protocol: from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// The protocol.
    pub transport: Transport,
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// Somebody outside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outside {
    /// Everybody.
    All,
    /// Who has one of these addresses.
    Net(IpNet),
    /// Who has this name, in lower case: the addresses that it has at the time.
    Name(String),
    /// Who has a name under this one.
    Under(String),
}

/// Why a text is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EgressError {
    /// Not of any form.
    #[error(
        "`{0}` is nothing of the outside such as \"deb.debian.org:80\", \"udp://192.0.2.53:53\" or \"192.0.2.0/24\""
    )]
    Form(String),
    /// A name without a port.
    #[error("`{0}` needs one port, such as \"{0}:443\"")]
    Port(String),
    /// A network with bits of a host.
    #[error("`{0}` has bits behind its prefix: the network is {1}")]
    Bits(String, IpNet),
}

impl Outside {
    /// Whether a name, in lower case, is meant.
    pub fn has_name(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Net(_) => false,
            Self::Name(own) => own == name,
            Self::Under(above) => {
                name.strip_suffix(above.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
        }
    }

    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, _) => true,
            (Self::Net(own), Self::Net(other)) => own.contains(other),
            (Self::Under(above), Self::Under(other)) => above == other || self.has_name(other),
            (own, Self::Name(name)) => own.has_name(name),
            _ => false,
        }
    }
}

impl Egress {
    /// Whether all that `other` lets through this one does too.
    pub fn covers(&self, other: &Self) -> bool {
        let ports = match (self.at, other.at) {
            (None, _) => true,
            (Some(own), Some(other)) => {
                own.transport == other.transport && own.first <= other.first && other.last <= own.last
            }
            (Some(_), None) => false,
        };
        ports && self.to.covers(&other.to)
    }

    /// What a VPS may connect to whose spec says `own` and to whose tenant the operator has set `bound`; none: everybody.
    pub fn effective(own: Option<&[Self]>, bound: Option<&[Self]>) -> Option<Vec<Self>> {
        match (own, bound) {
            (own, None) => own.map(<[Self]>::to_vec),
            (None, Some(bound)) => Some(bound.to_vec()),
            (Some(own), Some(bound)) => {
                let within = |one: &&Self| bound.iter().any(|bound| bound.covers(one));
                Some(own.iter().filter(within).cloned().collect())
            }
        }
    }
}

fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        let inner = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        !label.is_empty() && label.len() <= LABEL && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    // What ends in a number could be taken for an address.
    let last_is_number = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    text.len() <= NAME && text.split('.').all(label) && !last_is_number
}

fn network(text: &str) -> Option<Result<IpNet, EgressError>> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(Ok(address.into()));
    }
    let net: IpNet = text.parse().ok()?;
    if net.addr() == net.network() { Some(Ok(net)) } else { Some(Err(EgressError::Bits(text.to_owned(), net.trunc()))) }
}

/// `25` or `6000-6100`.
fn ports(text: &str, transport: Transport) -> Option<Ports> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (crate::route::parse_port(first)?, crate::route::parse_port(last)?);
    (first <= last).then_some(Ports { transport, first, last })
}

impl FromStr for Egress {
    type Err = EgressError;

    fn from_str(text: &str) -> Result<Self, EgressError> {
        let form = || EgressError::Form(text.to_owned());
        let (transport, rest) = match (text.strip_prefix(UDP), text.strip_prefix(TCP)) {
            (Some(rest), _) => (Some(Transport::Udp), rest),
            (_, Some(rest)) => (Some(Transport::Tcp), rest),
            _ => (None, text),
        };
        // Without a port, which an IPv6 network's colons are not.
        if transport.is_none()
            && let Some(net) = network(rest)
        {
            return Ok(Self { to: Outside::Net(net?), at: None });
        }
        if rest == "*" && transport.is_none() {
            return Ok(Self { to: Outside::All, at: None });
        }
        let Some((to, at)) = rest.rsplit_once(':') else {
            let name = rest.strip_prefix("*.").unwrap_or(rest);
            return Err(if is_name(name) { EgressError::Port(text.to_owned()) } else { form() });
        };
        let at = ports(at, transport.unwrap_or(Transport::Tcp)).ok_or_else(form)?;
        let to = match (to, to.strip_prefix("*."), to.strip_prefix('[').and_then(|to| to.strip_suffix(']'))) {
            ("*", ..) => Outside::All,
            (_, Some(above), _) if is_name(above) => Outside::Under(above.to_owned()),
            (_, _, Some(bracketed)) => match network(bracketed) {
                Some(net) => Outside::Net(net?),
                None => return Err(form()),
            },
            (name, ..) if name.contains('.') && is_name(name) => Outside::Name(name.to_owned()),
            (net, ..) => match network(net) {
                // IPv6 is written in brackets where a port follows.
                Some(net) if net.as_ref().is_ok_and(|net| net.addr().is_ipv6()) => return Err(form()),
                Some(net) => Outside::Net(net?),
                None => return Err(form()),
            },
        };
        let named = matches!(to, Outside::Name(_) | Outside::Under(_));
        if named && at.first != at.last {
            return Err(EgressError::Port(to_text(&to)));
        }
        Ok(Self { to, at: Some(at) })
    }
}

fn to_text(to: &Outside) -> String {
    match to {
        Outside::All => "*".to_owned(),
        Outside::Net(net) => {
            let whole = net.prefix_len() == net.max_prefix_len();
            if whole { net.addr().to_string() } else { net.to_string() }
        }
        Outside::Name(name) => name.clone(),
        Outside::Under(above) => format!("*.{above}"),
    }
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = to_text(&self.to);
        let Some(Ports { transport, first, last }) = self.at else { return f.write_str(&to) };
        let v6 = matches!(self.to, Outside::Net(IpNet::V6(_)));
        let to = if v6 { format!("[{to}]") } else { to };
        let protocol = if transport == Transport::Udp { UDP } else { "" };
        match first == last {
            true => write!(f, "{protocol}{to}:{first}"),
            false => write!(f, "{protocol}{to}:{first}-{last}"),
        }
    }
}

impl TryFrom<String> for Egress {
    type Error = EgressError;
    fn try_from(text: String) -> Result<Self, EgressError> {
        text.parse()
    }
}

impl From<Egress> for String {
    fn from(egress: Egress) -> Self {
        egress.to_string()
    }
}

/// Whether an address that a name has is one of the outside: not of a private network (RFC 1918, RFC 4193), of a link, of this
/// machine, or of a group. A name's owner could lead to those; who wants them names the network.
pub fn is_outside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            let inside = ip.is_private() || ip.is_link_local() || ip.is_loopback() || shared;
            !(inside || ip.is_multicast() || ip.is_broadcast() || ip.octets()[0] == 0 || ip == Ipv4Addr::UNSPECIFIED)
        }
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(mapped) => is_outside(mapped.into()),
            None => {
                let inside = ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback();
                !(inside || ip.is_multicast() || ip == Ipv6Addr::UNSPECIFIED)
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Egress {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn they_are_shown_as_they_are_parsed() {
        for text in [
            "deb.debian.org:80",
            "*.example.org:443",
            "udp://192.0.2.53:53",
            "192.0.2.0/24",
            "*:25",
            "*",
            "udp://*:123",
            "192.0.2.7:6000-6100",
            "2001:db8::/32",
            "[2001:db8::7]:443",
            "udp://[2001:db8::/32]:53",
            "udp://ntp.example.org:123",
        ] {
            assert_eq!(one(text).to_string(), text);
        }
        assert_eq!(one("tcp://a.example:80"), one("a.example:80"));
        assert_eq!(one("192.0.2.7/32").to_string(), "192.0.2.7");
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "",
            "a",
            "localhost:80",
            "A.example:80",
            "a.example",
            "a.example:0",
            "a.example:80-90",
            "a.example:",
            ":80",
            "192.0.2.7:0",
            "192.0.2.256:80",
            "192.0.2.1/24",
            "2001:db8::7:443x",
            "udp://192.0.2.7",
            "a..example:80",
            "-a.example:80",
            "*.:80",
            "**.example:80",
            "a.example:90-80",
            "1.2.3:80",
            "http://a.example:80",
            "a.example/x:80",
            "[192.0.2.7:80",
            "udp://*",
        ] {
            assert!(text.parse::<Egress>().is_err(), "{text}");
        }
        assert!(one("2001:db8::7").at.is_none());
        assert!("a.example".parse::<Egress>().unwrap_err().to_string().contains("needs one port"));
        assert!("192.0.2.1/24".parse::<Egress>().unwrap_err().to_string().contains("192.0.2.0/24"));
    }

    #[test]
    fn one_covers_what_it_lets_through() {
        for (wide, narrow) in [
            ("*", "a.example:80"),
            ("*:80", "a.example:80"),
            ("*.example.org:80", "a.b.example.org:80"),
            ("*.example.org:80", "*.b.example.org:80"),
            ("192.0.2.0/24", "192.0.2.7:25"),
            ("192.0.2.0/24:1-99", "192.0.2.7:25"),
        ] {
            assert!(one(wide).covers(&one(narrow)) && !one(narrow).covers(&one(wide)), "{wide} {narrow}");
        }
        for (one_text, other) in [
            ("*.example.org:80", "example.org:80"),
            ("*.example.org:80", "badexample.org:80"),
            ("*:80", "udp://a.example:80"),
            ("192.0.2.0/24", "a.example:80"),
            ("0.0.0.0/0", "*:80"),
            ("*:80", "*"),
            ("0.0.0.0/0", "2001:db8::/32"),
        ] {
            assert!(!one(one_text).covers(&one(other)), "{one_text} {other}");
        }
        let (own, bound) = ([one("a.example:80"), one("b.example:80")], [one("*.example:80"), one("a.example:80")]);
        assert_eq!(Egress::effective(None, None), None);
        assert_eq!(Egress::effective(Some(&own), None), Some(own.to_vec()));
        assert_eq!(Egress::effective(None, Some(&bound[1..])), Some(bound[1..].to_vec()));
        assert_eq!(Egress::effective(Some(&own), Some(&bound[1..])), Some(own[..1].to_vec()));
    }

    #[test]
    fn private_addresses_are_not_the_outside() {
        for inside in [
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
            "127.0.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "::1",
            "fe80::1",
            "fd80::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!is_outside(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["192.0.2.1", "8.8.8.8", "2001:db8::1", "100.128.0.1"] {
            assert!(is_outside(outside.parse().unwrap()), "{outside}");
        }
    }
}
