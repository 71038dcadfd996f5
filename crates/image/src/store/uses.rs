//! What hosts use of a store that they share, and the removal of the rest.
//!
//! `hosts/HOST/` is written by each host's daemon: a file per VPS with the ids of the layers it was started with last, so
//! that one which still runs an older image keeps it. `uses/HOST` is written here: the images that the host's specs
//! name. A host whose directory is gone has no say any more; its daemon, or another, removed it.

use std::{collections::BTreeSet, path::Path};

use model::{ImageRef, LayerId, image::ImageInfo};

use super::{DAMAGED, Store};
use crate::{
    error::{Doing, StoreError},
    tree,
};

/// What is not used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pruned {
    /// Images that no spec names.
    pub images: Vec<ImageInfo>,
    /// Layers that no other image has.
    pub layers: Vec<LayerId>,
}

/// Bytes of a file of `hosts` or `uses` that are read: 128 layers, or the images of a host's specs.
const MAX: u64 = 4 << 20;

impl Store {
    /// Says which images the specs of `host` name, in place of what it said before.
    pub fn use_images(&self, host: &str, images: &BTreeSet<ImageRef>) -> Result<(), StoreError> {
        let path = self.path.join("uses").join(host);
        let fresh = path.with_extension("new");
        let text: String = images.iter().map(|image| format!("{image}\n")).collect();
        if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        std::fs::write(&fresh, text).doing("writing", &fresh)?;
        std::fs::rename(&fresh, &path).doing("renaming to", &path)?;
        self.sync_directory("uses")
    }

    /// The images that the specs of any host but `except` name.
    pub fn used_images(&self, except: &str) -> Result<BTreeSet<ImageRef>, StoreError> {
        let mut used = BTreeSet::new();
        for host in names(&self.path.join("uses"))? {
            if host != except && self.path.join("hosts").join(&host).is_dir() {
                let text = read(&self.path.join("uses").join(&host))?;
                // of a newer version's images none can be removed here
                used.extend(text.lines().filter_map(|line| line.parse().ok()));
            }
        }
        Ok(used)
    }

    /// The layers that VPSs of any host were started with last.
    pub(super) fn started_layers(&self) -> Result<BTreeSet<LayerId>, StoreError> {
        let mut started = BTreeSet::new();
        let hosts = self.path.join("hosts");
        for host in names(&hosts)? {
            let host = hosts.join(host);
            for vps in names(&host)? {
                let text = read(&host.join(vps))?;
                started.extend(text.lines().filter_map(|line| LayerId::try_from(line.to_owned()).ok()));
            }
        }
        Ok(started)
    }

    /// Removes the images that are in neither `keep` nor another host's specs, and the layers that nothing uses then;
    /// with `dry_run` it only says which. The base of Debian images stays as long as one stands on it.
    pub fn prune(&self, host: &str, keep: &BTreeSet<ImageRef>, dry_run: bool) -> Result<Pruned, StoreError> {
        let _lock = self.lock_all()?;
        let mut keep: BTreeSet<ImageRef> = keep.union(&self.used_images(host)?).cloned().collect();
        let base = ImageRef::Debian(Vec::new());
        if keep.iter().any(|image| matches!(image, ImageRef::Debian(_))) {
            keep.insert(base);
        }
        let (kept, images): (Vec<_>, Vec<_>) =
            self.images()?.into_iter().partition(|image| keep.contains(&image.reference));
        let named = kept.into_iter().flat_map(|image| image.layers).collect();
        let layers = self.unused_layers(&named)?;
        if !dry_run {
            for image in &images {
                self.remove(&image.reference)?;
            }
            self.remove_layers(&layers)?;
            self.remove_damaged()?;
        }
        Ok(Pruned { images, layers })
    }

    /// Layers that were replaced while VPSs ran on them go when no VPS was started with one of that name last.
    fn remove_damaged(&self) -> Result<(), StoreError> {
        let started = self.started_layers()?;
        for name in names(&self.path)? {
            let id = name.strip_prefix(DAMAGED).and_then(|rest| rest.split('-').next());
            if let Some(id) = id.and_then(|id| LayerId::try_from(id.to_owned()).ok())
                && !started.contains(&id)
            {
                tree::remove_tree(&self.path.join(name))?;
            }
        }
        Ok(())
    }
}

fn names(directory: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.doing("reading", directory)?,
    };
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        Ok(entry.doing("reading", directory)?.file_name().to_string_lossy().into_owned())
    };
    entries.map(name).collect()
}

/// A small file; nothing when it is gone by now.
fn read(path: &Path) -> Result<String, StoreError> {
    use std::io::Read as _;
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        file => file.doing("opening", path)?,
    };
    let mut text = String::new();
    file.take(MAX).read_to_string(&mut text).doing("reading", path)?;
    Ok(text)
}
