//! What a new daemon must know of a VPS besides what its shim says: one small file each, under `run`.

use std::{fs, io, os::unix::fs::FileExt, path::Path};

use model::{Phase, VolumeName, VpsName};
use serde::{Deserialize, Serialize};
use wire::admin::Programs;

/// Bytes of a record are a multiple of this.
const SIZE: usize = 1024;

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
    /// What a designated VPS runs.
    #[serde(default)]
    pub programs: Option<Programs>,
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
    /// Its cgroup, where that is not its name: it was a spare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Whether it was asked to end.
    pub asked: bool,
    /// Its first process, once there is one.
    #[serde(default)]
    pub pid: Option<i32>,
    /// The volumes it uses.
    #[serde(default)]
    pub volumes: Vec<VolumeName>,
}

impl Record {
    /// Writes it over the old one, in one write that a SIGKILL does not cut; a file put in its place would have the old one's
    /// disk block freed each time, which some disks take a millisecond for.
    pub fn save(&self, run: &Path, name: &VpsName) -> io::Result<()> {
        let path = run.join("vps").join(name.as_str());
        let file = fs::File::options().write(true).create(true).truncate(false).open(path)?;
        let mut bytes = serde_json::to_vec(self)?;
        // White space over what the old one had more.
        let length = bytes.len().max(usize::try_from(file.metadata()?.len()).unwrap_or(0));
        bytes.resize(length.next_multiple_of(SIZE), b' ');
        file.write_all_at(&bytes, 0)
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

#[cfg(test)]
mod tests {
    use model::state::Ended;

    use super::*;

    #[test]
    fn a_shorter_record_over_a_longer_one_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("vps")).unwrap();
        let name: VpsName = "blog".parse().unwrap();
        let mut record = Record { phase: Phase::Ready, run: 7, since_ms: 1, start_ms: None, up: None, programs: None };
        for reason in [3000, 10, 0] {
            record.phase = Phase::Down { ended: Some(Ended::NotStarted { reason: "x".repeat(reason) }) };
            record.save(directory.path(), &name).unwrap();
            assert_eq!(Record::load(directory.path(), &name).as_ref(), Some(&record));
        }
    }
}
