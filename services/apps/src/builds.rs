//! Builds that are going on: those of one image are shared, and one runs at a time.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use image::{BuildLock, Limits, Store};
use model::{ImageRef, LayerId, image::ImageInfo};
use tokio::sync::watch;
use wire::Fault;

use crate::{BuildError, Debian, sent};

/// Bytes of a layer that are moved at once.
const CHUNK: usize = 256 << 10;

/// How long layers that were taken wait for the image that they are of.
const WAIT: Duration = Duration::from_secs(60);

/// How a build goes on.
#[derive(Debug, Clone)]
pub enum State {
    /// It goes on.
    Going {
        /// What is being done.
        step: String,
        /// How much of it, of `total`.
        done: u64,
        /// 0 when not known.
        total: u64,
    },
    /// It is over.
    Ended(Result<ImageInfo, Fault>),
}

/// Where a build says how it goes on.
#[derive(Debug)]
pub struct Progress(watch::Sender<State>);

impl Progress {
    /// A build that nobody has heard of yet.
    pub fn new() -> (Self, watch::Receiver<State>) {
        let (sender, receiver) = watch::channel(State::Going { step: "waiting".to_owned(), done: 0, total: 0 });
        (Self(sender), receiver)
    }

    /// Says what is being done; nothing when that was said last.
    pub fn say(&self, step: &str, done: u64, total: u64) {
        self.0.send_if_modified(|state| {
            if matches!(state, State::Going { step: s, done: d, total: t } if s == step && *d == done && *t == total) {
                return false;
            }
            *state = State::Going { step: step.to_owned(), done, total };
            true
        });
    }
}

/// All builds.
#[derive(Debug, Clone)]
pub struct Builds {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    debian: Debian,
    /// This host's name among those that share the store.
    host: String,
    limits: Limits,
    going: Mutex<HashMap<ImageRef, watch::Receiver<State>>>,
    /// Keeps layers that were taken, and are of no image yet; counted, so that only the last one ends it.
    taken: Mutex<(u64, Option<BuildLock>)>,
    /// Held by who changes the store.
    turn: tokio::sync::Mutex<()>,
}

impl Inner {
    fn going(&self) -> MutexGuard<'_, HashMap<ImageRef, watch::Receiver<State>>> {
        self.going.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn taken(&self) -> MutexGuard<'_, (u64, Option<BuildLock>)> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Builds {
    /// None is going on.
    pub fn new(store: Arc<Store>, debian: Debian, host: String, limits: Limits) -> Self {
        Self {
            inner: Arc::new(Inner {
                store,
                debian,
                host,
                limits,
                going: Mutex::default(),
                taken: Mutex::default(),
                turn: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// The layer store.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The image when it is there, or its build: the one that goes on, or a new one. It ends although nobody waits.
    pub fn build(&self, image: ImageRef, refresh: bool) -> Result<watch::Receiver<State>, BuildError> {
        if let ImageRef::Sent { .. } = image {
            let found = self.inner.store.image(&image)?.filter(|_| !refresh);
            let info = found.ok_or_else(|| BuildError::NotSent(image.to_string()))?;
            return Ok(watch::channel(State::Ended(Ok(info))).1);
        }
        let mut going = self.inner.going();
        if let Some(state) = going.get(&image) {
            return Ok(state.clone());
        }
        if !refresh && let Some(info) = self.inner.store.image(&image)? {
            return Ok(watch::channel(State::Ended(Ok(info))).1);
        }
        let (progress, state) = Progress::new();
        going.insert(image.clone(), state.clone());
        let inner = self.inner.clone();
        tokio::spawn(async move {
            let ended = inner.run(&image, &progress, refresh).await.map_err(Fault::from);
            match &ended {
                Ok(info) => tracing::info!(%image, layers = info.layers.len(), "built"),
                Err(error) => tracing::warn!(%image, %error, "not built"),
            }
            inner.going().remove(&image);
            progress.0.send_replace(State::Ended(ended));
        });
        Ok(state)
    }

    /// Builds an image of the archive that comes out of `input`. It has no turn: how long it takes is up to who sends.
    pub fn receive(
        &self,
        image: ImageRef,
        refresh: bool,
        input: OwnedFd,
    ) -> Result<watch::Receiver<State>, BuildError> {
        if !refresh && let Some(info) = self.inner.store.image(&image)? {
            return Ok(watch::channel(State::Ended(Ok(info))).1);
        }
        let (progress, state) = Progress::new();
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || {
            let ended = sent::receive(&inner.store, &inner.limits, &image, input, &progress).map_err(Fault::from);
            match &ended {
                Ok(_) => tracing::info!(%image, "unpacked"),
                Err(error) => tracing::warn!(%image, %error, "not unpacked"),
            }
            progress.0.send_replace(State::Ended(ended));
        });
        Ok(state)
    }

    /// Writes a layer to a pipe.
    pub async fn give_layer(&self, layer: LayerId, output: OwnedFd) -> Result<(), BuildError> {
        let store = self.inner.store.clone();
        let give = move || {
            // No other process may remove it meanwhile.
            let _lock = store.build_lock()?;
            let mut output = BufWriter::with_capacity(CHUNK, File::from(output));
            store.write_layer(&layer, &mut output)?;
            output.flush().map_err(image::StoreError::Stream)
        };
        Ok(tokio::task::spawn_blocking(give).await.map_err(|_| BuildError::Lost)??)
    }

    /// Takes a layer from a pipe. It stays for a while, for the image that it is of.
    pub async fn take_layer(&self, layer: LayerId, input: OwnedFd) -> Result<u64, BuildError> {
        let inner = self.inner.clone();
        let take = move || {
            let (store, limits) = (&inner.store, inner.limits);
            let lock = store.build_lock()?;
            let mut input = BufReader::with_capacity(CHUNK, File::from(input));
            let taken = store.read_layer(&layer, &mut input, limits);
            // To the end, so that who sends is not cut off where it is there already; no further than a layer may be long.
            let rest = if taken.is_ok() { limits.bytes } else { 0 };
            let _ = io::copy(&mut input.take(rest), &mut io::sink());
            let (count, kept) = &mut *inner.taken();
            (*count, *kept) = (*count + 1, Some(lock));
            taken.map(|size| (size, *count))
        };
        let taken = tokio::task::spawn_blocking(take).await.map_err(|_| BuildError::Lost)?;
        let (size, number) = taken?;
        let inner = self.inner.clone();
        tokio::spawn(async move {
            tokio::time::sleep(WAIT).await;
            let (count, kept) = &mut *inner.taken();
            kept.take_if(|_| *count == number);
        });
        Ok(size)
    }

    /// Makes an image of layers that are there.
    pub async fn take_image(&self, info: ImageInfo) -> Result<(), BuildError> {
        let inner = self.inner.clone();
        let take = move || {
            let store = &inner.store;
            let _lock = store.build_lock()?;
            if store.image(&info.reference)?.is_none() {
                if let Some(missing) = info.layers.iter().find(|layer| !store.has_layer(layer)) {
                    return Err(image::StoreError::Missing(missing.clone()));
                }
                store.put_image(&info)?;
            }
            // the image keeps them now
            inner.taken().1 = None;
            Ok(())
        };
        Ok(tokio::task::spawn_blocking(take).await.map_err(|_| BuildError::Lost)??)
    }

    /// What this host's specs name.
    pub fn use_images(&self, images: &BTreeSet<ImageRef>) -> Result<(), BuildError> {
        Ok(self.inner.store.use_images(&self.inner.host, images)?)
    }

    /// Removes layers of which an earlier process was killed before it had named their image.
    pub async fn collect(&self) {
        let _turn = self.inner.turn.lock().await;
        if let Err(error) = self.inner.collect().await {
            tracing::warn!(%error, "layers that no image has stay until the next build");
        }
    }

    /// Removes what nobody uses.
    pub async fn prune(&self, keep: BTreeSet<ImageRef>, dry_run: bool) -> Result<image::Pruned, BuildError> {
        // a build that goes on holds the turn
        let _turn = self.inner.turn.try_lock().map_err(|_| image::StoreError::Busy)?;
        let inner = self.inner.clone();
        let pruned = tokio::task::spawn_blocking(move || inner.store.prune(&inner.host, &keep, dry_run)).await;
        Ok(pruned.map_err(|_| BuildError::Lost)??)
    }

    /// Reads all layers of an image; each damaged one with what is wrong.
    pub async fn verify(&self, image: &ImageRef) -> Result<Vec<(LayerId, String)>, BuildError> {
        let known = self.inner.store.images()?.into_iter().find(|info| info.reference == *image);
        let info = known.ok_or_else(|| BuildError::NoImage(image.to_string()))?;
        let store = self.inner.store.clone();
        let look = move || {
            let check = |id: LayerId| store.verify(&id).err().map(|error| (id, error.to_string()));
            info.layers.into_iter().filter_map(check).collect()
        };
        tokio::task::spawn_blocking(look).await.map_err(|_| BuildError::Lost)
    }

    /// Removes an image, and the layers that no other has.
    pub async fn remove(&self, image: &ImageRef) -> Result<(), BuildError> {
        let _turn = self.inner.turn.lock().await;
        if self.inner.store.used_images(&self.inner.host)?.contains(image) {
            return Err(BuildError::UsedElsewhere(image.to_string()));
        }
        if !self.inner.store.remove(image)? {
            return Err(BuildError::NoImage(image.to_string()));
        }
        self.inner.collect().await
    }
}

impl Inner {
    async fn run(&self, image: &ImageRef, progress: &Progress, refresh: bool) -> Result<ImageInfo, BuildError> {
        let _turn = self.turn.lock().await;
        let info = {
            let _lock = self.store.build_lock()?;
            self.store.check_room(self.limits.reserve)?;
            let ImageRef::Debian(packages) = image else { return Err(BuildError::NotSent(image.to_string())) };
            let info = self.debian.build(packages, refresh, progress).await?;
            self.store.put_image(&info)?;
            info
        };
        // what a refreshed image had before
        self.collect().await?;
        Ok(info)
    }

    async fn collect(&self) -> Result<(), BuildError> {
        let store = self.store.clone();
        let removed = tokio::task::spawn_blocking(move || store.gc()).await.map_err(|_| BuildError::Lost)??;
        for layer in removed {
            tracing::info!(%layer, "removed a layer that no image has");
        }
        Ok(())
    }
}
