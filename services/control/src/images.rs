//! Which images are there. A start takes this from memory; the store keeps it, so that a start need not wait for
//! `apps` even after a restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, Instant},
};

use model::{ImageRef, LayerId, api::ErrorKind, image::ImageInfo};
use wire::{Fault, apps};

use crate::{calls::insist, shared::Control};

/// How long other hosts are told that an image will be used.
const SOON: Duration = Duration::from_secs(3);
/// How long after an image was made the apply that it was made for may take to come.
const APPLIED: Duration = Duration::from_secs(30);

/// The images that `apps` had when last asked.
#[derive(Debug, Default)]
pub struct Images {
    known: RwLock<BTreeMap<ImageRef, ImageInfo>>,
    /// Those of specs that are on their way.
    held: Mutex<Vec<ImageRef>>,
    /// Those that an apply will name soon, and until when.
    kept: Mutex<Vec<(ImageRef, Instant)>>,
    /// Held by who says what is in use: what is said last is newest.
    telling: tokio::sync::Mutex<()>,
}

/// As long as one lives, its images count as used.
pub struct Held {
    control: Arc<Control>,
    which: Vec<ImageRef>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.control.images.held();
        for image in &self.which {
            if let Some(at) = held.iter().position(|other| other == image) {
                held.swap_remove(at);
            }
        }
    }
}

impl Images {
    /// Begins with what the store remembers.
    pub fn new(known: BTreeMap<ImageRef, ImageInfo>) -> Self {
        Self { known: RwLock::new(known), ..Self::default() }
    }

    fn held(&self) -> MutexGuard<'_, Vec<ImageRef>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, Vec<(ImageRef, Instant)>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(_, until)| *until > Instant::now());
        kept
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<ImageRef, ImageInfo>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that are known.
    pub fn all(&self) -> Vec<ImageInfo> {
        self.read().values().cloned().collect()
    }

    /// Whether that one is known.
    pub fn has(&self, image: &ImageRef) -> bool {
        self.read().contains_key(image)
    }

    /// The layers of that one.
    pub fn layers_of(&self, image: &ImageRef) -> Option<Vec<LayerId>> {
        self.read().get(image).map(|info| info.layers.clone())
    }

    fn set(&self, known: BTreeMap<ImageRef, ImageInfo>) -> bool {
        let mut place = self.known.write().unwrap_or_else(PoisonError::into_inner);
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

/// Keeps images for specs that are on their way; hosts on the same layer store know it when this returns, if `apps` is there.
pub async fn hold(control: &Arc<Control>, which: Vec<ImageRef>, limit: Duration) -> Held {
    let used = in_use(control);
    let known = which.iter().all(|image| used.contains(image));
    control.images.held().extend(which.iter().cloned());
    let held = Held { control: control.clone(), which };
    if !known {
        say(control, limit).await;
    }
    held
}

/// Keeps an image that an apply will name, from before it is made until that apply, or until it does not come.
pub async fn keep_for_apply<T>(
    control: &Arc<Control>,
    image: &ImageRef,
    keep: bool,
    made: impl Future<Output = T>,
) -> T {
    let _held = if keep { Some(hold(control, vec![image.clone()], SOON).await) } else { None };
    let made = made.await;
    if keep {
        control.images.kept().push((image.clone(), Instant::now() + APPLIED));
    }
    made
}

/// The apply has come.
pub fn applied(control: &Control, images: &[ImageRef]) {
    control.images.kept().retain(|(image, _)| !images.contains(image));
}

/// The images that specs name, those of specs that are on their way, and those of VPSs that are being deleted.
pub fn in_use(control: &Control) -> BTreeSet<ImageRef> {
    let mut used: BTreeSet<_> = control.specs().into_values().map(|spec| spec.image.clone()).collect();
    used.extend(control.images.held().iter().cloned());
    used.extend(control.images.kept().iter().map(|(image, _)| image.clone()));
    used.extend(control.deleting().values().map(|vps| vps.spec().image.clone()));
    used
}

/// Tells `apps` what is in use here, so that another host on the same layer store keeps it.
pub async fn tell(control: Arc<Control>) {
    say(&control, Duration::from_secs(60)).await;
}

async fn say(control: &Arc<Control>, limit: Duration) {
    let _last_is_newest = control.images.telling.lock().await;
    let images = in_use(control);
    if let Err(fault) = insist(&control.apps, &apps::Use { images }, limit).await {
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
