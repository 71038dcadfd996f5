//! The store: `layers/ID/`, `images/*.json`, and `.tmp-*` for what is on its way.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs::File,
    io::Write,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use model::{ImageRef, LayerId, image::ImageInfo};
use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock, mkdirat, openat, renameat, syncfs},
    io::Errno,
};
use sha2::{Digest, Sha256};

use crate::{
    error::{Doing, StoreError},
    room::Room,
    tree,
};

/// A directory of layers and images. Several processes may use one at once.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    root: OwnedFd,
}

/// While one lives, layers that no image names yet stay.
#[derive(Debug)]
#[must_use = "layers may be removed once it is dropped"]
pub struct BuildLock {
    _file: OwnedFd,
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const TEMPORARY: &str = ".tmp-";
/// Nobody writes an image's file for so long.
const WRITTEN: Duration = Duration::from_secs(60);
/// Layers that were replaced, with their ids; VPSs may still run on them.
const DAMAGED: &str = ".damaged-";

impl Store {
    /// Opens the store at `path`, makes what is missing in it, and removes what killed processes left.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let root = openat(rustix::fs::CWD, path, DIRECTORY.difference(OFlags::NOFOLLOW), Mode::empty());
        let store = Self { path: path.to_owned(), root: root.doing("opening the layer store", path)? };
        for name in ["layers", "images", "uses"] {
            match mkdirat(&store.root, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).doing("making", &path.join(name)),
            }
        }
        store.remove_leftovers()?;
        Ok(store)
    }

    /// An error when less than `reserve` per cent of the disk is free.
    pub fn check_room(&self, reserve: u8) -> Result<(), StoreError> {
        Room::new(self.root.as_fd(), reserve).map(drop)
    }

    /// Where a layer's tree is.
    pub fn layer_path(&self, id: &LayerId) -> PathBuf {
        self.path.join("layers").join(id.as_str())
    }

    /// Whether a layer is there.
    pub fn has_layer(&self, id: &LayerId) -> bool {
        self.layer_path(id).is_dir()
    }

    /// Keeps other processes from collecting layers while an image is being put together.
    pub fn build_lock(&self) -> Result<BuildLock, StoreError> {
        let lock = self.lock_file()?;
        flock(&lock, FlockOperation::LockShared).doing("locking", &self.path)?;
        Ok(BuildLock { _file: lock })
    }

    fn lock_file(&self) -> Result<OwnedFd, StoreError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.root, ".lock", flags, Mode::RUSR | Mode::WUSR).doing("opening", &self.path.join(".lock"))
    }

    /// Copies the tree at `source` into the store, and answers its name and its files' bytes. It appears under its name
    /// when all of it is on the disk. A tree that is there already is not kept twice.
    pub fn add_layer(&self, source: &Path) -> Result<(LayerId, u64), StoreError> {
        let temporary = Temporary::new(self)?;
        let found = tree::pass(source, Some(temporary.directory.as_fd()))?;
        self.commit(&temporary, found)
    }

    /// The same for the tree that `fill` makes in an empty directory. Whole or nothing.
    pub fn add_with<E: From<StoreError>>(
        &self,
        fill: impl FnOnce(BorrowedFd<'_>) -> Result<(), E>,
    ) -> Result<(LayerId, u64), E> {
        let temporary = Temporary::new(self)?;
        fill(temporary.directory.as_fd())?;
        let found = tree::pass_open(&temporary.directory, Path::new(""), None)?;
        Ok(self.commit(&temporary, found)?)
    }

    fn commit(&self, temporary: &Temporary<'_>, found: tree::Found) -> Result<(LayerId, u64), StoreError> {
        let target = self.layer_path(&found.id);
        if target.is_dir() {
            match self.verify(&found.id) {
                Ok(()) => return Ok((found.id, found.size)),
                // whoever runs on the damaged one goes on with it
                Err(StoreError::Damaged { .. } | StoreError::System { .. } | StoreError::TooDeep { .. }) => {
                    let aside = format!("{DAMAGED}{}-{}", found.id, std::process::id());
                    renameat(&self.root, self.inner(&target), &self.root, aside).doing("renaming", &target)?;
                }
                Err(error) => return Err(error),
            }
        }
        syncfs(&self.root).doing("syncing", &self.path)?;
        match renameat(&self.root, temporary.name.as_c_str(), &self.root, self.inner(&target)) {
            // another process was faster
            Ok(()) | Err(Errno::EXIST | Errno::NOTEMPTY) => {}
            Err(error) => return Err(error).doing("renaming to", &target),
        }
        self.sync_directory("layers")?;
        Ok((found.id, found.size))
    }

    /// A path below the store, as seen from its root.
    fn inner<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.path).unwrap_or(path)
    }

    fn sync_directory(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path.join(name);
        let directory = openat(&self.root, name, DIRECTORY, Mode::empty()).doing("opening", &path)?;
        rustix::fs::fsync(&directory).doing("syncing", &path)
    }

    /// Reads a whole layer and compares it with its name.
    pub fn verify(&self, id: &LayerId) -> Result<(), StoreError> {
        if !self.has_layer(id) {
            return Err(StoreError::Missing(id.clone()));
        }
        let found = tree::pass(&self.layer_path(id), None)?.id;
        if found == *id { Ok(()) } else { Err(StoreError::Damaged { id: id.clone(), found }) }
    }

    /// All images, by name.
    pub fn images(&self) -> Result<Vec<ImageInfo>, StoreError> {
        let directory = self.path.join("images");
        let mut images = Vec::new();
        for entry in std::fs::read_dir(&directory).doing("reading", &directory)? {
            let path = entry.doing("reading", &directory)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let bytes = std::fs::read(&path).doing("reading", &path)?;
                images.push(serde_json::from_slice(&bytes).map_err(|source| StoreError::BadImage { path, source })?);
            }
        }
        images.sort_by(|a: &ImageInfo, b| a.reference.cmp(&b.reference));
        Ok(images)
    }

    /// An image that is there with all its layers.
    pub fn image(&self, reference: &ImageRef) -> Result<Option<ImageInfo>, StoreError> {
        let path = self.path.join(image_file(reference));
        match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).doing("reading", &path),
            Ok(bytes) => {
                let parsed = serde_json::from_slice(&bytes);
                let info: ImageInfo = parsed.map_err(|source| StoreError::BadImage { path, source })?;
                Ok(info.layers.iter().all(|id| self.has_layer(id)).then_some(info))
            }
        }
    }

    /// Writes an image down, in place of the one of that name.
    pub fn put_image(&self, info: &ImageInfo) -> Result<(), StoreError> {
        let path = self.path.join(image_file(&info.reference));
        // of its own for each writer: one image may come twice at once
        let fresh = path.with_extension(format!("{}.new", unique()));
        let mut file = File::create(&fresh).doing("making", &fresh)?;
        let bytes = serde_json::to_vec_pretty(info);
        let bytes = bytes.map_err(|source| StoreError::BadImage { path: fresh.clone(), source })?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).doing("writing", &fresh)?;
        std::fs::rename(&fresh, &path).doing("renaming to", &path)?;
        self.sync_directory("images")
    }

    /// Forgets an image; false: it was not there. Its layers stay until `gc`.
    pub fn remove(&self, reference: &ImageRef) -> Result<bool, StoreError> {
        let path = self.path.join(image_file(reference));
        match std::fs::remove_file(&path) {
            Ok(()) => self.sync_directory("images").map(|()| true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).doing("removing", &path),
        }
    }

    /// Removes the layers that no image names and no VPS of any host was started with last, and answers which. While any
    /// process is building, none: the next time does it.
    pub fn gc(&self) -> Result<Vec<LayerId>, StoreError> {
        match self.lock_all() {
            Ok(_lock) => {
                let named = self.images()?.into_iter().flat_map(|image| image.layers).collect();
                self.remove_layers(&self.unused_layers(&named)?)
            }
            Err(StoreError::Busy) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Alone in the store: nobody builds, nobody removes.
    fn lock_all(&self) -> Result<OwnedFd, StoreError> {
        let lock = self.lock_file()?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(StoreError::Busy),
            locked => locked.doing("locking", &self.path).map(|()| lock),
        }
    }

    /// The layers that are not in `named`, and that no VPS was started with last.
    fn unused_layers(&self, named: &BTreeSet<LayerId>) -> Result<Vec<LayerId>, StoreError> {
        let started = self.started_layers()?;
        let directory = self.path.join("layers");
        let mut unused = Vec::new();
        for entry in std::fs::read_dir(&directory).doing("reading", &directory)? {
            let name = entry.doing("reading", &directory)?.file_name().to_string_lossy().into_owned();
            if let Ok(id) = LayerId::try_from(name)
                && !named.contains(&id)
                && !started.contains(&id)
            {
                unused.push(id);
            }
        }
        unused.sort();
        Ok(unused)
    }

    fn remove_layers(&self, ids: &[LayerId]) -> Result<Vec<LayerId>, StoreError> {
        for id in ids {
            // out of its name first, so that a layer is whole or not there
            let temporary = temporary_name();
            let path = self.layer_path(id);
            renameat(&self.root, self.inner(&path), &self.root, temporary.as_c_str()).doing("removing", &path)?;
            tree::remove(self.root.as_fd(), &temporary, &path)?;
        }
        Ok(ids.to_vec())
    }

    fn remove_leftovers(&self) -> Result<(), StoreError> {
        for entry in std::fs::read_dir(&self.path).doing("reading", &self.path)? {
            let entry = entry.doing("reading", &self.path)?;
            let name = entry.file_name();
            if !name.as_bytes().starts_with(TEMPORARY.as_bytes()) {
                continue;
            }
            let Ok(directory) = openat(&self.root, &name, DIRECTORY, Mode::empty()) else { continue };
            // locked: a living process is writing there
            if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok()
                && let Ok(name) = CString::new(name.as_bytes())
            {
                // what can't be removed now is none of a layer, and keeps nobody from the store
                let _ = tree::remove(self.root.as_fd(), &name, &entry.path());
            }
        }
        let images = self.path.join("images");
        for entry in std::fs::read_dir(&images).doing("reading", &images)? {
            let path = entry.doing("reading", &images)?.path();
            let old = || {
                path.metadata()
                    .and_then(|stat| stat.modified())
                    .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > WRITTEN))
            };
            // a fresh one another process is writing
            if path.extension().is_some_and(|extension| extension == "new") && old() {
                let _ = std::fs::remove_file(path);
            }
        }
        Ok(())
    }
}

/// Long package lists make long references, so a file's name is a digest.
fn image_file(reference: &ImageRef) -> PathBuf {
    let digest = Sha256::digest(reference.to_string().as_bytes());
    Path::new("images").join(format!("{}.json", hex::encode(&digest[..16])))
}

fn temporary_name() -> CString {
    CString::new(format!("{TEMPORARY}{}", unique())).unwrap_or_default()
}

/// Words that no other process or thread uses.
fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let time = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    format!("{}-{time}-{number}", std::process::id())
}

/// A directory that is removed again unless it was renamed; locked as long as this process lives.
struct Temporary<'a> {
    store: &'a Store,
    name: CString,
    directory: OwnedFd,
}

impl<'a> Temporary<'a> {
    fn new(store: &'a Store) -> Result<Self, StoreError> {
        let name = temporary_name();
        mkdirat(&store.root, name.as_c_str(), Mode::RWXU).doing("making a directory in", &store.path)?;
        let directory = openat(&store.root, name.as_c_str(), DIRECTORY, Mode::empty()).doing("opening", &store.path)?;
        flock(&directory, FlockOperation::NonBlockingLockExclusive).doing("locking", &store.path)?;
        Ok(Self { store, name, directory })
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        let _ = tree::remove(self.store.root.as_fd(), &self.name, &self.store.path);
    }
}

mod uses;

pub use uses::Pruned;

#[cfg(test)]
mod tests;
