//! A VPS into this host, whole or not at all: its volumes first, which nobody uses yet, then its spec.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use archive::Kind;
use axum::body::{Body, BodyDataStream};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt as _;
use model::{
    TenantName, VolumeName, VpsName, VpsSpec,
    api::{ApplyRequest, ErrorKind, Imported, SpecFile},
    spec::{ReadySpec, render},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::{io::AsyncWriteExt as _, net::unix::pipe, task::JoinHandle};
use wire::{Fault, host};

use super::{BLOCK, END, End, FORMAT, Header, LIMIT, MANIFEST, Manifest, discard};
use crate::{
    api::{
        apply::{Secrets, carry_out, missing_images, planned},
        error::ApiError,
    },
    calls::insist,
    images,
    secrets::{Passphrase, SecretId, Value},
    shared::Control,
    state, transfer,
};

/// Bytes of `bailiwick.json` and `end.json` at most.
const SMALL: u64 = 2 << 20;
/// Bytes of one part of a volume at most.
const PART: u64 = 64 << 20;

/// How it is to be here.
#[derive(Debug, Deserialize)]
pub struct Wanted {
    name: Option<VpsName>,
    tenant: Option<TenantName>,
    routes: Option<bool>,
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorKind::Invalid, format!("{}; nothing was changed", message.into()))
}

/// Imports what comes.
pub async fn run(
    control: &Arc<Control>,
    wanted: Wanted,
    passphrase: Option<Passphrase>,
    body: Body,
    actor: &str,
) -> Result<Imported, ApiError> {
    let mut members = Members { body: body.into_data_stream(), buffer: BytesMut::new() };
    let result = import(control, wanted, passphrase, &mut members).await;
    match &result {
        Ok(imported) => control.history.record(Some(&imported.vps), "imported", "", actor),
        // Who sends hears nothing before all is sent.
        Err(_) => while let Some(Ok(_)) = members.body.next().await {},
    }
    result
}

async fn import(
    control: &Arc<Control>,
    wanted: Wanted,
    passphrase: Option<Passphrase>,
    members: &mut Members,
) -> Result<Imported, ApiError> {
    let mut manifest = manifest(members).await?;
    let there = insist(&control.host, &host::Volumes {}, LIMIT).await?.volumes;
    let there = there.into_iter().map(|volume| (volume.tenant, volume.name)).collect();
    let Adapted { name, spec, volumes, left_out } = adapt(control, &manifest, wanted, &there)?;
    let spec_file = SpecFile { name: MANIFEST.to_owned(), text: render(&name, &spec), ..Default::default() };
    let request = ApplyRequest { files: vec![spec_file], dry_run: false, take_routes: false };
    let tenant = spec.tenant.clone();
    let carried = manifest.carried.take();
    let locked_in = carried.is_some() && passphrase.is_none();
    let values = match (carried, passphrase) {
        (Some(carried), Some(passphrase)) => state::slowly(move || carried.open(&passphrase)).await?,
        (None, Some(_)) => return Err(invalid("the archive has no secrets").next("import it without --with-secrets")),
        _ => BTreeMap::new(),
    };
    let hint = |mut error: ApiError| {
        for problem in error.0.problems.iter_mut().filter(|p| locked_in && p.message.starts_with("secret ")) {
            problem.hint = Some("the archive has what it says: import it --with-secrets".to_owned());
        }
        error
    };
    {
        let _one_at_a_time = control.changing.lock().await;
        let secrets = new_secrets(control, &tenant, &values).await?;
        check(control, &name, &request, &secrets).await.map_err(hint)?;
    }
    let mut target = Target { control, spec: &spec, volumes: &volumes, made: Vec::new() };
    let done = async {
        fill(&manifest, &mut target, members).await?;
        let _one_at_a_time = control.changing.lock().await;
        let secrets = new_secrets(control, &tenant, &values).await?;
        let plan = check(control, &name, &request, &secrets).await?;
        carry_out(control, &request, &plan, secrets).await
    };
    let done = done.await;
    let (made, of) = (target.made, tenant.clone());
    if let Err(error) = done {
        discard(control, tenant, made).await;
        return Err(error);
    }
    if let Err(error) = control.store.run(move |store| store.note_importing(&of, &made, false)).await {
        tracing::error!(%error, "that an import has ended could not be noted");
    }
    let layers = images::layers(control, &manifest.image, LIMIT).await.unwrap_or_default();
    Ok(Imported { vps: name, tenant, volumes, other_image: layers != manifest.layers, left_out })
}

async fn manifest(members: &mut Members) -> Result<Manifest, ApiError> {
    let no_archive = || invalid("this is no archive of `bailiwick export`");
    let (path, size) = members.next().await?.ok_or_else(no_archive)?;
    if path != MANIFEST || size > SMALL {
        return Err(no_archive());
    }
    let bytes = members.whole(size).await?;
    #[derive(Deserialize)]
    struct Format {
        format: u32,
        by: String,
    }
    let wrong = |error: serde_json::Error| invalid(format!("{MANIFEST} of the archive: {error}"));
    let Format { format, by } = serde_json::from_slice(&bytes).map_err(wrong)?;
    if format > FORMAT {
        let message =
            format!("the archive was written by version {by}, in a format that {} does not know", model::version());
        return Err(invalid(message).next(format!("use bailiwick {by} or later")));
    }
    serde_json::from_slice(&bytes).map_err(wrong)
}

/// How a VPS is here.
struct Adapted {
    name: VpsName,
    spec: VpsSpec,
    /// Volumes as they were called, and as they are here.
    volumes: BTreeMap<VolumeName, VolumeName>,
    left_out: Vec<String>,
}

fn adapt(
    control: &Control,
    manifest: &Manifest,
    wanted: Wanted,
    there: &BTreeSet<(TenantName, VolumeName)>,
) -> Result<Adapted, ApiError> {
    let told = |problems: Vec<model::spec::Problem>| ApiError::problems(ErrorKind::Invalid, problems);
    let mut parsed = model::spec::parse(MANIFEST, &manifest.spec).map_err(told)?;
    let spec = parsed.vps.remove(&manifest.name).filter(|_| parsed.vps.is_empty());
    let mut spec = spec.ok_or_else(|| invalid("the spec in the archive is not that of its VPS"))?;
    let renamed = wanted.name.is_some();
    let name = wanted.name.unwrap_or_else(|| manifest.name.clone());
    spec.tenant = wanted.tenant.unwrap_or(spec.tenant);
    if wanted.routes == Some(false) {
        // What it is ready by does not change with who is led to it.
        if let (ReadySpec::Listen(None), Some(port)) = (spec.ready, spec.routes.values().next()) {
            spec.ready = ReadySpec::Listen(Some(port.port));
        }
        spec.routes.clear();
    }
    let mut volumes = BTreeMap::new();
    for volume in spec.volumes.keys() {
        let mut here = volume.clone();
        if renamed && there.contains(&(spec.tenant.clone(), here.clone())) {
            here = format!("{name}-{volume}").parse().map_err(|_| invalid(format!("`{name}-{volume}` is too long")))?;
        }
        if there.contains(&(spec.tenant.clone(), here.clone())) {
            let message = format!("volume `{}/{here}` is there already; nothing was changed", spec.tenant);
            let next = "import it under another name: --name NEW, or for another tenant: --tenant TENANT";
            return Err(ApiError::new(ErrorKind::Conflict, message).next(next));
        }
        volumes.insert(volume.clone(), here);
    }
    let unknown = manifest.volumes.iter().find(|volume| !volumes.contains_key(*volume));
    if let Some(volume) = unknown {
        return Err(invalid(format!("the archive has a volume `{volume}` that its spec does not have")));
    }
    spec.volumes = spec.volumes.into_iter().map(|(name, volume)| (volumes[&name].clone(), volume)).collect();
    let mut left_out = Vec::new();
    let specs = control.specs();
    let known = |other: &VpsName| specs.get(other).is_some_and(|other| other.tenant == spec.tenant);
    for rule in spec.allow(&name) {
        let other = if rule.from == name { &rule.to } else { &rule.from };
        if !known(other) {
            left_out.push(rule.to_string());
        }
    }
    spec.admits.retain(|other, _| known(other));
    spec.reaches.retain(|other, _| known(other));
    Ok(Adapted { name, spec, volumes, left_out })
}

/// Whether it can be here. For who holds `Control::changing`.
async fn check(
    control: &Arc<Control>,
    name: &VpsName,
    request: &ApplyRequest,
    secrets: &Secrets,
) -> Result<crate::apply::Plan, ApiError> {
    if control.get(name).is_some() {
        let message = format!("there is a vps \"{name}\" already; nothing was changed");
        return Err(ApiError::new(ErrorKind::Conflict, message).next("import it under another name: --name NEW"));
    }
    let plan = planned(control, request, secrets).await.map_err(|error| {
        let taken = error.0.problems.iter().any(|problem| problem.message.starts_with("route "));
        if taken { error.next("import it without its routes: --no-routes") } else { error }
    })?;
    if let Some(image) = missing_images(control, &plan).await?.first() {
        let message = format!("image {image} is not there; nothing was changed");
        return Err(ApiError::new(ErrorKind::NotFound, message).next(format!("bailiwick image build {image}")));
    }
    Ok(plan)
}

/// Those of an archive that are not set here, sealed as they are here. One that is set stays as it is: others use it, too.
async fn new_secrets(
    control: &Control,
    tenant: &TenantName,
    values: &BTreeMap<String, Value>,
) -> Result<Secrets, ApiError> {
    let mut new = Secrets::new();
    for (name, value) in values {
        let name = name.parse().map_err(|_| invalid(format!("{name:?} in the archive is no secret's name")))?;
        let id = SecretId { tenant: tenant.clone(), name };
        if !control.secrets.has(&id) {
            let sealed = control.secrets.seal(&id, value)?;
            new.insert(id, sealed);
            continue;
        }
        let here = control.secrets.open(&control.store, vec![id.clone()]).await?;
        if here.first().is_none_or(|here| here.bytes() != value.bytes()) {
            let message = format!("secret `{id}` is set here already, to something else; nothing was changed");
            let next = "import it for another tenant (--tenant), or set that secret to what the archive has";
            return Err(ApiError::new(ErrorKind::Conflict, message).next(next));
        }
    }
    Ok(new)
}

/// Where volumes go.
struct Target<'a> {
    control: &'a Control,
    spec: &'a VpsSpec,
    /// Volumes as they were called, and as they are here.
    volumes: &'a BTreeMap<VolumeName, VolumeName>,
    /// Those that are there since this import.
    made: Vec<VolumeName>,
}

impl Target<'_> {
    fn begin(&self, volume: VolumeName) -> Result<Filling, ApiError> {
        let name = self.volumes[&volume].clone();
        let (tenant, size) = (self.spec.tenant.clone(), self.spec.volumes.get(&name).and_then(|volume| volume.size));
        let request = host::ImportVolume { tenant, name, owner: None, replace: false, size };
        let (pipe, end) = transfer::import(&self.control.host, request)?;
        Ok(Filling { volume, pipe, end: tokio::spawn(end), digest: Sha256::new(), parts: 0 })
    }

    /// Waits until a volume is there, and notes that it goes if this process dies. Only now: before, the host undoes it, and
    /// one that somebody else made meanwhile is not this import's to remove.
    async fn end(&mut self, filling: Filling) -> Result<(VolumeName, String), ApiError> {
        let (volume, digest) = filling.end().await?;
        let (tenant, made) = (self.spec.tenant.clone(), self.volumes[&volume].clone());
        self.made.push(made.clone());
        self.control.store.run(move |store| store.note_importing(&tenant, &[made], true)).await?;
        Ok((volume, digest))
    }
}

/// A volume that is being filled.
struct Filling {
    volume: VolumeName,
    pipe: pipe::Sender,
    end: JoinHandle<Result<host::Moved, Fault>>,
    digest: Sha256,
    parts: u32,
}

impl Filling {
    async fn end(self) -> Result<(VolumeName, String), ApiError> {
        let Self { volume, pipe, end, digest, .. } = self;
        drop(pipe);
        let ended = |_| ApiError::new(ErrorKind::Failed, format!("volume `{volume}`: filling it broke off"));
        end.await.map_err(ended)??;
        Ok((volume, hex::encode(digest.finalize())))
    }
}

async fn fill(manifest: &Manifest, target: &mut Target<'_>, members: &mut Members) -> Result<(), ApiError> {
    let mut found = End { sha256: BTreeMap::new() };
    let mut wanted = manifest.volumes.iter();
    let mut filling: Option<Filling> = None;
    let result = async {
        loop {
            let (path, size) = members.next().await?.ok_or_else(|| invalid("the archive ends before its end"))?;
            let part = path.strip_prefix("volumes/").and_then(|rest| rest.split_once('/'));
            let Some((volume, number)) = part else {
                if let Some(done) = filling.take() {
                    found.sha256.extend([target.end(done).await?]);
                }
                return match path == END && size <= SMALL {
                    true => Ok(members.whole(size).await?),
                    false => Err(invalid(format!("the archive holds {path:?}, which does not belong there"))),
                };
            };
            if filling.as_ref().is_none_or(|filling| filling.volume.as_str() != volume) {
                if let Some(done) = filling.take() {
                    found.sha256.extend([target.end(done).await?]);
                }
                let next = wanted.next().filter(|next| next.as_str() == volume);
                let volume =
                    next.ok_or_else(|| invalid(format!("{path:?} does not come next in the archive")))?.clone();
                filling = Some(target.begin(volume)?);
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
                if now.pipe.write_all(&chunk).await.is_err() {
                    // The host does not read any more, and says why.
                    let ended = |_| ApiError::new(ErrorKind::Failed, "filling a volume broke off");
                    (&mut now.end).await.map_err(ended)??;
                    return Err(invalid("a volume of the archive goes on after its end"));
                }
            }
            members.padding(size).await?;
        }
    };
    let end = match result.await {
        Ok(end) => end,
        Err(error) => {
            if let Some(filling) = filling {
                // The host hears that its caller is gone, and leaves the volume as it was.
                filling.end.abort();
                let _ = filling.end.await;
            }
            return Err(error);
        }
    };
    let end: End = serde_json::from_slice(&end).map_err(|error| invalid(format!("{END} of the archive: {error}")))?;
    if found != end || found.sha256.len() != manifest.volumes.len() {
        return Err(invalid("the archive is damaged: a volume is not what its checksum says"));
    }
    Ok(())
}

/// The members of an archive as it comes.
struct Members {
    body: BodyDataStream,
    buffer: BytesMut,
}

impl Members {
    async fn more(&mut self) -> Result<(), ApiError> {
        let broken = |what: String| invalid(format!("the archive broke off{what}"));
        let next = self.body.next().await.ok_or_else(|| broken(String::new()))?;
        self.buffer.extend_from_slice(&next.map_err(|error| broken(format!(": {error}")))?);
        Ok(())
    }

    async fn take(&mut self, length: usize) -> Result<Bytes, ApiError> {
        while self.buffer.len() < length {
            self.more().await?;
        }
        Ok(self.buffer.split_to(length).freeze())
    }

    /// Path and size of the next file; none at the end.
    async fn next(&mut self) -> Result<Option<(String, u64)>, ApiError> {
        let block = self.take(BLOCK).await?;
        let header = Header(block[..].try_into().map_err(|_| invalid("half a block"))?);
        if header.is_zero() {
            return Ok(None);
        }
        let path = String::from_utf8(header.path()).ok();
        let known = path.zip(header.size()).filter(|_| header.is_sound() && header.kind() == Kind::File);
        known.map(Some).ok_or_else(|| invalid("the archive is damaged, or none of `bailiwick export`"))
    }

    /// A small file's content.
    async fn whole(&mut self, size: u64) -> Result<Bytes, ApiError> {
        let bytes = self.take(usize::try_from(size.min(SMALL)).unwrap_or_default()).await?;
        self.padding(size).await?;
        Ok(bytes)
    }

    /// The next bytes of a file, of which `left` are left.
    async fn chunk(&mut self, left: u64) -> Result<Bytes, ApiError> {
        if !self.buffer.has_remaining() {
            self.more().await?;
        }
        let length = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        Ok(self.buffer.split_to(length).freeze())
    }

    async fn padding(&mut self, size: u64) -> Result<(), ApiError> {
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        self.take(usize::try_from(padding).unwrap_or_default()).await.map(drop)
    }
}
