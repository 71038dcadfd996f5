//! `io.bailiwick.Apps`: what `control` asks of the apps service.

use model::{ImageRef, image::ImageInfo};
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

/// Answer of `Images`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageList {
    /// Each image.
    pub images: Vec<ImageInfo>,
}
