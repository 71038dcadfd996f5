//! What this host uses of a layer store that it may share: `hosts/HOST/`, a file per VPS with the layers it was started with
//! last. Who removes layers reads them (`image::Store::prune`).

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use model::{LayerId, VpsName, host::Paths};
use tracing::warn;

use crate::config::root_hash;

/// This host's name in the store.
pub fn host(paths: &Paths) -> String {
    format!("{:08x}", root_hash(paths))
}

/// Makes this host's directory, and removes those of hosts whose own directory is gone. Root's, so that no service can
/// say what is in use.
pub fn open(store: &Path, paths: &Paths) -> std::io::Result<()> {
    let hosts = store.join("hosts");
    match fs::symlink_metadata(&hosts) {
        Ok(there) if there.is_dir() && std::os::unix::fs::MetadataExt::uid(&there) == 0 => {}
        // not made by a daemon
        Ok(_) => return Err(std::io::Error::other(format!("{} is not root's directory: remove it", hosts.display()))),
        // Hosts that share a store may be starting side by side.
        Err(_) => unless(ErrorKind::AlreadyExists, fs::create_dir(&hosts))?,
    }
    let own = hosts.join(host(paths));
    fs::create_dir_all(&own)?;
    fs::write(own.join(PLACE), paths.state.as_os_str().as_encoded_bytes())?;
    for entry in fs::read_dir(&hosts)?.flatten() {
        let Ok(place) = fs::read_to_string(entry.path().join(PLACE)) else { continue };
        // An empty one is being written.
        if !place.is_empty() && !Path::new(&place).exists() {
            unless(ErrorKind::NotFound, fs::remove_dir_all(entry.path()))?;
        }
    }
    Ok(())
}

/// That something failed because another host did it first is no failure.
fn unless(first: ErrorKind, done: std::io::Result<()>) -> std::io::Result<()> {
    match done {
        Err(error) if error.kind() == first => Ok(()),
        done => done,
    }
}

/// Holds the path of the host's state; no VPS has a name like that.
const PLACE: &str = ".place";

fn file(store: &Path, paths: &Paths, vps: &VpsName) -> PathBuf {
    store.join("hosts").join(host(paths)).join(vps.as_str())
}

/// Says that `vps` is started with `layers`; nothing is written when it was so the last time.
pub fn started(store: &Path, paths: &Paths, vps: &VpsName, layers: &[LayerId]) -> std::io::Result<()> {
    let file = file(store, paths, vps);
    let text: String = layers.iter().map(|id| format!("{id}\n")).collect();
    if fs::read(&file).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    let fresh = file.with_extension("new");
    fs::write(&fresh, text)?;
    fs::rename(fresh, file)
}

/// `vps` is deleted.
pub fn forget(store: &Path, paths: &Paths, vps: &VpsName) {
    match fs::remove_file(file(store, paths, vps)) {
        Err(error) if error.kind() != ErrorKind::NotFound => warn!(%vps, %error, "its layers stay in use"),
        _ => {}
    }
}

/// The directory of a layer.
pub fn path(store: &Path, id: &LayerId) -> PathBuf {
    store.join("layers").join(id.as_str())
}

/// A cheap look at layers before a start: there, not empty. What is in them only `image verify` reads.
pub fn look(store: &Path, layers: &[LayerId]) -> Result<(), String> {
    for id in layers {
        let is = match fs::read_dir(path(store, id)).map(|mut entries| entries.next()) {
            Ok(Some(_)) => continue,
            Ok(None) => "damaged: it is empty".to_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => "missing".to_owned(),
            Err(error) => format!("damaged: {error}"),
        };
        return Err(format!("image layer sha256:{id} is {is}"));
    }
    Ok(())
}
