//! `io.bailiwick.Gateway`: what `control` asks of the gateway.

use model::ListenAddress;
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

/// Addresses that can't be listened on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ListenFaults {
    /// Address and reason.
    pub faults: Vec<(ListenAddress, String)>,
}
