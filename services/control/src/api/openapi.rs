//! The OpenAPI document: what the paths are, and what their bodies look like. `openapi/bailiwick.json` is a copy; a
//! test holds the two together, and others hold the schemas to the types in [`model::api`].

mod paths;
mod schemas;

use axum::Json;
use serde_json::{Value, json};

/// The document.
pub fn document() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Bailiwick",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Administration of one host's VPSs. Served on the unix socket api.sock under the host's run \
                            directory. Answers that are no success hold an ErrorAnswer.",
        },
        "paths": paths::all(),
        "components": { "schemas": schemas::all() },
    })
}

/// `GET /v1/openapi.json`
pub async fn serve() -> Json<Value> {
    Json(document())
}

#[cfg(test)]
mod tests;
