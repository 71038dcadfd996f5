//! `/v1/state`: all that this service was told, out of one host and into another.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::{Query, State},
    http::HeaderMap,
};
use model::api::{ErrorKind, StateImported};
use serde::Deserialize;

use super::{ACTOR, error::ApiError, passphrase};
use crate::{
    shared::Control,
    state::{self, Saved},
};

/// Bytes of it at most.
pub const LARGEST: usize = 64 << 20;

/// `GET /v1/state`
pub async fn export(State(control): State<Arc<Control>>, headers: HeaderMap) -> Result<Json<Saved>, ApiError> {
    let passphrase = passphrase::of(&headers)?;
    let saved = state::export(&control, passphrase).await?;
    let detail = format!("{} VPSs, {} secrets", saved.specs.len(), saved.secrets.as_ref().map_or(0, |s| s.len()));
    control.history.record(None, "state-exported", detail, ACTOR);
    Ok(Json(saved))
}

/// Query of an import.
#[derive(Debug, Deserialize)]
pub struct ImportQuery {
    /// Although there are VPSs or secrets.
    #[serde(default)]
    replace: bool,
}

/// `PUT /v1/state`
pub async fn import(
    State(control): State<Arc<Control>>,
    Query(query): Query<ImportQuery>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<StateImported>, ApiError> {
    let passphrase = passphrase::of(&headers)?;
    let saved = state::read(&body)?;
    let task = tokio::spawn(async move {
        let imported = state::import(&control, saved, passphrase, query.replace).await?;
        let detail = format!("{} VPSs, {} secrets", imported.vps.len(), imported.secrets);
        control.history.record(None, "state-imported", detail, ACTOR);
        Ok(Json(imported))
    });
    task.await.map_err(|_| ApiError::new(ErrorKind::Failed, "the import broke off").next("bailiwick logs control"))?
}
