//! Builds that are going on: those of one image are shared, and one runs at a time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use image::Store;
use model::{ImageRef, image::ImageInfo};
use tokio::sync::watch;
use wire::Fault;

use crate::{BuildError, Debian};

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
    going: Mutex<HashMap<ImageRef, watch::Receiver<State>>>,
    /// Held by who changes the store.
    turn: tokio::sync::Mutex<()>,
}

impl Inner {
    fn going(&self) -> MutexGuard<'_, HashMap<ImageRef, watch::Receiver<State>>> {
        self.going.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Builds {
    /// None is going on.
    pub fn new(store: Arc<Store>, debian: Debian) -> Self {
        Self { inner: Arc::new(Inner { store, debian, going: Mutex::default(), turn: tokio::sync::Mutex::default() }) }
    }

    /// The layer store.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The image when it is there, or its build: the one that goes on, or a new one. It ends although nobody waits.
    pub fn build(&self, image: ImageRef, refresh: bool) -> Result<watch::Receiver<State>, BuildError> {
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

    /// Removes an image, and the layers that no other has.
    pub async fn remove(&self, image: &ImageRef) -> Result<(), BuildError> {
        let _turn = self.inner.turn.lock().await;
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
            let ImageRef::Debian(packages) = image;
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
