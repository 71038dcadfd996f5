//! Step 3: the veth pair between a VPS and the network VPS.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use model::run::Link;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage},
};
use rustix::{
    fs::{Mode, OFlags, open},
    thread::LinkNameSpaceType,
};
use sys::{namespace::enter, netlink::Netlink};

use super::HostError;

/// Makes links; a netlink socket in the network VPS's namespace.
#[derive(Debug)]
pub struct Linker {
    netlink: Netlink,
}

/// Runs something in a network namespace. The calling thread is there for a moment.
pub fn within<T>(namespace: BorrowedFd<'_>, run: impl FnOnce() -> T) -> io::Result<T> {
    let own = open("/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    enter(namespace, LinkNameSpaceType::Network)?;
    let done = run();
    // A daemon in the wrong network namespace would bind tenants' sockets there.
    enter(own.as_fd(), LinkNameSpaceType::Network).unwrap_or_else(|_| std::process::abort());
    Ok(done)
}

impl Linker {
    /// Opens a socket in `outer`, the network VPS's network namespace.
    pub fn new(outer: BorrowedFd<'_>) -> Result<Self, HostError> {
        let netlink = within(outer, Netlink::open).and_then(|opened| opened);
        let fault = |source| HostError::Link { name: "in the network namespace".to_owned(), source };
        Ok(Self { netlink: netlink.map_err(fault)? })
    }

    /// Makes the pair: `eth0` in `inner`, `link.name` in the network VPS's namespace, both down. A pair of that name that a
    /// run before left behind (the kernel removes namespaces late) goes under another name.
    pub fn create(&mut self, link: &Link, inner: BorrowedFd<'_>) -> Result<(), HostError> {
        self.create_pair(&link.name, "eth0", inner)
    }

    /// Makes the pair: `outer` in the network VPS's namespace, `inner` in `namespace`, as `create` does.
    pub fn create_pair(&mut self, outer: &str, inner: &str, namespace: BorrowedFd<'_>) -> Result<(), HostError> {
        let made = match self.try_create(outer, inner, namespace) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.set_aside(outer).map_err(|source| HostError::Link { name: outer.to_owned(), source })?;
                self.try_create(outer, inner, namespace)
            }
            made => made,
        };
        made.map_err(|source| HostError::Link { name: outer.to_owned(), source })
    }

    fn try_create(&mut self, outer: &str, inner: &str, namespace: BorrowedFd<'_>) -> io::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(inner.to_owned()),
            LinkAttribute::Address(Link::INNER_MAC.to_vec()),
            LinkAttribute::NetNsFd(namespace.as_raw_fd()),
            LinkAttribute::NumTxQueues(1),
            LinkAttribute::NumRxQueues(1),
        ];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(outer.to_owned()),
            LinkAttribute::Address(Link::OUTER_MAC.to_vec()),
            // What veth has anyway; said, the kernel need not wait until nobody uses the others.
            LinkAttribute::NumTxQueues(1),
            LinkAttribute::NumRxQueues(1),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.netlink.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Renames a link. To remove it would take the kernel tens of milliseconds, in which this thread serves nobody.
    fn set_aside(&mut self, name: &str) -> io::Result<()> {
        match self.rename(name) {
            // The kernel was faster.
            Err(error) if no_device(&error) => Ok(()),
            done => done,
        }
    }

    fn rename(&mut self, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        for answer in self.netlink.request(RouteNetlinkMessage::GetLink(message), 0)? {
            let RouteNetlinkMessage::NewLink(found) = answer else { continue };
            let mut message = LinkMessage::default();
            message.header.index = found.header.index;
            message.attributes = vec![LinkAttribute::IfName(format!("gone{}", found.header.index))];
            self.netlink.request(RouteNetlinkMessage::SetLink(message), 0)?;
        }
        Ok(())
    }

    /// Removes the pair whose outer end has this name, if there is one.
    pub fn delete(&mut self, name: &str) -> Result<(), HostError> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.netlink.request(RouteNetlinkMessage::DelLink(message), 0) {
            Err(error) if !no_device(&error) => Err(HostError::Link { name: name.to_owned(), source: error }),
            _ => Ok(()),
        }
    }
}

fn no_device(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}
