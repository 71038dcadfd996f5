//! Which images are there. A start takes this from memory; the store keeps it, so that a start need not wait for
//! `apps` even after a restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, RwLock, RwLockReadGuard},
    time::Duration,
};

use model::{ImageRef, LayerId, api::ErrorKind, image::ImageInfo};
use wire::{Fault, apps};

use crate::{calls::insist, shared::Control};

/// The images that `apps` had when last asked.
#[derive(Debug, Default)]
pub struct Images {
    known: RwLock<BTreeMap<ImageRef, ImageInfo>>,
}

impl Images {
    /// Begins with what the store remembers.
    pub fn new(known: BTreeMap<ImageRef, ImageInfo>) -> Self {
        Self { known: RwLock::new(known) }
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<ImageRef, ImageInfo>> {
        self.known.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// All that are known.
    pub fn all(&self) -> Vec<ImageInfo> {
        self.read().values().cloned().collect()
    }

    /// Whether that one is known.
    pub fn has(&self, image: &ImageRef) -> bool {
        self.read().contains_key(image)
    }

    fn layers_of(&self, image: &ImageRef) -> Option<Vec<LayerId>> {
        self.read().get(image).map(|info| info.layers.clone())
    }

    fn set(&self, known: BTreeMap<ImageRef, ImageInfo>) -> bool {
        let mut place = self.known.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let changed = *place != known;
        *place = known;
        changed
    }
}

/// Asks `apps`, for at most `limit`.
pub async fn refresh(control: &Arc<Control>, limit: Duration) -> Result<(), Fault> {
    let list = insist(&control.apps, &apps::Images {}, limit).await?;
    let known: BTreeMap<_, _> = list.images.into_iter().map(|info| (info.reference.clone(), info)).collect();
    if control.images.set(known.clone()) {
        let kept = control.store.run(move |store| store.put_images(&known)).await;
        if let Err(error) = kept {
            tracing::error!(%error, "the list of images could not be kept");
        }
    }
    Ok(())
}

/// The layers of `image`, the lowest first.
pub async fn layers(control: &Arc<Control>, image: &ImageRef, limit: Duration) -> Result<Vec<LayerId>, Fault> {
    if let Some(layers) = control.images.layers_of(image) {
        return Ok(layers);
    }
    refresh(control, limit).await?;
    let missing =
        || Fault::new(ErrorKind::NotFound, format!("image {image} is not there: bailiwick image build {image}"));
    control.images.layers_of(image).ok_or_else(missing)
}

/// The images that specs name, and those of VPSs that are being deleted.
pub fn in_use(control: &Control) -> BTreeSet<ImageRef> {
    let mut used: BTreeSet<_> = control.specs().into_values().map(|spec| spec.image.clone()).collect();
    used.extend(control.deleting().values().map(|vps| vps.spec().image.clone()));
    used
}

/// Tells `apps` what is in use here, so that another host on the same layer store keeps it.
pub async fn tell(control: Arc<Control>) {
    let images = in_use(&control);
    if let Err(fault) = insist(&control.apps, &apps::Use { images }, Duration::from_secs(60)).await {
        tracing::warn!(%fault, "other hosts on this layer store do not know which images are used here");
    }
}

/// Asks `apps` once it is there.
pub async fn watch(control: Arc<Control>) {
    while let Err(fault) = refresh(&control, Duration::from_secs(60)).await {
        tracing::warn!(%fault, "the images are not known yet");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    tell(control).await;
}
