//! Messages of netfilter's netlink subsystems (`linux/netlink.h`, `linux/netfilter/nfnetlink.h`), as `conntrack` and `firewall` need
//! them.

use std::{io, os::fd::OwnedFd, time::Duration};

use rtnetlink::packet_core::{NetlinkBuffer, NlaBuffer, NlasIterator};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recv, send, socket_with, sockopt,
};

/// Bytes of one answer at most.
const ANSWER: usize = 64 << 10;
/// Bytes of answers that may wait.
const QUEUE: usize = 4 << 20;
/// Bytes that one transaction should be able to have; the kernel cuts it down to what is allowed (`net.core.wmem_max`).
const SEND: usize = 4 << 20;
/// How long the kernel may take for an answer.
const LIMIT: Duration = Duration::from_secs(10);

pub const REQUEST: u16 = 1;
pub const ACK: u16 = 4;
pub const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
const GENERIC: usize = 4;
const NESTED: u16 = 1 << 15;

/// What a request is.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// The subsystem (upper byte) and what is asked of it.
    pub kind: u16,
    pub flags: u16,
    pub family: AddressFamily,
    /// A batch's subsystem, in its first and last message.
    pub resource: u16,
    pub sequence: u32,
}

/// One message.
pub fn message(Kind { kind, flags, family, resource, sequence }: Kind, body: &[u8]) -> Vec<u8> {
    let length = (HEADER + GENERIC + body.len()) as u32;
    let mut bytes = Vec::with_capacity(length as usize);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // The port: the kernel knows it.
    bytes.extend([0; 4]);
    // A family has one byte here; then the version.
    bytes.extend([family.as_raw() as u8, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// An attribute; its value has to be shorter than 64 KiB.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + value.len().next_multiple_of(4));
    bytes.extend((4 + value.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute that has attributes.
pub fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, value)
}

/// The attributes in `bytes`, as far as they are whole: kinds and values.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let whole = NlasIterator::new(bytes).map_while(Result::ok);
    whole.filter_map(|attribute: NlaBuffer<&[u8]>| {
        let kind = attribute.kind();
        let whole = attribute.into_inner();
        let length = NlaBuffer::new(whole).value_length();
        Some((kind, whole.get(4..4 + length)?))
    })
}

/// The attribute of that kind.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(other, _)| *other == kind).map(|(_, value)| value)
}

pub fn number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.first_chunk()?))
}

/// One request to the kernel, and its answers.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    pub fn open() -> io::Result<Self> {
        let protocol = Some(netlink::NETFILTER);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
        sockopt::set_socket_recv_buffer_size(&socket, QUEUE)?;
        sockopt::set_socket_send_buffer_size(&socket, SEND)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(LIMIT))?;
        Ok(Self(socket))
    }

    /// Bytes of one transaction at most.
    pub fn most(&self) -> io::Result<usize> {
        // What a message takes besides counts too.
        Ok(sockopt::socket_send_buffer_size(&self.0)? - 4096)
    }

    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        send(&self.0, bytes, SendFlags::empty())?;
        Ok(())
    }

    /// Takes the bodies of all answers to one request that has no batch.
    pub fn answers(&self, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        self.each(|answer| match answer {
            Answer::End(0) => Some(Ok(())),
            Answer::End(code) => Some(Err(io::Error::from_raw_os_error(-code))),
            Answer::Body(body) => {
                take(body);
                None
            }
            Answer::Said(..) => None,
        })
    }

    /// Waits until the message of that sequence number, a batch's last one that counts, was carried out or refused: the first
    /// refusal, and of which message. `first` is that of the batch's beginning, which stands for all of it.
    pub fn carried_out(&self, first: u32, last: u32) -> io::Result<Result<(), (u32, io::Error)>> {
        let mut refused = None;
        self.each(|answer| {
            let Answer::Said(sequence, code) = answer else { return None };
            if code != 0 {
                refused.get_or_insert((sequence, io::Error::from_raw_os_error(-code)));
            }
            (sequence == last || sequence == first).then_some(Ok(()))
        })?;
        Ok(refused.map_or(Ok(()), Err))
    }

    fn each(&self, mut take: impl FnMut(Answer<'_>) -> Option<io::Result<()>>) -> io::Result<()> {
        let illegal = |error: rtnetlink::packet_core::DecodeError| io::Error::new(io::ErrorKind::InvalidData, error);
        let mut buffer = vec![0; ANSWER];
        loop {
            let (n, _) = recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty())?;
            let mut rest = &buffer[..n];
            while !rest.is_empty() {
                let answer = NetlinkBuffer::new_checked(rest).map_err(illegal)?;
                let code = || answer.payload().first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                let ended = match answer.message_type() {
                    DONE => take(Answer::End(0)),
                    ERROR => {
                        let ended = take(Answer::Said(answer.sequence_number(), code()));
                        if ended.is_some() { ended } else { take(Answer::End(code())) }
                    }
                    _ => take(Answer::Body(answer.payload().get(GENERIC..).unwrap_or_default())),
                };
                if let Some(ended) = ended {
                    return ended;
                }
                rest = rest.get((answer.length() as usize).next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

enum Answer<'a> {
    /// Without the generic header.
    Body(&'a [u8]),
    /// What became of the message with that sequence number: 0, or a negative error.
    Said(u32, i32),
    /// The last one.
    End(i32),
}
