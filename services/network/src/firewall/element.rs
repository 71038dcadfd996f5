//! Elements of the firewall's sets, as the kernel has them (`linux/netfilter/nf_tables.h`).

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use model::Transport;

use crate::nfnetlink::{attribute, attributes, find, nested};

// linux/netfilter/nf_tables.h: what an element and an expression consist of
const LIST_ELEM: u16 = 1;
const ELEM_KEY: u16 = 1;
const ELEM_TIMEOUT: u16 = 4;
const ELEM_EXPIRATION: u16 = 5;
const ELEM_USERDATA: u16 = 6;
const ELEM_EXPR: u16 = 7;
const DATA_VALUE: u16 = 1;
const EXPR_DATA: u16 = 2;
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;

/// Bytes of a comment at most (`NFTNL_UDATA_COMMENT_MAXLEN`).
const COMMENT: usize = 128;
/// What is noted of those that were refused: so many, each for so long.
const REFUSED: &str = " flags dynamic, timeout; size 4096; timeout 1h; counter;";

const TCP: u8 = 6;
/// Its number as a protocol.
pub const UDP: u8 = 17;

/// What one element of a set says. Each set has a twin for the other family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// The gateway may show clients' addresses to that port of a VPS.
    Shown(IpAddr, Transport, u16),
    /// The first may connect to the second, by way of the gateway.
    Pair(IpAddr, IpAddr),
    /// To that port: counted.
    Allowed(IpAddr, IpAddr, u16),
    /// A VPS that may not connect to all of the outside may to that address, for a name's sake; for a time.
    Named(IpAddr, IpAddr, Transport, u16),
    /// It tried to, and may not. The kernel's own note.
    Refused(IpAddr, IpAddr, u8, u16),
}

/// What the kernel says of an element besides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// What was counted.
    pub count: Count,
    /// How long it stays; none: until it is taken away.
    pub left: Option<Duration>,
    /// The name for whose sake it is there.
    pub name: Option<String>,
}

/// What was counted: both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// A set without its family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    Shown,
    Pairs,
    Allowed,
    Named,
    Refused,
}

impl Set {
    pub const ALL: [Self; 5] = [Self::Shown, Self::Pairs, Self::Allowed, Self::Named, Self::Refused];
    /// Those that hold what they were told and nothing else.
    pub const KEPT: [Self; 3] = [Self::Shown, Self::Pairs, Self::Allowed];

    /// Its name in the table.
    pub fn name(self, ipv6: bool) -> &'static str {
        match (self, ipv6) {
            (Self::Shown, false) => "shown4",
            (Self::Shown, true) => "shown6",
            (Self::Pairs, false) => "pairs4",
            (Self::Pairs, true) => "pairs6",
            (Self::Allowed, false) => "allowed4",
            (Self::Allowed, true) => "allowed6",
            (Self::Named, false) => "named4",
            (Self::Named, true) => "named6",
            (Self::Refused, false) => "refused4",
            (Self::Refused, true) => "refused6",
        }
    }

    /// How nft declares it.
    pub fn declared(self, ipv6: bool) -> String {
        let address = if ipv6 { "ipv6_addr" } else { "ipv4_addr" };
        let (key, rest) = match self {
            Self::Shown => ("A . inet_proto . inet_service", ""),
            Self::Pairs => ("A . A", ""),
            Self::Allowed => ("A . A . inet_service", " counter;"),
            Self::Named => ("A . A . inet_proto . inet_service", " flags timeout; counter;"),
            Self::Refused => ("A . A . inet_proto . inet_service", REFUSED),
        };
        format!("set {} {{ type {};{rest} }}\n", self.name(ipv6), key.replace('A', address))
    }
}

impl Element {
    /// The set that it is in, and whether IPv6's.
    pub fn set(&self) -> (Set, bool) {
        match self {
            Self::Shown(vps, ..) => (Set::Shown, vps.is_ipv6()),
            Self::Pair(from, _) => (Set::Pairs, from.is_ipv6()),
            Self::Allowed(from, ..) => (Set::Allowed, from.is_ipv6()),
            Self::Named(from, ..) => (Set::Named, from.is_ipv6()),
            Self::Refused(from, ..) => (Set::Refused, from.is_ipv6()),
        }
    }

    /// All that is about who may reach whom.
    pub const NEIGHBOURS: (Self, Self) = {
        let (first, last) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)));
        (Self::Pair(first, first), Self::Allowed(last, last, u16::MAX))
    };

    /// All that is about which ports of a VPS are shown clients' addresses.
    pub fn shown_of(vps: IpAddr) -> (Self, Self) {
        (Self::Shown(vps, Transport::Tcp, 0), Self::Shown(vps, Transport::Udp, u16::MAX))
    }

    /// All that names have opened for a VPS at one of its addresses.
    pub fn named_of(vps: IpAddr) -> (Self, Self) {
        let (first, last) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)));
        (Self::Named(vps, first, Transport::Tcp, 0), Self::Named(vps, last, Transport::Udp, u16::MAX))
    }

    /// As an item of a list of elements.
    pub fn encode(&self) -> Vec<u8> {
        nested(LIST_ELEM, &self.key())
    }

    /// The same, for a time and for a name's sake.
    pub fn encode_for(&self, time: Duration, name: &str) -> Vec<u8> {
        let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let timeout = attribute(ELEM_TIMEOUT, &milliseconds.to_be_bytes());
        // As nft writes comments: of type 0, and with a NUL at the end.
        let length = name.len().min(COMMENT);
        let comment = [&[0, length as u8 + 1], &name.as_bytes()[..length], &[0]].concat();
        nested(LIST_ELEM, &[self.key(), timeout, attribute(ELEM_USERDATA, &comment)].concat())
    }

    fn key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(40);
        match *self {
            Self::Shown(vps, transport, port) => {
                put_address(&mut key, vps);
                put(&mut key, &[protocol(transport)]);
                put(&mut key, &port.to_be_bytes());
            }
            Self::Pair(from, to) => {
                put_address(&mut key, from);
                put_address(&mut key, to);
            }
            Self::Allowed(from, to, port) => {
                put_address(&mut key, from);
                put_address(&mut key, to);
                put(&mut key, &port.to_be_bytes());
            }
            Self::Named(from, to, transport, port) => put_whole(&mut key, from, to, protocol(transport), port),
            Self::Refused(from, to, protocol, port) => put_whole(&mut key, from, to, protocol, port),
        }
        nested(ELEM_KEY, &attribute(DATA_VALUE, &key))
    }

    /// The elements of a set in a list that the kernel gave.
    pub fn decode(list: &[u8], set: Set, ipv6: bool) -> impl Iterator<Item = (Self, About)> {
        attributes(list).filter(|(kind, _)| *kind == LIST_ELEM).filter_map(move |(_, element)| {
            let key = find(find(element, ELEM_KEY)?, DATA_VALUE)?;
            let mut key = Key { bytes: key, ipv6 };
            let element_of = match set {
                Set::Shown => Self::Shown(key.address()?, key.transport()?, key.port()?),
                Set::Pairs => Self::Pair(key.address()?, key.address()?),
                Set::Allowed => Self::Allowed(key.address()?, key.address()?, key.port()?),
                Set::Named => Self::Named(key.address()?, key.address()?, key.transport()?, key.port()?),
                Set::Refused => Self::Refused(key.address()?, key.address()?, key.take::<1>()?[0], key.port()?),
            };
            Some((element_of, about(element)))
        })
    }
}

/// Appends a part of a key that is made of several: each begins at a multiple of four bytes.
fn put(key: &mut Vec<u8>, part: &[u8]) {
    key.extend(part);
    key.resize(key.len().next_multiple_of(4), 0);
}

fn put_address(key: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => key.extend(address.octets()),
        IpAddr::V6(address) => key.extend(address.octets()),
    }
}

fn put_whole(key: &mut Vec<u8>, from: IpAddr, to: IpAddr, protocol: u8, port: u16) {
    put_address(key, from);
    put_address(key, to);
    put(key, &[protocol]);
    put(key, &port.to_be_bytes());
}

fn protocol(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => TCP,
        Transport::Udp => UDP,
    }
}

/// The rest of a key.
struct Key<'a> {
    bytes: &'a [u8],
    ipv6: bool,
}

impl Key<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let part = *self.bytes.first_chunk::<N>()?;
        self.bytes = self.bytes.get(N.next_multiple_of(4)..).unwrap_or_default();
        Some(part)
    }

    fn address(&mut self) -> Option<IpAddr> {
        if self.ipv6 { Some(self.take::<16>()?.into()) } else { Some(self.take::<4>()?.into()) }
    }

    fn transport(&mut self) -> Option<Transport> {
        match self.take::<1>()? {
            [TCP] => Some(Transport::Tcp),
            [UDP] => Some(Transport::Udp),
            _ => None,
        }
    }

    fn port(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }
}

fn about(element: &[u8]) -> About {
    let left = find(element, ELEM_EXPIRATION).and_then(|left| Some(u64::from_be_bytes(*left.first_chunk()?)));
    let name = find(element, ELEM_USERDATA).and_then(|data| {
        let [0, length, text @ ..] = data else { return None };
        let text = text.get(..usize::from(*length))?.split(|byte| *byte == 0).next()?;
        String::from_utf8(text.to_vec()).ok()
    });
    About { count: count(element).unwrap_or_default(), left: left.map(Duration::from_millis), name }
}

fn count(element: &[u8]) -> Option<Count> {
    let data = find(find(element, ELEM_EXPR)?, EXPR_DATA)?;
    let number = |kind| Some(u64::from_be_bytes(*find(data, kind)?.first_chunk()?));
    Some(Count { packets: number(COUNTER_PACKETS)?, bytes: number(COUNTER_BYTES)? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the kernel lists it: with an expression that counts.
    fn listed(element: &Element, packets: u64) -> Vec<u8> {
        let bytes = element.encode();
        let whole = find(&bytes, LIST_ELEM).unwrap();
        let counter = [attribute(COUNTER_BYTES, &[0; 8]), attribute(COUNTER_PACKETS, &packets.to_be_bytes())].concat();
        nested(LIST_ELEM, &[whole, &nested(ELEM_EXPR, &nested(EXPR_DATA, &counter))].concat())
    }

    #[test]
    fn elements_are_read_back_as_they_were_written() {
        let (v4, v6) = (IpAddr::from([10, 80, 0, 16]), IpAddr::from([0xfd80, 0xba11, 0, 0, 0, 0, 0xa50, 0x10]));
        for ip in [v4, v6] {
            for element in
                [Element::Shown(ip, Transport::Udp, 53), Element::Pair(ip, ip), Element::Allowed(ip, ip, 5432)]
            {
                let (set, ipv6) = element.set();
                let read: Vec<_> = Element::decode(&listed(&element, 7), set, ipv6).collect();
                let about = About { count: Count { packets: 7, bytes: 0 }, ..About::default() };
                assert_eq!(read, [(element, about)]);
            }
        }
        let named = Element::Named(v4, v4, Transport::Tcp, 443);
        let bytes = named.encode_for(Duration::from_secs(60), "a.example");
        let read: Vec<_> = Element::decode(&bytes, Set::Named, false).collect();
        assert_eq!(read, [(named, About { name: Some("a.example".to_owned()), ..About::default() })]);
        let (first, last) = Element::NEIGHBOURS;
        assert!(
            first <= Element::Pair(v4, v4)
                && Element::Allowed(v6, v6, 1) <= last
                && Element::Shown(v6, Transport::Udp, 1) < first
        );
    }

    proptest! {
        #[test]
        fn no_list_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..60, to in any::<u8>()) {
            let mut whole = listed(&Element::Shown([10, 80, 0, 16].into(), Transport::Tcp, 80), 1);
            let at = at % whole.len();
            whole[at] = to;
            for set in Set::ALL {
                for list in [&bytes, &whole] {
                    let _ = Element::decode(list, set, false).count() + Element::decode(list, set, true).count();
                }
            }
        }
    }
}
