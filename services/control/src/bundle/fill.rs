//! Layers and volumes of an archive into this host, one after the other, as they come.

use std::{collections::BTreeMap, sync::Arc};

use model::{ImageRef, LayerId, VolumeName, VpsSpec, api::ErrorKind, image::ImageInfo};
use sha2::{Digest, Sha256};
use tokio::{io::AsyncWriteExt as _, net::unix::pipe, task::JoinHandle};
use wire::{Fault, apps, host};

use super::{END, End, LIMIT, Manifest, SMALL, import::invalid, members::Members};
use crate::{api::error::ApiError, calls::insist, clock::unix_ms, images, shared::Control, transfer};

/// Bytes of one part at most.
const PART: u64 = 64 << 20;

/// Where it goes.
pub(super) struct Target<'a> {
    pub control: &'a Arc<Control>,
    pub spec: &'a VpsSpec,
    /// Volumes as they were called, and as they are here.
    pub volumes: &'a BTreeMap<VolumeName, VolumeName>,
    /// What its volumes are marked with.
    pub mark: u64,
    /// What its image is called here, where it comes with it.
    pub image: Option<&'a ImageRef>,
    /// Bytes of its layers so far.
    pub sizes: Vec<u64>,
}

/// One that comes in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Layer(LayerId),
    Volume(VolumeName),
}

impl What {
    /// Where its parts are in the archive.
    fn path(&self) -> String {
        match self {
            Self::Layer(id) => format!("layers/{id}"),
            Self::Volume(name) => format!("volumes/{name}"),
        }
    }
}

/// One that is being filled.
struct Filling {
    what: What,
    /// Who takes it; none: it is there already.
    pipe: Option<pipe::Sender>,
    /// The bytes of a layer's files, or 0.
    end: JoinHandle<Result<u64, Fault>>,
    digest: Sha256,
    parts: u32,
}

fn broke_off(what: &What) -> ApiError {
    ApiError::new(ErrorKind::Failed, format!("filling {} broke off", what.path()))
}

impl Target<'_> {
    fn begin(&self, what: What) -> Result<Filling, ApiError> {
        let (pipe, end) = match &what {
            // Whoever took it would wait for the image.
            What::Layer(_) if self.image.is_none() => (None, tokio::spawn(async { Ok(0) })),
            What::Layer(layer) => {
                let (pipe, end) = transfer::take_layer(&self.control.apps, layer.clone())?;
                (Some(pipe), tokio::spawn(async move { Ok(end.await?.size) }))
            }
            What::Volume(volume) => {
                let name = self.volumes[volume].clone();
                let size = self.spec.volumes.get(&name).and_then(|volume| volume.size);
                let (tenant, mark) = (self.spec.tenant.clone(), Some(self.mark));
                let request = host::ImportVolume { tenant, name, owner: None, replace: false, size, mark };
                let (pipe, end) = transfer::import(&self.control.host, request)?;
                (Some(pipe), tokio::spawn(async move { end.await.map(|_| 0) }))
            }
        };
        Ok(Filling { what, pipe, end, digest: Sha256::new(), parts: 0 })
    }

    /// Waits until it is there.
    async fn end(&mut self, filling: Filling, manifest: &Manifest, found: &mut End) -> Result<(), ApiError> {
        let Filling { what, pipe, end, digest, .. } = filling;
        drop(pipe);
        let size = end.await.map_err(|_| broke_off(&what))??;
        match what {
            What::Layer(_) => {
                self.sizes.push(size);
                if self.sizes.len() == manifest.layers.len() {
                    self.take_image(manifest).await?;
                }
            }
            What::Volume(volume) => {
                found.sha256.insert(volume, hex::encode(digest.finalize()));
            }
        }
        Ok(())
    }

    /// All its layers are there.
    async fn take_image(&self, manifest: &Manifest) -> Result<(), ApiError> {
        let Some(reference) = self.image else { return Ok(()) };
        let (layers, sizes) = (manifest.layers.clone(), self.sizes.clone());
        let image = ImageInfo { reference: reference.clone(), layers, sizes, built: unix_ms() / 1000 };
        insist(&self.control.apps, &apps::TakeImage { image }, LIMIT).await?;
        Ok(images::refresh(self.control, LIMIT).await?)
    }
}

pub(super) async fn fill(manifest: &Manifest, target: &mut Target<'_>, members: &mut Members) -> Result<(), ApiError> {
    let mut found = End { sha256: BTreeMap::new() };
    let layers = manifest.layers.iter().filter(|_| manifest.with_image).cloned().map(What::Layer);
    let mut wanted = layers.chain(manifest.volumes.iter().cloned().map(What::Volume));
    let mut filling: Option<Filling> = None;
    let result = async {
        loop {
            let (path, size) = members.next().await?.ok_or_else(|| invalid("the archive ends before its end"))?;
            let Some((stem, number)) = path.rsplit_once('/') else {
                if let Some(done) = filling.take() {
                    target.end(done, manifest, &mut found).await?;
                }
                return match path == END && size <= SMALL {
                    true => Ok(members.whole(size).await?),
                    false => Err(invalid(format!("the archive holds {path:?}, which does not belong there"))),
                };
            };
            if filling.as_ref().is_none_or(|filling| filling.what.path() != stem) {
                if let Some(done) = filling.take() {
                    target.end(done, manifest, &mut found).await?;
                }
                let next = wanted.next().filter(|next| next.path() == stem);
                let next = next.ok_or_else(|| invalid(format!("{path:?} does not come next in the archive")))?;
                filling = Some(target.begin(next)?);
            }
            let Some(now) = &mut filling else { continue };
            if number != format!("{:06}", now.parts) || size > PART {
                return Err(invalid(format!("{path:?} does not come next in the archive")));
            }
            now.parts += 1;
            let mut left = size;
            while left > 0 {
                let chunk = members.chunk(left).await?;
                left -= chunk.len() as u64;
                now.digest.update(&chunk);
                let Some(pipe) = &mut now.pipe else { continue };
                if pipe.write_all(&chunk).await.is_err() {
                    let goes_on = || invalid(format!("{stem} of the archive goes on after its end"));
                    // Who takes it does not read any more, and says why: once, so that it is not waited for again below.
                    let Filling { what, end, .. } = filling.take().ok_or_else(goes_on)?;
                    end.await.map_err(|_| broke_off(&what))??;
                    return Err(goes_on());
                }
            }
            members.padding(size).await?;
        }
    };
    let end = match result.await {
        Ok(end) => end,
        Err(error) => {
            if let Some(filling) = filling {
                // Who takes it hears that its caller is gone, and leaves all as it was.
                filling.end.abort();
                let _ = filling.end.await;
            }
            return Err(error);
        }
    };
    let end: End = serde_json::from_slice(&end).map_err(|error| invalid(format!("{END} of the archive: {error}")))?;
    if found != end || wanted.next().is_some() {
        return Err(invalid("the archive is damaged: a volume is not what its checksum says"));
    }
    Ok(())
}
