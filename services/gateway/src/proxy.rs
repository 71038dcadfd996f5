//! The header of the PROXY protocol: what a server that is told of its client reads first
//! (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).

use std::net::{IpAddr, SocketAddr};

/// What a binary header begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, a proxied connection.
const PROXY: u8 = 0x21;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// Versions of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// The header of a connection that `client` made to `address`.
pub fn header(version: Version, client: SocketAddr, address: SocketAddr) -> Vec<u8> {
    let (source, destination) = (client.ip().to_canonical(), address.ip().to_canonical());
    match version {
        Version::V1 => {
            let family = match (source, destination) {
                (IpAddr::V4(_), IpAddr::V4(_)) => "TCP4",
                (IpAddr::V6(_), IpAddr::V6(_)) => "TCP6",
                _ => return b"PROXY UNKNOWN\r\n".to_vec(),
            };
            format!("PROXY {family} {source} {destination} {} {}\r\n", client.port(), address.port()).into_bytes()
        }
        Version::V2 => {
            let (family, mut addresses) = match (source, destination) {
                (IpAddr::V4(source), IpAddr::V4(destination)) => {
                    (TCP4, [source.octets(), destination.octets()].concat())
                }
                // Of two families one is written as IPv6: the binary form has no other way.
                _ => {
                    let wide = |ip: IpAddr| match ip {
                        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                        IpAddr::V6(ip) => ip.octets(),
                    };
                    (TCP6, [wide(source), wide(destination)].concat())
                }
            };
            addresses.extend(client.port().to_be_bytes());
            addresses.extend(address.port().to_be_bytes());
            let mut header = SIGNATURE.to_vec();
            header.extend([PROXY, family]);
            header.extend((addresses.len() as u16).to_be_bytes());
            header.extend(addresses);
            header
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header_of(version: Version, client: &str, address: &str) -> Vec<u8> {
        header(version, client.parse().unwrap(), address.parse().unwrap())
    }

    #[test]
    fn a_line_of_text() {
        let line = |client, address| String::from_utf8(header_of(Version::V1, client, address)).unwrap();
        assert_eq!(
            line("[::ffff:203.0.113.9]:51000", "[::ffff:192.0.2.1]:25"),
            "PROXY TCP4 203.0.113.9 192.0.2.1 51000 25\r\n"
        );
        assert_eq!(line("[2001:db8::9]:1", "[2001:db8::1]:25"), "PROXY TCP6 2001:db8::9 2001:db8::1 1 25\r\n");
        assert_eq!(line("203.0.113.9:1", "[2001:db8::1]:25"), "PROXY UNKNOWN\r\n");
    }

    #[test]
    fn a_binary_header() {
        let four = header_of(Version::V2, "203.0.113.9:51000", "192.0.2.1:25");
        let expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x09\xc0\0\x02\x01\xc7\x38\0\x19";
        assert_eq!(four, expected);
        let six = header_of(Version::V2, "[2001:db8::9]:1", "[2001:db8::1]:25");
        assert_eq!((six.len(), six[13], six[14..16].to_vec()), (16 + 36, 0x21, vec![0, 36]));
        assert_eq!((six[31], six[47], six[49], six[51]), (9, 1, 1, 25));
    }
}
