//! `/v1/jobs` and `/v1/vps/{name}/jobs`

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use model::{
    JobName,
    api::{ErrorKind, JobRow, JobRun},
};

use super::{
    ACTOR,
    error::{ApiError, vps_name},
    vps::server_vps,
};
use crate::{jobs, shared::Control};

/// `GET /v1/jobs`
pub async fn all(State(control): State<Arc<Control>>) -> Json<Vec<JobRow>> {
    let vpss: Vec<_> = control.all().values().cloned().collect();
    Json(vpss.iter().flat_map(|vps| control.jobs.rows(vps)).collect())
}

/// `GET /v1/vps/{name}/jobs`
pub async fn of_vps(
    State(control): State<Arc<Control>>,
    Path(name): Path<String>,
) -> Result<Json<Vec<JobRow>>, ApiError> {
    let vps = server_vps(&control, &vps_name(&name)?)?;
    Ok(Json(control.jobs.rows(&vps)))
}

/// `POST /v1/vps/{name}/jobs/{job}/run`
pub async fn run(
    State(control): State<Arc<Control>>,
    Path((name, job)): Path<(String, String)>,
) -> Result<Json<JobRun>, ApiError> {
    let vps = server_vps(&control, &vps_name(&name)?)?;
    let wrong = |error: model::name::NameError| ApiError::new(ErrorKind::Invalid, error.to_string());
    let job: JobName = job.parse().map_err(wrong)?;
    Ok(Json(jobs::run_now(&control, &vps, &job, ACTOR).await?))
}
