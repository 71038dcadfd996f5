//! `io.bailiwick.Network`: what `control` asks of the network service.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use model::{Egress, ListenAddress, TenantName, VpsName, api::FirewallRow, run::Link};
use serde::{Deserialize, Serialize};

use crate::{method, varlink::Empty};

method! {
    /// A VPS's addresses: the ones it has, or new ones, kept until `Release`.
    Allocate {
        /// Which.
        name: VpsName,
        /// An address from `Reserve` that it gets if it has none; when that is not reserved any more, it gets another one.
        #[serde(default)]
        reserved: Option<Ipv4Addr>,
        /// Else the one that it gets if it has none: when it is of the subnet and nobody's.
        #[serde(default)]
        wanted: Option<Ipv4Addr>,
    } = "io.bailiwick.Network.Allocate" -> Allocated
}
method! {
    /// Addresses that are nobody's yet, for a spare. They are nobody else's until `Allocate` or `Unreserve` names them, or
    /// this service ends.
    Reserve {} = "io.bailiwick.Network.Reserve" -> Allocated
}
method! {
    /// Gives reserved addresses back.
    Unreserve {
        /// Which; none: all.
        address: Option<Ipv4Addr>,
    } = "io.bailiwick.Network.Unreserve" -> Empty
}
method! {
    /// Gives a VPS's addresses back.
    Release {
        /// Which.
        name: VpsName,
    } = "io.bailiwick.Network.Release" -> Empty
}
method! {
    /// Answers when the link is there, addressed and routed; waits for it to appear.
    Attach {
        /// The outer end's name.
        link: String,
        /// Ports inside whose connections come from clients' own addresses: answers from them go to the gateway.
        #[serde(default)]
        transparent: Vec<u16>,
        /// The same of UDP.
        #[serde(default)]
        transparent_udp: Vec<u16>,
    } = "io.bailiwick.Network.Attach" -> Empty
}
method! {
    /// Leads new connections to addresses that this service owns straight to the VPS at the end of a link, past the gateway:
    /// these, and no others any more. Those that are there stay where they began.
    Lead {
        /// The outer end's name.
        link: String,
        /// What is said with a lower number than before comes too late.
        number: u64,
        /// None: all go to the gateway.
        ways: BTreeSet<Way>,
    } = "io.bailiwick.Network.Lead" -> Empty
}
method! {
    /// How a VPS is used past the gateway.
    Used {
        /// The outer end's name.
        link: String,
    } = "io.bailiwick.Network.Used" -> Use
}
method! {
    /// All addresses that are given out.
    Addresses {} = "io.bailiwick.Network.Addresses" -> AllAddresses
}

method! {
    /// Who is whose, and who may reach whom: in place of all that was said before. In parts, since there may be much to say; answers
    /// the last one when all is in force. It stays so over restarts.
    Neighbours {
        /// This part is the first one: what was said of an earlier telling, and not to its end, is as good as nothing.
        first: bool,
        /// This part is the last one.
        last: bool,
        /// What is said.
        said: Vec<Said>,
    } = "io.bailiwick.Network.Neighbours" -> Empty
}

/// One thing that `Neighbours` says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// That VPS is that tenant's; those of a tenant find each other by name.
    Vps(TenantName, VpsName),
    /// The first may connect to that TCP port of the second, which is the same tenant's, by way of the gateway.
    Allow(VpsName, VpsName, u16),
    /// Of the outside that VPS may connect to these, and to what else is said so, and to nothing more.
    Bounds(VpsName, Vec<Egress>),
}

method! {
    /// What VPSs may connect to, and what of it they did.
    Firewall {} = "io.bailiwick.Network.Firewall" -> FirewallRows
}
method! {
    /// Asks for a name of the outside as a VPS would, which opens what it may connect to.
    Lookup {
        /// The VPS.
        name: VpsName,
        /// Whose addresses it wants.
        host: String,
    } = "io.bailiwick.Network.Lookup" -> Found
}

/// Answer of `Firewall`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FirewallRows {
    /// Of all VPSs.
    pub rows: Vec<FirewallRow>,
}

/// Answer of `Lookup`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Found {
    /// The name's addresses.
    pub addresses: Vec<IpAddr>,
}

/// What leads to a VPS past the gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Way {
    /// An owned address and port.
    pub address: ListenAddress,
    /// The port inside.
    pub port: u16,
}

/// Answer of `Used`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Use {
    /// Connections that go on.
    pub open: u64,
    /// Milliseconds since it was last seen in use that way, or began to be led to; none: it was not led to.
    pub last_ms: Option<u64>,
}

/// Answer of `Allocate`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Allocated {
    /// The link to make.
    pub link: Link,
}

/// Answer of `Addresses`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AllAddresses {
    /// Each VPS with its link.
    pub links: Vec<(VpsName, Link)>,
}
