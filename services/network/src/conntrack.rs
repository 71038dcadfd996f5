//! The kernel's table of connections that it has led straight to VPSs, and how long each has been silent: it counts down from
//! a time per state whenever a packet passes (ctnetlink, `linux/netfilter/nfnetlink_conntrack.h`;
//! <https://docs.kernel.org/networking/nf_conntrack-sysctl.html>).

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use rustix::{io::Errno, net::AddressFamily};

use crate::nfnetlink::{ACK, DUMP, Kind, REQUEST, Socket, find, message, nested, number};

// linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h: subsystem 1
const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOINFO: u16 = 4;
const TIMEOUT: u16 = 7;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_SRC: u16 = 1;
const IP_V6_SRC: u16 = 3;
const PROTO_NUM: u16 = 1;
const PROTOINFO_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
/// The destination was translated (`IPS_DST_NAT`).
const DST_NAT: u32 = 1 << 5;

const TCP: u8 = 6;
/// Both ends have closed it (`enum tcp_conntrack`).
const TIME_WAIT: u8 = 7;
/// One end has reset it.
const CLOSE: u8 = 8;

/// A connection that is led straight to a VPS; of UDP: a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// The VPS's address.
    pub server: IpAddr,
    /// How long ago it ended; none: it goes on.
    pub ended: Option<Duration>,
    /// Its original direction, as the kernel says it.
    original: Vec<u8>,
}

/// How long the kernel remembers TCP connections that have ended.
#[derive(Debug, Clone, Copy)]
struct Remembered {
    time_wait: Duration,
    close: Duration,
}

impl Remembered {
    fn read() -> io::Result<Self> {
        let seconds = |name: &str| -> io::Result<Duration> {
            let text = fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_{name}"))?;
            Ok(Duration::from_secs(text.trim().parse().map_err(io::Error::other)?))
        };
        Ok(Self { time_wait: seconds("time_wait")?, close: seconds("close")? })
    }
}

/// All connections of this network namespace that are led straight to VPSs. Takes as long as there are connections of any
/// kind: about a millisecond for a thousand.
pub fn flows() -> io::Result<Vec<Flow>> {
    let remembered = Remembered::read()?;
    let socket = Socket::open()?;
    socket.send(&message(kind(GET, REQUEST | DUMP, AddressFamily::UNSPEC), &[]))?;
    let mut flows = Vec::new();
    socket.answers(|body| flows.extend(read(body, remembered)))?;
    Ok(flows)
}

/// Has the kernel forget connections: what comes of them next is looked at as if it were the first.
pub fn forget(flows: &[Flow]) -> io::Result<()> {
    let socket = Socket::open()?;
    for flow in flows {
        let family = if flow.server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        socket.send(&message(kind(DELETE, REQUEST | ACK, family), &nested(TUPLE_ORIG, &flow.original)))?;
        match socket.answers(|_| {}) {
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
            done => done?,
        }
    }
    Ok(())
}

fn kind(kind: u16, flags: u16, family: AddressFamily) -> Kind {
    Kind { kind, flags, family, resource: 0, sequence: 0 }
}

/// One connection, if its destination was translated.
fn read(body: &[u8], remembered: Remembered) -> Option<Flow> {
    if number(find(body, STATUS)?)? & DST_NAT == 0 {
        return None;
    }
    let reply = find(find(body, TUPLE_REPLY)?, TUPLE_IP)?;
    let server = match (find(reply, IP_V4_SRC), find(reply, IP_V6_SRC)) {
        (Some(v4), _) => Ipv4Addr::from(*v4.first_chunk::<4>()?).into(),
        (_, Some(v6)) => Ipv6Addr::from(*v6.first_chunk::<16>()?).into(),
        _ => return None,
    };
    let original = find(body, TUPLE_ORIG)?;
    let protocol = *find(find(original, TUPLE_PROTO)?, PROTO_NUM)?.first()?;
    let left = Duration::from_secs(find(body, TIMEOUT).and_then(number).unwrap_or(0).into());
    let state = find(body, PROTOINFO).and_then(|info| find(info, PROTOINFO_TCP)).and_then(|tcp| find(tcp, TCP_STATE));
    let ended = match (protocol, state.and_then(<[u8]>::first)) {
        (TCP, Some(&TIME_WAIT)) => Some(remembered.time_wait.saturating_sub(left)),
        (TCP, Some(&CLOSE)) => Some(remembered.close.saturating_sub(left)),
        _ => None,
    };
    Some(Flow { server, ended, original: original.to_vec() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nfnetlink::attribute;

    const REMEMBERED: Remembered = Remembered { time_wait: Duration::from_secs(120), close: Duration::from_secs(10) };

    fn entry(status: u32, state: u8, left: u32) -> Vec<u8> {
        let tuple = |source: [u8; 4]| {
            let ip = attribute(IP_V4_SRC, &source);
            [nested(TUPLE_IP, &ip), nested(TUPLE_PROTO, &attribute(PROTO_NUM, &[TCP]))].concat()
        };
        let tcp = nested(PROTOINFO_TCP, &attribute(TCP_STATE, &[state]));
        [
            nested(TUPLE_ORIG, &tuple([192, 0, 2, 9])),
            nested(TUPLE_REPLY, &tuple([10, 80, 0, 16])),
            attribute(STATUS, &status.to_be_bytes()),
            attribute(TIMEOUT, &left.to_be_bytes()),
            nested(PROTOINFO, &tcp),
        ]
        .concat()
    }

    #[test]
    fn a_connection_is_read_with_the_time_since_its_end() {
        let server = IpAddr::from([10, 80, 0, 16]);
        let flow = |status, state, left| read(&entry(status, state, left), REMEMBERED);
        let ended = |flow: Option<Flow>| flow.map(|flow| (flow.server, flow.ended));
        assert_eq!(ended(flow(DST_NAT, 3, 432_000)), Some((server, None)));
        assert_eq!(ended(flow(DST_NAT, TIME_WAIT, 100)), Some((server, Some(Duration::from_secs(20)))));
        assert_eq!(ended(flow(DST_NAT, CLOSE, 9)), Some((server, Some(Duration::from_secs(1)))));
        assert_eq!(ended(flow(0, 3, 432_000)), None, "it was not led anywhere");
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..100, to in any::<u8>()) {
            let _ = read(&bytes, REMEMBERED);
            let mut whole = entry(DST_NAT, 3, 7);
            let at = at % whole.len();
            whole[at] = to;
            let _ = read(&whole, REMEMBERED);
        }
    }
}
