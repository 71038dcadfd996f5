//! A whole VPS as one archive: a tar of
//!
//! ```text
//! bailiwick.json           what it is: spec, image with the ids of its layers, names of volumes
//! layers/ID/000000 …       a layer of its image, if that was asked for: the stream that its id is the digest of
//! volumes/NAME/000000 …    a volume: the parts of a tar stream, one after the other
//! end.json                 a checksum for each volume; without it the archive is not whole
//! ```
//!
//! What was begun and not ended, because this process died, is undone at the next start ([`resume`]): a VPS that stood
//! still goes on, volumes of an import go.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use archive::{BLOCK, Header};
use bytes::{Bytes, BytesMut};
use model::{ImageRef, LayerId, SecretName, TenantName, VolumeName, VpsName, api::ErrorKind};
use serde::{Deserialize, Serialize};
use wire::{Fault, host};

use crate::{calls::insist, life::Input, secrets::Carried, shared::Control, store::Import};

pub mod export;
mod fill;
pub mod import;
mod members;
mod still;

/// What this version writes; it reads none that is higher.
const FORMAT: u32 = 2;
/// What archives without layers have: versions that know of none read them.
const WITHOUT_LAYERS: u32 = 1;
/// Bytes of `bailiwick.json` and `end.json` at most.
const SMALL: u64 = 2 << 20;
const MANIFEST: &str = "bailiwick.json";
const END: &str = "end.json";
/// How long the host is asked for something small.
const LIMIT: Duration = Duration::from_secs(10);

/// `bailiwick.json`
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    /// The version that wrote it.
    by: String,
    name: VpsName,
    tenant: TenantName,
    /// Unix time in milliseconds.
    at_ms: u64,
    /// As `get` prints it.
    spec: String,
    image: ImageRef,
    layers: Vec<LayerId>,
    /// Whether the layers are in it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    with_image: bool,
    /// Volumes that had something; those of the spec that are not here were never used.
    volumes: Vec<VolumeName>,
    /// Secrets that it needs.
    secrets: Vec<SecretName>,
    /// What they say, sealed, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    carried: Option<Carried>,
}

/// `end.json`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    /// SHA-256 of each volume's tar stream, in hexadecimal.
    sha256: BTreeMap<VolumeName, String>,
}

/// One file of the archive.
fn member(path: &str, content: &[u8]) -> Bytes {
    let header = Header::new(b'0', path.as_bytes(), b"", 0o600, (0, 0), content.len() as u64, 0);
    let mut bytes = BytesMut::with_capacity(2 * BLOCK + content.len());
    bytes.extend_from_slice(&header.0);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes.freeze()
}

/// Undoes what a former process did not end.
pub fn resume(control: &Arc<Control>) {
    let stored = match control.store.load() {
        Ok(stored) => stored,
        Err(error) => return tracing::error!(%error, "what was being moved is not known"),
    };
    let control = control.clone();
    tokio::spawn(async move {
        for name in &stored.exporting {
            if let Some(vps) = control.get(name) {
                vps.feed(Input::Thaw("its export was broken off".to_owned())).await;
            }
        }
        let names = stored.exporting;
        let _ = control.store.run(move |store| store.note_exporting(&names, false)).await;
        for import in stored.imports {
            discard(&control, import).await;
        }
    });
}

/// Removes the volumes that an import made which failed, but for those that a spec uses, as when all was done but the note of
/// it. Then the note goes too. What somebody else made, or a VPS has used since, does not have the import's mark.
async fn discard(control: &Control, import: Import) {
    // No spec may come to use one meanwhile.
    let _one_at_a_time = control.changing.lock().await;
    let (tenant, mark, specs) = (&import.tenant, import.mark, control.specs());
    let used = |volume: &VolumeName| specs.values().any(|s| s.tenant == *tenant && s.volumes.contains_key(volume));
    for volume in import.volumes.iter().filter(|volume| !used(volume)) {
        let delete = host::DeleteVolume { tenant: tenant.clone(), name: volume.clone(), mark };
        match insist(&control.host, &delete, LIMIT).await {
            Err(Fault { kind, message }) if kind != ErrorKind::NotFound => {
                // The note stays: it is tried again at the next start.
                return tracing::error!(%tenant, %volume, message, "a volume of an import that failed is left");
            }
            _ => {}
        }
    }
    done(control, import).await;
}

/// An import is over, and nothing of it is to be undone any more.
async fn done(control: &Control, import: Import) {
    if let Err(error) = control.store.run(move |store| store.forget_import(&import)).await {
        tracing::error!(%error, "that an import has ended could not be noted");
    }
}
