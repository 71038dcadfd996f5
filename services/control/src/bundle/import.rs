//! A VPS into this host, whole or not at all: its volumes first, which nobody uses yet, then its spec.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::body::Body;
use futures_util::StreamExt as _;
use model::{
    ImageRef, Party, TenantName, VolumeName, VpsName, VpsSpec,
    api::{ApplyRequest, ErrorKind, Imported, SpecFile},
    image::SentKind,
    spec::{ReadySpec, render},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use wire::{Fault, host};

use super::{
    FORMAT, LIMIT, MANIFEST, Manifest, SMALL, discard, done,
    fill::{Target, fill},
    members::Members,
};
use crate::{
    api::{
        apply::{Secrets, carry_out, missing_images, planned},
        error::ApiError,
    },
    calls::insist,
    images,
    secrets::{Passphrase, SecretId, Value},
    shared::Control,
    state,
    store::Import,
};

/// How it is to be here.
#[derive(Debug, Deserialize)]
pub struct Wanted {
    name: Option<VpsName>,
    tenant: Option<TenantName>,
    routes: Option<bool>,
}

pub(super) fn invalid(message: impl Into<String>) -> ApiError {
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
    let mut members = Members::new(body.into_data_stream());
    let result = import(control, wanted, passphrase, &mut members).await;
    if let Ok(imported) = &result {
        control.history.record(Some(&imported.vps), "imported", "", actor);
    }
    // Who sends hears nothing before all is sent.
    while let Some(Ok(_)) = members.body.next().await {}
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
    let Adapted { name, mut spec, volumes, left_out } = adapt(control, &manifest, wanted, &there)?;
    // From here on nobody prunes what it is made of; layers on their way `apps` keeps by itself.
    let _kept = {
        let _one_at_a_time = control.changing.lock().await;
        images::hold(control, vec![manifest.image.clone(), carried_image(&manifest)?], LIMIT).await
    };
    let here = images::layers(control, &manifest.image, LIMIT).await.ok();
    let comes = manifest.with_image && here.as_ref() != Some(&manifest.layers);
    if comes {
        spec.image = carried_image(&manifest)?;
    }
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
        check(control, &name, &request, &secrets, comes).await.map_err(hint)?;
    }
    // Noted before there is anything to be undone, whoever dies when.
    let mark = mark()?;
    let import = Import { mark: Some(mark), tenant: tenant.clone(), volumes: volumes.values().cloned().collect() };
    let noted = import.clone();
    control.store.run(move |store| store.note_import(mark, &noted)).await?;
    let image = comes.then_some(&spec.image);
    let mut target = Target { control, spec: &spec, volumes: &volumes, mark, image, sizes: Vec::new() };
    let imported = async {
        fill(&manifest, &mut target, members).await?;
        let _one_at_a_time = control.changing.lock().await;
        let secrets = new_secrets(control, &tenant, &values).await?;
        let plan = check(control, &name, &request, &secrets, false).await?;
        carry_out(control, &request, &plan, secrets).await
    };
    if let Err(error) = imported.await {
        discard(control, import).await;
        return Err(error);
    }
    done(control, import).await;
    let layers = images::layers(control, &spec.image, LIMIT).await.unwrap_or_default();
    let (image, other_image) = (spec.image.to_string(), layers != manifest.layers);
    Ok(Imported { vps: name, tenant, volumes, image, other_image, left_out })
}

/// What tells the volumes of this import from those that others make.
fn mark() -> Result<u64, ApiError> {
    let mut bytes = [0; 8];
    let failed = |error| Fault::from(std::io::Error::from(error));
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(failed)?;
    Ok(u64::from_le_bytes(bytes))
}

/// What an image that comes with an archive is called here: after its layers, since whoever wrote the archive could have
/// called it what others mean by another.
fn carried_image(manifest: &Manifest) -> Result<ImageRef, ApiError> {
    let mut digest = Sha256::new();
    manifest.layers.iter().for_each(|layer| digest.update(format!("{layer}\n")));
    let digest = model::image::Digest::from_hex(hex::encode(digest.finalize()));
    let name = model::image::ImageName::for_file(manifest.name.as_str());
    let digest = digest.map_err(|error| invalid(error.to_string()))?;
    Ok(ImageRef::Sent { kind: SentKind::Tar, name, digest })
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
    // Labels are whoever has them here.
    let is_known = |party: &Party| match party {
        Party::Vps(other) => known(other),
        Party::Label(_) => true,
    };
    let own = Party::Vps(name.clone());
    for rule in spec.allow(&name) {
        let other = if rule.from == own { &rule.to } else { &rule.from };
        if !is_known(other) {
            left_out.push(rule.to_string());
        }
    }
    left_out.extend(spec.wants.iter().filter(|other| !known(other)).map(|other| format!("wants {other}")));
    spec.wants.retain(|other| known(other));
    spec.admits.retain(|other, _| is_known(other));
    spec.reaches.retain(|other, _| is_known(other));
    Ok(Adapted { name, spec, volumes, left_out })
}

/// Whether it can be here. For who holds `Control::changing`.
async fn check(
    control: &Arc<Control>,
    name: &VpsName,
    request: &ApplyRequest,
    secrets: &Secrets,
    image_comes: bool,
) -> Result<crate::apply::Plan, ApiError> {
    if control.get(name).is_some() {
        let message = format!("there is a vps \"{name}\" already; nothing was changed");
        return Err(ApiError::new(ErrorKind::Conflict, message).next("import it under another name: --name NEW"));
    }
    let plan = planned(control, request, secrets).await.map_err(|error| {
        let taken = error.0.problems.iter().any(|problem| problem.message.starts_with("route "));
        if taken { error.next("import it without its routes: --no-routes") } else { error }
    })?;
    let missing = missing_images(control, &plan).await?;
    if let Some(image) = missing.first().filter(|_| !image_comes) {
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
