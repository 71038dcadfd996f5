//! Makes images: a base layer by mmdebstrap, and one layer for each set of packages.
//!
//! Runs programs of the host's userland in a VPS. May touch: the layer store at `/layers`, its own directory, `/tmp`.
//! Must never: take a name from anywhere but its types, or leave a layer that is not whole.
#![forbid(unsafe_code)]

mod builds;
mod debian;
mod error;
mod program;
mod sent;
mod sources;
mod suggest;

use std::{os::fd::OwnedFd, path::Path, sync::Arc};

use anyhow::Context as _;
use image::Store;
use tokio::sync::watch;
use wire::{
    Fault, Peer, Replier, Request,
    apps::{
        Build, BuildStep, GiveLayer, ImageList, Images, LayerTaken, Prune, Pruned, Remove, Send, TakeImage, TakeLayer,
        Use, Verified, Verify,
    },
    varlink::{Empty, Method, Service},
};

pub use builds::{Builds, State};
pub use debian::Debian;
pub use error::BuildError;

/// Where the layer store is in the designated VPS.
pub const LAYERS: &str = "/layers";

/// Variable with this host's name in the layer store.
const HOST: &str = "BAILIWICK_HOST";

/// What an archive may hold, as host.toml says.
fn limits(config: &model::HostConfig) -> image::Limits {
    let model::HostConfig { images, reserve, .. } = config;
    image::Limits { bytes: images.size, entries: images.files, reserve: reserve.disk_percent }
}

/// Serves `io.bailiwick.Apps` until the end.
pub async fn run(context: service::Context) -> anyhow::Result<()> {
    let store = Arc::new(Store::open(Path::new(LAYERS)).context("opening the layer store")?);
    let debian = Debian::open(store.clone(), &context.data).context("preparing the work directory")?;
    // the daemon gives each host that may share the store a name there
    let host = std::env::var(HOST).unwrap_or_else(|_| "host".to_owned());
    let limits = limits(&context.config);
    let apps = Arc::new(Apps { builds: Builds::new(store, debian, host, limits) });
    context.ready();
    let (served, ()) = tokio::join!(context.serve(apps.clone()), apps.builds.collect());
    served
}

/// The one descriptor of a call.
fn pipe(mut request: Request) -> Result<OwnedFd, Fault> {
    let missing = || Fault::new(model::api::ErrorKind::Invalid, "this call needs the descriptor of a pipe");
    request.fds.pop().filter(|_| request.fds.is_empty()).ok_or_else(missing)
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
            Send::NAME => {
                let Send { image, refresh } = request.parse()?;
                let more = request.more;
                let state = self.builds.receive(image, refresh, pipe(request)?)?;
                follow::<Send>(state, more, replier).await
            }
            GiveLayer::NAME => {
                let GiveLayer { layer } = request.parse()?;
                self.builds.give_layer(layer, pipe(request)?).await?;
                Ok(replier.done::<GiveLayer>(&Empty {}, &[]).await?)
            }
            TakeLayer::NAME => {
                let TakeLayer { layer } = request.parse()?;
                let size = self.builds.take_layer(layer, pipe(request)?).await?;
                Ok(replier.done::<TakeLayer>(&LayerTaken { size }, &[]).await?)
            }
            TakeImage::NAME => {
                self.builds.take_image(request.parse::<TakeImage>()?.image).await?;
                Ok(replier.done::<TakeImage>(&Empty {}, &[]).await?)
            }
            Use::NAME => {
                self.builds.use_images(&request.parse::<Use>()?.images)?;
                Ok(replier.done::<Use>(&Empty {}, &[]).await?)
            }
            Prune::NAME => {
                let Prune { keep, dry_run } = request.parse()?;
                let image::Pruned { images, layers } = self.builds.prune(keep, dry_run).await?;
                Ok(replier.done::<Prune>(&Pruned { images, layers }, &[]).await?)
            }
            Verify::NAME => {
                let damaged = self.builds.verify(&request.parse::<Verify>()?.image).await?;
                Ok(replier.done::<Verify>(&Verified { damaged }, &[]).await?)
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
        follow::<Build>(self.builds.build(image, refresh)?, request.more, replier).await
    }
}

/// Says how a build goes on until it ends; without a listener it goes on alone.
async fn follow<M: Method<Reply = BuildStep>>(
    mut state: watch::Receiver<State>,
    more: bool,
    replier: &mut Replier<'_>,
) -> Result<(), Fault> {
    loop {
        let now = state.borrow_and_update().clone();
        match now {
            State::Ended(ended) => return Ok(replier.done::<M>(&BuildStep::Done(ended?), &[]).await?),
            State::Going { step, done, total } if more => {
                replier.more::<M>(&BuildStep::Progress { step, done, total }).await?;
            }
            State::Going { .. } => {}
        }
        tokio::select! {
            changed = state.changed() => changed.map_err(|_| BuildError::Lost)?,
            () = replier.gone() => return Ok(()),
        }
    }
}
