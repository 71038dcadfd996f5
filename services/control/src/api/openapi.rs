//! The OpenAPI document.

use axum::Json;
use serde_json::{Value, json};

/// The document.
pub fn document() -> Value {
    json!({})
}

/// `GET /v1/openapi.json`
pub async fn serve() -> Json<Value> {
    Json(document())
}
