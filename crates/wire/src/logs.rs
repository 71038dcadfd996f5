//! `io.bailiwick.Logs`: what the service that ships logs says of itself.

use model::api::LogTargetRow;
use serde::{Deserialize, Serialize};

use crate::method;

method! {
    /// How it is with each target of `logs.ship`.
    Status {} = "io.bailiwick.Logs.Status" -> AllTargets
}

/// Answer of `Status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AllTargets {
    /// One each, in the order of host.toml.
    pub targets: Vec<LogTargetRow>,
}
