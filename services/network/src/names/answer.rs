//! What is answered to a query, as bytes in and bytes out. Whoever asks is hostile.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use model::{VpsName, run::Link};
use simple_dns::{
    CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord, SimpleDnsError, TYPE,
    rdata::{A, AAAA, PTR, RData},
};

/// Seconds an answer may be remembered: an address is a VPS's as long as it exists.
const TTL: u32 = 30;
/// Bytes of a query's head (RFC 1035, 4.1.1).
const HEAD: usize = 12;
/// VPSs' names end in this.
const DOMAIN: &str = "vps.internal";

/// What becomes of a query.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// These bytes.
    Reply(Vec<u8>),
    /// It is about the outside.
    Forward,
    /// No query at all.
    Nothing,
}

/// Where VPSs are.
#[derive(Debug, Clone, Copy)]
pub struct Subnets(pub Ipv4Net, pub Ipv6Net);

/// The answer to a `query` of who finds `names`.
pub fn answer(names: &HashMap<VpsName, Link>, subnets: Subnets, query: &[u8]) -> Answer {
    if query.len() < HEAD || query[2] & 0x80 != 0 {
        return Answer::Nothing;
    }
    let packet = match Packet::parse(query) {
        Ok(packet) => packet,
        Err(SimpleDnsError::InvalidQType(_)) => return Answer::Reply(refuse(query, RCODE::NotImplemented)),
        Err(_) => return Answer::Reply(refuse(query, RCODE::FormatError)),
    };
    if packet.opcode() != OPCODE::StandardQuery {
        return Answer::Reply(refuse(query, RCODE::NotImplemented));
    }
    let [question] = &packet.questions[..] else { return Answer::Reply(refuse(query, RCODE::FormatError)) };
    if question.qclass != QCLASS::CLASS(CLASS::IN) {
        return Answer::Forward;
    }
    let found = match About::of(&question.qname, subnets) {
        About::Outside => return Answer::Forward,
        About::Domain => Some(Vec::new()),
        About::Vps(name) => name.parse::<VpsName>().ok().and_then(|name| names.get(&name)).map(|link| {
            let [v4, v6] =
                [RData::A(A { address: link.address.into() }), RData::AAAA(AAAA { address: link.address6.into() })];
            let asked = |record: &RData<'static>| matches(question.qtype, record);
            [v4, v6].into_iter().filter(asked).collect()
        }),
        About::Address(address) => name_of(names, address).map(|name| match question.qtype {
            QTYPE::TYPE(TYPE::PTR) | QTYPE::ANY => {
                Name::new(&name).map(|name| RData::PTR(PTR(name.into_owned()))).into_iter().collect()
            }
            _ => Vec::new(),
        }),
    };
    Answer::Reply(reply(&packet, question, found).unwrap_or_else(|_| refuse(query, RCODE::ServerFailure)))
}

fn matches(asked: QTYPE, record: &RData<'_>) -> bool {
    asked == QTYPE::ANY || asked == QTYPE::TYPE(record.type_code())
}

/// What a name is about.
enum About {
    /// A VPS of this name.
    Vps(String),
    /// `vps.internal` itself.
    Domain,
    /// The address of a VPS.
    Address(IpAddr),
    /// Anything else.
    Outside,
}

impl About {
    fn of(name: &Name<'_>, Subnets(subnet, subnet6): Subnets) -> Self {
        let text = name.to_string().to_ascii_lowercase();
        if text == DOMAIN {
            return Self::Domain;
        }
        if let Some(vps) = text.strip_suffix(DOMAIN).and_then(|rest| rest.strip_suffix('.')) {
            return Self::Vps(vps.to_owned());
        }
        // Nobody outside has names of one word.
        if !text.is_empty() && !text.contains('.') {
            return Self::Vps(text);
        }
        match reverse(&text) {
            Some(IpAddr::V4(address)) if subnet.contains(&address) => Self::Address(address.into()),
            Some(IpAddr::V6(address)) if subnet6.contains(&address) => Self::Address(address.into()),
            _ => Self::Outside,
        }
    }
}

/// The address that a name in `in-addr.arpa` or `ip6.arpa` is about.
fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(octets) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<u8> = octets.rsplit('.').map(|octet| octet.parse().ok()).collect::<Option<_>>()?;
        return Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into());
    }
    let digits: String = name.strip_suffix(".ip6.arpa")?.rsplit('.').collect();
    let whole = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    whole.then(|| u128::from_str_radix(&digits, 16).ok()).flatten().map(|bits| Ipv6Addr::from(bits).into())
}

fn name_of(names: &HashMap<VpsName, Link>, address: IpAddr) -> Option<String> {
    let has = |link: &Link| IpAddr::from(link.address) == address || IpAddr::from(link.address6) == address;
    names.iter().find(|(_, link)| has(link)).map(|(name, _)| format!("{name}.{DOMAIN}"))
}

fn reply(packet: &Packet<'_>, question: &Question<'_>, found: Option<Vec<RData<'_>>>) -> simple_dns::Result<Vec<u8>> {
    let mut reply = Packet::new_reply(packet.id());
    reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RECURSION_AVAILABLE);
    if packet.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    if found.is_none() {
        *reply.rcode_mut() = RCODE::NameError;
    }
    reply.questions.push(question.clone());
    for data in found.into_iter().flatten() {
        reply.answers.push(ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data));
    }
    reply.build_bytes_vec_compressed()
}

/// A refusal of `query`, of which only the head is believed.
pub fn refuse(query: &[u8], code: RCODE) -> Vec<u8> {
    let mut head = [0; HEAD];
    head[..2].copy_from_slice(&query[..2]);
    // The opcode and whether recursion is desired come back as they were; recursion is available.
    head[2] = 0x80 | (query[2] & 0x79);
    head[3] = 0x80 | (code as u8 & 0x0f);
    head.to_vec()
}

/// The answer that there is no such name.
pub fn unknown(query: &[u8]) -> Vec<u8> {
    let told = Packet::parse(query).ok().and_then(|packet| reply(&packet, packet.questions.first()?, None).ok());
    told.unwrap_or_else(|| refuse(query, RCODE::FormatError))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names() -> HashMap<VpsName, Link> {
        let link = Link::new("10.80.0.17".parse().unwrap(), "fd00::a50:11".parse().unwrap());
        [("db".parse().unwrap(), link)].into()
    }

    fn subnets() -> Subnets {
        Subnets("10.80.0.0/16".parse().unwrap(), "fd00::/96".parse().unwrap())
    }

    fn query(name: &str, asked: TYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(7);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = Name::new_unchecked(name);
        packet.questions.push(Question::new(name, QTYPE::TYPE(asked), QCLASS::CLASS(CLASS::IN), false));
        packet.build_bytes_vec().unwrap()
    }

    /// The code of the answer, and what it holds; none: it is forwarded.
    fn ask(name: &str, asked: TYPE) -> Option<(RCODE, Vec<String>)> {
        match answer(&names(), subnets(), &query(name, asked)) {
            Answer::Reply(bytes) => {
                let packet = Packet::parse(&bytes).unwrap();
                assert_eq!((packet.id(), packet.questions.len()), (7, 1));
                assert_eq!(packet.questions[0].qname.to_string(), name, "the name comes back as it was written");
                let shown = packet.answers.iter().map(|record| match &record.rdata {
                    RData::A(a) => Ipv4Addr::from(a.address).to_string(),
                    RData::AAAA(a) => Ipv6Addr::from(a.address).to_string(),
                    RData::PTR(ptr) => ptr.to_string(),
                    other => panic!("{other:?}"),
                });
                Some((packet.rcode(), shown.collect()))
            }
            Answer::Forward => None,
            Answer::Nothing => panic!("no answer to {name}"),
        }
    }

    #[test]
    fn a_tenants_names_are_answered_and_no_others_are_asked_outside() {
        let found = |text: &str| Some((RCODE::NoError, vec![text.to_owned()]));
        assert_eq!(ask("db.vps.internal", TYPE::A), found("10.80.0.17"));
        assert_eq!(ask("dB.VPS.internal", TYPE::A), found("10.80.0.17"));
        assert_eq!(ask("db.vps.internal", TYPE::AAAA), found("fd00::a50:11"));
        assert_eq!(ask("db", TYPE::A), found("10.80.0.17"));
        assert_eq!(ask("db.vps.internal", TYPE::MX), Some((RCODE::NoError, vec![])));
        assert_eq!(ask("vps.internal", TYPE::NS), Some((RCODE::NoError, vec![])));
        for unknown in ["other.vps.internal", "a.db.vps.internal", "other"] {
            assert_eq!(ask(unknown, TYPE::A), Some((RCODE::NameError, vec![])), "{unknown}");
        }
        assert_eq!(ask("17.0.80.10.in-addr.arpa", TYPE::PTR), found("db.vps.internal"));
        assert_eq!(ask("3.0.80.10.in-addr.arpa", TYPE::PTR), Some((RCODE::NameError, vec![])));
        let reversed = "1.1.0.0.0.5.a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(ask(reversed, TYPE::PTR), found("db.vps.internal"));
        for outside in ["example.org", "8.8.8.8.in-addr.arpa", "vps.internal.example.org", "xvps.internal"] {
            assert_eq!(ask(outside, TYPE::A), None, "{outside}");
        }
    }

    #[test]
    fn what_is_no_query_is_refused_or_dropped() {
        let good = query("db.vps.internal", TYPE::A);
        let said = |bytes: &[u8]| match answer(&names(), subnets(), bytes) {
            Answer::Reply(reply) => Some(reply[3] & 0x0f),
            _ => None,
        };
        assert_eq!(said(&good), Some(0));
        assert_eq!(said(&good[..good.len() - 3]), Some(1), "cut short");
        let response: Vec<u8> = good.iter().enumerate().map(|(at, b)| if at == 2 { b | 0x80 } else { *b }).collect();
        assert_eq!((said(&response), said(&good[..11])), (None, None));
        let notify: Vec<u8> = good.iter().enumerate().map(|(at, b)| if at == 2 { b | 0x20 } else { *b }).collect();
        assert_eq!(said(&notify), Some(4));
        let twice: Vec<u8> = good.iter().enumerate().map(|(at, b)| if at == 5 { 2 } else { *b }).collect();
        assert_eq!(said(&[&twice[..], &good[12..]].concat()), Some(1));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_talk_long(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Answer::Reply(reply) = answer(&names(), subnets(), &bytes) {
                prop_assert!(reply.len() <= bytes.len() + 64);
                prop_assert_eq!(&reply[..2], &bytes[..2]);
            }
        }

        #[test]
        fn nor_do_queries_with_something_wrong(at in 0usize..40, byte in any::<u8>(), more in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut bytes = query("db.vps.internal", TYPE::A);
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.extend(more);
            if let Answer::Reply(reply) = answer(&names(), subnets(), &bytes) {
                prop_assert!(reply.len() <= bytes.len() + 64);
            }
        }
    }
}
