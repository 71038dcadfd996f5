//! Silent connections: what they keep awake, and what they survive.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use wire::control::VpsState;

use super::{
    doors::echo,
    rig::{LONG, Rig, at, dial, idle, tcp_route},
};

/// A connection that fell silent, at generation 1.
async fn silent() -> (Rig, tokio::net::TcpStream) {
    let port = echo().await;
    let rig = Rig::start().await;
    let listen = rig.bind();
    let mut route = idle(tcp_route(listen, "db", port), 20);
    route.quiet_ms = Some(60);
    rig.fake.lock(|f| f.table(vec![route]));
    rig.fake.on_wake(|name| VpsState { name: name.clone(), generation: 1, state: at() });
    let mut client = dial(listen).await;
    client.write_all(b"x").await.unwrap();
    assert_eq!(timeout(LONG, client.read_u8()).await.unwrap().unwrap(), b'x');
    rig.fake.until(|f| f.idles() == 1).await;
    (rig, client)
}

#[tokio::test]
async fn a_silent_connection_does_not_count_and_its_next_byte_wakes() {
    let (rig, mut client) = silent().await;
    // As after a freeze: the same run goes on.
    client.write_all(b"y").await.unwrap();
    assert_eq!(timeout(LONG, client.read_u8()).await.unwrap().unwrap(), b'y');
    assert_eq!(rig.fake.wakes(), ["connection from 127.0.0.1"; 2]);
    // It counts again, and falls silent again.
    rig.fake.until(|f| f.idles() == 2).await;
}

#[tokio::test]
async fn a_silent_connection_is_closed_when_its_server_is_another() {
    let (rig, mut client) = silent().await;
    rig.fake.on_wake(|name| VpsState { name: name.clone(), generation: 2, state: at() });
    client.write_all(b"y").await.unwrap();
    let mut rest = Vec::new();
    let ended = timeout(LONG, client.read_to_end(&mut rest)).await.expect("it was not closed");
    assert!(rest.is_empty(), "{ended:?}: {rest:?} came from a server that is gone");
}

#[tokio::test]
async fn a_connection_with_traffic_keeps_its_vps_awake() {
    let (rig, mut client) = silent().await;
    for _ in 0..20 {
        client.write_all(b"y").await.unwrap();
        assert_eq!(timeout(LONG, client.read_u8()).await.unwrap().unwrap(), b'y');
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(rig.fake.idles() <= 2, "idle was said {} times while bytes moved", rig.fake.idles());
}
