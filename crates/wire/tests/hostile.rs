//! What comes from another process, made at random: an answer, an error or a closed connection; never a panic, and never
//! more memory than a message has. `PROPTEST_CASES` says how many.

use std::{
    io::Write,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
};

use bailiwick_wire::{
    Connection, Fault, Method, Peer, Replier, Request, host, keeper, seqpacket,
    shim::{self, Bind, Descriptors, FromShim, ShimState, ToShim},
    varlink::{Empty, MAX_FDS, MAX_REQUEST, Service, serve_connection},
};
use model::{
    ExitStatus, RunSpec,
    run::{Ready, Root},
    state::ShimTimes,
};
use proptest::{collection::vec, prelude::*, sample::Index};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};

/// Bytes as somebody might send them who knows what is expected.
#[derive(Debug, Clone)]
enum Change {
    Put(Index, u8),
    Cut(Index),
    /// A piece again, in another place.
    Again(Index, Index, Index),
    Insert(Index, Vec<u8>),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let piece = prop_oneof![
        vec(any::<u8>(), 0..40),
        Just(b"\0".to_vec()),
        Just(b"{\"\":".repeat(200)),
        Just(vec![b'['; 3000]),
        Just(b"1e999999".to_vec()),
        Just(b"-18446744073709551616".to_vec()),
        Just(b"\"\\ud800\"".to_vec()),
        // CBOR: heads of arrays, maps, texts and bytes that say they are endless or huge, and tags
        Just(vec![0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        Just(vec![0xbb, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        Just(vec![0x7b, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        Just(vec![0x9f; 5000]),
        Just(vec![0xbf; 5000]),
        Just(vec![0xd8; 5000]),
        Just(vec![0x81; 150_000]),
    ];
    let change = prop_oneof![
        3 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Put(at, byte)),
        1 => any::<Index>().prop_map(Change::Cut),
        1 => (any::<Index>(), any::<Index>(), any::<Index>()).prop_map(|(a, b, to)| Change::Again(a, b, to)),
        2 => (any::<Index>(), piece).prop_map(|(at, piece)| Change::Insert(at, piece)),
    ];
    vec(change, 0..6)
}

fn changed(mut bytes: Vec<u8>, changes: Vec<Change>) -> Vec<u8> {
    for change in changes {
        let at = |index: Index| index.index(bytes.len().max(1)).min(bytes.len());
        match change {
            Change::Put(index, byte) => {
                let at = at(index);
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            Change::Cut(index) => bytes.truncate(at(index)),
            Change::Again(a, b, to) => {
                let (a, b, to) = (at(a), at(b), at(to));
                let piece = bytes[a.min(b)..a.max(b)].to_vec();
                bytes.splice(to..to, piece);
            }
            Change::Insert(index, piece) => {
                let at = at(index);
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

fn cases() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Reads the parameters of whatever is called as those of some methods with much in them.
struct Fake;

impl Service for Fake {
    async fn call(&self, _: &Peer, request: Request, replier: &mut Replier<'_>) -> Result<(), Fault> {
        assert!(request.fds.len() <= MAX_FDS);
        let _ = (request.parse::<host::Start>(), request.parse::<host::Exec>(), request.parse::<host::Narrow>());
        if request.method == host::Thaw::NAME {
            request.parse::<host::Thaw>()?;
            return Ok(replier.done::<host::Thaw>(&Empty {}, &[]).await?);
        }
        Err(request.unknown())
    }
}

fn calls() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(&br#"{"method":"io.bailiwick.Host.Thaw","parameters":{"name":"blog"}}"#[..]),
        Just(&br#"{"method":"io.bailiwick.Host.Exec","parameters":{"name":"a","command":["/bin/sh","-c","exit 3"],"env":{"A":"b"},"user":"root","cwd":"/","terminal":{"rows":24,"columns":80}},"more":true}"#[..]),
        Just(&br#"{"method":"io.bailiwick.Host.Narrow","parameters":{"grants":[{"verbs":["start","stop"],"selector":"tenant=acme"}]}}"#[..]),
        Just(&br#"{"method":"x","parameters":null,"more":false,"oneway":true,"upgrade":[1,2.5,{"deep":[[[]]]}]}"#[..]),
    ]
    .prop_map(|call| [call, b"\0"].concat())
}

/// Serves what is sent, until the end of it.
fn served(bytes: &[u8], fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let (mut ours, theirs) = StdStream::pair()?;
    theirs.set_nonblocking(true)?;
    let first = seqpacket::send_with_fds(ours.as_fd(), &bytes[..bytes.len().min(100)], fds)?;
    // A server that has refused closes; and it answers more than the socket holds if nobody reads.
    let mut reader = ours.try_clone()?;
    let reading = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    let rest = bytes[first..].to_vec();
    let writing = std::thread::spawn(move || {
        let _ = ours.write_all(&rest);
        let _ = ours.shutdown(std::net::Shutdown::Write);
    });
    let peer = Peer { vps: "someone".parse().expect("a name"), services: vec![] };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let mut connection = Connection::new(tokio::net::UnixStream::from_std(theirs)?).bounded(MAX_REQUEST);
        serve_connection(&mut connection, &peer, &Fake).await
    });
    writing.join().expect("it wrote");
    let _ = reading.join().expect("it read");
    served
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn calls_at_random_are_answered_or_end_the_connection(
        calls in vec(calls(), 0..4), changes in changes(), fds in 0usize..20,
    ) {
        let bytes = [changed(calls.concat(), changes), b"\0{\"method\":\"y\"}\0".to_vec()].concat();
        let null: OwnedFd = std::fs::File::open("/dev/null")?.into();
        let fds = vec![null.as_fd(); fds];
        if let Err(error) = served(&bytes, &fds) {
            use std::io::ErrorKind::{BrokenPipe, InvalidData, UnexpectedEof};
            prop_assert!(matches!(error.kind(), BrokenPipe | InvalidData | UnexpectedEof), "{error:?}");
        }
    }

    #[test]
    fn shims_and_the_daemon_take_any_message_from_each_other(which in 0usize..9, changes in changes(), fds in 0usize..20) {
        let bytes = changed(messages().swap_remove(which), changes);
        let (a, b) = pair();
        let null: OwnedFd = std::fs::File::open("/dev/null")?.into();
        if seqpacket::send_with_fds(a.as_fd(), &bytes, &vec![null.as_fd(); fds]).is_err() {
            return Ok(());
        }
        let to_shim = shim::recv::<ToShim>(b.as_fd()).map(|got| got.map(|(message, _)| message));
        seqpacket::send_with_fds(a.as_fd(), &bytes, &[])?;
        let from_shim = shim::recv::<FromShim>(b.as_fd()).map(|got| got.map(|(message, _)| message));
        // What was understood can be said again.
        if let Ok(Some(message)) = to_shim {
            prop_assert!(shim::send(a.as_fd(), &message, &[]).is_ok() || bytes.len() > shim::MAX_MESSAGE / 2);
        }
        if let Ok(Some(message)) = from_shim {
            prop_assert!(shim::send(a.as_fd(), &message, &[]).is_ok());
        }
    }

    #[test]
    fn the_keeper_takes_any_message(bytes in vec(any::<u8>(), 1..300), word in 0u8..8, length in any::<u8>(), whole in any::<bool>()) {
        let (a, b) = pair();
        let mut bytes = bytes;
        if whole {
            bytes.resize(2 + keeper::NAME, b'a');
            (bytes[0], bytes[1]) = (word, length);
        }
        rustix::net::send(&a, &bytes, SendFlags::NOSIGNAL)?;
        if let Ok(Some((word, name, fd))) = keeper::recv(&b) {
            prop_assert!(fd.is_none() && name.len() <= keeper::NAME);
            keeper::send(a.as_fd(), word, &name, None)?;
            prop_assert_eq!(keeper::recv(&b)?.map(|(word, name, _)| (word, name)), Some((word, name)));
        }
    }
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a pair")
}

/// One of each, as they are sent.
fn messages() -> Vec<Vec<u8>> {
    let to = |message: &ToShim| minicbor_serde::to_vec(message).expect("a message");
    let from = |message: &FromShim| minicbor_serde::to_vec(message).expect("a message");
    let mut run = RunSpec::empty("blog".parse().expect("a name"), Root::Layers(vec![]));
    run.command = vec!["nginx".to_owned()];
    run.ready = Ready::Listen(80);
    run.files = [("/etc/x".to_owned(), "y".repeat(300))].into();
    let fds = Descriptors { network: true, tasks: 3, listeners: vec!["a".to_owned()], secrets: true };
    let binds = vec![Bind { target: "/data".to_owned(), directory: true, volume: true }];
    vec![
        to(&ToShim::Start { version: 3, run: Box::new(run.clone()), fds, binds }),
        to(&ToShim::Go { run: Box::new(run) }),
        to(&ToShim::Stop { grace_ms: u64::MAX }),
        to(&ToShim::Exec {
            id: 7,
            command: vec!["/bin/sh".to_owned()],
            env: [("A".to_owned(), "b".to_owned())].into(),
            user: "root".to_owned(),
            cwd: "/".to_owned(),
            terminal: None,
        }),
        to(&ToShim::Report),
        from(&FromShim::State {
            version: 3,
            state: ShimState::Ready,
            pid: Some(-1),
            times: ShimTimes { executed_us: Some(u64::MAX), ..ShimTimes::default() },
        }),
        from(&FromShim::ExecEnded { id: 7, status: ExitStatus::Signal(9), error: Some("no".to_owned()) }),
        from(&FromShim::Ended { status: ExitStatus::Code(3) }),
        from(&FromShim::NotStarted { reason: "x".repeat(1000) }),
    ]
}

#[test]
fn long_and_deep_calls_are_answered_or_refused() {
    let text = format!("{{\"method\":\"x\",\"parameters\":{{\"a\":[{}0]}}}}\0", "0,".repeat(200_000));
    assert!(served(text.as_bytes(), &[]).is_ok());
    let deep = format!("{{\"method\":\"x\",\"parameters\":{}}}\0", "[".repeat(300_000));
    let error = served(deep.as_bytes(), &[]).expect_err("it is no call");
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
}
