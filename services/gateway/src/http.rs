//! Content routes: one client's HTTP/1.1 connection, each of its requests led to its VPS.

use std::{
    convert::Infallible,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Body as _, Frame, Incoming, SizeHint},
    header::USER_AGENT,
    server::conn::http1,
    service::service_fn,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioTimer;
use model::{Ignore, ListenAddress};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::Instant};

use crate::{
    backend::{Backend, MAX_HEAD},
    cache::{Asked, Recording},
    detect, end,
    follow::Directory,
    forward::{self, Client},
    page,
    quiet::Activity,
    route::Target,
    socket::Socket,
    splice,
    wake::{DEADLINE, NotReached, Use, Vps},
};

/// How long the head of a request may take, and a connection be silent before it.
const HEAD: Duration = Duration::from_secs(30);
/// Bytes of a method and path that `control` is told.
const TOLD: usize = 120;
/// How often a request is sent at most.
const ATTEMPTS: usize = 3;

/// Serves one client's connection.
pub async fn serve(
    stream: TcpStream,
    peer: std::net::IpAddr,
    listen: ListenAddress,
    directory: Arc<Directory>,
    head: Duration,
) {
    let client = Client::new(peer);
    let asked = AtomicBool::new(false);
    let service = service_fn(|request| {
        asked.store(true, Ordering::Relaxed);
        let (client, directory) = (&client, &directory);
        async move { Ok::<_, Infallible>(answer(request, client, listen, directory).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(head).max_header_size(MAX_HEAD);
    let mut served = pin!(builder.serve_connection(Socket::new(stream), service).with_upgrades());
    let ended = tokio::select! {
        biased;
        ended = &mut served => ended,
        () = end::begun() => {
            // One that has not been asked anything yet would be closed in its client's face.
            if asked.load(Ordering::Relaxed) {
                served.as_mut().graceful_shutdown();
            }
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a client's connection ended");
    }
}

/// The usual time for a request's head.
pub fn head_time() -> Duration {
    HEAD
}

async fn answer(
    mut request: Request<Incoming>,
    client: &Client,
    listen: ListenAddress,
    directory: &Directory,
) -> Response<Body> {
    if request.method() == Method::CONNECT {
        return page::page(StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not served here");
    }
    let host = match detect::host(request.version(), request.uri(), request.headers()) {
        Ok(host) => host,
        Err(reason) => return page::bad_host(reason),
    };
    let path = request.uri().path();
    let ignored = |ignore: &Ignore| ignore.address(client.address) || agent(request.headers(), ignore);
    let Some((Target { vps, port, ignore, .. }, in_use)) =
        directory.find(listen, |site| site.content(&host.name, path), ignored)
    else {
        return page::no_route();
    };
    // Who ignores nobody needs no memory of what it answered.
    let asked = ignore.and_then(|_| Asked::new(&request, &host.name, port));
    let upgrade = forward::upgrade(request.version(), request.headers());
    let client_end = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    forward::request(&mut parts, host.written, client, upgrade);
    let upload = if body.is_end_stream() { Upload::Nothing } else { Upload::Body(body) };
    let ignored = in_use.is_none();
    let sent = send(Request::from_parts(parts, upload), &vps, port, client, ignored).await;
    let (backend, mut response) = match sent {
        Ok(answered) => answered,
        Err(Unanswered::NotReached(reason)) if ignored => return last(directory, &vps, asked, &reason),
        Err(Unanswered::NotReached(reason)) => return page::not_reached(&reason),
        Err(Unanswered::Broken) => return page::broken(),
    };
    if ignored {
        vps.ignored.served.fetch_add(1, Ordering::Relaxed);
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client_end) = client_end else { return page::broken() };
        let server_end = hyper::upgrade::on(&mut response);
        let generation = backend.generation;
        backend.release();
        let activity = Activity::new(vps, generation, in_use, format!("connection from {}", client.address));
        tokio::spawn(go_on(client_end, server_end, activity));
        let (mut parts, _) = response.into_parts();
        forward::response(&mut parts);
        return Response::from_parts(parts, Body::Page(None));
    }
    let (mut parts, incoming) = response.into_parts();
    forward::response(&mut parts);
    let length = incoming.size_hint().exact();
    let mut recording =
        asked.and_then(|asked| directory.cache.answered(&vps.name, asked, &parts, length)).map(Box::new);
    let mut lease = Some(Lease { backend, vps, _in_use: in_use });
    if incoming.is_end_stream() {
        end(&mut lease);
        if let Some(recording) = recording.take() {
            recording.end();
        }
    }
    Response::from_parts(parts, Body::Answer { incoming, lease, recording, broken: None })
}

/// Whether a client is one that is ignored for what it calls itself. One that says nothing has an empty name.
fn agent(headers: &HeaderMap, ignore: &Ignore) -> bool {
    let mut agents = headers.get_all(USER_AGENT).iter().peekable();
    if agents.peek().is_none() {
        ignore.user_agent(b"")
    } else {
        agents.any(|agent| ignore.user_agent(agent.as_bytes()))
    }
}

/// What a client gets that does not wake a VPS which is not up.
fn last(directory: &Directory, vps: &Vps, asked: Option<Asked>, reason: &NotReached) -> Response<Body> {
    match asked.and_then(|asked| directory.cache.last(&vps.name, &asked)) {
        Some((parts, body)) => {
            vps.ignored.from_cache.fetch_add(1, Ordering::Relaxed);
            Response::from_parts(parts, Body::Page((!body.is_empty()).then_some(body)))
        }
        None => {
            vps.ignored.refused.fetch_add(1, Ordering::Relaxed);
            page::not_reached(reason)
        }
    }
}

/// What `control` is told of a request: bounded, without its query.
fn told(request: &Request<Upload>, client: &Client) -> String {
    let short = |text: &str| text.chars().filter(|c| !c.is_control()).take(TOLD).collect::<String>();
    format!("{} {} from {}", short(request.method().as_str()), short(request.uri().path()), client.address)
}

enum Unanswered {
    NotReached(NotReached),
    Broken,
}

/// Sends a request, again where a kept connection turned out to be closed or the VPS went down meanwhile, and sending twice
/// does no harm: no byte of it was written, or it has no body and may be repeated (RFC 9110, 9.2.2).
async fn send(
    mut request: Request<Upload>,
    vps: &Vps,
    port: u16,
    client: &Client,
    ignored: bool,
) -> Result<(Backend, Response<Incoming>), Unanswered> {
    let deadline = Instant::now() + DEADLINE;
    let repeatable = request.method().is_idempotent() && matches!(request.body(), Upload::Nothing);
    let mut fresh = false;
    for _ in 0..ATTEMPTS {
        let by = || (!ignored).then(|| told(&request, client));
        let mut backend = Backend::get(vps, port, fresh, by, deadline).await.map_err(Unanswered::NotReached)?;
        let copy = repeatable.then(|| head_of(&request));
        let error = match backend.send(request).await {
            Ok(response) => {
                vps.sent();
                return Ok((backend, response));
            }
            Err((error, unsent)) => match unsent.or(copy) {
                Some(again) if backend.reused || !vps.is_up(backend.generation) => {
                    request = again;
                    error
                }
                _ => {
                    tracing::debug!(vps = %vps.name, %error, "a request was not answered");
                    return Err(Unanswered::Broken);
                }
            },
        };
        tracing::debug!(vps = %vps.name, %error, "a request is sent again");
        fresh = true;
    }
    Err(Unanswered::Broken)
}

fn head_of(request: &Request<Upload>) -> Request<Upload> {
    let mut copy = Request::new(Upload::Nothing);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Relays what follows a `101`, in the kernel.
async fn go_on(client: OnUpgrade, server: OnUpgrade, activity: Activity) {
    let relayed = async {
        let (client, server) = tokio::try_join!(client, server)?;
        let (mut client, from_client) = socket(client)?;
        let (mut server, from_server) = socket(server)?;
        // What was read together with the heads comes first.
        server.write_all(&from_client).await?;
        client.write_all(&from_server).await?;
        anyhow::Ok(splice::relay(client, server, &activity).await?)
    };
    if let Err(error) = relayed.await {
        tracing::debug!(%error, "an upgraded connection ended");
    }
}

fn socket(upgraded: Upgraded) -> anyhow::Result<(TcpStream, Bytes)> {
    let parts =
        upgraded.downcast::<Socket>().map_err(|_| anyhow::anyhow!("the upgraded connection is not a socket"))?;
    Ok((parts.io.into_inner(), parts.read_buf))
}

/// The body of a request to a server.
#[derive(Debug)]
pub enum Upload {
    /// It has none.
    Nothing,
    /// The client's.
    Body(Incoming),
}

impl hyper::body::Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Nothing => Poll::Ready(None),
            Self::Body(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Body(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Nothing => SizeHint::with_exact(0),
            Self::Body(body) => body.size_hint(),
        }
    }
}

/// The connection an answer comes on, and the use of its VPS, until the answer has been read.
#[derive(Debug)]
pub struct Lease {
    backend: Backend,
    vps: Arc<Vps>,
    _in_use: Option<Use>,
}

fn end(lease: &mut Option<Lease>) {
    if let Some(Lease { backend, vps, .. }) = lease.take() {
        backend.keep(&vps);
    }
}

/// Keeps a part of an answer; an answer with trailers, or one that breaks off, is not kept.
fn record(recording: &mut Option<Box<Recording>>, frame: &Option<hyper::Result<Frame<Bytes>>>, ended: bool) {
    let fits = match (frame, recording.as_mut()) {
        (Some(Ok(frame)), Some(recording)) => frame.data_ref().is_some_and(|data| recording.more(data)),
        (None, _) => true,
        _ => false,
    };
    if !fits {
        *recording = None;
    } else if ended && let Some(recording) = recording.take() {
        recording.end();
    }
}

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// The gateway's own.
    Page(Option<Bytes>),
    /// A server's.
    Answer {
        /// What comes from it.
        incoming: Incoming,
        /// Until its end.
        lease: Option<Lease>,
        /// Where it is to be kept.
        recording: Option<Box<Recording>>,
        /// It breaks off, when what came before has been written.
        broken: Option<hyper::Error>,
    },
}

impl Body {
    /// A body that is known.
    pub fn page(bytes: Bytes) -> Self {
        Self::Page(Some(bytes))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Page(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Answer { incoming, lease, recording, broken } => {
                if let Some(error) = broken.take() {
                    return Poll::Ready(Some(Err(error)));
                }
                let mut incoming = Pin::new(incoming);
                let mut frame = incoming.as_mut().poll_frame(cx);
                // Mostly it came with the head.
                if frame.is_pending()
                    && let Some(lease) = lease
                {
                    lease.backend.drive(cx);
                    frame = incoming.as_mut().poll_frame(cx);
                }
                let frame = ready!(frame);
                let ended = frame.is_none() || incoming.is_end_stream();
                if recording.is_some() {
                    record(recording, &frame, ended);
                }
                if ended {
                    if let Some(lease) = lease.as_mut().filter(|lease| !lease.backend.is_ready()) {
                        lease.backend.drive(cx);
                    }
                    end(lease);
                }
                if let Some(Err(error)) = frame {
                    *broken = Some(error);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Page(bytes) => bytes.is_none(),
            Self::Answer { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Page(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Answer { incoming, .. } => incoming.size_hint(),
        }
    }
}
