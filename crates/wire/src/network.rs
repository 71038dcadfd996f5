//! `io.bailiwick.Network`: what `control` asks of the network service.

use std::{collections::BTreeMap, net::Ipv4Addr};

use model::{TenantName, VpsName, run::Link};
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
    } = "io.bailiwick.Network.Attach" -> Empty
}
method! {
    /// All addresses that are given out.
    Addresses {} = "io.bailiwick.Network.Addresses" -> AllAddresses
}

method! {
    /// Who is whose, and who may reach whom: in place of all that was said before. Answers when it is in force; it stays
    /// so over restarts.
    Neighbours {
        /// The VPSs of each tenant, which find each other by name.
        tenants: BTreeMap<TenantName, Vec<VpsName>>,
        /// Pairs of one tenant's: the first may connect to the second, by way of the gateway, which knows the ports.
        allow: Vec<(VpsName, VpsName)>,
    } = "io.bailiwick.Network.Neighbours" -> Empty
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
