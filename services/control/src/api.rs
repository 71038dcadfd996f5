//! The HTTP API, on a unix socket that only the host's root can reach.

pub mod apply;
mod archive;
mod build;
mod content;
pub mod error;
mod exec;
mod jobs;
mod lists;
mod network;
pub mod openapi;
mod passphrase;
mod secrets;
mod send;
mod shipping;
mod state;
mod stream;
mod volumes;
mod vps;
mod whole;

pub use send::{mend, sharing};

use std::sync::Arc;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    routing::{get, post},
};
use model::api::ErrorKind;
use tokio::net::UnixListener;

pub use self::{error::ApiError, vps::reach};
use crate::{clock::Since, shared::Control};

/// Bytes of one request's body.
const BODY: usize = 4 << 20;
/// Who asks: the socket belongs to the host's root.
const ACTOR: &str = "root";

/// A time as a query has it.
fn since(text: &str) -> Result<Since, ApiError> {
    let wrong = || ApiError::new(ErrorKind::Invalid, format!("`{text}` is not a time"));
    Since::parse(text).ok_or_else(|| wrong().next("write 2026-11-22T13:58:00Z, in UTC, or its beginning"))
}

/// Serves the API.
pub async fn serve(listener: UnixListener, control: Arc<Control>) -> anyhow::Result<()> {
    Ok(axum::serve(listener, router(control)).await?)
}

fn router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/v1/apply", post(apply::apply))
        .route("/v1/vps", get(vps::list))
        .route("/v1/vps/{name}", get(vps::get).delete(vps::delete))
        .route("/v1/vps/{name}/spec", get(vps::spec))
        .route("/v1/vps/{name}/archive", get(archive::export))
        .route("/v1/archive", axum::routing::put(archive::import))
        .route("/v1/vps/{name}/why", get(vps::why))
        .route("/v1/vps/{name}/logs", get(vps::logs))
        .route("/v1/vps/{name}/exec", post(exec::exec))
        .route("/v1/vps/{name}/jobs", get(jobs::of_vps))
        .route("/v1/vps/{name}/jobs/{job}/run", post(jobs::run))
        .route("/v1/vps/{name}/{action}", post(vps::act))
        .route("/v1/images", get(build::images))
        .route("/v1/images/build", post(build::build))
        .route("/v1/images/prune", post(send::prune))
        .route("/v1/images/{reference}/content", post(send::send))
        .route("/v1/images/{reference}/verify", post(send::verify))
        .route("/v1/images/{reference}", axum::routing::delete(build::remove))
        .route("/v1/volumes", get(volumes::list))
        .route("/v1/volumes/{tenant}/{name}", get(volumes::get).delete(volumes::remove))
        .route("/v1/volumes/{tenant}/{name}/content", get(content::export).put(content::import))
        .route("/v1/secrets", get(secrets::list))
        .route("/v1/secrets/{tenant}/{name}", axum::routing::put(secrets::set).delete(secrets::remove))
        .route("/v1/state", get(state::export).put(state::import).layer(DefaultBodyLimit::max(state::LARGEST)))
        .route("/v1/jobs", get(jobs::all))
        .route("/v1/routes", get(lists::routes))
        .route("/v1/network/rules", get(network::rules))
        .route("/v1/network/test", post(network::test))
        .route("/v1/services", get(lists::services))
        .route("/v1/logs/targets", get(shipping::targets))
        .route("/v1/events", get(lists::events))
        .route("/v1/health", get(lists::health))
        .route("/v1/openapi.json", get(openapi::serve))
        .fallback(error::no_such_path)
        .layer(DefaultBodyLimit::max(BODY))
        .layer(axum::middleware::from_fn(whole::to_its_end))
        .with_state(control)
}
