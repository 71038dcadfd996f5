//! What names open: read out of queries and answers.

use std::{net::IpAddr, time::Duration};

use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE, rdata::RData};

use crate::egress::Again;

/// The name that a query asks for, in lower case.
pub fn asked(query: &[u8]) -> Option<String> {
    let packet = Packet::parse(query).ok()?;
    let [question] = &packet.questions[..] else { return None };
    Some(question.qname.to_string().to_ascii_lowercase())
}

/// The addresses in an answer, and how long each is the name's.
pub fn addresses(answer: &[u8]) -> Vec<(IpAddr, Duration)> {
    let Ok(packet) = Packet::parse(answer) else { return Vec::new() };
    let address = |data: &RData<'_>| match data {
        RData::A(a) => Some(IpAddr::V4(a.address.into())),
        RData::AAAA(a) => Some(IpAddr::V6(a.address.into())),
        _ => None,
    };
    let all = packet.answers.iter();
    all.filter_map(|record| Some((address(&record.rdata)?, Duration::from_secs(record.ttl.into())))).collect()
}

/// A query for a name's addresses.
pub fn query(name: &str, ipv6: bool) -> Option<Vec<u8>> {
    let mut packet = Packet::new_query(0);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let kind = if ipv6 { TYPE::AAAA } else { TYPE::A };
    packet.questions.push(Question::new(Name::new(name).ok()?, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
    packet.build_bytes_vec().ok()
}

/// What an answer to that says.
pub fn again(answer: &[u8]) -> Again {
    let Ok(packet) = Packet::parse(answer) else { return Again::Unknown };
    match (packet.rcode(), addresses(answer)) {
        (RCODE::NameError, _) => Again::Gone,
        (RCODE::NoError, found) if found.is_empty() && packet.has_flags(PacketFlag::TRUNCATION) => Again::Unknown,
        (RCODE::NoError, found) if found.is_empty() => Again::Gone,
        (RCODE::NoError, found) => Again::Has(found),
        _ => Again::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::{ResourceRecord, rdata::A};

    use super::*;

    #[test]
    fn an_answer_says_what_is_open_or_that_the_name_is_gone() {
        let query = query("Deb.example.org", false).unwrap();
        assert_eq!(asked(&query).as_deref(), Some("deb.example.org"));
        let mut reply = Packet::parse(&query).unwrap().into_reply();
        assert!(matches!(again(&reply.build_bytes_vec().unwrap()), Again::Gone));
        let data = RData::A(A { address: 0xc000_0207 });
        reply.answers.push(ResourceRecord::new(Name::new_unchecked("deb.example.org"), CLASS::IN, 60, data));
        let bytes = reply.build_bytes_vec().unwrap();
        assert_eq!(addresses(&bytes), [("192.0.2.7".parse().unwrap(), Duration::from_secs(60))]);
        assert!(matches!(again(&bytes), Again::Has(found) if found.len() == 1));
        *reply.rcode_mut() = RCODE::ServerFailure;
        assert!(matches!(again(&reply.build_bytes_vec().unwrap()), Again::Unknown));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (asked(&bytes), addresses(&bytes), again(&bytes));
        }
    }
}
