//! A VPS out of this host: held still while its volumes are read, and let go however that ends.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use model::{
    VolumeName, VpsName, VpsSpec,
    api::{ErrorKind, State},
    spec::render,
};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use wire::{Fault, host};

use super::{BLOCK, END, End, FORMAT, LIMIT, MANIFEST, Manifest, WITHOUT_LAYERS, member};
use crate::{
    api::error::ApiError,
    calls::insist,
    clock::unix_ms,
    driver::Vps,
    images,
    life::Input,
    secrets::{self, Carried, Passphrase},
    shared::Control,
    state, transfer,
};

/// Bytes of one part of a volume.
const PART: usize = 1 << 20;
/// Parts that wait for a slow reader.
const WAITING: usize = 2;
/// How long a VPS may take to come to rest.
const REST: Duration = Duration::from_secs(60);

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
    let held = match with.image {
        true => None,
        false => Some(Still::hold(control, users(control, &spec)).await?),
    };
    let (sender, parts) = mpsc::channel(WAITING);
    let (control, name, actor) = (control.clone(), vps.name.clone(), actor.to_owned());
    tokio::spawn(async move {
        match write(&control, &manifest, held, &sender).await {
            Ok(()) => control.history.record(Some(&name), "exported", "", actor),
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

/// The VPSs that write to what is exported.
fn users(control: &Control, spec: &VpsSpec) -> Vec<Arc<Vps>> {
    let shares = |other: &VpsSpec| {
        other.tenant == spec.tenant && other.volumes.keys().any(|volume| spec.volumes.contains_key(volume))
    };
    control.all().values().filter(|vps| shares(&vps.spec())).cloned().collect()
}

/// VPSs that do not write, for as long as this is there: those that were running stand still, the others sleep.
struct Still {
    control: Arc<Control>,
    all: Vec<(Arc<Vps>, u64)>,
    held: Vec<VpsName>,
}

impl Still {
    async fn hold(control: &Arc<Control>, all: Vec<Arc<Vps>>) -> Result<Self, Fault> {
        let mut still = Self { control: control.clone(), all: Vec::new(), held: Vec::new() };
        let up: Vec<_> = all.iter().filter(|vps| vps.is_up()).map(|vps| vps.name.clone()).collect();
        still.held.clone_from(&up);
        // Noted before: who stands still when this process dies is let go by the next one.
        let noted = control.store.run(move |store| store.note_exporting(&up, true)).await;
        noted.map_err(|error| Fault::new(ErrorKind::Failed, error.to_string()))?;
        for vps in all {
            let busy = |what: &str| Fault::new(ErrorKind::Conflict, format!("vps \"{}\" {what}", vps.name));
            if !vps.settled(REST).await {
                return Err(busy("does not come to rest; try again"));
            }
            vps.ask(Input::Hold { reason: "it is being exported".to_owned(), public: "it is being copied" }).await;
            if !vps.settled(REST).await || vps.life().state() == State::Running {
                return Err(busy("could not be frozen; try again"));
            }
            let generation = vps.life().generation();
            still.all.push((vps, generation));
        }
        Ok(still)
    }

    /// Whether nobody went on meanwhile.
    fn check(&self) -> Result<(), Fault> {
        let moved = |(vps, generation): &&(Arc<Vps>, u64)| {
            let life = vps.life();
            life.generation() != *generation || matches!(life.state(), State::Running | State::Starting)
        };
        match self.all.iter().find(moved) {
            None => Ok(()),
            Some((vps, _)) => {
                let message = format!("vps \"{}\" went on while it was exported; export it again", vps.name);
                Err(Fault::new(ErrorKind::Conflict, message))
            }
        }
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        let (control, held) = (self.control.clone(), std::mem::take(&mut self.held));
        tokio::spawn(async move {
            for vps in held.iter().filter_map(|name| control.get(name)) {
                vps.feed(Input::Release("it was exported".to_owned())).await;
            }
            if let Err(error) = control.store.run(move |store| store.note_exporting(&held, false)).await {
                tracing::error!(%error, "that an export has ended could not be noted");
            }
        });
    }
}

type Sender = mpsc::Sender<std::io::Result<Bytes>>;

async fn send(sender: &Sender, bytes: Bytes) -> Result<(), Fault> {
    let gone = |_| Fault::new(ErrorKind::Unavailable, "who asked for it went away");
    sender.send(Ok(bytes)).await.map_err(gone)
}

async fn write(control: &Arc<Control>, manifest: &Manifest, held: Option<Still>, sender: &Sender) -> Result<(), Fault> {
    let json = |error: serde_json::Error| Fault::new(ErrorKind::Failed, error.to_string());
    send(sender, member(MANIFEST, &serde_json::to_vec_pretty(manifest).map_err(json)?)).await?;
    for layer in manifest.layers.iter().filter(|_| manifest.with_image) {
        let content = transfer::give_layer(&control.apps, layer.clone())?;
        write_parts(content, &format!("layers/{layer}"), sender).await?;
    }
    let still = match held {
        Some(still) => still,
        None => {
            let vps = control.get(&manifest.name);
            let vps = vps.ok_or_else(|| Fault::not_found(format!("vps \"{}\" was deleted", manifest.name)))?;
            Still::hold(control, users(control, &vps.spec())).await?
        }
    };
    let mut end = End { sha256: Default::default() };
    for volume in &manifest.volumes {
        let digest = write_volume(control, manifest, volume, sender).await?;
        end.sha256.insert(volume.clone(), digest);
    }
    still.check()?;
    send(sender, member(END, &serde_json::to_vec_pretty(&end).map_err(json)?)).await?;
    send(sender, Bytes::from_static(&[0; 2 * BLOCK])).await
}

/// Its checksum.
async fn write_volume(
    control: &Control,
    manifest: &Manifest,
    volume: &VolumeName,
    sender: &Sender,
) -> Result<String, Fault> {
    let request = host::ExportVolume { tenant: manifest.tenant.clone(), name: volume.clone() };
    write_parts(transfer::export(&control.host, request)?, &format!("volumes/{volume}"), sender).await
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
