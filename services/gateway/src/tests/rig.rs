//! A fake host and control, and a gateway between them and raw sockets.

use std::{
    collections::BTreeMap,
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use model::{ListenAddress, Route, VpsName, api::ErrorKind};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener},
    sync::Notify,
    task::JoinSet,
    time::timeout,
};
use wire::{
    Client, Connection, Fault, Method, Peer, Replier, Request,
    control::{Answered, Door, Idle, Reachable, RouteEntry, RouteUpdate, Routes, VpsState, Wake},
    host::{Addresses, Listen, Listening, Unlisten},
    varlink::{Empty, Service, serve_connection},
};

use crate::{accept::Limits, doors, follow::Directory, listen::Listeners};

pub const LONG: Duration = Duration::from_secs(20);

type OnWake = Box<dyn FnMut(&VpsName) -> VpsState + Send>;

/// The host daemon and `control` in one.
pub struct Fake {
    inner: Mutex<Inner>,
    changed: Notify,
}

struct Inner {
    table: Vec<RouteEntry>,
    doors: Vec<Door>,
    states: BTreeMap<VpsName, VpsState>,
    log: Vec<RouteUpdate>,
    /// Streams of an older epoch end.
    epoch: u64,
    on_wake: OnWake,
    wakes: Vec<String>,
    idles: Vec<VpsName>,
    answered: Vec<u64>,
    listeners: BTreeMap<ListenAddress, std::net::TcpListener>,
    unlistened: Vec<ListenAddress>,
    bound: Vec<ListenAddress>,
}

impl Fake {
    pub fn lock<T>(&self, f: impl FnOnce(&mut FakeView<'_>) -> T) -> T {
        let result = f(&mut FakeView(&mut self.inner.lock().unwrap()));
        self.changed.notify_waiters();
        result
    }

    /// Waits until `test` holds.
    pub async fn until(&self, test: impl Fn(&FakeView<'_>) -> bool) {
        let wait = async {
            loop {
                let mut changed = std::pin::pin!(self.changed.notified());
                changed.as_mut().enable();
                if test(&FakeView(&mut self.inner.lock().unwrap())) {
                    return;
                }
                changed.await;
            }
        };
        timeout(LONG, wait).await.expect("the fake control was not told what it should be");
    }

    pub fn state(&self, name: &str, generation: u64, state: Reachable) {
        self.lock(|f| f.say(vps(name, generation, state)));
    }

    pub fn wakes(&self) -> Vec<String> {
        self.inner.lock().unwrap().wakes.clone()
    }

    pub fn idles(&self) -> usize {
        self.inner.lock().unwrap().idles.len()
    }

    pub fn on_wake(&self, answer: impl FnMut(&VpsName) -> VpsState + Send + 'static) {
        self.inner.lock().unwrap().on_wake = Box::new(answer);
    }
}

pub struct FakeView<'a>(&'a mut Inner);

impl FakeView<'_> {
    pub fn say(&mut self, state: VpsState) {
        self.0.states.insert(state.name.clone(), state.clone());
        self.0.log.push(RouteUpdate { states: vec![state], ..RouteUpdate::default() });
    }
    pub fn table(&mut self, table: Vec<RouteEntry>) {
        self.0.table = table.clone();
        self.0.log.push(RouteUpdate { table: Some(table), ..RouteUpdate::default() });
    }
    pub fn doors(&mut self, doors: Vec<Door>) {
        self.0.doors = doors.clone();
        self.0.log.push(RouteUpdate { table: Some(Vec::new()), doors, ..RouteUpdate::default() });
    }
    pub fn bound(&mut self, addresses: Vec<ListenAddress>) {
        self.0.bound = addresses;
    }
    pub fn break_streams(&mut self) {
        self.0.epoch += 1;
    }
    pub fn wakes(&self) -> usize {
        self.0.wakes.len()
    }
    pub fn answered(&self) -> &[u64] {
        &self.0.answered
    }
    pub fn idles(&self) -> usize {
        self.0.idles.len()
    }
    pub fn unlistened(&self) -> &[ListenAddress] {
        &self.0.unlistened
    }
}

pub fn vps(name: &str, generation: u64, state: Reachable) -> VpsState {
    VpsState { name: name.parse().unwrap(), generation, state }
}

pub fn at() -> Reachable {
    Reachable::At(Ipv4Addr::LOCALHOST.into())
}

impl Service for Fake {
    async fn call(&self, _: &Peer, request: Request, replier: &mut Replier<'_>) -> Result<(), Fault> {
        match request.method.as_str() {
            Routes::NAME => {
                let (first, mut next, epoch) = {
                    let inner = self.inner.lock().unwrap();
                    let states = inner.states.values().cloned().collect();
                    (
                        RouteUpdate { table: Some(inner.table.clone()), doors: inner.doors.clone(), states },
                        inner.log.len(),
                        inner.epoch,
                    )
                };
                replier.more::<Routes>(&first).await?;
                loop {
                    let mut changed = std::pin::pin!(self.changed.notified());
                    changed.as_mut().enable();
                    let updates = {
                        let inner = self.inner.lock().unwrap();
                        if inner.epoch != epoch {
                            return Err(Fault::new(ErrorKind::Unavailable, "restarted"));
                        }
                        inner.log[next..].to_vec()
                    };
                    next += updates.len();
                    for update in &updates {
                        replier.more::<Routes>(update).await?;
                    }
                    changed.await;
                }
            }
            Wake::NAME => {
                let wake = request.parse::<Wake>()?;
                let answer = {
                    let mut inner = self.inner.lock().unwrap();
                    inner.wakes.push(wake.by);
                    (inner.on_wake)(&wake.name)
                };
                self.changed.notify_waiters();
                replier.done::<Wake>(&answer, &[]).await?;
            }
            Answered::NAME => {
                let answered = request.parse::<Answered>()?;
                self.inner.lock().unwrap().answered.push(answered.generation);
                self.changed.notify_waiters();
                replier.done::<Answered>(&Empty {}, &[]).await?;
            }
            Idle::NAME => {
                let name = request.parse::<Idle>()?.name;
                self.inner.lock().unwrap().idles.push(name);
                self.changed.notify_waiters();
                replier.done::<Idle>(&Empty {}, &[]).await?;
            }
            Listen::NAME => {
                let address = request.parse::<Listen>()?.address;
                let socket = {
                    let inner = self.inner.lock().unwrap();
                    let socket = inner.listeners.get(&address).map(|l| l.try_clone().unwrap());
                    socket.ok_or_else(|| Fault::new(ErrorKind::Conflict, format!("{address} is in use")))?
                };
                replier.done::<Listen>(&Empty {}, &[socket.as_fd()]).await?;
            }
            Unlisten::NAME => {
                let address = request.parse::<Unlisten>()?.address;
                self.lock(|f| f.0.unlistened.push(address));
                replier.done::<Unlisten>(&Empty {}, &[]).await?;
            }
            Listening::NAME => {
                let addresses = self.inner.lock().unwrap().bound.clone();
                replier.done::<Listening>(&Addresses { addresses }, &[]).await?;
            }
            _ => return Err(request.unknown()),
        }
        Ok(())
    }
}

/// A gateway that runs, until it is dropped.
pub struct Rig {
    pub fake: Arc<Fake>,
    pub directory: Arc<Directory>,
    pub listeners: Arc<Listeners>,
    socket: tempfile::TempDir,
    head: Duration,
    gateway: JoinSet<()>,
    _tasks: JoinSet<()>,
}

impl Rig {
    pub async fn start() -> Self {
        Self::with_head(crate::http::head_time()).await
    }

    pub async fn with_head(head: Duration) -> Self {
        Limits::of_this_process(None);
        let socket = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(socket.path().join("s")).unwrap();
        let inner = Inner {
            table: Vec::new(),
            doors: Vec::new(),
            states: BTreeMap::new(),
            log: Vec::new(),
            epoch: 0,
            on_wake: Box::new(|name| VpsState { name: name.clone(), generation: 1, state: Reachable::No }),
            wakes: Vec::new(),
            idles: Vec::new(),
            answered: Vec::new(),
            listeners: BTreeMap::new(),
            unlistened: Vec::new(),
            bound: Vec::new(),
        };
        let fake = Arc::new(Fake { inner: Mutex::new(inner), changed: Notify::new() });
        let mut tasks = JoinSet::new();
        let service = fake.clone();
        tasks.spawn(async move {
            let mut served = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let service = service.clone();
                served.spawn(async move {
                    let peer = Peer { vps: "control".parse().unwrap(), services: vec!["control".into()] };
                    let _ = serve_connection(&mut Connection::new(stream), &peer, &*service).await;
                });
            }
        });
        let (directory, listeners) = gateway(&socket, head);
        let mut rig = Self { fake, directory, listeners, socket, head, gateway: JoinSet::new(), _tasks: tasks };
        rig.go();
        rig
    }

    /// Ends the gateway at once; connections it has accepted stay, as in no real end.
    pub async fn stop(&mut self) {
        self.listeners.forsake().await;
        self.gateway.shutdown().await;
        (self.directory, self.listeners) = gateway(&self.socket, self.head);
    }

    /// Lets the gateway run.
    pub fn go(&mut self) {
        let (changed, tables) = tokio::sync::watch::channel(());
        let (follow, keep) = (self.directory.clone(), self.listeners.clone());
        let limits = Arc::new(Limits::new(4000, self.head));
        self.gateway.spawn(doors::keep(self.directory.clone(), limits, None, tables.clone(), || ()));
        self.gateway.spawn(async move { follow.follow(changed).await });
        self.gateway.spawn(async move { keep.keep(tables, || ()).await });
    }

    /// Calls the gateway as a designated VPS that runs `service`.
    pub async fn call<M: Method>(&self, service: &str, method: &M) -> Result<M::Reply, Fault> {
        let path = self.socket.path().join(service);
        let listener = UnixListener::bind(&path).unwrap();
        let (served, peer) =
            (self.listeners.clone(), Peer { vps: "x".parse().unwrap(), services: vec![service.into()] });
        let server = tokio::spawn(async move {
            let stream = listener.accept().await.unwrap().0;
            let _ = serve_connection(&mut Connection::new(stream), &peer, &*served).await;
        });
        let answer = Client::host(&path).call(method).await;
        server.abort();
        std::fs::remove_file(path).unwrap();
        answer
    }

    /// A socket the fake host has bound.
    pub fn bind(&self) -> ListenAddress {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        rustix::net::listen(listener.as_fd(), 4096).unwrap();
        let address = ListenAddress::tcp(listener.local_addr().unwrap());
        self.fake.lock(|f| f.0.listeners.insert(address, listener));
        address
    }
}

fn gateway(socket: &tempfile::TempDir, head: Duration) -> (Arc<Directory>, Arc<Listeners>) {
    let client = Client::host(socket.path().join("s"));
    let directory = Directory::new(client.clone());
    let listeners = Listeners::new(client, directory.clone(), Arc::new(Limits::new(4000, head)));
    (directory, listeners)
}

pub fn http_route(listen: ListenAddress, host_and_path: &str, name: &str, port: u16) -> RouteEntry {
    let route: Route = format!("http://{host_and_path}").parse().unwrap();
    RouteEntry {
        route,
        listen,
        name: name.parse().unwrap(),
        port,
        idle_after_ms: None,
        quiet_ms: None,
        client: Default::default(),
        ignore: Default::default(),
    }
}

pub fn tcp_route(listen: ListenAddress, name: &str, port: u16) -> RouteEntry {
    RouteEntry {
        route: Route::Address(listen),
        listen,
        name: name.parse().unwrap(),
        port,
        idle_after_ms: None,
        quiet_ms: None,
        client: Default::default(),
        ignore: Default::default(),
    }
}

pub fn idle(mut entry: RouteEntry, after_ms: u64) -> RouteEntry {
    entry.idle_after_ms = Some(after_ms);
    entry
}

/// A server that hands each of its connections to `serve`; its port.
pub async fn server<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    rustix::net::listen(listener.as_fd(), 4096).unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

/// An HTTP server that answers each request with `text` and what it was sent.
pub async fn echo(text: &'static str) -> u16 {
    server(move |mut stream| async move {
        while let Some(head) = head(&mut stream).await {
            let body = format!("{text}\n{head}");
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// Reads a message's head, byte by byte; none at the end.
pub async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(bytes).unwrap())
}

pub async fn dial(address: ListenAddress) -> TcpStream {
    let SocketAddr::V4(_) = address.0 else { panic!("not on loopback") };
    TcpStream::connect(address.0).await.unwrap()
}

/// Sends `request`, reads an answer with `Content-Length`: head and body.
pub async fn ask(stream: &mut TcpStream, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).await.unwrap();
    answer(stream).await
}

pub async fn answer(stream: &mut TcpStream) -> (String, String) {
    let head = timeout(LONG, head(stream)).await.expect("no answer in time").expect("no answer");
    let length = head.lines().find_map(|line| {
        line.to_ascii_lowercase().strip_prefix("content-length: ").map(|n| n.parse::<usize>().unwrap())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    timeout(LONG, stream.read_exact(&mut body)).await.expect("no body in time").unwrap();
    (head, String::from_utf8(body).unwrap())
}

pub fn get(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}
