//! `io.bailiwick.Logs`: what the service that ships logs says of itself.

use model::host::LogTarget;
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
    pub targets: Vec<TargetStatus>,
}

/// How it is with one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetStatus {
    /// Which.
    pub target: LogTarget,
    /// Why it takes no lines now; none: it does.
    pub away: Option<String>,
    /// Since when that is so, Unix time in milliseconds.
    pub since_ms: u64,
    /// Lines that were sent since the service was started.
    pub sent: u64,
    /// Lines that were lost, ever: their log was rotated away before they could be sent.
    pub lost: u64,
    /// How often lines were lost of which nobody knows the number.
    pub gaps: u64,
    /// Bytes that wait in logs.
    pub waiting: u64,
}
