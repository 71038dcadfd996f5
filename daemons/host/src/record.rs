//! What a new daemon must know of a VPS besides what its shim says: one small file each, under `run`.

use std::{fs, io, path::Path};

use model::{Phase, VpsName};
use serde::{Deserialize, Serialize};

/// One VPS's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Where it was.
    pub phase: Phase,
    /// The number of its last run.
    pub run: u64,
    /// Since when, Unix milliseconds.
    pub since_ms: u64,
    /// How long the last start that got there took.
    pub start_ms: Option<u64>,
    /// Of the run that goes on, if it is up.
    pub up: Option<UpRecord>,
}

/// What is known of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpRecord {
    /// When it was asked for, Unix milliseconds.
    pub begun_ms: u64,
    /// How long it has after its stop signal.
    pub grace_ms: u64,
    /// The outer end of its link.
    pub link: Option<String>,
    /// Whether it was asked to end.
    pub asked: bool,
    /// Its first process, once there is one.
    #[serde(default)]
    pub pid: Option<i32>,
}

impl Record {
    /// Writes it; the old one stays until the new one is whole.
    pub fn save(&self, run: &Path, name: &VpsName) -> io::Result<()> {
        let directory = run.join("vps");
        let new = directory.join(format!(".{name}"));
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(&new, directory.join(name.as_str()))
    }

    /// Reads it; none: there is none that can be read.
    pub fn load(run: &Path, name: &VpsName) -> Option<Self> {
        serde_json::from_slice(&fs::read(run.join("vps").join(name.as_str())).ok()?).ok()
    }

    /// Removes it.
    pub fn remove(run: &Path, name: &VpsName) {
        let _ = fs::remove_file(run.join("vps").join(name.as_str()));
    }
}
