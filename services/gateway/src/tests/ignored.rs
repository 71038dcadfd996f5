//! Clients that wake nobody.

use std::time::Duration;

use model::{Ignore, api::Ignored};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use wire::control::{Reachable, RouteEntry, VpsState};

use super::rig::{LONG, Rig, ask, at, dial, echo, get, head, http_route, idle, server, tcp_route, vps};

fn ignoring(mut entry: RouteEntry) -> RouteEntry {
    let user_agent = vec!["*bot*".parse().unwrap()];
    entry.ignore = Ignore { user_agent, from: vec!["127.0.0.9/32".parse().unwrap()] };
    entry
}

fn bot(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: a.example\r\nUser-Agent: SomeBot/1.0\r\n\r\n")
}

fn ignored(rig: &Rig) -> Ignored {
    rig.directory.ignored().pop().expect("somebody was ignored").1
}

#[tokio::test]
async fn a_bot_gets_the_last_answer_and_wakes_nobody() {
    let rig = Rig::start().await;
    let listen = rig.bind();
    let port = echo("a").await;
    rig.fake.lock(|f| f.table(vec![ignoring(http_route(listen, "a.example", "a", port))]));
    rig.fake.on_wake(|name| VpsState { name: name.clone(), generation: 1, state: at() });
    let mut client = dial(listen).await;

    let (head, body) = ask(&mut client, &bot("GET", "/page")).await;
    assert!(head.starts_with("HTTP/1.1 503") && head.contains("retry-after: 3600"), "{head}");
    assert_eq!(body, "this server is asleep, and is not woken for clients like this one\n");
    assert_eq!(rig.fake.wakes().len(), 0);

    let (_, first) = ask(&mut client, &get("a.example", "/page")).await;
    assert_eq!(rig.fake.wakes().len(), 1);
    let (_, told) = ask(&mut client, &bot("GET", "/page")).await;
    assert!(told.contains("user-agent: SomeBot/1.0"), "while it is up it is asked itself: {told}");

    let asleep = |generation| rig.fake.state("a", generation, Reachable::No);
    asleep(1);
    // On a connection of its own the state has been heard for sure once nobody is served by the VPS any more.
    let last = async {
        loop {
            let (head, body) = ask(&mut client, &bot("GET", "/page")).await;
            if head.contains("age: ") {
                return (head, body);
            }
        }
    };
    let (head, body) = timeout(LONG, last).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("cache-status: bailiwick; hit"), "{head}");
    assert!(body == told && body != first, "the last one counts: {body}");
    client.write_all(bot("HEAD", "/page").as_bytes()).await.unwrap();
    let head = super::rig::head(&mut client).await.unwrap();
    assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
    let (head, _) = ask(&mut client, &bot("GET", "/other")).await;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert_eq!(rig.fake.wakes().len(), 1);
    let counted = ignored(&rig);
    assert!(counted.served >= 1 && counted.from_cache == 2 && counted.refused == 2, "{counted:?}");
}

#[tokio::test]
async fn what_is_not_whole_is_not_kept() {
    let port = server(|mut stream| async move {
        while let Some(head) = head(&mut stream).await {
            let end = head.starts_with("GET /broken");
            let answer = if end { "Content-Length: 9\r\n\r\nhalf" } else { "Content-Length: 5\r\n\r\nwhole" };
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{answer}").as_bytes()).await.unwrap();
            if end {
                return;
            }
        }
    })
    .await;
    let rig = Rig::start().await;
    let listen = rig.bind();
    rig.fake.lock(|f| {
        f.say(vps("a", 1, at()));
        f.table(vec![ignoring(http_route(listen, "a.example", "a", port))]);
    });
    let mut client = dial(listen).await;
    client.write_all(get("a.example", "/broken").as_bytes()).await.unwrap();
    let mut got = Vec::new();
    timeout(LONG, client.read_to_end(&mut got)).await.unwrap().unwrap();
    assert!(got.ends_with(b"half"));
    assert_eq!(ask(&mut dial(listen).await, &get("a.example", "/whole")).await.1, "whole");
    rig.fake.state("a", 1, Reachable::No);
    let mut client = dial(listen).await;
    let cached = async { while !ask(&mut client, &bot("GET", "/whole")).await.0.contains("age: ") {} };
    timeout(LONG, cached).await.unwrap();
    assert!(ask(&mut client, &bot("GET", "/broken")).await.0.starts_with("HTTP/1.1 503"));
}

#[tokio::test]
async fn a_bot_does_not_keep_it_awake() {
    let rig = Rig::start().await;
    let listen = rig.bind();
    let port = echo("a").await;
    rig.fake.lock(|f| {
        f.say(vps("a", 1, at()));
        f.table(vec![ignoring(idle(http_route(listen, "a.example", "a", port), 100))]);
    });
    let mut client = dial(listen).await;
    let kept = async {
        while rig.fake.idles() == 0 {
            ask(&mut client, &bot("GET", "/")).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, kept).await.expect("it went to sleep under requests of a bot");
    // From then on it is not sent anything.
    assert!(ask(&mut client, &bot("GET", "/")).await.0.contains("age: "));
}

#[tokio::test]
async fn ignored_connections_are_closed_unless_it_is_up() {
    let rig = Rig::start().await;
    let listen = rig.bind();
    let port = server(|mut stream| async move { stream.write_all(b"hello").await.unwrap() }).await;
    rig.fake.lock(|f| f.table(vec![ignoring(idle(tcp_route(listen, "a", port), 100))]));
    rig.fake.on_wake(|name| VpsState { name: name.clone(), generation: 1, state: at() });
    let come = async |from: &str| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        let mut got = String::new();
        let mut stream = socket.connect(listen.0).await.unwrap();
        timeout(LONG, stream.read_to_string(&mut got)).await.unwrap().unwrap();
        got
    };
    assert_eq!(come("127.0.0.9").await, "");
    assert_eq!(rig.fake.wakes().len(), 0);
    assert_eq!(come("127.0.0.8").await, "hello");
    assert_eq!(come("127.0.0.9").await, "hello");
    rig.fake.until(|f| f.idles() > 0).await;
    assert_eq!(come("127.0.0.9").await, "");
    assert_eq!(rig.fake.wakes().len(), 1);
    assert_eq!(ignored(&rig), Ignored { served: 1, from_cache: 0, refused: 2 });
}
