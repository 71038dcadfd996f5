//! `io.bailiwick.Network`: what `control` asks of the network service.

use model::{VpsName, run::Link};
use serde::{Deserialize, Serialize};

use crate::{method, varlink::Empty};

method! {
    /// A VPS's addresses: the ones it has, or new ones, kept until `Release`.
    Allocate {
        /// Which.
        name: VpsName,
    } = "io.bailiwick.Network.Allocate" -> Allocated
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
    } = "io.bailiwick.Network.Attach" -> Empty
}
method! {
    /// All addresses that are given out.
    Addresses {} = "io.bailiwick.Network.Addresses" -> AllAddresses
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
