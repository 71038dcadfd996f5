//! A client of the HTTP API on the host's `api.sock`. Each request has its own connection.

use std::{io, path::PathBuf};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header,
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use model::api::{ErrorAnswer, ErrorKind, PASSPHRASE};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, sync::mpsc};

use crate::{
    commands::passphrase::Passphrase,
    failure::{Failure, Result},
};

/// Bytes of one answer at most.
const MAX_ANSWER: usize = 64 << 20;
/// Bytes of one line of a stream at most.
const MAX_LINE: usize = 1 << 20;

/// How often a question is asked that found nobody at the other end.
const TRIES: u32 = 3;

/// A host, known by its socket.
pub struct Host {
    socket: PathBuf,
}

impl Host {
    /// The host that listens at `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The socket that only root can open, where the daemon itself answers.
    pub fn admin(&self) -> PathBuf {
        self.socket.with_file_name("admin.sock")
    }

    /// What is there under `path`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let bytes = self.call(Method::GET, path, Bytes::new()).await?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// The text under `path`.
    pub async fn get_text(&self, path: &str) -> Result<String> {
        let bytes = self.call(Method::GET, path, Bytes::new()).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Sends `body` to `path`.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let bytes = self.call(Method::POST, path, serde_json::to_vec(body)?.into()).await?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Puts bytes to `path`.
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: Bytes) -> Result<T> {
        let bytes = self.call(Method::PUT, path, body).await?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// The same, with what opens the secrets in them.
    pub async fn put_with<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Bytes,
        passphrase: Option<&Passphrase>,
    ) -> Result<T> {
        let (sender, receiver) = mpsc::channel(1);
        let sent = sender.send(Ok(body)).await;
        debug_assert!(sent.is_ok(), "there is room for one");
        drop(sender);
        self.put_stream(path, receiver, passphrase).await
    }

    /// Asks for something to be done that needs no words.
    pub async fn act(&self, method: Method, path: &str) -> Result<()> {
        self.call(method, path, Bytes::new()).await.map(drop)
    }

    /// The lines of a stream.
    pub async fn stream(&self, method: Method, path: &str, body: Option<&impl Serialize>) -> Result<Lines> {
        let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let response = self.send(method, path, body.into(), false).await?;
        Ok(Lines { body: response.into_body(), buffer: BytesMut::new(), ended: false })
    }

    /// The lines that are answered while `body` is sent.
    pub async fn send_stream(&self, path: &str, body: mpsc::Receiver<io::Result<Frame<Bytes>>>) -> Result<Lines> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.no_host(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let parts = futures_util::stream::unfold(body, |mut body| async { Some((body.recv().await?, body)) });
        let request = Request::post(path).header(header::HOST, "bailiwick");
        let request = request.body(StreamBody::new(Box::pin(parts)));
        let request = request.map_err(|error| Failure::new(ErrorKind::Failed, error.to_string()))?;
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            let answer: ErrorAnswer = serde_json::from_slice(&collect(response).await?)?;
            return Err(answer.into());
        }
        Ok(Lines { body: response.into_body(), buffer: BytesMut::new(), ended: false })
    }

    /// A connection that has been turned over to another protocol.
    pub async fn upgrade(&self, path: &str, body: &impl Serialize) -> Result<TokioIo<Upgraded>> {
        let response = self.send(Method::POST, path, serde_json::to_vec(body)?.into(), true).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(Failure::new(ErrorKind::Failed, "the host did not open a stream for `exec`"));
        }
        Ok(TokioIo::new(hyper::upgrade::on(response).await?))
    }

    /// Sends what comes through the channel to `path`; an error in there breaks it off.
    pub async fn put_stream<T: DeserializeOwned>(
        &self,
        path: &str,
        chunks: mpsc::Receiver<io::Result<Bytes>>,
        passphrase: Option<&Passphrase>,
    ) -> Result<T> {
        let stream = Box::pin(futures_util::stream::unfold(chunks, |mut chunks| async {
            Some((chunks.recv().await?.map(hyper::body::Frame::data), chunks))
        }));
        let request = Request::builder().method(Method::PUT).uri(path).header(header::HOST, "bailiwick");
        let request = with(request, passphrase).header(header::CONTENT_TYPE, "application/octet-stream");
        let request = request.body(StreamBody::new(stream));
        let request = request.map_err(|error| Failure::new(ErrorKind::Failed, error.to_string()))?;
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.no_host(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let response = sender.send_request(request).await?;
        let bytes = collect(checked(path, response).await?).await?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// What is there under `path`, as it comes.
    pub async fn get_body(&self, path: &str, passphrase: Option<&Passphrase>) -> Result<Chunks> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.no_host(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = with(Request::get(path).header(header::HOST, "bailiwick"), passphrase);
        let request = request.body(Full::new(Bytes::new()));
        let request = request.map_err(|error| Failure::new(ErrorKind::Failed, error.to_string()))?;
        Ok(Chunks(checked(path, sender.send_request(request).await?).await?.into_body()))
    }

    async fn call(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        let response = self.send(method, path, body, false).await?;
        collect(response).await
    }

    /// Sends a request; an answer that says an error becomes one.
    async fn send(&self, method: Method, path: &str, body: Bytes, upgrade: bool) -> Result<Response<Incoming>> {
        let mut tries = 0;
        let response = loop {
            tries += 1;
            match self.send_once(&method, path, &body, upgrade).await? {
                Ok(response) => break response,
                // `control` died before it answered; the next connection waits until it is back.
                Err(_) if method == Method::GET && tries < TRIES => {}
                Err(error) => return Err(error.into()),
            }
        };
        checked(path, response).await
    }

    async fn send_once(
        &self,
        method: &Method,
        path: &str,
        body: &Bytes,
        upgrade: bool,
    ) -> Result<hyper::Result<Response<Incoming>>> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.no_host(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection.with_upgrades());
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "bailiwick");
        if !body.is_empty() {
            let kind = if method == Method::PUT { "application/octet-stream" } else { "application/json" };
            request = request.header(header::CONTENT_TYPE, kind);
        }
        if upgrade {
            request = request.header(header::CONNECTION, "upgrade").header(header::UPGRADE, "bailiwick-exec");
        }
        let request = request.body(Full::new(body.clone()));
        let request = request.map_err(|error| Failure::new(ErrorKind::Failed, error.to_string()))?;
        Ok(sender.send_request(request).await)
    }

    fn no_host(&self, error: &io::Error) -> Failure {
        let socket = self.socket.display();
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                Failure::new(ErrorKind::Denied, format!("{socket} may not be opened by you")).next("run it as root")
            }
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Failure::new(ErrorKind::Unavailable, format!("no host answers at {socket}"))
                    .next("start one with `bailiwickd` (as root), or name another with --root DIR")
            }
            _ => Failure::new(ErrorKind::Unavailable, format!("no host answers at {socket}: {error}")),
        }
    }
}

fn with(request: hyper::http::request::Builder, passphrase: Option<&Passphrase>) -> hyper::http::request::Builder {
    match passphrase {
        Some(passphrase) => request.header(PASSPHRASE, passphrase.header()),
        None => request,
    }
}

/// An answer that says an error becomes one.
async fn checked(path: &str, response: Response<Incoming>) -> Result<Response<Incoming>> {
    let status = response.status();
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    let bytes = collect(response).await?;
    Err(match serde_json::from_slice::<ErrorAnswer>(&bytes) {
        Ok(answer) => answer.into(),
        Err(_) => {
            let said = String::from_utf8_lossy(&bytes[..bytes.len().min(500)]).trim().to_owned();
            let message = format!("the host answered {status} to {path}: {said}");
            Failure::new(ErrorKind::Failed, message).next("use the `bailiwick` that belongs to the host's version")
        }
    })
}

/// A body, as it comes.
pub struct Chunks(Incoming);

impl Chunks {
    /// The next part of it; none at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        while let Some(frame) = self.0.frame().await {
            match frame {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => return Ok(Some(data)),
                    Err(_) => continue,
                },
                Err(error) => {
                    return Err(Failure::cut(format!("the host broke its answer off: {error}")));
                }
            }
        }
        Ok(None)
    }
}

async fn collect(response: Response<Incoming>) -> Result<Bytes> {
    match Limited::new(response.into_body(), MAX_ANSWER).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => Err(Failure::new(ErrorKind::Unavailable, format!("the host's answer broke off: {error}"))),
    }
}

/// The lines of a stream, as they come.
pub struct Lines {
    body: Incoming,
    buffer: BytesMut,
    ended: bool,
}

impl Lines {
    /// The next line, as a value; none at the end.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.ended {
                let rest = self.buffer.split();
                return if rest.trim_ascii().is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&rest)?)) };
            }
            if self.buffer.len() > MAX_LINE {
                return Err(Failure::new(ErrorKind::Failed, "the host sent a line that is too long"));
            }
            match self.body.frame().await.transpose()? {
                Some(frame) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None => self.ended = true,
            }
        }
    }
}

/// `text` as one segment of a path.
pub fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' | b',' => {
                out.push(char::from(byte))
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_segment_stays_one() {
        assert_eq!(super::segment("debian:g++,a/b"), "debian:g%2B%2B,a%2Fb");
    }
}
