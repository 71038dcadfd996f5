//! How far an upgrade is, for the next daemon: one file under `run`.

use std::{fs, io, path::PathBuf};

use model::host::Paths;
use wire::admin::{Step, Upgrading};

use super::programs::own;

fn path(paths: &Paths) -> PathBuf {
    paths.run.join("upgrade")
}

/// The last upgrade since the host was started.
pub fn load(paths: &Paths) -> Option<Upgrading> {
    serde_json::from_slice(&fs::read(path(paths)).ok()?).ok()
}

/// Notes it whole.
pub fn save(paths: &Paths, upgrading: &Upgrading) -> io::Result<()> {
    let new = paths.run.join(".upgrade");
    fs::write(&new, serde_json::to_vec(upgrading)?)?;
    fs::rename(new, path(paths))
}

/// Notes why this version's daemon can't take over, for the one that the keeper goes back to.
pub fn note_failure(paths: &Paths, error: &anyhow::Error) {
    let own = own().map(|own| own.build).unwrap_or_default();
    let begun = |upgrading: &Upgrading| upgrading.step == Step::Daemon && upgrading.to.build == own;
    let Some(mut upgrading) = load(paths).filter(begun) else { return };
    upgrading.failed = Some(format!("the daemon of {}: {error:#}", upgrading.to.version));
    let _ = save(paths, &upgrading);
}

/// Forgets it, at the host's end.
pub fn remove(paths: &Paths) {
    let _ = fs::remove_file(path(paths));
}
