//! The passphrase of a request whose answer, or body, carries secrets.

use axum::http::HeaderMap;
use model::api::{ErrorKind, PASSPHRASE};

use super::error::ApiError;
use crate::secrets::{Passphrase, Unreadable};

/// What the header says, in hexadecimal.
pub fn of(headers: &HeaderMap) -> Result<Option<Passphrase>, ApiError> {
    let Some(value) = headers.get(PASSPHRASE) else { return Ok(None) };
    let wrong = |_| ApiError::new(ErrorKind::Invalid, format!("the header {PASSPHRASE} is not hexadecimal"));
    Ok(Some(Passphrase::new(hex::decode(value.as_bytes()).map_err(wrong)?)))
}

impl From<Unreadable> for ApiError {
    fn from(error: Unreadable) -> Self {
        let kind = if error == Unreadable::Passphrase { ErrorKind::Denied } else { ErrorKind::Invalid };
        Self::new(kind, format!("{error}; nothing was changed"))
    }
}
