//! How far each VPS's log was sent to a target: one file a target.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use model::{VpsName, host::LogTarget};
use serde::{Deserialize, Serialize};

use crate::tap::Position;

/// What is stored of a target.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Positions {
    pub vps: BTreeMap<VpsName, Position>,
    #[serde(default)]
    pub lost: u64,
    #[serde(default)]
    pub gaps: u64,
    #[serde(default)]
    pub lost_ms: Option<u64>,
}

/// Where those of a target are.
pub fn place(directory: &Path, target: &LogTarget) -> PathBuf {
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || "+.-".contains(c) { c.to_string() } else { format!("%{:02x}", c as u32) }
    };
    let name: String = target.to_string().chars().map(safe).collect();
    // Names of files are bounded; two long targets that begin alike are told apart by their ends.
    let cut = name.len().saturating_sub(200);
    directory.join(format!("{}.json", &name[cut..]))
}

/// None: nothing has been sent there before.
pub fn load(file: &Path) -> io::Result<Option<Positions>> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The old ones or the new ones are there, whatever happens.
pub fn save(file: &Path, positions: &Positions) -> io::Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, serde_json::to_vec(positions)?)?;
    fs::rename(new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_kept_by_target() {
        let directory = tempfile::tempdir().unwrap();
        let target = |text: &str| text.parse::<LogTarget>().unwrap();
        let file = place(directory.path(), &target("json:/a/b"));
        assert_eq!(file.parent(), Some(directory.path()));
        assert_ne!(file, place(directory.path(), &target("json:/a%2fb")));
        assert_eq!(load(&file).unwrap(), None);
        let mut positions = Positions { lost: 3, ..Positions::default() };
        positions.vps.insert("blog".parse().unwrap(), Position { inode: 1, offset: 2 });
        save(&file, &positions).unwrap();
        assert_eq!(load(&file).unwrap(), Some(positions));
    }
}
