//! Address routes and listening sockets.

use model::ListenAddress;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use wire::control::{Reachable, VpsState};

use super::rig::{LONG, Rig, ask, at, dial, echo, get, http_route, idle, server, tcp_route, vps};

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other() {
    // Answers only when it has seen the end.
    let port = server(|mut stream| async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(&all).await.unwrap();
    })
    .await;
    let rig = Rig::start().await;
    let listen = rig.bind();
    rig.fake.lock(|f| f.table(vec![idle(tcp_route(listen, "db", port), 20)]));
    rig.fake.on_wake(|name| VpsState { name: name.clone(), generation: 1, state: at() });
    let mut client = dial(listen).await;
    let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    client.write_all(&sent).await.unwrap();
    client.shutdown().await.unwrap();
    let mut got = Vec::new();
    timeout(LONG, client.read_to_end(&mut got)).await.unwrap().unwrap();
    assert!(got == sent, "{} bytes of {} came back", got.len(), sent.len());
    assert_eq!(rig.fake.wakes(), ["connection from 127.0.0.1"]);
    rig.fake.until(|f| f.idles() == 1).await;
}

#[tokio::test]
async fn a_peer_that_does_not_read_stops_the_other() {
    let port = server(|mut stream| async move {
        let mut all = vec![0; 64 << 20];
        // Ends with the connection.
        let _ = stream.write_all(&all).await;
        let _ = stream.read_exact(&mut all).await;
    })
    .await;
    let rig = Rig::start().await;
    let listen = rig.bind();
    rig.fake.lock(|f| {
        f.say(vps("db", 1, at()));
        f.table(vec![idle(tcp_route(listen, "db", port), 10)]);
    });
    let mut client = dial(listen).await;
    client.read_u8().await.unwrap();
    let mut got = 1;
    let mut buffer = vec![0; 1 << 20];
    while got < 64 << 20 {
        let n = timeout(LONG, client.read(&mut buffer)).await.unwrap().unwrap();
        assert!(n > 0, "ended after {got} bytes");
        got += n;
    }
    let before = rig.fake.idles();
    drop(client);
    rig.fake.until(|f| f.idles() > before).await;
}

#[tokio::test]
async fn a_vps_that_fails_closes_its_connections() {
    let rig = Rig::start().await;
    let listen = rig.bind();
    rig.fake.lock(|f| f.table(vec![tcp_route(listen, "db", 1)]));
    rig.fake.on_wake(|name| {
        let state = Reachable::Failed { public: "no".into(), retry_after_ms: 60_000 };
        VpsState { name: name.clone(), generation: 1, state }
    });
    for _ in 0..2 {
        let mut rest = Vec::new();
        timeout(LONG, dial(listen).await.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert!(rest.is_empty());
    }
    assert_eq!(rig.fake.wakes().len(), 1);
}

#[tokio::test]
async fn listening_follows_the_table() {
    let rig = Rig::start().await;
    let (a, b) = (rig.bind(), rig.bind());
    let taken: ListenAddress = "127.0.0.1:1".parse().unwrap();
    let port = echo("a").await;
    rig.fake.lock(|f| f.say(vps("a", 1, at())));
    // A client that comes before the route waits in the backlog.
    let early = tokio::spawn(async move { ask(&mut dial(a).await, &get("a.example", "/")).await });
    let faults = rig.listeners.listen(vec![a, taken]).await.unwrap().faults;
    assert_eq!(faults, [(taken, format!("{taken} is in use"))]);
    assert!(rig.listeners.faults().await.is_empty(), "a fault of no route was kept");
    rig.fake.lock(|f| {
        f.table(vec![
            http_route(a, "a.example", "a", port),
            http_route(b, "a.example", "a", port),
            http_route(taken, "a.example", "a", port),
        ]);
    });
    assert!(early.await.unwrap().0.starts_with("HTTP/1.1 200"));
    assert!(ask(&mut dial(b).await, &get("a.example", "/")).await.0.starts_with("HTTP/1.1 200"));
    assert_eq!(rig.listeners.faults().await.keys().copied().collect::<Vec<_>>(), [taken]);
    let mut open = dial(b).await;
    ask(&mut open, &get("a.example", "/")).await;
    rig.fake.lock(|f| f.table(vec![http_route(a, "a.example", "a", port)]));
    rig.fake.until(|f| f.unlistened().contains(&b)).await;
    assert!(rig.listeners.faults().await.is_empty());
    // Requests on a connection that was open find no route any more.
    assert!(ask(&mut open, &get("a.example", "/")).await.0.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn a_new_gateway_takes_over_what_is_bound() {
    let mut rig = Rig::start().await;
    let (used, unused) = (rig.bind(), rig.bind());
    let port = echo("a").await;
    rig.fake.lock(|f| {
        f.say(vps("a", 1, at()));
        f.table(vec![idle(http_route(used, "a.example", "a", port), 50)]);
    });
    ask(&mut dial(used).await, &get("a.example", "/")).await;
    rig.stop().await;
    rig.fake.lock(|f| f.bound(vec![used, unused]));
    let before = rig.fake.idles();
    let waiting = tokio::spawn(async move { ask(&mut dial(used).await, &get("a.example", "/")).await });
    tokio::task::yield_now().await;
    rig.go();
    assert!(waiting.await.unwrap().0.starts_with("HTTP/1.1 200"));
    rig.fake.until(|f| f.unlistened() == [unused]).await;
    rig.fake.until(|f| f.idles() > before).await;
}

#[tokio::test]
async fn only_control_may_have_addresses_listened_on() {
    let rig = Rig::start().await;
    let listen = rig.bind();
    for (service, allowed) in [("control", true), ("network", false)] {
        let answered = rig.call(service, &wire::gateway::Listen { addresses: vec![listen] }).await;
        assert_eq!(answered.is_ok(), allowed, "{answered:?}");
    }
    let many = wire::gateway::Listen { addresses: vec![listen; 1025] };
    assert!(rig.call("control", &many).await.is_err());
}

#[tokio::test]
async fn the_first_byte_after_a_wake_is_told_once() {
    let port = server(|mut stream| async move {
        let mut byte = [0];
        while stream.read_exact(&mut byte).await.is_ok() && stream.write_all(&byte).await.is_ok() {}
    })
    .await;
    let rig = Rig::start().await;
    let listen = rig.bind();
    rig.fake.lock(|f| f.table(vec![tcp_route(listen, "db", port)]));
    let exchange = async || {
        let mut client = dial(listen).await;
        for _ in 0..2 {
            client.write_all(b"a").await.unwrap();
            timeout(LONG, client.read_exact(&mut [0])).await.unwrap().unwrap();
        }
    };
    rig.fake.on_wake(|name| VpsState { name: name.clone(), generation: 7, state: at() });
    for _ in 0..3 {
        exchange().await;
    }
    rig.fake.until(|f| !f.answered().is_empty()).await;
    rig.fake.on_wake(|name| VpsState { name: name.clone(), generation: 8, state: at() });
    rig.fake.state("db", 7, Reachable::No);
    // Until that was heard it is not woken again.
    while rig.fake.wakes().len() == 1 {
        exchange().await;
    }
    rig.fake.until(|f| f.answered().last() == Some(&8)).await;
    rig.fake.until(|f| f.answered() == [7, 8]).await;
}
