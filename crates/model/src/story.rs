//! What is kept of a VPS's last start, stop and failure, for `why`.

use serde::{Deserialize, Serialize};

/// The last of each; none: there was none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    /// The last start that came to be ready, or the last thaw.
    #[serde(default)]
    pub start: Option<Start>,
    /// The last time it was made to sleep or to stand still.
    #[serde(default)]
    pub stop: Option<Stop>,
    /// The last start that came to nothing, or the last run that ended as it should not.
    #[serde(default)]
    pub failure: Option<Failure>,
}

/// A start that came to be ready, or a thaw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// When it was asked for, Unix time in milliseconds.
    pub at_ms: u64,
    /// Who or what asked: `GET / from 203.0.113.9`.
    pub by: String,
    /// Milliseconds until it was ready.
    pub took_ms: u64,
    /// Whether it stood still until then.
    pub thawed: bool,
    /// What was done, in the order of time.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// What it waited for besides.
    #[serde(default)]
    pub waits: Vec<Wait>,
}

/// Something that was done for a start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What, for a person: `program executed`.
    pub what: String,
    /// Microseconds since the start was asked for.
    pub after_us: u64,
}

/// Something that a start waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// What: `memory`, or the name of a neighbour that it woke.
    pub on: String,
    /// How long.
    pub took_ms: u64,
    /// More, for a person.
    pub detail: String,
}

/// When it was made to sleep or to stand still.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// When that was done, Unix time in milliseconds.
    pub at_ms: u64,
    /// Milliseconds that it took.
    pub took_ms: u64,
    /// Whether it stands still instead of having ended.
    pub frozen: bool,
    /// Why, and by whom where it was somebody: `nobody used it for 10m`, `stop by root`.
    pub why: String,
    /// How its program ended: `exit 0`.
    #[serde(default)]
    pub ended: Option<String>,
}

/// A start that came to nothing, or a run that ended as it should not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When, Unix time in milliseconds.
    pub at_ms: u64,
    /// What, in one line: `exit 1`.
    pub what: String,
    /// Its exit status, if it had one.
    #[serde(default)]
    pub exit: Option<i32>,
    /// The signal that ended it, if one did.
    #[serde(default)]
    pub signal: Option<i32>,
    /// Whether the memory limit had one of its processes killed.
    #[serde(default)]
    pub oom: bool,
    /// When that start was asked for, Unix time in milliseconds; none: not known any more.
    #[serde(default)]
    pub began_ms: Option<u64>,
    /// Who or what had asked for it.
    #[serde(default)]
    pub by: String,
    /// How far it came.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// The last lines of its log of that run: time, stream, text.
    #[serde(default)]
    pub log: Vec<String>,
}
