//! `/v1/volumes`

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use model::{
    TenantName, VolumeName, VpsName,
    api::{ErrorKind, VolumeRow},
};
use wire::host;

use super::{ACTOR, error::ApiError};
use crate::{calls::insist, shared::Control};

/// How long the host is asked.
const LIMIT: Duration = Duration::from_secs(5);

fn users(control: &Control, tenant: &TenantName, volume: &VolumeName) -> Vec<(VpsName, model::run::Volume)> {
    let mut users = Vec::new();
    for vps in control.all().values() {
        let spec = vps.spec();
        if spec.tenant == *tenant {
            users.extend(spec.volumes.get(volume).map(|volume| (vps.name.clone(), volume.clone())));
        }
    }
    users
}

/// Bytes a volume may have, as a spec says.
pub fn size(control: &Control, tenant: &TenantName, name: &VolumeName) -> Option<u64> {
    users(control, tenant, name).iter().find_map(|(_, volume)| volume.size)
}

fn row(control: &Control, host::VolumeStatus { tenant, name, used }: host::VolumeStatus) -> VolumeRow {
    let users = users(control, &tenant, &name);
    VolumeRow {
        size: users.iter().find_map(|(_, volume)| volume.size),
        used_by: users.into_iter().map(|(vps, volume)| (vps, volume.path)).collect::<BTreeMap<_, _>>(),
        tenant,
        name,
        used,
    }
}

async fn all(control: &Control) -> Result<Vec<VolumeRow>, ApiError> {
    let all = insist(&control.host, &host::Volumes {}, LIMIT).await?.volumes;
    Ok(all.into_iter().map(|volume| row(control, volume)).collect())
}

/// `GET /v1/volumes`
pub async fn list(State(control): State<Arc<Control>>) -> Result<Json<Vec<VolumeRow>>, ApiError> {
    Ok(Json(all(&control).await?))
}

pub fn names(tenant: &str, name: &str) -> Result<(TenantName, VolumeName), ApiError> {
    let wrong = |error: model::name::NameError| ApiError::new(ErrorKind::Invalid, error.to_string());
    Ok((tenant.parse().map_err(wrong)?, name.parse().map_err(wrong)?))
}

/// `GET /v1/volumes/{tenant}/{name}`
pub async fn get(
    State(control): State<Arc<Control>>,
    Path((tenant, name)): Path<(String, String)>,
) -> Result<Json<VolumeRow>, ApiError> {
    let (tenant, name) = names(&tenant, &name)?;
    let found = all(&control).await?.into_iter().find(|row| row.tenant == tenant && row.name == name);
    found.map(Json).ok_or_else(|| no_volume(&tenant, &name))
}

fn no_volume(tenant: &TenantName, name: &VolumeName) -> ApiError {
    ApiError::new(ErrorKind::NotFound, format!("there is no volume `{tenant}/{name}`")).next(
        "`bailiwick volume ls` lists those there are; a volume appears with the first start of a VPS that uses it",
    )
}

/// `DELETE /v1/volumes/{tenant}/{name}`
pub async fn remove(
    State(control): State<Arc<Control>>,
    Path((tenant, name)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let (tenant, name) = names(&tenant, &name)?;
    // An apply that wants this volume must come before or after.
    let _one_at_a_time = control.changing.lock().await;
    let users = users(&control, &tenant, &name);
    if let Some((vps, _)) = users.first() {
        let message = format!("volume `{tenant}/{name}` is used by vps \"{vps}\"");
        return Err(ApiError::new(ErrorKind::Conflict, message).next(format!("bailiwick delete {vps} --volumes")));
    }
    match insist(&control.host, &host::DeleteVolume { tenant: tenant.clone(), name: name.clone(), mark: None }, LIMIT)
        .await
    {
        Err(fault) if fault.kind == ErrorKind::NotFound => return Err(no_volume(&tenant, &name)),
        done => drop(done?),
    }
    control.history.record(None, "volume-deleted", format!("{tenant}/{name}"), ACTOR);
    Ok(StatusCode::NO_CONTENT)
}
