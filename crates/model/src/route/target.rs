//! Where a route leads, and whose address the server sees.

use serde::{Deserialize, Serialize};

/// What a route leads to inside a VPS. Stored as a number where nothing but the port was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct RouteTarget {
    /// The TCP port.
    pub port: u16,
    /// What connections of an address route show of their client.
    pub client: ClientAddress,
}

/// How a server behind an address route learns who its client is. (Behind `http://` it reads `X-Forwarded-For`.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientAddress {
    /// Connections come from the client's own address. One that VPSs have no way back to (loopback, link-local, of the
    /// VPSs' own subnet) is replaced by the gateway's.
    #[default]
    Transparent,
    /// Connections come from the gateway and begin with a line of the PROXY protocol.
    ProxyV1,
    /// The same in binary form.
    ProxyV2,
    /// Connections come from the gateway; the server is told nothing.
    Gateway,
}

impl ClientAddress {
    /// The words of spec files.
    pub const WORDS: [(&'static str, Self); 4] = [
        ("transparent", Self::Transparent),
        ("proxy-v1", Self::ProxyV1),
        ("proxy-v2", Self::ProxyV2),
        ("gateway", Self::Gateway),
    ];
}

impl From<u16> for RouteTarget {
    fn from(port: u16) -> Self {
        Self { port, client: ClientAddress::default() }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Port(u16),
    Whole { port: u16, client: ClientAddress },
}

impl From<Written> for RouteTarget {
    fn from(written: Written) -> Self {
        match written {
            Written::Port(port) => port.into(),
            Written::Whole { port, client } => Self { port, client },
        }
    }
}

impl From<RouteTarget> for Written {
    fn from(RouteTarget { port, client }: RouteTarget) -> Self {
        if client == ClientAddress::default() { Self::Port(port) } else { Self::Whole { port, client } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_version_stored_is_read() {
        let read = |text: &str| serde_json::from_str::<RouteTarget>(text).unwrap();
        assert_eq!(read("80"), RouteTarget::from(80));
        for (_, client) in ClientAddress::WORDS {
            let target = RouteTarget { port: 25, client };
            assert_eq!(read(&serde_json::to_string(&target).unwrap()), target);
        }
        assert_eq!(serde_json::to_string(&RouteTarget::from(80)).unwrap(), "80");
    }
}
