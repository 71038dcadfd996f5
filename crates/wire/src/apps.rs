//! `io.bailiwick.Apps`: what `control` asks of the apps service.

use std::collections::BTreeSet;

use model::{ImageRef, LayerId, image::ImageInfo};
use serde::{Deserialize, Serialize};

use crate::{method, varlink::Empty};

method! {
    /// With `more`: builds an image unless it is there, and says how it goes on. Builds of one image are shared.
    /// When every caller went away the build goes on.
    Build {
        /// Which.
        image: ImageRef,
        /// Build again although it is there.
        refresh: bool,
    } = "io.bailiwick.Apps.Build" -> BuildStep
}
method! {
    /// With `more`, and with the descriptor of a pipe: builds an image of the archive that comes out of it, and says how it
    /// goes on. Nothing is read when it is there already.
    Send {
        /// Which: its digest is the archive's.
        image: ImageRef,
        /// Unpack it although it is there.
        refresh: bool,
    } = "io.bailiwick.Apps.Send" -> BuildStep
}
method! {
    /// Writes a layer to a pipe (descriptor 0), as the stream that its name is the digest of. Answers when all of it is written.
    GiveLayer {
        /// Which.
        layer: LayerId,
    } = "io.bailiwick.Apps.GiveLayer" -> Empty
}
method! {
    /// Takes a layer from a pipe (descriptor 0): whole, and the one of that name, or not at all. One that is there is not read.
    /// It stays until `TakeImage` names it, or the next `Prune`, or build.
    TakeLayer {
        /// Which.
        layer: LayerId,
    } = "io.bailiwick.Apps.TakeLayer" -> LayerTaken
}
method! {
    /// Makes an image of layers that are there, unless one of that name is.
    TakeImage {
        /// What it is.
        image: ImageInfo,
    } = "io.bailiwick.Apps.TakeImage" -> Empty
}
method! {
    /// Says which images the specs of this host name, whatever becomes of them; in place of what was said before.
    Use {
        /// All of them.
        images: BTreeSet<ImageRef>,
    } = "io.bailiwick.Apps.Use" -> Empty
}
method! {
    /// Removes the images that neither `keep` nor another host on this layer store names, and the layers that nothing
    /// uses then. A layer that a VPS of any host was started with last stays.
    Prune {
        /// The images that this host's specs name.
        keep: BTreeSet<ImageRef>,
        /// Only say what would be removed.
        dry_run: bool,
    } = "io.bailiwick.Apps.Prune" -> Pruned
}
method! {
    /// Reads every layer of an image and compares it with its name.
    Verify {
        /// Which.
        image: ImageRef,
    } = "io.bailiwick.Apps.Verify" -> Verified
}
method! {
    /// All images that are there.
    Images {} = "io.bailiwick.Apps.Images" -> ImageList
}
method! {
    /// Removes an image, and those of its layers that no other image has. The caller made sure that no VPS uses it.
    Remove {
        /// Which.
        image: ImageRef,
    } = "io.bailiwick.Apps.Remove" -> Empty
}

/// How a build goes on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuildStep {
    /// It goes on.
    Progress {
        /// What is being done.
        step: String,
        /// How much of it is done, of `total`.
        done: u64,
        /// 0 when it is not known.
        total: u64,
    },
    /// It is there; the last step.
    Done(ImageInfo),
}

/// Answer of `TakeLayer`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct LayerTaken {
    /// Bytes of its files.
    pub size: u64,
}

/// Answer of `Images`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageList {
    /// Each image.
    pub images: Vec<ImageInfo>,
}

/// Answer of `Prune`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pruned {
    /// Images that were removed.
    pub images: Vec<ImageInfo>,
    /// Layers that were removed.
    pub layers: Vec<LayerId>,
}

/// Answer of `Verify`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verified {
    /// Each damaged or missing layer, and what is wrong with it, for a person.
    pub damaged: Vec<(LayerId, String)>,
}
