//! Clients a VPS should not be woken for.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Bytes of a pattern at most.
const PATTERN: usize = 64;
/// Bytes of a `User-Agent` that are looked at, so that a long one costs no more than its head.
const LOOKED_AT: usize = 1024;

/// Clients that are answered while a VPS is up, and neither wake it nor keep it awake.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Ignore {
    /// By what they call themselves (HTTP routes only).
    #[serde(default)]
    pub user_agent: Vec<Pattern>,
    /// By their address.
    #[serde(default)]
    pub from: Vec<IpNet>,
}

impl Ignore {
    /// Whether it names nobody.
    pub fn is_empty(&self) -> bool {
        self.user_agent.is_empty() && self.from.is_empty()
    }

    /// Whether it names the client at `address`.
    pub fn address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.from.iter().any(|network| network.contains(&address))
    }

    /// Whether it names a client that sends this `User-Agent`; nothing where it sends none.
    pub fn user_agent(&self, sent: &[u8]) -> bool {
        let sent = &sent[..sent.len().min(LOOKED_AT)];
        self.user_agent.iter().any(|pattern| pattern.covers(sent))
    }
}

/// A text in which `*` stands for any characters; letters count without their case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(Box<str>);

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a pattern: 1 to {PATTERN} visible ASCII characters, `*` for any, such as \"*bot*\"")]
pub struct PatternError(String);

impl Pattern {
    /// Whether it covers the whole of `text`. Takes at most as many steps as both lengths multiplied.
    pub fn covers(&self, text: &[u8]) -> bool {
        let pattern = self.0.as_bytes();
        let (mut at, mut read) = (0, 0);
        // The last star, and where in `text` it was tried to end.
        let mut star: Option<(usize, usize)> = None;
        while read < text.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at, read));
                    at += 1;
                }
                Some(byte) if byte.eq_ignore_ascii_case(&text[read]) => {
                    at += 1;
                    read += 1;
                }
                _ => {
                    let Some((place, end)) = star else { return false };
                    star = Some((place, end + 1));
                    (at, read) = (place + 1, end + 1);
                }
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let legal = |b: u8| b.is_ascii_graphic() || b == b' ';
        if (1..=PATTERN).contains(&text.len()) && text.bytes().all(legal) {
            return Ok(Self(text.into()));
        }
        Err(PatternError(text.chars().take(80).collect()))
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;
    fn try_from(text: String) -> Result<Self, PatternError> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        pattern.0.into()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A network, `203.0.113.0/24`, or one address.
pub(crate) fn parse_network(text: &str) -> Result<IpNet, String> {
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text
            .parse::<IpNet>()
            .map_err(|_| format!("`{text}` is not a network or address, such as \"203.0.113.0/24\""))?,
    };
    if let IpNet::V6(inner) = network
        && inner.addr().to_ipv4_mapped().is_some()
    {
        return Err(format!("`{text}` is an IPv4 address in IPv6 form: write it as IPv4"));
    }
    if network.trunc() != network {
        return Err(format!("`{text}` is an address within a network: write \"{}\"", network.trunc()));
    }
    Ok(network)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn covers(pattern: &str, text: &str) -> bool {
        pattern.parse::<Pattern>().unwrap().covers(text.as_bytes())
    }

    #[test]
    fn stars_stand_for_anything() {
        assert!(covers("*bot*", "Mozilla/5.0 (compatible; Googlebot/2.1)"));
        assert!(covers("*BOT*", "a bot"));
        assert!(covers("curl/*", "curl/8.5.0") && !covers("curl/*", "libcurl/8"));
        assert!(covers("*", "") && !covers("a", "") && covers("a**", "a"));
        assert!(covers("*a*b", "xaxbxaab") && !covers("*a*b", "xaxbx"));
    }

    #[test]
    fn a_pattern_is_short_and_visible() {
        for text in ["", "ä", "a\u{7f}", &"a".repeat(65)] {
            assert!(text.parse::<Pattern>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn networks_are_written_exactly() {
        assert_eq!(parse_network("203.0.113.9").unwrap().to_string(), "203.0.113.9/32");
        assert!(parse_network("203.0.113.9/24").unwrap_err().ends_with("write \"203.0.113.0/24\""));
        assert!(parse_network("::ffff:1.2.3.4/128").is_err() && parse_network("a").is_err());
        let ignore = Ignore { user_agent: Vec::new(), from: vec!["203.0.113.0/24".parse().unwrap()] };
        assert!(ignore.address("::ffff:203.0.113.9".parse().unwrap()));
        assert!(!ignore.address("203.0.114.9".parse().unwrap()));
    }

    /// By trying every length for each star.
    fn simple(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|n| simple(rest, &text[n..])),
            Some((byte, rest)) => text.first().is_some_and(|b| b == byte) && simple(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn patterns_mean_what_they_say(pattern in "[ab*]{1,8}", text in "[ab]{0,10}") {
            prop_assert_eq!(covers(&pattern, &text), simple(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn no_client_makes_it_slow(sent in proptest::collection::vec(any::<u8>(), 0..4000)) {
            let hard = Ignore { user_agent: vec![format!("{}b", "*a".repeat(31)).parse().unwrap(); 32], from: vec![] };
            hard.user_agent(&sent);
        }
    }
}
