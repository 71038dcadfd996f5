//! `io.bailiwick.Control`: what the gateway asks of `control`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use model::{ClientAddress, Ignore, ListenAddress, Route, VpsName};
use serde::{Deserialize, Serialize};

use crate::{method, varlink::Empty};

method! {
    /// With `more`: first the whole table and the states of all VPSs in it, then each change of either.
    Routes {} = "io.bailiwick.Control.Routes" -> RouteUpdate
}
method! {
    /// A VPS is needed. Answers at once with its state; `Routes` says what follows. Asking again changes nothing.
    Wake {
        /// Which.
        name: VpsName,
        /// What needs it: `GET / from 203.0.113.9`. At most 200 characters are kept.
        by: String,
    } = "io.bailiwick.Control.Wake" -> VpsState
}
method! {
    /// The first byte came from a VPS after a `Wake`. Only for what is told of that wake.
    Answered {
        /// Which.
        name: VpsName,
        /// Of the state that the wake led to.
        generation: u64,
        /// When it came, Unix time in microseconds.
        at_us: u64,
    } = "io.bailiwick.Control.Answered" -> Empty
}
method! {
    /// Nobody has used a VPS for its idle time. The caller must have stopped sending to it: the next connection asks
    /// for a `Wake` again, and gets the VPS as it then is.
    Idle {
        /// Which.
        name: VpsName,
    } = "io.bailiwick.Control.Idle" -> Empty
}

/// A change of the table, of states, or of both.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RouteUpdate {
    /// The whole new table, when it changed.
    pub table: Option<Vec<RouteEntry>>,
    /// The whole new table of what leads to VPSs from their neighbours; goes with `table`.
    #[serde(default)]
    pub doors: Vec<Door>,
    /// The states that changed.
    #[serde(default)]
    pub states: Vec<VpsState>,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// What is matched.
    pub route: Route,
    /// The address that is listened on for it.
    pub listen: ListenAddress,
    /// Where it leads.
    pub name: VpsName,
    /// The port inside.
    pub port: u16,
    /// Milliseconds without use until `Idle` is said; none: never.
    pub idle_after_ms: Option<u64>,
    /// Milliseconds of silence after which an open connection is no use any more; none: it always is.
    #[serde(default)]
    pub quiet_ms: Option<u64>,
    /// What an address route shows of its clients.
    #[serde(default)]
    pub client: ClientAddress,
    /// Clients it is not woken for.
    #[serde(default, skip_serializing_if = "Ignore::is_empty")]
    pub ignore: Ignore,
}

/// A port that neighbours may connect to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Door {
    /// Where it leads.
    pub name: VpsName,
    /// The address that neighbours connect to: the VPS's own.
    pub at: Addresses,
    /// The port, outside and inside.
    pub port: u16,
    /// Who may connect, known by the address.
    pub from: Vec<(VpsName, Addresses)>,
    /// As of a route.
    pub idle_after_ms: Option<u64>,
    /// As of a route.
    pub quiet_ms: Option<u64>,
}

/// The addresses of one VPS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// Both.
    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// One VPS's state, for who sends to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VpsState {
    /// Which.
    pub name: VpsName,
    /// Grows with each start or failure; a `Failed` with a number lower than that of a `Wake`'s answer is an old one.
    pub generation: u64,
    /// Where it is in its life.
    pub state: Reachable,
}

/// Whether a VPS can be sent to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reachable {
    /// Not now: ask for a `Wake` (asleep, frozen, stopping), or wait for the one that was asked for.
    No,
    /// It can, at this address.
    At(IpAddr),
    /// It could not be started.
    Failed {
        /// What a stranger may be told: no paths, no output of the program.
        public: String,
        /// Milliseconds until it is tried again.
        retry_after_ms: u64,
    },
}
