//! `/v1/secrets`: set, listed, removed. No answer holds what one says.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{Path, Query, State},
    http::StatusCode,
};
use model::{
    VpsName,
    api::{ErrorKind, SecretRow, SecretSet},
};
use serde::Deserialize;

use super::{ACTOR, error::ApiError};
use crate::{
    secrets::{SecretError, SecretId, Value},
    shared::Control,
};

impl From<SecretError> for ApiError {
    fn from(error: SecretError) -> Self {
        match error {
            SecretError::Store(error) => error.into(),
            error => Self::new(ErrorKind::Failed, error.to_string()),
        }
    }
}

fn id(tenant: &str, name: &str) -> Result<SecretId, ApiError> {
    let wrong = |error: model::name::NameError| ApiError::new(ErrorKind::Invalid, error.to_string());
    Ok(SecretId { tenant: tenant.parse().map_err(wrong)?, name: name.parse().map_err(wrong)? })
}

/// The VPSs whose specs use it, and where they see it.
fn users<'c>(control: &'c Control, id: &'c SecretId) -> Vec<(VpsName, String)> {
    let all = control.all();
    let used = all.values().filter_map(|vps| {
        let spec = vps.spec();
        let path = spec.secrets.get(&id.name).filter(|_| spec.tenant == id.tenant)?;
        Some((vps.name.clone(), path.clone()))
    });
    used.collect()
}

/// `GET /v1/secrets`
pub async fn list(State(control): State<Arc<Control>>) -> Json<Vec<SecretRow>> {
    let row = |(id, set_ms): (SecretId, u64)| SecretRow {
        used_by: users(&control, &id).into_iter().collect(),
        tenant: id.tenant,
        name: id.name,
        set_ms,
    };
    Json(control.secrets.all().into_iter().map(row).collect())
}

/// `PUT /v1/secrets/{tenant}/{name}`; the body is what it says.
pub async fn set(
    State(control): State<Arc<Control>>,
    Path((tenant, name)): Path<(String, String)>,
    body: Bytes,
) -> Result<Json<SecretSet>, ApiError> {
    let id = id(&tenant, &name)?;
    let value = Value::new(body.to_vec());
    if body.is_empty() || body.len() > wire::secrets::MAX_SECRET {
        return Err(ApiError::new(ErrorKind::Invalid, format!("a secret is 1 to {} bytes", wire::secrets::MAX_SECRET)));
    }
    let _one_at_a_time = control.changing.lock().await;
    let replaced = control.secrets.put(&control.store, id.clone(), &value).await?;
    control.history.record(None, "secret-set", id.to_string(), ACTOR);
    let up = |name: &VpsName| control.get(name).is_some_and(|vps| vps.is_up());
    let at_next_start = users(&control, &id).into_iter().map(|(vps, _)| vps).filter(up).collect();
    Ok(Json(SecretSet { replaced, at_next_start }))
}

/// Query of a removal.
#[derive(Debug, Deserialize)]
pub struct RemoveQuery {
    #[serde(default)]
    force: bool,
}

/// `DELETE /v1/secrets/{tenant}/{name}`
pub async fn remove(
    State(control): State<Arc<Control>>,
    Path((tenant, name)): Path<(String, String)>,
    Query(query): Query<RemoveQuery>,
) -> Result<StatusCode, ApiError> {
    let id = id(&tenant, &name)?;
    // An apply that wants this secret must come before or after.
    let _one_at_a_time = control.changing.lock().await;
    if !control.secrets.has(&id) {
        let all = control.secrets.all();
        let known: Vec<_> = all.keys().map(ToString::to_string).collect();
        let next = match model::nearest(&id.to_string(), known.iter().map(String::as_str)) {
            Some(near) => format!("did you mean {near}? `bailiwick secret ls` lists those there are"),
            None => "`bailiwick secret ls` lists those there are".to_owned(),
        };
        return Err(ApiError::new(ErrorKind::NotFound, format!("there is no secret `{id}`")).next(next));
    }
    if let Some((vps, _)) = users(&control, &id).first().filter(|_| !query.force) {
        let message = format!("secret `{id}` is used by vps \"{vps}\", which could not start without it");
        let next = "take it out of the spec, or remove it all the same: add --force";
        return Err(ApiError::new(ErrorKind::Conflict, message).next(next));
    }
    control.secrets.remove(&control.store, id.clone()).await?;
    control.history.record(None, "secret-deleted", id.to_string(), ACTOR);
    Ok(StatusCode::NO_CONTENT)
}
