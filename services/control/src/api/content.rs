//! `/v1/volumes/{tenant}/{name}/content`: a volume as a tar stream.

use std::{pin::pin, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State},
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use futures_util::StreamExt as _;
use model::api::{ErrorKind, VolumeMoved};
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use wire::host::{ExportVolume, ImportVolume, Moved};

use super::{ACTOR, error::ApiError, volumes::names};
use crate::{shared::Control, transfer};

/// How a volume is filled.
#[derive(Debug, Deserialize)]
pub struct Import {
    /// `uid:gid` who owns all of it.
    owner: Option<String>,
    /// Whether it takes the place of what is there.
    #[serde(default)]
    replace: bool,
}

fn owner(text: &str) -> Result<(u32, u32), ApiError> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    let ids = uid.parse().ok().zip(gid.parse().ok()).filter(|(uid, gid)| *uid < 65_536 && *gid < 65_536);
    ids.ok_or_else(|| ApiError::new(ErrorKind::Invalid, format!("`{text}` is no UID:GID of ids from 0 to 65535")))
}

/// `PUT /v1/volumes/{tenant}/{name}/content`
pub async fn import(
    State(control): State<Arc<Control>>,
    Path((tenant, name)): Path<(String, String)>,
    Query(query): Query<Import>,
    body: Body,
) -> Result<Json<VolumeMoved>, ApiError> {
    let (tenant, name) = names(&tenant, &name)?;
    let owner = query.owner.as_deref().map(owner).transpose()?;
    let replace = query.replace;
    let size = super::volumes::size(&control, &tenant, &name);
    let request = ImportVolume { tenant: tenant.clone(), name: name.clone(), owner, replace, size, mark: None };
    let (mut pipe, end) = transfer::import(&control.host, request)?;
    let mut body = body.into_data_stream();
    let feed = async move {
        while let Some(chunk) = body.next().await {
            let chunk =
                chunk.map_err(|error| ApiError::new(ErrorKind::Invalid, format!("the archive broke off: {error}")))?;
            if pipe.write_all(&chunk).await.is_err() {
                // The host does not read any more; it says why. What is sent is read all the same: who sends hears
                // nothing before.
                while let Some(Ok(_)) = body.next().await {}
                break;
            }
        }
        Ok::<(), ApiError>(())
    };
    let (mut feed, mut end) = (pin!(feed), pin!(end));
    let moved = tokio::select! {
        fed = &mut feed => {
            fed?;
            end.await
        }
        moved = &mut end => {
            // Its end of the pipe is closed by now.
            let _ = feed.await;
            moved
        }
    };
    let moved = moved.map_err(|fault| refused(fault, &tenant, &name))?;
    let detail = format!("{tenant}/{name}: {} files, {}", moved.entries, model::limits::show_bytes(moved.bytes));
    control.history.record(None, "volume-imported", detail, ACTOR);
    Ok(Json(answer(moved)))
}

fn refused(fault: wire::Fault, tenant: &model::TenantName, name: &model::VolumeName) -> ApiError {
    let kind = fault.kind;
    let error = ApiError::from(fault);
    match kind {
        ErrorKind::Conflict if error.0.message.contains("only an import that replaces") => {
            error.next(format!("bailiwick volume import {tenant}/{name} PATH --replace"))
        }
        _ => error,
    }
}

fn answer(moved: Moved) -> VolumeMoved {
    let Moved { entries, bytes, left_out, changed } = moved;
    VolumeMoved { entries, bytes, left_out, changed }
}

/// `GET /v1/volumes/{tenant}/{name}/content`
pub async fn export(
    State(control): State<Arc<Control>>,
    Path((tenant, name)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let (tenant, name) = names(&tenant, &name)?;
    let request = ExportVolume { tenant: tenant.clone(), name: name.clone() };
    let mut export = transfer::export(&control.host, request)?;
    // A refusal has to be an answer of its own: it comes before the first byte.
    let first = export.next().await?;
    control.history.record(None, "volume-exported", format!("{tenant}/{name}"), ACTOR);
    let rest = futures_util::stream::unfold(export, |mut export| async move {
        let chunk = export.next().await.map_err(std::io::Error::other).transpose()?;
        Some((chunk, export))
    });
    let first = futures_util::stream::iter(first.map(Ok));
    Ok(([(CONTENT_TYPE, "application/x-tar")], Body::from_stream(first.chain(rest))).into_response())
}
