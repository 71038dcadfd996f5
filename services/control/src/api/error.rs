//! Answers that are not successes.

use axum::{
    Json,
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use model::{
    VpsName,
    api::{ErrorAnswer, ErrorKind},
    spec::Problem,
};
use wire::Fault;

use crate::{shared::Control, store::StoreError};

/// An `ErrorAnswer` on its way out.
#[derive(Debug)]
pub struct ApiError(pub ErrorAnswer);

impl ApiError {
    /// Without a next step.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(ErrorAnswer { message: message.into(), next: None, problems: Vec::new(), kind })
    }

    /// Says what to do next.
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.0.next = Some(next.into());
        self
    }

    /// Problems in files.
    pub fn problems(kind: ErrorKind, problems: Vec<Problem>) -> Self {
        let files: std::collections::BTreeSet<_> = problems.iter().map(|p| p.file.as_str()).collect();
        let files = files.into_iter().collect::<Vec<_>>().join(", ");
        let count = match problems.len() {
            1 => "1 problem".to_owned(),
            n => format!("{n} problems"),
        };
        let message = format!("{count} in {files}; nothing was changed");
        Self(ErrorAnswer { message, next: None, problems, kind })
    }

    /// No VPS of that name.
    pub fn no_vps(control: &Control, name: &VpsName) -> Self {
        let all = control.all();
        let known = all.keys().chain(control.config.designated.keys()).map(VpsName::as_str);
        let next = match model::nearest(name.as_str(), known) {
            Some(near) => format!("did you mean {near}? `bailiwick ps --all` lists those there are"),
            None => "`bailiwick ps --all` lists those there are".to_owned(),
        };
        Self::new(ErrorKind::NotFound, format!("there is no vps \"{name}\"")).next(next)
    }
}

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> Self {
        Self::new(fault.kind, fault.message)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        tracing::error!(error = ?error, "the store failed");
        Self::new(ErrorKind::Failed, error.to_string()).next("see bailiwick logs control")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self.0.kind {
            ErrorKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Denied => StatusCode::FORBIDDEN,
            ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Lacking => StatusCode::INSUFFICIENT_STORAGE,
        };
        (status, Json(self.0)).into_response()
    }
}

/// The answer to a path that is none.
pub async fn no_such_path(uri: Uri) -> ApiError {
    ApiError::new(ErrorKind::NotFound, format!("the API has no {}", uri.path())).next("GET /v1/openapi.json")
}

/// A name from a path.
pub fn vps_name(text: &str) -> Result<VpsName, ApiError> {
    text.parse().map_err(|error: model::name::NameError| ApiError::new(ErrorKind::Invalid, error.to_string()))
}

/// A body as JSON.
pub fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::new(ErrorKind::Invalid, format!("the request's body: {error}")))
}
