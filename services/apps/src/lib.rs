//! Makes images: a base layer by mmdebstrap, and one layer for each set of packages.
//!
//! Runs programs of the host's userland in a VPS. May touch: the layer store at `/layers`, its own directory, `/tmp`.
//! Must never: take a name from anywhere but its types, or leave a layer that is not whole.
#![forbid(unsafe_code)]

mod builds;
mod debian;
mod error;
mod program;
mod sources;
mod suggest;

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use image::Store;
use wire::{
    Fault, Peer, Replier, Request,
    apps::{Build, BuildStep, ImageList, Images, Remove},
    varlink::{Empty, Method, Service},
};

pub use builds::{Builds, State};
pub use debian::Debian;
pub use error::BuildError;

/// Where the layer store is in the designated VPS.
pub const LAYERS: &str = "/layers";

/// Serves `io.bailiwick.Apps` until the end.
pub async fn run(context: service::Context) -> anyhow::Result<()> {
    let store = Arc::new(Store::open(Path::new(LAYERS)).context("opening the layer store")?);
    let debian = Debian::open(store.clone(), &context.data).context("preparing the work directory")?;
    context.ready();
    context.serve(Arc::new(Apps { builds: Builds::new(store, debian) })).await
}

struct Apps {
    builds: Builds,
}

impl Service for Apps {
    async fn call(&self, _peer: &Peer, request: Request, replier: &mut Replier<'_>) -> Result<(), Fault> {
        match request.method.as_str() {
            Build::NAME => self.build(request, replier).await,
            Images::NAME => {
                let images = self.builds.store().images().map_err(BuildError::from)?;
                Ok(replier.done::<Images>(&ImageList { images }, &[]).await?)
            }
            Remove::NAME => {
                let image = request.parse::<Remove>()?.image;
                self.builds.remove(&image).await?;
                Ok(replier.done::<Remove>(&Empty {}, &[]).await?)
            }
            _ => Err(request.unknown()),
        }
    }
}

impl Apps {
    async fn build(&self, request: Request, replier: &mut Replier<'_>) -> Result<(), Fault> {
        let Build { image, refresh } = request.parse()?;
        let mut state = self.builds.build(image, refresh)?;
        loop {
            let now = state.borrow_and_update().clone();
            match now {
                State::Ended(ended) => {
                    return Ok(replier.done::<Build>(&BuildStep::Done(ended?), &[]).await?);
                }
                State::Going { step, done, total } if request.more => {
                    replier.more::<Build>(&BuildStep::Progress { step, done, total }).await?;
                }
                State::Going { .. } => {}
            }
            tokio::select! {
                changed = state.changed() => changed.map_err(|_| BuildError::Lost)?,
                // the build goes on
                () = replier.gone() => return Ok(()),
            }
        }
    }
}
