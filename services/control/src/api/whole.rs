//! What a request has begun is done to its end.

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use model::api::ErrorKind;

use super::error::ApiError;

/// Has the request carried out in a task of its own. When who asked goes away the server drops what it waits for: half of a
/// change would be stored, and not in force before the next start of this service.
pub async fn to_its_end(request: Request, next: Next) -> Response {
    let ended = tokio::spawn(next.run(request)).await;
    ended.unwrap_or_else(|_| ApiError::new(ErrorKind::Failed, "the request could not be carried out").into_response())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::{Router, middleware::from_fn, routing::get};
    use tokio::{
        io::AsyncWriteExt as _,
        net::{UnixListener, UnixStream},
        sync::Notify,
        time::{Duration, timeout},
    };

    use super::*;

    #[tokio::test]
    async fn a_request_is_carried_out_though_its_client_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("sock")).unwrap();
        let [begun, go_on, done] = std::array::from_fn(|_| Arc::new(Notify::new()));
        let (told, waits, ended) = (begun.clone(), go_on.clone(), done.clone());
        let change = move || async move {
            told.notify_one();
            waits.notified().await;
            ended.notify_one();
        };
        let router = Router::new().route("/", get(change)).layer(from_fn(to_its_end));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let mut client = UnixStream::connect(directory.path().join("sock")).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        begun.notified().await;
        drop(client);
        // The server hears of that before it gets on.
        tokio::time::sleep(Duration::from_millis(50)).await;
        go_on.notify_one();
        timeout(Duration::from_secs(10), done.notified()).await.expect("it was given up half-way");
    }
}
