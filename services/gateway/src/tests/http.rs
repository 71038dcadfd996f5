//! Content routes, from a client's bytes to a server's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use wire::control::Reachable;

use super::rig::{LONG, Rig, answer, ask, at, dial, echo, get, head, http_route, idle, server, vps};
use crate::route::{Site, Target};

/// A gateway with one route to a VPS that is up.
async fn up(port: u16) -> (Rig, model::ListenAddress) {
    let rig = Rig::start().await;
    let listen = rig.bind();
    rig.fake.lock(|f| {
        f.say(vps("a", 1, at()));
        f.table(vec![http_route(listen, "a.example", "a", port)]);
    });
    (rig, listen)
}

fn a_example(site: &Site) -> Option<&Target> {
    site.content("a.example", "/")
}

#[tokio::test]
async fn a_thousand_cold_requests_are_one_wake() {
    let rig = Rig::start().await;
    let listen = rig.bind();
    let port = echo("a").await;
    rig.fake.lock(|f| f.table(vec![http_route(listen, "a.example", "a", port)]));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        clients.spawn(async move { ask(&mut dial(listen).await, &get("a.example", "/x?secret")).await });
    }
    rig.fake.until(|f| f.wakes() > 0).await;
    // Up only once all of them wait.
    let vps = rig.directory.look(listen, a_example).unwrap();
    while vps.waiting() < 1000 {
        tokio::task::yield_now().await;
    }
    rig.fake.state("a", 1, at());
    while let Some(answered) = clients.join_next().await {
        let (head, body) = answered.unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && body.starts_with("a\n"), "{head}");
    }
    assert_eq!(rig.fake.wakes(), ["GET /x from 127.0.0.1"]);
}

#[tokio::test]
async fn one_connection_to_two_hosts_is_never_misrouted() {
    let rig = Rig::start().await;
    let listen = rig.bind();
    let (a, b) = (echo("a").await, echo("b").await);
    rig.fake.lock(|f| {
        f.say(vps("a", 1, at()));
        f.say(vps("b", 1, at()));
        f.table(vec![http_route(listen, "a.example", "a", a), http_route(listen, "b.example", "b", b)]);
    });
    let mut client = dial(listen).await;
    for i in 0..100 {
        let host = if i % 3 == 0 { "A.example." } else { "b.example:80" };
        let (head, body) = ask(&mut client, &get(host, "/")).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(body.starts_with(if i % 3 == 0 { "a\n" } else { "b\n" }), "{body}");
        assert!(body.contains(&format!("forwarded: for=127.0.0.1;host=\"{host}\";proto=http\r\n")), "{body}");
    }
    let (head, _) = ask(&mut client, &get("c.example", "/")).await;
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    // A table swapped under a connection counts from its next request on.
    rig.fake.lock(|f| f.table(vec![http_route(listen, "a.example", "b", b)]));
    let moved = async {
        while !ask(&mut client, &get("a.example", "/")).await.1.starts_with("b\n") {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, moved).await.unwrap();
}

#[tokio::test]
async fn bodies_stream_both_ways_in_chunks() {
    let port = server(|mut stream| async move {
        let head = head(&mut stream).await.unwrap();
        assert!(head.contains("transfer-encoding: chunked"), "{head}");
        assert!(!head.contains("expect"), "{head}");
        let mut chunk = [0; 8];
        stream.read_exact(&mut chunk).await.unwrap();
        assert_eq!(&chunk, b"3\r\nabc\r\n");
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nxyz\r\n").await.unwrap();
        let mut end = [0; 5];
        stream.read_exact(&mut end).await.unwrap();
        assert_eq!(&end, b"0\r\n\r\n");
        stream.write_all(b"1\r\n!\r\n0\r\n\r\n").await.unwrap();
    })
    .await;
    let (_rig, listen) = up(port).await;
    let mut client = dial(listen).await;
    let request = "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    assert!(head(&mut client).await.unwrap().starts_with("HTTP/1.1 100"));
    client.write_all(b"3\r\nabc\r\n").await.unwrap();
    assert!(head(&mut client).await.unwrap().starts_with("HTTP/1.1 200"));
    let mut got = [0; 8];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"3\r\nxyz\r\n");
    client.write_all(b"0\r\n\r\n").await.unwrap();
    let mut rest = [0; 11];
    client.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"1\r\n!\r\n0\r\n\r\n");
}

#[tokio::test]
async fn an_upgraded_connection_relays_bytes_and_counts_as_use() {
    let port = server(|mut stream| async move {
        let head = head(&mut stream).await.unwrap();
        assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
        // The first bytes come together with the head.
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello";
        stream.write_all(answer).await.unwrap();
        let mut got = [0; 4];
        stream.read_exact(&mut got).await.unwrap();
        stream.write_all(&got).await.unwrap();
    })
    .await;
    let rig = Rig::start().await;
    let listen = rig.bind();
    rig.fake.lock(|f| {
        f.say(vps("a", 1, at()));
        f.table(vec![idle(http_route(listen, "a.example", "a", port), 50)]);
    });
    let mut client = dial(listen).await;
    let request = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    let head = head(&mut client).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("upgrade: websocket"), "{head}");
    let mut hello = [0; 5];
    client.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello");
    let before = rig.fake.idles();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(rig.fake.idles(), before, "an upgraded connection was not counted");
    client.write_all(b"ping").await.unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"ping");
    drop(client);
    rig.fake.until(|f| f.idles() == before + 1).await;
}

/// A server that closes each connection as the second request on it comes, without an answer.
async fn tired(served: Arc<AtomicUsize>) -> u16 {
    server(move |mut stream| {
        let served = served.clone();
        async move {
            head(&mut stream).await;
            served.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            head(&mut stream).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_kept_connection_that_turns_out_closed_is_replaced_once() {
    let served = Arc::new(AtomicUsize::new(0));
    let (_rig, listen) = up(tired(served.clone()).await).await;
    let mut client = dial(listen).await;
    for _ in 0..5 {
        assert_eq!(ask(&mut client, &get("a.example", "/")).await.1, "ok");
    }
    assert_eq!(served.load(Ordering::SeqCst), 5);
    // What was sent and is not idempotent is not sent again.
    for body in ["Content-Length: 2\r\n\r\nhi", "Content-Length: 0\r\n\r\n"] {
        let (head, _) = ask(&mut client, &format!("POST / HTTP/1.1\r\nHost: a.example\r\n{body}")).await;
        assert!(head.starts_with("HTTP/1.1 502"), "{head}");
        assert_eq!(ask(&mut client, &get("a.example", "/")).await.1, "ok");
    }
    assert_eq!(served.load(Ordering::SeqCst), 7);
}

/// A server that answers with the number of the connection.
async fn counting() -> u16 {
    let connections = AtomicUsize::new(0);
    server(move |mut stream| {
        let number = connections.fetch_add(1, Ordering::SeqCst);
        async move {
            while head(&mut stream).await.is_some() {
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn kept_connections_end_with_their_generation() {
    let (rig, listen) = up(counting().await).await;
    let mut client = dial(listen).await;
    for _ in 0..3 {
        assert_eq!(ask(&mut client, &get("a.example", "/")).await.1, "0");
    }
    rig.fake.state("a", 2, at());
    let renewed = async {
        while ask(&mut client, &get("a.example", "/")).await.1 == "0" {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, renewed).await.expect("a connection outlived its generation");
    assert_eq!(ask(&mut client, &get("a.example", "/")).await.1, "1");
}

#[tokio::test]
async fn a_client_that_leaves_does_not_wait_on() {
    let rig = Rig::start().await;
    let listen = rig.bind();
    rig.fake.lock(|f| f.table(vec![http_route(listen, "a.example", "a", 1)]));
    let mut client = dial(listen).await;
    client.write_all(get("a.example", "/").as_bytes()).await.unwrap();
    rig.fake.until(|f| f.wakes() == 1).await;
    let vps = rig.directory.look(listen, a_example).unwrap();
    assert_eq!(vps.waiting(), 1);
    drop(client);
    let left = async {
        while vps.waiting() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, left).await.expect("it still waits");
}

#[tokio::test]
async fn a_server_that_breaks_before_an_answer_is_a_502() {
    let port = server(|mut stream| async move {
        head(&mut stream).await;
    })
    .await;
    let (_rig, listen) = up(port).await;
    let (head, _) = ask(&mut dial(listen).await, &get("a.example", "/")).await;
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
}

#[tokio::test]
async fn a_server_that_fails_to_start_is_a_503_in_plain_words() {
    let rig = Rig::start().await;
    let listen = rig.bind();
    rig.fake.lock(|f| f.table(vec![http_route(listen, "a.example", "a", 1)]));
    rig.fake.on_wake(|name| {
        let state = Reachable::Failed { public: "it ended at once\r\nX: y".into(), retry_after_ms: 2500 };
        wire::control::VpsState { name: name.clone(), generation: 1, state }
    });
    let mut client = dial(listen).await;
    for _ in 0..3 {
        let (head, body) = ask(&mut client, &get("a.example", "/")).await;
        assert!(head.starts_with("HTTP/1.1 503") && head.contains("retry-after: 3\r\n"), "{head}");
        assert_eq!(body, "this server is not available now: it ended at onceX: y\n");
    }
    assert_eq!(rig.fake.wakes().len(), 1, "a failed VPS was asked for again before its time");
}

#[tokio::test]
async fn a_refused_connection_asks_for_a_wake_and_waits_for_the_next_start() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (rig, listen) = up(gone).await;
    let client = tokio::spawn(async move { ask(&mut dial(listen).await, &get("a.example", "/")).await });
    rig.fake.until(|f| f.wakes() == 1).await;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", gone)).await.unwrap();
    rig.fake.state("a", 2, at());
    let (mut stream, _) = listener.accept().await.unwrap();
    head(&mut stream).await;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    assert_eq!(client.await.unwrap().1, "ok");
}

#[tokio::test]
async fn idle_is_said_once_and_the_next_request_wakes() {
    let rig = Rig::start().await;
    let listen = rig.bind();
    let port = echo("a").await;
    rig.fake.lock(|f| {
        f.say(vps("a", 1, at()));
        f.table(vec![idle(http_route(listen, "a.example", "a", port), 50)]);
    });
    let mut client = dial(listen).await;
    rig.fake.on_wake(|name| wire::control::VpsState { name: name.clone(), generation: 1, state: at() });
    for round in 0..4 {
        let (head, _) = ask(&mut client, &get("a.example", "/")).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(rig.fake.wakes().len(), round);
        // The client's own connection stays; it is no use.
        rig.fake.until(|f| f.idles() > round).await;
        // An old word of `control` changes nothing.
        rig.fake.state("a", 1, at());
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(rig.fake.idles(), round + 1);
    }
}

#[tokio::test]
async fn requests_in_the_instant_of_idle_are_counted_or_wake() {
    let rig = Rig::start().await;
    let listen = rig.bind();
    let port = echo("a").await;
    // The fake stops the VPS at each idle, so that a request sent without a wake afterwards would be found out.
    rig.fake.on_wake(|name| wire::control::VpsState { name: name.clone(), generation: 1, state: at() });
    rig.fake.lock(|f| f.table(vec![idle(http_route(listen, "a.example", "a", port), 1)]));
    let mut client = dial(listen).await;
    for _ in 0..300 {
        let (head, _) = ask(&mut client, &get("a.example", "/")).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        tokio::time::sleep(Duration::from_micros(700)).await;
    }
    // Each idle was followed by a wake, but perhaps for the last.
    let (wakes, idles) = (rig.fake.wakes().len(), rig.fake.idles());
    assert!(idles > 0 && (wakes == idles || wakes == idles + 1), "{wakes} wakes, {idles} idles");
}

#[tokio::test]
async fn control_may_die_and_what_was_known_holds() {
    let (rig, listen) = up(echo("a").await).await;
    let mut client = dial(listen).await;
    ask(&mut client, &get("a.example", "/")).await;
    rig.fake.lock(|f| f.break_streams());
    assert!(ask(&mut client, &get("a.example", "/")).await.0.starts_with("HTTP/1.1 200"));
    // A change that is made after the break arrives by the next stream.
    let b = echo("b").await;
    rig.fake.lock(|f| {
        f.say(vps("b", 1, at()));
        f.table(vec![http_route(listen, "a.example", "b", b)]);
    });
    let moved = async {
        while !ask(&mut client, &get("a.example", "/")).await.1.starts_with("b\n") {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, moved).await.unwrap();
}

async fn status(client: &mut TcpStream, request: &str) -> String {
    client.write_all(request.as_bytes()).await.unwrap();
    answer(client).await.0.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn hostile_requests_are_refused() {
    let (_rig, listen) = up(echo("a").await).await;
    let big = "x".repeat(100 << 10);
    let many = "X-A: b\r\n".repeat(200);
    for (request, expected) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nHost: a.example\r\nHost: b\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nHost: a.example, b\r\n\r\n".to_owned(), "400"),
        ("CONNECT a.example:80 HTTP/1.1\r\nHost: a.example\r\n\r\n".to_owned(), "405"),
        (format!("GET / HTTP/1.1\r\nHost: a.example\r\nX: {big}\r\n\r\n"), "431"),
        (format!("GET / HTTP/1.1\r\nHost: a.example\r\n{many}\r\n"), "431"),
        ("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n".to_owned(), "400"),
        ("POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked, x\r\n\r\n".to_owned(), "400"),
        ("\0\x01\x02\r\n\r\n".to_owned(), "400"),
    ] {
        let line = status(&mut dial(listen).await, &request).await;
        assert!(line.contains(expected), "{line} for {}", &request[..request.len().min(80)]);
    }
}

#[tokio::test]
async fn a_message_with_two_lengths_smuggles_nothing() {
    let (_rig, listen) = up(echo("a").await).await;
    let mut client = dial(listen).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let request = format!(
        "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}",
        smuggled.len() + 5
    );
    // Read as the server behind will read it, which is told of one length only; nothing after it is believed.
    client.write_all(request.as_bytes()).await.unwrap();
    let mut all = String::new();
    timeout(LONG, client.read_to_string(&mut all)).await.expect("the connection stays").unwrap();
    assert!(all.matches("HTTP/1.1 200").count() == 1 && !all.contains("smuggled"), "{all}");
    assert!(all.contains("transfer-encoding: chunked") && all.matches("content-length").count() == 1, "{all}");
}

#[tokio::test]
async fn a_slow_head_ends_the_connection() {
    let rig = Rig::with_head(Duration::from_millis(100)).await;
    let listen = rig.bind();
    rig.fake.lock(|f| f.table(vec![http_route(listen, "a.example", "a", 1)]));
    let mut client = dial(listen).await;
    client.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
    let mut rest = Vec::new();
    timeout(LONG, client.read_to_end(&mut rest)).await.expect("the connection stays").unwrap();
}

#[tokio::test]
async fn old_clients_and_heads_are_served() {
    let (_rig, listen) = up(echo("a").await).await;
    let mut client = dial(listen).await;
    client.write_all(b"GET / HTTP/1.0\r\nHost: a.example\r\n\r\n").await.unwrap();
    let mut all = String::new();
    client.read_to_string(&mut all).await.unwrap();
    assert!(all.starts_with("HTTP/1.0 200") && all.contains("a\nGET / HTTP/1.1"), "{all}");
    let mut client = dial(listen).await;
    client.write_all(b"HEAD / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut all = String::new();
    client.read_to_string(&mut all).await.unwrap();
    assert!(all.starts_with("HTTP/1.1 200") && all.ends_with("\r\n\r\n"), "{all}");
    let mut client = dial(listen).await;
    let (_, body) = ask(&mut client, "GET http://a.example/x HTTP/1.1\r\nHost: other\r\n\r\n").await;
    assert!(body.starts_with("a\nGET /x HTTP/1.1\r\n") && body.contains("host: a.example\r\n"), "{body}");
}
