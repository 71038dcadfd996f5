//! A VPS out of this host: its volumes as they are at one moment, for which it stands still. Where they can be copied in that
//! moment it goes on at once, and the copies are read; else when they have been read. It is let go however that ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use model::{VolumeName, VpsSpec, api::ErrorKind, limits::show_duration_ms, spec::render};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use wire::{Fault, host};

use super::{
    BLOCK, END, End, FORMAT, LIMIT, MANIFEST, Manifest, WITHOUT_LAYERS, member,
    still::{Still, users},
};
use crate::{
    api::error::ApiError,
    calls::insist,
    clock::unix_ms,
    driver::Vps,
    images,
    secrets::{self, Carried, Passphrase},
    shared::Control,
    state,
    transfer::{self, Copied},
};

/// Bytes of one part of a volume.
const PART: usize = 1 << 20;
/// How often a copy is made before it is given up that somebody went on.
const TRIES: u32 = 3;
/// Parts that wait for a slow reader.
const WAITING: usize = 2;

/// What is sent: parts of the archive, or why it breaks off.
pub type Parts = mpsc::Receiver<std::io::Result<Bytes>>;

/// What is asked for besides spec and volumes.
#[derive(Debug, Default)]
pub struct With {
    /// Its secrets, sealed with this.
    pub secrets: Option<Passphrase>,
    /// The layers of its image.
    pub image: bool,
}

/// Begins to export; an error comes before the first byte.
pub async fn begin(control: &Arc<Control>, vps: &Arc<Vps>, with: With, actor: &str) -> Result<Parts, ApiError> {
    let spec = vps.spec();
    let carried = match with.secrets {
        Some(passphrase) => Some(carried(control, &spec, passphrase).await?),
        None => None,
    };
    let layers = images::layers(control, &spec.image, LIMIT).await?;
    let there = insist(&control.host, &host::Volumes {}, LIMIT).await?.volumes;
    let there: BTreeSet<_> = there.into_iter().filter(|v| v.tenant == spec.tenant).map(|v| v.name).collect();
    let volumes: Vec<_> = spec.volumes.keys().filter(|name| there.contains(*name)).cloned().collect();
    let manifest = Manifest {
        format: if with.image { FORMAT } else { WITHOUT_LAYERS },
        by: model::version().to_owned(),
        name: vps.name.clone(),
        tenant: spec.tenant.clone(),
        at_ms: unix_ms(),
        spec: render(&vps.name, &spec),
        image: spec.image.clone(),
        layers,
        with_image: with.image,
        volumes,
        secrets: spec.secrets.keys().cloned().collect(),
        carried,
    };
    // Layers take their time, in which nobody needs to stand still; without them a refusal is an answer of its own.
    let moment = match with.image {
        true => None,
        false => Some(Moment::take(control, &manifest).await?),
    };
    let (sender, parts) = mpsc::channel(WAITING);
    let (control, name, actor) = (control.clone(), vps.name.clone(), actor.to_owned());
    tokio::spawn(async move {
        match write(&control, &manifest, moment, &sender).await {
            Ok(stood) => control.history.record(Some(&name), "exported", stood, actor),
            Err(fault) => {
                control.history.record(Some(&name), "export-failed", fault.message.clone(), actor);
                let _ = sender.send(Err(std::io::Error::other(fault.message))).await;
            }
        }
    });
    Ok(parts)
}

/// What its secrets say, as the passphrase opens it.
async fn carried(control: &Control, spec: &VpsSpec, passphrase: Passphrase) -> Result<Carried, ApiError> {
    let values = control.secrets.open(&control.store, secrets::ids(spec).collect()).await?;
    let named: Vec<_> = spec.secrets.keys().cloned().zip(values).collect();
    state::slowly(move || Carried::seal(&passphrase, &named)).await
}

type Sender = mpsc::Sender<std::io::Result<Bytes>>;

async fn send(sender: &Sender, bytes: Bytes) -> Result<(), Fault> {
    let gone = |_| Fault::new(ErrorKind::Unavailable, "who asked for it went away");
    sender.send(Ok(bytes)).await.map_err(gone)
}

/// All volumes of a VPS as they are at one moment.
enum Moment {
    /// They are copied, and nobody stands still any more. How long that took, for a person.
    Copied(BTreeMap<VolumeName, Copied>, String),
    /// They can't be: for as long as this is there nobody writes to them. Why they can't.
    Held(Still, String),
}

impl Moment {
    async fn take(control: &Arc<Control>, manifest: &Manifest) -> Result<Self, Fault> {
        let gone = || Fault::not_found(format!("vps \"{}\" was deleted", manifest.name));
        let users = users(control, &control.get(&manifest.name).ok_or_else(gone)?.spec());
        // Once while all go on: what is to be copied is then on disk and in memory, so that the copy that counts takes a
        // moment; and nobody stands still for one that can't be made.
        let rehearsed = match users.iter().any(|vps| vps.is_up()) {
            true => copies(control, manifest).await.map(drop),
            false => Ok(()),
        };
        let mut left = TRIES;
        loop {
            left -= 1;
            let still = Still::hold(control, users.clone()).await?;
            let copied = match &rehearsed {
                Ok(()) => copies(control, manifest).await,
                Err(fault) => Err(fault.clone()),
            };
            let copied = match copied {
                Ok(copied) => copied,
                Err(fault) => {
                    still.keep().await;
                    return Ok(Self::Held(still, fault.message));
                }
            };
            match still.check() {
                Err(fault) if left > 0 => {
                    tracing::warn!(vps = %manifest.name, %fault, "its volumes are copied once more")
                }
                checked => {
                    checked?;
                    let stood = still.stood_ms().map(|ms| format!("stood still for {}", show_duration_ms(ms)));
                    return Ok(Self::Copied(copied, stood.unwrap_or_default()));
                }
            }
        }
    }
}

async fn copies(control: &Control, manifest: &Manifest) -> Result<BTreeMap<VolumeName, Copied>, Fault> {
    let mut copies = BTreeMap::new();
    for volume in &manifest.volumes {
        let request = host::CopyVolume { tenant: manifest.tenant.clone(), name: volume.clone() };
        copies.insert(volume.clone(), transfer::copy(&control.host, &request).await?);
    }
    Ok(copies)
}

/// How long it stood still, for a person.
async fn write(
    control: &Arc<Control>,
    manifest: &Manifest,
    moment: Option<Moment>,
    sender: &Sender,
) -> Result<String, Fault> {
    let json = |error: serde_json::Error| Fault::new(ErrorKind::Failed, error.to_string());
    send(sender, member(MANIFEST, &serde_json::to_vec_pretty(manifest).map_err(json)?)).await?;
    for layer in manifest.layers.iter().filter(|_| manifest.with_image) {
        let content = transfer::give_layer(&control.apps, layer.clone())?;
        write_parts(content, &format!("layers/{layer}"), sender).await?;
    }
    let mut moment = match moment {
        Some(moment) => moment,
        None => Moment::take(control, manifest).await?,
    };
    let mut end = End { sha256: Default::default() };
    for volume in &manifest.volumes {
        let path = format!("volumes/{volume}");
        let copied = match &mut moment {
            Moment::Copied(copies, _) => copies.remove(volume),
            Moment::Held(..) => None,
        };
        let digest = match copied {
            Some(copied) => write_parts(copied.read()?, &path, sender).await?,
            None => {
                let request = host::ExportVolume { tenant: manifest.tenant.clone(), name: volume.clone() };
                write_parts(transfer::export(&control.host, request)?, &path, sender).await?
            }
        };
        end.sha256.insert(volume.clone(), digest);
    }
    let stood = match moment {
        Moment::Copied(_, stood) => stood,
        Moment::Held(still, why) => {
            still.check()?;
            let stood = still.stood_ms().map(|ms| format!("stood still for {}: {why}", show_duration_ms(ms)));
            stood.unwrap_or_default()
        }
    };
    send(sender, member(END, &serde_json::to_vec_pretty(&end).map_err(json)?)).await?;
    send(sender, Bytes::from_static(&[0; 2 * BLOCK])).await?;
    Ok(stood)
}

/// Its checksum.
async fn write_parts<T>(mut content: transfer::Export<T>, path: &str, sender: &Sender) -> Result<String, Fault> {
    let (mut digest, mut number, mut part) = (Sha256::new(), 0, BytesMut::new());
    loop {
        let chunk = content.next().await?;
        if let Some(chunk) = &chunk {
            digest.update(chunk);
            part.extend_from_slice(chunk);
        }
        if part.len() >= PART || (chunk.is_none() && !part.is_empty()) {
            send(sender, member(&format!("{path}/{number:06}"), &part)).await?;
            (number, part) = (number + 1, BytesMut::new());
        }
        if chunk.is_none() {
            return Ok(hex::encode(digest.finalize()));
        }
    }
}
