//! Answers of one JSON object a line.

use std::convert::Infallible;

use axum::{
    body::{Body, Bytes},
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::sync::mpsc;

/// Lines that wait for a slow reader; then who writes them waits.
pub const WAITING: usize = 64;

/// Everything that comes, until the sender is gone; the sender sees when the reader is.
pub fn lines<T: Serialize + Send + 'static>(receiver: mpsc::Receiver<T>) -> Response {
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
        let value = receiver.recv().await?;
        // These types hold nothing that JSON has no form for.
        let mut line = serde_json::to_vec(&value).unwrap_or_default();
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), receiver))
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream)).into_response()
}
