//! The links of three VPSs in a network namespace of their own, with real connections. Needs user namespaces and `ip`.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    time::Duration,
};

use bailiwick_network::{Layout, Links};
use model::{Transport, run::Link};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const INSIDE: &str = "BAILIWICK_TEST_INSIDE";
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the test of that name again, in new user, network and mount namespaces; true: we are there.
fn in_namespaces(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount"])
        .arg(std::env::current_exe().expect("this test's path"))
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("running unshare");
    assert!(status.success(), "{test} failed in its namespaces");
    false
}

fn ip(arguments: &str) -> String {
    run_program("ip", arguments)
}

/// With protocols by their numbers: names are only known where there is /etc/protocols.
fn nft(arguments: &str) -> String {
    run_program("/usr/sbin/nft", arguments)
}

fn run_program(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().expect("running it");
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn tcp(ports: &[u16]) -> Vec<(Transport, u16)> {
    ports.iter().map(|port| (Transport::Tcp, *port)).collect()
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|b| format!("{b:02x}")).join(":")
}

fn prefix6() -> Ipv6Addr {
    "fd00:ba11::".parse().expect("a prefix")
}

/// A VPS as far as its network goes: a namespace, held by a process.
struct Vps {
    holder: Child,
    link: Link,
}

impl Vps {
    fn new(last: u8) -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("running unshare");
        // the answer comes from the program, so the namespace is there
        holder.stdin.as_mut().expect("a pipe").write_all(b"\n").expect("asked");
        BufReader::new(holder.stdout.as_mut().expect("a pipe")).read_line(&mut String::new()).expect("answered");
        let address = Ipv4Addr::new(10, 80, 0, last);
        Self { holder, link: Link::new(address, Link::address6_for(prefix6(), address)) }
    }

    /// What the host daemon and the VPS's init do.
    fn connect_link(&self) {
        let (pid, outer, inner) = (self.holder.id(), mac(Link::OUTER_MAC), mac(Link::INNER_MAC));
        let Link { name, address, address6 } = &self.link;
        ip(&format!("link add {name} address {outer} type veth peer name eth0 address {inner} netns {pid}"));
        for step in [
            "link set lo up".to_owned(),
            "link set eth0 up".to_owned(),
            format!("addr add {address}/32 dev eth0"),
            format!("addr add {address6}/128 dev eth0 nodad"),
            format!("neigh replace 169.254.1.1 lladdr {outer} dev eth0 nud permanent"),
            format!("neigh replace fe80::1 lladdr {outer} dev eth0 nud permanent"),
            "route add default via 169.254.1.1 dev eth0 onlink".to_owned(),
            "route add default via fe80::1 dev eth0".to_owned(),
        ] {
            self.ip(&step);
        }
    }

    fn ip(&self, arguments: &str) {
        let status = Command::new("nsenter")
            .args(["--net", "--target", &self.holder.id().to_string(), "ip"])
            .args(arguments.split_whitespace())
            .status()
            .expect("running nsenter");
        assert!(status.success(), "ip {arguments} in {}", self.link.name);
    }

    /// Runs `work` in this VPS's network namespace while the service goes on.
    async fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.holder.id())).expect("a namespace");
        let there = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("joined");
            work()
        };
        // a thread of its own, that is not used again
        let joined = tokio::task::spawn_blocking(|| std::thread::spawn(there).join());
        joined.await.expect("waited").unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn addresses(&self) -> [IpAddr; 2] {
        [self.link.address.into(), self.link.address6.into()]
    }

    async fn listen(&self, address: IpAddr) -> TcpListener {
        self.inside(move || TcpListener::bind((address, 80)).expect("bound")).await
    }

    async fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.inside(move || TcpStream::connect_timeout(&to, PATIENCE)).await
    }

    async fn udp(&self, address: IpAddr) -> UdpSocket {
        let socket = self.inside(move || UdpSocket::bind((address, 0)).expect("bound")).await;
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        socket
    }
}

impl Drop for Vps {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// The service, as far as links go.
struct Service {
    links: Links,
    task: tokio::task::JoinHandle<()>,
}

impl Service {
    async fn start() -> Self {
        let layout = Layout {
            subnet: "10.80.0.0/16".parse().expect("a subnet"),
            subnet6: "fd00:ba11::/64".parse().expect("a subnet"),
            gateway: Some(Ipv4Addr::new(10, 80, 0, 3)),
            uplink: true,
            translated: (Ipv4Addr::new(10, 80, 0, 1), "fd00:ba11::a50:1".parse().expect("an address")),
            resolves: true,
            owned: Vec::new(),
        };
        let links = Links::start(layout).await.expect("started");
        let follower = links.clone();
        let task = tokio::spawn(async move { panic!("{}", follower.follow().await) });
        Self { links, task }
    }

    async fn attached(&self, vps: &Vps) {
        let attached = self.links.attached(&vps.link.name, &[]);
        tokio::time::timeout(PATIENCE, attached).await.expect("in time").expect("attached");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn echo(client: &mut TcpStream, server: &mut TcpStream) {
    for stream in [&mut *client, &mut *server] {
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
    }
    let mut byte = [0];
    client.write_all(b"x").expect("sent");
    server.read_exact(&mut byte).expect("received");
    server.write_all(&byte).expect("sent");
    client.read_exact(&mut byte).expect("received");
}

/// Everything the service made in the kernel.
fn state() -> String {
    [
        "rule show",
        "-6 rule show",
        "route show table all",
        "-6 route show table all",
        "neigh show",
        "-6 neigh show",
        "addr",
    ]
    .map(ip)
    .join("\n")
}

fn run(test: &str, work: impl AsyncFnOnce()) {
    if in_namespaces(test) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(work());
    }
}

#[test]
fn the_gateway_reaches_tenants_and_they_reach_only_the_gateway() {
    run("the_gateway_reaches_tenants_and_they_reach_only_the_gateway", async || {
        let (gateway, a, b) = (Vps::new(3), Vps::new(16), Vps::new(17));
        // one link before the service, one while nobody asks, one that is asked for first
        gateway.connect_link();
        let service = Service::start().await;
        a.connect_link();
        let attached = tokio::spawn({
            let (links, name) = (service.links.clone(), b.link.name.clone());
            async move { links.attached(&name, &[]).await }
        });
        tokio::task::yield_now().await;
        assert!(!attached.is_finished());
        b.connect_link();
        tokio::time::timeout(PATIENCE, attached).await.expect("in time").expect("joined").expect("attached");
        service.attached(&a).await;

        // both families
        let _own = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80)).expect("bound");
        for family in 0..2 {
            let tenant = a.addresses()[family];
            let listener = a.listen(tenant).await;
            let mut client = gateway.connect((tenant, 80).into()).await.expect("the gateway reaches a tenant");
            let (mut server, peer) = listener.accept().expect("accepted");
            assert_eq!(peer.ip(), gateway.addresses()[family]);
            echo(&mut client, &mut server);

            let error = b.connect((tenant, 80).into()).await.expect_err("a tenant reaches no other");
            assert_ne!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
        }
        b.connect((Link::GATEWAY, 80).into()).await.expect_err("a tenant reaches no service of the network VPS");
        let scoped = std::net::SocketAddrV6::new(Link::GATEWAY6, 80, 0, index_of_eth0(&b).await);
        b.inside(move || TcpStream::connect_timeout(&scoped.into(), Duration::from_millis(300)))
            .await
            .expect_err("nor over IPv6");
    });
}

async fn index_of_eth0(vps: &Vps) -> u32 {
    let read = || std::process::Command::new("ip").args(["-o", "link", "show", "eth0"]).output().expect("ip").stdout;
    let line = String::from_utf8(vps.inside(read).await).expect("text");
    line.split(':').next().and_then(|index| index.parse().ok()).expect("an index")
}

#[test]
fn a_forged_source_is_dropped() {
    run("a_forged_source_is_dropped", async || {
        let (gateway, a, b) = (Vps::new(3), Vps::new(16), Vps::new(17));
        let service = Service::start().await;
        for vps in [&gateway, &a, &b] {
            vps.connect_link();
            service.attached(vps).await;
        }
        for (family, foreign) in ["192.0.2.1", "2001:db8::1"].into_iter().enumerate() {
            let receiver = gateway.udp(gateway.addresses()[family]).await;
            let to = receiver.local_addr().expect("an address");
            let length = if family == 0 { 32 } else { 128 };
            let nodad = if family == 0 { "" } else { "nodad" };
            for forged in [b.addresses()[family], foreign.parse().expect("an address")] {
                a.ip(&format!("addr add {forged}/{length} dev lo {nodad}"));
                let liar = a.udp(forged).await;
                liar.send_to(b"forged", to).expect("sent");
            }
            // packets of one link keep their order: what comes first was not dropped
            let honest = a.udp(a.addresses()[family]).await;
            honest.send_to(b"honest", to).expect("sent");
            let mut buffer = [0; 16];
            let (length, from) = receiver.recv_from(&mut buffer).expect("received");
            assert_eq!((&buffer[..length], from), (&b"honest"[..], honest.local_addr().expect("an address")));
        }
    });
}

#[test]
fn clients_addresses_are_shown_to_the_ports_that_want_them() {
    run("clients_addresses_are_shown_to_the_ports_that_want_them", async || {
        let (gateway, a, b) = (Vps::new(3), Vps::new(16), Vps::new(17));
        let service = Service::start().await;
        for vps in [&gateway, &a, &b] {
            vps.connect_link();
            service.attached(vps).await;
        }
        let ports = tcp(&[80, 81]);
        let attached = service.links.attached(&a.link.name, &ports);
        tokio::time::timeout(PATIENCE, attached).await.expect("in time").expect("attached");
        // Clients' addresses, and the neighbour's, are the gateway's own here: what it can send is what counts.
        for (family, client) in ["198.51.100.9", "2001:db8::9"].into_iter().enumerate() {
            let length = if family == 0 { 32 } else { 128 };
            let nodad = if family == 0 { "" } else { "nodad" };
            let neighbour = b.addresses()[family].to_string();
            for address in [client, &neighbour] {
                gateway.ip(&format!("addr add {address}/{length} dev lo {nodad}"));
            }
            let tenants = [a.listen(a.addresses()[family]).await, b.listen(b.addresses()[family]).await];
            let connect = async |from: &str, to: &TcpListener| {
                let (from, to) = (from.parse::<IpAddr>().expect("an address"), to.local_addr().expect("an address"));
                let to = to.to_string();
                let program =
                    "my ($to, $from) = @ARGV; exit !IO::Socket::IP->new(PeerAddr=>$to, LocalHost=>$from, Timeout=>1)";
                let ask = move || {
                    let from = from.to_string();
                    Command::new("perl").args(["-MIO::Socket::IP", "-e", program, &to, &from]).status()
                };
                gateway.inside(ask).await.expect("perl").success()
            };
            assert!(connect(client, &tenants[0]).await, "{client} is shown");
            assert_eq!(tenants[0].accept().expect("accepted").1.ip().to_string(), client);
            assert!(!connect(client, &tenants[1]).await, "a port of which nobody said so is not shown {client}");
            assert!(!connect(&neighbour, &tenants[0]).await, "another VPS's address is not a client's");
            gateway.ip(&format!("addr del {neighbour}/{length} dev lo"));
        }
        let shown = || nft("-p list set inet bailiwick shown4") + &nft("-p list set inet bailiwick shown6");
        assert_eq!(shown().matches(". 6 . 81").count(), 2, "{}", shown());
        // What is not said any more is not so any more; and what is of a link goes with it.
        service.attached(&a).await;
        assert!(!shown().contains(". 6 . 80"), "{}", shown());
        let ports = tcp(&[80]);
        let attached = service.links.attached(&b.link.name, &ports);
        tokio::time::timeout(PATIENCE, attached).await.expect("in time").expect("attached");
        drop(b);
        tokio::time::timeout(PATIENCE, async {
            while shown().contains(". 6 . 80") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("gone in time");
    });
}

#[test]
fn a_restart_of_the_service_disturbs_nothing() {
    run("a_restart_of_the_service_disturbs_nothing", async || {
        let (gateway, a, mut b) = (Vps::new(3), Vps::new(16), Vps::new(17));
        let service = Service::start().await;
        for vps in [&gateway, &a, &b] {
            vps.connect_link();
            service.attached(vps).await;
        }
        let tenant = a.addresses()[1];
        let listener = a.listen(tenant).await;
        let mut client = gateway.connect((tenant, 80).into()).await.expect("connected");
        let (mut server, _) = listener.accept().expect("accepted");
        echo(&mut client, &mut server);
        let before = state();

        drop(service);
        echo(&mut client, &mut server);
        let service = Service::start().await;
        assert_eq!(before, state());
        echo(&mut client, &mut server);

        // a VPS that went away and comes back under its address, once with the service there and once without
        let [v4, v6] = b.addresses().map(|address| format!("{address} . 6 . 80"));
        let shown = || {
            let has = |set: &str, key: &str| nft(&format!("-p list set inet bailiwick {set}")).contains(key);
            (has("shown4", &v4), has("shown6", &v6))
        };
        let ports = tcp(&[80]);
        service.links.attached(&b.link.name, &ports).await.expect("attached");
        assert_eq!(shown(), (true, true));
        ip(&format!("link del {}", b.link.name));
        b.connect_link();
        service.links.attached(&b.link.name, &ports).await.expect("attached");
        assert_eq!(shown(), (true, true));
        drop(service);
        ip(&format!("link del {}", b.link.name));
        let service = Service::start().await;
        assert_eq!(shown(), (false, false), "what is of a link that is gone stays");
        b = Vps::new(17);
        b.connect_link();
        service.attached(&b).await;
        for address in b.addresses() {
            let _listener = b.listen(address).await;
            gateway.connect((address, 80).into()).await.expect("connected");
        }
    });
}

/// A namespace in the place of the host: the other end of the uplink, with an address outside.
fn host_with_uplink() -> (Vps, [IpAddr; 2]) {
    let mut host = Vps::new(1);
    host.link.name = Link::UPLINK.to_owned();
    let (pid, outer, inner) = (host.holder.id(), mac(Link::OUTER_MAC), mac(Link::INNER_MAC));
    ip(&format!("link add uplink address {outer} type veth peer name eth0 address {inner} netns {pid}"));
    for step in [
        "link set lo up".to_owned(),
        "addr add 192.0.2.1/32 dev lo".to_owned(),
        "addr add 169.254.169.254/32 dev lo".to_owned(),
        "addr add 2001:db8::1/128 dev lo nodad".to_owned(),
        "link set eth0 up".to_owned(),
        "addr add fe80::2/64 dev eth0 nodad".to_owned(),
        format!("neigh replace 169.254.1.1 lladdr {outer} dev eth0 nud permanent"),
        format!("neigh replace fe80::1 lladdr {outer} dev eth0 nud permanent"),
        "route add 10.80.0.0/16 via 169.254.1.1 dev eth0 onlink src 192.0.2.1".to_owned(),
        "route add fd00:ba11::/64 via fe80::1 dev eth0 src 2001:db8::1".to_owned(),
    ] {
        host.ip(&step);
    }
    (host, ["192.0.2.1".parse().expect("one"), "2001:db8::1".parse().expect("one")])
}

#[test]
fn an_uplink_leads_outside_and_not_to_other_tenants() {
    run("an_uplink_leads_outside_and_not_to_other_tenants", async || {
        let (gateway, a, b) = (Vps::new(3), Vps::new(16), Vps::new(17));
        let service = Service::start().await;
        for vps in [&gateway, &a, &b] {
            vps.connect_link();
            service.attached(vps).await;
        }
        let (host, outside) = host_with_uplink();
        service.attached(&host).await;
        // so that it would send back what comes for another VPS
        host.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("set")).await;
        host.inside(|| std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("set")).await;
        for (family, outside) in outside.into_iter().enumerate() {
            let listener = host.listen(outside).await;
            for vps in [&a, &gateway] {
                vps.connect((outside, 80).into()).await.expect("outside is reached");
                let (_, peer) = listener.accept().expect("accepted");
                assert_eq!(peer.ip(), ["10.80.0.1", "fd00:ba11::a50:1"][family].parse::<IpAddr>().expect("an address"));
            }
            let _listener = b.listen(b.addresses()[family]).await;
            a.connect((b.addresses()[family], 80).into()).await.expect_err("not by way of the host");
            host.connect((b.addresses()[family], 80).into()).await.expect("the host reaches a tenant");
        }
        let metadata: IpAddr = "169.254.169.254".parse().expect("an address");
        let _listener = host.listen(metadata).await;
        a.connect((metadata, 80).into()).await.expect_err("the host's link-local addresses are not reached");
    });
}
