//! Neighbours: who is let in at a VPS's own address. Loopback has addresses enough for all of them.

use std::net::{Ipv4Addr, SocketAddr};

use model::VpsName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use wire::control::{Addresses, Door, Reachable, VpsState};

use super::rig::{LONG, Rig, at, server, vps};

const DB: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 99);
const WEB: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 16);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 17);

pub fn door(port: u16, from: &[(&str, Ipv4Addr)], idle_after_ms: Option<u64>, quiet_ms: Option<u64>) -> Door {
    let addresses = |v4: Ipv4Addr| Addresses { v4, v6: v4.to_ipv6_compatible() };
    let from = from.iter().map(|(name, v4)| (name.parse::<VpsName>().unwrap(), addresses(*v4))).collect();
    // The VPS is on loopback, and of the addresses there only IPv4 ones can be told apart.
    let at = Addresses { v4: DB, v6: "::1".parse().unwrap() };
    Door { name: "db".parse().unwrap(), at, port, from, idle_after_ms, quiet_ms }
}

async fn from(address: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((address, 0).into())?;
    socket.connect(SocketAddr::from((DB, port))).await
}

/// A server that gives back what it gets.
pub async fn echo() -> u16 {
    server(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

async fn echoed(stream: &mut TcpStream) {
    stream.write_all(b"x").await.unwrap();
    assert_eq!(timeout(LONG, stream.read_u8()).await.unwrap().unwrap(), b'x');
}

/// Connects as soon as the door is there.
pub async fn enter(port: u16) -> TcpStream {
    let connected = async {
        loop {
            match from(WEB, port).await {
                Ok(stream) => return stream,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    timeout(LONG, connected).await.expect("the door is not opened")
}

#[tokio::test]
async fn a_door_lets_in_whom_its_rule_names_and_wakes_its_vps() {
    let rig = Rig::start().await;
    let port = echo().await;
    rig.fake.on_wake(|name| VpsState { name: name.clone(), generation: 1, state: at() });
    rig.fake.lock(|f| f.doors(vec![door(port, &[("web", WEB)], Some(30), None)]));
    let mut neighbour = enter(port).await;
    echoed(&mut neighbour).await;
    assert_eq!(rig.fake.wakes(), ["connection from web"]);
    let mut stranger = from(STRANGER, port).await.unwrap();
    let refused = timeout(LONG, stranger.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionReset);
    echoed(&mut neighbour).await;
    assert_eq!(rig.fake.wakes().len(), 1, "who is not let in wakes nobody");
    // Another rule changes nothing for it; without its own its connection ends, and nobody listens.
    rig.fake.lock(|f| f.doors(vec![door(port, &[("web", WEB), ("tool", STRANGER)], Some(30), None)]));
    echoed(&mut enter(port).await).await;
    echoed(&mut neighbour).await;
    rig.fake.lock(|f| f.doors(Vec::new()));
    let mut rest = Vec::new();
    assert!(timeout(LONG, neighbour.read_to_end(&mut rest)).await.is_ok(), "its connection outlives its rule");
    let closed = async { while from(WEB, port).await.is_ok() {} };
    timeout(LONG, closed).await.expect("the door stays open");
}

#[tokio::test]
async fn a_neighbour_of_a_vps_that_fails_is_reset() {
    let rig = Rig::start().await;
    rig.fake.on_wake(|name| {
        let state = Reachable::Failed { public: "no".into(), retry_after_ms: 60_000 };
        VpsState { name: name.clone(), generation: 1, state }
    });
    let port = echo().await;
    rig.fake.lock(|f| f.doors(vec![door(port, &[("web", WEB)], None, None)]));
    let failed = timeout(LONG, enter(port).await.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(failed.kind(), std::io::ErrorKind::ConnectionReset);
    rig.fake.lock(|f| f.say(vps("db", 2, at())));
    echoed(&mut enter(port).await).await;
}
