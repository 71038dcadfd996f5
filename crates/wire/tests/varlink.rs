//! The varlink transport between two ends in one process.

use std::{
    io::{Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bailiwick_wire::{
    Client, Connection, Fault, Method, Peer, Replier, Request, host,
    varlink::{Empty, MAX_MESSAGE, MAX_REQUEST, Service, serve_connection},
};
use model::{Verb, VpsName, api::ErrorKind};
use tokio::net::{UnixListener, UnixStream};

/// Answers `Listening` with nothing, `Logs` with a pipe, everything else with a fault.
struct Fake(AtomicUsize);

impl Service for Fake {
    async fn call(&self, peer: &Peer, request: Request, replier: &mut Replier<'_>) -> Result<(), Fault> {
        self.0.fetch_add(1, Ordering::Relaxed);
        match request.method.as_str() {
            host::Listening::NAME => {
                Ok(replier.done::<host::Listening>(&host::Addresses { addresses: vec![] }, &[]).await?)
            }
            host::Logs::NAME => {
                let logs: host::Logs = request.parse()?;
                let (mut ours, theirs) = StdStream::pair()?;
                ours.write_all(logs.name.as_str().as_bytes())?;
                Ok(replier.done::<host::Logs>(&Empty {}, &[theirs.as_fd()]).await?)
            }
            host::Events::NAME => {
                for _ in 0..3 {
                    replier.more::<host::Events>(&host::Statuses { vps: vec![], gone: vec![] }).await?;
                }
                Ok(replier
                    .done::<host::Events>(&host::Statuses { vps: vec![], gone: vec![peer.vps.clone()] }, &[])
                    .await?)
            }
            host::Thaw::NAME => Err(Fault::denied(format!("{} may not {:?}", peer.vps, Verb::Freeze))),
            _ => Err(request.unknown()),
        }
    }
}

fn peer() -> Peer {
    Peer { vps: "someone".parse().expect("a name"), services: vec![] }
}

fn serve(listener: UnixListener, fake: Arc<Fake>, connections: usize) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut served = tokio::task::JoinSet::new();
        for _ in 0..connections {
            let (stream, _) = listener.accept().await.expect("accept");
            let fake = fake.clone();
            served.spawn(async move { drop(serve_connection(&mut Connection::new(stream), &peer(), &*fake).await) });
        }
        while served.join_next().await.is_some() {}
    })
}

#[tokio::test]
async fn calls_faults_streams_and_descriptors_arrive() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("host.sock");
    let server = serve(UnixListener::bind(&path).expect("bind"), Arc::new(Fake(AtomicUsize::new(0))), 2);
    let client = Client::host(&path);
    assert!(client.call(&host::Listening {}).await.expect("an answer").addresses.is_empty());

    let name = || "blog".parse().expect("a name");
    let (_, fds) = client.call_with_fds(&host::Logs { name: name() }, &[]).await.expect("an answer");
    let mut text = String::new();
    let fd: OwnedFd = fds.into_iter().next().expect("a descriptor");
    StdStream::from(fd).read_to_string(&mut text).expect("its content");
    assert_eq!(text, "blog");

    let fault = client.call(&host::Thaw { name: name() }).await.expect_err("a fault");
    assert_eq!((fault.kind, fault.message.as_str()), (ErrorKind::Denied, "someone may not Freeze"));

    let mut stream = client.stream(&host::Events {}).await.expect("a stream");
    let mut replies = 0;
    while let Some(statuses) = stream.next().await.expect("a reply") {
        replies += 1;
        assert_eq!(statuses.gone.is_empty(), replies < 4);
    }
    assert_eq!(replies, 4);
    drop((client, stream));
    server.await.expect("the server");
}

#[tokio::test]
async fn a_call_survives_the_restart_of_who_answers() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("host.sock");
    let listener = UnixListener::bind(&path).expect("bind");
    let fake = Arc::new(Fake(AtomicUsize::new(0)));
    let client = Client::host(&path);
    let first = serve(listener, fake.clone(), 1);
    client.call(&host::Listening {}).await.expect("an answer");
    first.abort();
    let _ = first.await;
    std::fs::remove_file(&path).expect("remove");
    let second = serve(UnixListener::bind(&path).expect("bind"), fake.clone(), 1);
    client.call(&host::Listening {}).await.expect("an answer from the new one");
    assert_eq!(fake.0.load(Ordering::Relaxed), 2);
    second.abort();
}

#[tokio::test]
async fn an_endless_message_and_a_heap_of_descriptors_end_the_connection() {
    let (mut hostile, ours) = UnixStream::pair().expect("a pair");
    let flood = tokio::spawn(async move {
        let junk = vec![b'x'; 64 << 10];
        while tokio::io::AsyncWriteExt::write_all(&mut hostile, &junk).await.is_ok() {}
    });
    let mut connection = Connection::new(ours);
    let error = connection.recv::<serde_json::Value>().await.expect_err("too large");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    drop(connection);
    flood.await.expect("the flood ends");

    let (hostile, ours) = UnixStream::pair().expect("a pair");
    let null: OwnedFd = std::fs::File::open("/dev/null").expect("open").into();
    for _ in 0..5 {
        let fds = [null.as_fd(); 8];
        bailiwick_wire::seqpacket::send_with_fds(hostile.as_fd(), b"x", &fds).expect("send");
    }
    let error = Connection::new(ours).recv::<serde_json::Value>().await.expect_err("too many");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn a_message_that_would_be_refused_is_not_sent() {
    let (_other, ours) = UnixStream::pair().expect("a pair");
    let huge = "x".repeat(MAX_MESSAGE);
    let error = Connection::new(ours).send(&huge, &[]).await.expect_err("too large");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}

/// Answers everything, and notes who asked.
struct Order(std::sync::Mutex<Vec<VpsName>>);

impl Service for Order {
    async fn call(&self, peer: &Peer, request: Request, _: &mut Replier<'_>) -> Result<(), Fault> {
        self.0.lock().expect("the list").push(peer.vps.clone());
        Err(request.unknown())
    }
}

#[tokio::test]
async fn who_sends_calls_without_a_pause_is_not_served_alone() {
    let order = Arc::new(Order(Default::default()));
    let served = |name: &str, calls: usize| {
        let (mut caller, ours) = StdStream::pair().expect("a pair");
        caller.write_all(&b"{\"method\":\"x\"}\0".repeat(calls)).expect("calls");
        ours.set_nonblocking(true).expect("not blocking");
        let (order, peer) = (order.clone(), Peer { vps: name.parse().expect("a name"), services: vec![] });
        let mut connection = Connection::new(UnixStream::from_std(ours).expect("a stream"));
        let task = tokio::spawn(async move { drop(serve_connection(&mut connection, &peer, &*order).await) });
        (caller, task)
    };
    let (flood, modest) = (served("flood", 100), served("modest", 1));
    drop(modest.0.shutdown(std::net::Shutdown::Write));
    drop(flood.0.shutdown(std::net::Shutdown::Write));
    modest.1.await.expect("served");
    flood.1.await.expect("served");
    let order = order.0.lock().expect("the list");
    let before = order.iter().position(|name| name.as_str() == "modest").expect("it was served");
    assert!(before < 10, "{before} of the other's {} calls were served first", order.len() - 1);
}

#[tokio::test]
async fn half_a_request_takes_no_more_memory_than_a_whole_one_may() {
    let (mut hostile, ours) = UnixStream::pair().expect("a pair");
    let flood = tokio::spawn(async move {
        let mut sent = 0;
        while let Ok(n) = tokio::io::AsyncWriteExt::write(&mut hostile, &[b'x'; 4096]).await {
            sent += n;
        }
        sent
    });
    let mut connection = Connection::new(ours).bounded(MAX_REQUEST);
    assert!(connection.recv::<serde_json::Value>().await.is_err());
    drop(connection);
    assert!(flood.await.expect("the flood ends") < 2 * MAX_REQUEST);
}
