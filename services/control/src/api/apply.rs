//! `POST /v1/apply`

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use axum::{Json, body::Bytes, extract};
use model::{
    VpsName, VpsSpec,
    api::{ApplyAnswer, ApplyRequest, ChangeKind, ErrorKind, State},
};
use wire::{gateway, host};

use super::{
    ACTOR,
    error::{ApiError, parse},
};
use crate::{
    apply::{Plan, World, listen_problems, plan},
    calls::{PATIENCE, insist},
    driver::Vps,
    images, launch, neighbours,
    secrets::{self, SecretId},
    shared::Control,
    store::Wakes,
};

/// Files of one request.
const FILES: usize = 256;
/// How long `apps` is asked for images that are not known; those that are known do for the rest.
const IMAGES: Duration = Duration::from_secs(3);

/// All files or nothing: plan, listen, store, take over.
pub async fn apply(
    extract::State(control): extract::State<Arc<Control>>,
    body: Bytes,
) -> Result<Json<ApplyAnswer>, ApiError> {
    let request: ApplyRequest = parse(&body)?;
    if request.files.is_empty() || request.files.len() > FILES {
        return Err(ApiError::new(ErrorKind::Invalid, format!("an apply needs 1 to {FILES} spec files")));
    }
    let _one_at_a_time = control.changing.lock().await;
    let plan = planned(&control, &request, &Secrets::new()).await?;
    let wanted = plan.specs.values().filter(|_| !request.dry_run).map(|spec| spec.image.clone());
    let wanted: Vec<_> = wanted.collect();
    let _kept = images::hold(&control, wanted.clone(), IMAGES).await;
    images::applied(&control, &wanted);
    let missing = missing_images(&control, &plan).await?;
    let warnings = warnings(&control, &plan).await;
    if request.dry_run {
        return Ok(Json(ApplyAnswer { changes: plan.changes, missing_images: missing, warnings }));
    }
    if let Some(first) = missing.first() {
        let message = format!("image {} is not there; nothing was changed", missing.join(", "));
        return Err(ApiError::new(ErrorKind::NotFound, message).next(format!("bailiwick image build {first}")));
    }
    if !plan.specs.is_empty() {
        carry_out(&control, &request, &plan, Secrets::new()).await?;
    }
    Ok(Json(ApplyAnswer { changes: plan.changes, missing_images: missing, warnings }))
}

/// Secrets that come with what is applied, as the store is to have them.
pub type Secrets = BTreeMap<SecretId, secrets::Stored>;

/// Makes a plan so, whole or not at all. For who holds `Control::changing`.
pub async fn carry_out(
    control: &Arc<Control>,
    request: &ApplyRequest,
    plan: &Plan,
    secrets: Secrets,
) -> Result<(), ApiError> {
    listen(control, request, plan).await?;
    show_clients(control, plan).await?;
    let (specs, sealed) = (plan.specs.clone(), secrets.clone());
    if let Err(error) = control.store.run(move |store| store.put_specs(&specs, &sealed)).await {
        control.publish_table();
        return Err(error.into());
    }
    control.secrets.took(&secrets);
    take_over(control, plan);
    neighbours::in_force(control, plan.specs.keys().cloned()).await;
    Ok(())
}

/// What a request would change, with these secrets. For who holds `Control::changing`.
pub async fn planned(control: &Arc<Control>, request: &ApplyRequest, secrets: &Secrets) -> Result<Plan, ApiError> {
    let more = secrets.iter().map(|(id, secret)| (id.clone(), secret.at_ms));
    let specs = control.specs();
    let designated: BTreeSet<_> = control.config.designated.keys().cloned().collect();
    let deleting: BTreeSet<_> = control.deleting().keys().cloned().collect();
    let secrets = control.secrets.all().into_iter().chain(more).collect();
    let up: BTreeMap<_, _> = control.all().values().filter(|vps| vps.is_up()).map(since).collect();
    let unshown = match control.config.directories.is_empty() {
        true => host::DirectoryFaults::default(),
        false => insist(&control.host, &host::Directories {}, PATIENCE).await?,
    };
    let world = World {
        specs: &specs,
        designated: &designated,
        deleting: &deleting,
        up: &up,
        secrets: &secrets,
        host: &control.config,
        unshown: &unshown,
        machine: control.machine,
    };
    plan(&world, request).map_err(|refusal| ApiError::problems(refusal.kind, refusal.problems))
}

/// A VPS that is up, and since when, Unix milliseconds.
fn since(vps: &Arc<Vps>) -> (VpsName, u64) {
    (vps.name.clone(), vps.wakes().last.map_or(0, |wake| wake.at_ms))
}

/// The images of a plan that are not there.
pub async fn missing_images(control: &Arc<Control>, plan: &Plan) -> Result<Vec<String>, ApiError> {
    let missing = || -> Vec<_> {
        plan.images.iter().filter(|image| !control.images.has(image)).map(ToString::to_string).collect()
    };
    if !missing().is_empty() {
        images::refresh(control, IMAGES).await?;
    }
    Ok(missing())
}

/// Sizes are only worth something where the disk is counted.
async fn warnings(control: &Control, plan: &Plan) -> Vec<String> {
    let sized = |name: &VpsName, spec: &VpsSpec| {
        let volumes = spec.volumes.iter().filter(|(_, volume)| volume.size.is_some());
        let volumes = volumes.map(|(volume, _)| format!("the size of volume `{}/{volume}`", spec.tenant));
        volumes.chain(spec.limits.disk.map(|_| format!("limits.disk of vps \"{name}\""))).collect::<Vec<_>>()
    };
    let sized: Vec<_> = plan.specs.iter().flat_map(|(name, spec)| sized(name, spec)).collect();
    if sized.is_empty() {
        return Vec::new();
    }
    match insist(&control.host, &host::Disk {}, PATIENCE).await.map(|disk| disk.uncounted) {
        Ok(Some(why)) => sized.iter().map(|what| format!("{what} is not enforced: {why}")).collect(),
        _ => Vec::new(),
    }
}

/// Has the new addresses listened on, so that a port in use refuses the whole apply.
async fn listen(control: &Arc<Control>, request: &ApplyRequest, plan: &Plan) -> Result<(), ApiError> {
    if plan.listen.is_empty() {
        return Ok(());
    }
    let listen = gateway::Listen { addresses: plan.listen.iter().copied().collect() };
    let answer = insist(&control.gateway, &listen, PATIENCE).await;
    let refused = match answer {
        Ok(answer) if answer.faults.is_empty() => return Ok(()),
        Ok(answer) => ApiError::problems(ErrorKind::Conflict, listen_problems(request, plan, &answer.faults)),
        Err(fault) => fault.into(),
    };
    // The gateway closes what no table holds when the next one comes.
    control.publish_table();
    Err(refused)
}

/// Prepares VPSs that are up for routes to new ports of theirs.
async fn show_clients(control: &Arc<Control>, plan: &Plan) -> Result<(), ApiError> {
    for (name, spec) in &plan.specs {
        let Some(vps) = control.get(name) else { continue };
        let up = matches!(vps.life().state(), State::Running | State::Frozen);
        if up && let Err(fault) = launch::show_clients(control, &vps, spec).await {
            control.publish_table();
            return Err(fault.into());
        }
    }
    Ok(())
}

/// What the store says now becomes so.
fn take_over(control: &Arc<Control>, plan: &Plan) {
    for (name, spec) in &plan.specs {
        if let Some(vps) = control.get(name) {
            vps.set_spec(spec.clone());
            continue;
        }
        let vps = Vps::spawn(control.clone(), name.clone(), spec.clone(), None, Wakes::default());
        control.all().insert(name.clone(), vps.clone());
        launch::ahead(control, vps);
    }
    control.publish_table();
    control.jobs.changed();
    tokio::spawn(images::tell(control.clone()));
    for change in &plan.changes {
        let fields = || change.fields.iter().map(|field| field.field.as_str()).collect::<Vec<_>>().join(", ");
        match change.kind {
            ChangeKind::Create => control.history.record(Some(&change.vps), "created", "", ACTOR),
            ChangeKind::Change => control.history.record(Some(&change.vps), "changed", fields(), ACTOR),
            ChangeKind::None => {}
        }
    }
}
