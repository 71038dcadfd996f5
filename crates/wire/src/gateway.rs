//! `io.bailiwick.Gateway`: what `control` asks of the gateway.

use model::{ListenAddress, VpsName};
use serde::{Deserialize, Serialize};

use crate::method;

method! {
    /// Has addresses listened on, so that an apply can be refused when a port is in use. Those no route uses after
    /// the next table are closed again.
    Listen {
        /// Where.
        addresses: Vec<ListenAddress>,
    } = "io.bailiwick.Gateway.Listen" -> ListenFaults
}
method! {
    /// What can't be listened on, of all routes.
    Faults {} = "io.bailiwick.Gateway.Faults" -> ListenFaults
}

method! {
    /// How clients were served that VPSs are not woken for; of VPSs that had some, since the gateway was started.
    Ignored {} = "io.bailiwick.Gateway.Ignored" -> AllIgnored
}

/// Answer of `Ignored`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct AllIgnored {
    /// By VPS.
    pub vps: Vec<(VpsName, model::api::Ignored)>,
}

/// Addresses that can't be listened on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ListenFaults {
    /// Address and reason.
    pub faults: Vec<(ListenAddress, String)>,
}
