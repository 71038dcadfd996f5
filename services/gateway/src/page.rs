//! What the gateway itself answers: short, plain, without what is inside.

use std::time::Duration;

use bytes::Bytes;
use hyper::{
    Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};

use crate::{detect::NoHost, http::Body, wake::NotReached};

/// When it is worth trying again for who wakes nobody.
const IGNORED: Duration = Duration::from_secs(3600);

/// A page of one line.
pub fn page(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::page(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// 400.
pub fn bad_host(reason: NoHost) -> Response<Body> {
    page(StatusCode::BAD_REQUEST, &reason.to_string())
}

/// 404.
pub fn no_route() -> Response<Body> {
    page(StatusCode::NOT_FOUND, "there is nothing here: no server has this host and path")
}

/// 502.
pub fn broken() -> Response<Body> {
    page(StatusCode::BAD_GATEWAY, "the server ended the connection without an answer")
}

/// 503.
pub fn not_reached(reason: &NotReached) -> Response<Body> {
    let (text, after) = match reason {
        NotReached::Failed { public, retry_after } => {
            let public: String = public.chars().filter(|c| !c.is_control()).take(300).collect();
            (format!("this server is not available now: {public}"), *retry_after)
        }
        NotReached::Deadline => {
            ("this server is not available now: it took too long to start".to_owned(), Duration::from_secs(10))
        }
        NotReached::Ignored => {
            ("this server is asleep, and is not woken for clients like this one".to_owned(), IGNORED)
        }
        NotReached::Crowded => {
            ("this server is starting, and too many wait for it already".to_owned(), Duration::from_secs(5))
        }
    };
    let mut response = page(StatusCode::SERVICE_UNAVAILABLE, &text);
    let seconds = after.as_millis().div_ceil(1000).clamp(1, 3600) as u64;
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}
