//! `/v1/vps/{name}/archive`, `/v1/archive`: a whole VPS as one archive.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use model::api::{ErrorKind, Imported};
use serde::Deserialize;

use super::{
    ACTOR,
    error::{ApiError, vps_name},
    passphrase,
    vps::server_vps,
};
use crate::{
    bundle::{export, import},
    shared::Control,
};

/// Query of an export.
#[derive(Debug, Deserialize)]
pub struct ExportQuery {
    /// With the layers of its image.
    #[serde(default)]
    image: bool,
}

/// `GET /v1/vps/{name}/archive`
pub async fn export(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
    Query(query): Query<ExportQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let vps = server_vps(&control, &vps_name(&name)?)?;
    let with = export::With { secrets: passphrase::of(&headers)?, image: query.image };
    let parts = export::begin(&control, &vps, with, ACTOR).await?;
    let stream = futures_util::stream::unfold(parts, |mut parts| async { Some((parts.recv().await?, parts)) });
    Ok(([(CONTENT_TYPE, "application/x-tar")], Body::from_stream(stream)).into_response())
}

/// `PUT /v1/archive`
pub async fn import(
    State(control): State<Arc<Control>>,
    Query(wanted): Query<import::Wanted>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Imported>, ApiError> {
    let passphrase = passphrase::of(&headers)?;
    // A task of its own: what was begun is undone also when who asked goes away.
    let task = tokio::spawn(async move { import::run(&control, wanted, passphrase, body, ACTOR).await });
    let ended = |_| ApiError::new(ErrorKind::Failed, "the import broke off").next("bailiwick logs control");
    task.await.map_err(ended)?.map(Json)
}
