//! UDP routes: servers are woken by their first datagram, which is answered.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    netns::{CLIENT, Client, HOST, in_own_network, sh},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Debian's dnsmasq as a server of names, at port 53 of the host, and of an owned address.
fn names(address: &str, more: &str) -> String {
    format!(
        "tenant = \"acme\"\n[vps.names]\nimage = \"debian:dnsmasq-base\"\n\
         command = [\"dnsmasq\", \"-k\", \"--user=root\", \"--log-queries\", \"--log-facility=-\", \"--no-resolv\", \"--no-hosts\", \
         \"--address=/web.test/203.0.113.9\"]\n{more}\n[vps.names.routes]\n{address}\n"
    )
}

/// What a client is told of a name by a real one (busybox), which asks again after five seconds.
fn ask(client: &Client, server: &str) -> Result<Duration> {
    let begun = Instant::now();
    let told = client.sh(&format!("busybox nslookup -type=a web.test {server}"))?;
    ensure!(told.contains("203.0.113.9"), "{told}");
    Ok(begun.elapsed())
}

#[test]
fn a_name_server_is_woken_by_its_first_query_and_sees_its_client() -> Result<()> {
    in_own_network("a_name_server_is_woken_by_its_first_query_and_sees_its_client", || {
        let client = Client::new()?;
        let mut host = Host::start(HostOptions::default())?;
        let routes = format!("\"udp://{}:53\" = 53\n\"udp://[{}]:53\" = 53\n\"udp://*:5300\" = 53", HOST[0], HOST[1]);
        host.apply("names.toml", &names(&routes, "idle = \"never\""))?;
        // The first finds it asleep, and is not lost.
        let took = ask(&client, HOST[0])?;
        ensure!(took < Duration::from_secs(4), "the first query was lost: {took:?}");
        let seen = |from: &str| -> Result<bool> {
            Ok(host.run(&["logs", "names"])?.contains(&format!("web.test from {from}")))
        };
        let deadline = Instant::now() + PATIENCE;
        while !seen(CLIENT[0])? {
            ensure!(Instant::now() < deadline, "{}", host.run(&["logs", "names"])?);
            std::thread::sleep(Duration::from_millis(10));
        }
        // By IPv6, and at a wildcard, from where the answer has to come.
        ask(&client, HOST[1])?;
        let asked = client.sh("busybox nslookup -type=a web.test 192.0.2.1:5300")?;
        ensure!(asked.contains("203.0.113.9"), "{asked}");
        let why = host.run(&["why", "names"])?;
        ensure!(why.contains("datagram from 192.0.2.9") && why.contains("ports of UDP bound"), "{why}");

        // While the gateway is away queries wait; when it is asleep again the next one wakes it.
        for _ in 0..3 {
            host.kill(host.pid_of("gateway")?)?;
            let took = ask(&client, HOST[0])?;
            ensure!(took < Duration::from_secs(4), "a query was lost: {took:?}");
            host.run(&["stop", "names"])?;
            let took = ask(&client, HOST[0])?;
            ensure!(took < Duration::from_secs(4), "a query was lost: {took:?}");
        }
        host.stop()
    })
}

#[test]
fn flows_are_use_and_end_and_a_flood_keeps_nobody_out() -> Result<()> {
    in_own_network("flows_are_use_and_end_and_a_flood_keeps_nobody_out", || {
        let client = Client::new()?;
        let mut host = Host::start(HostOptions::default())?;
        let route = format!("\"udp://{}:53\" = 53", HOST[0]);
        host.apply("names.toml", &names(&route, "idle = { after = \"1s\" }"))?;
        ask(&client, HOST[0])?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            ensure!(host.row("names")?["state"] == "running", "a flow is no use");
            std::thread::sleep(Duration::from_millis(100));
        }
        // Nobody asks any more: its flow ends half a minute after the last datagram.
        host.await_state("names", "asleep", Duration::from_secs(60))?;
        ensure!(begun.elapsed() > Duration::from_secs(20), "{:?}", begun.elapsed());

        // Twenty thousand who are not who they say, each with one query that is none.
        let flood = "use Socket; socket(my $s, PF_INET, SOCK_RAW, 255) or die; my $to = inet_aton(q(192.0.2.1)); \
                     for my $n (0 .. 19999) { my $from = pack(q(N), 0xc6120000 + $n); \
                     my $udp = pack(q(nnnn), 1024 + $n % 60000, 53, 12, 0) . q(junk); \
                     send($s, pack(q(CCnnnCCna4a4), 0x45, 0, 20 + length $udp, 0, 0, 64, 17, 0, $from, $to) . $udp, 0, \
                     sockaddr_in(0, $to)); select(undef, undef, undef, 0.001) if $n % 100 == 99 }";
        let mut flooding = client.command("perl").args(["-e", flood]).stdin(Stdio::null()).spawn()?;
        let mut answered = 0;
        while flooding.try_wait()?.is_none() {
            answered += u32::from(ask(&client, HOST[0]).is_ok());
        }
        ask(&client, HOST[0])?;
        ensure!(answered > 0, "nobody was answered meanwhile");
        let gateway = host.pid_of("gateway")?;
        let open = std::fs::read_dir(format!("/proc/{gateway}/task"))?.count();
        ensure!(open > 0);
        host.stop()
    })
}

#[test]
fn datagrams_to_an_owned_address_go_past_the_gateway() -> Result<()> {
    in_own_network("datagrams_to_an_owned_address_go_past_the_gateway", || {
        let client = Client::new()?;
        client.sh("ip route add 198.51.100.16/28 via 192.0.2.1")?;
        let config = "[network]\nuplink = \"eth0\"\naddresses = [\"198.51.100.16/28\"]\n".to_owned();
        let mut host = Host::start(HostOptions { config, ..HostOptions::default() })?;
        host.apply("names.toml", &names("\"udp://198.51.100.17:53\" = 53", "idle = \"never\""))?;
        let took = ask(&client, "198.51.100.17")?;
        ensure!(took < Duration::from_secs(4), "the first query was lost: {took:?}");
        let list = format!("nsenter -t {} -n nft list map inet bailiwick ways4", host.pid_of("network")?);
        let deadline = Instant::now() + PATIENCE;
        while !sh(&list)?.contains("198.51.100.17") {
            ensure!(Instant::now() < deadline, "no way");
            std::thread::sleep(Duration::from_millis(5));
        }
        sh(&format!("kill -STOP {}", host.pid_of("gateway")?))?;
        ask(&client, "198.51.100.17")?;
        sh(&format!("kill -CONT {}", host.pid_of("gateway")?))?;
        host.stop()
    })
}

#[test]
fn what_is_no_route_of_datagrams_is_refused() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let spec = names("\"udp://*:20353\" = { port = 53, client = \"proxy-v1\" }", "");
    std::fs::write(host.root.join("bad.toml"), spec)?;
    let answer = host.cli(&["apply", &host.root.join("bad.toml").to_string_lossy()])?;
    ensure!(answer.code != 0 && answer.err.contains("no PROXY protocol for datagrams"), "{answer:?}");
    // Another program's port is told as one.
    let taken = std::net::UdpSocket::bind("0.0.0.0:20354").context("a port")?;
    std::fs::write(host.root.join("bad.toml"), names("\"udp://*:20354\" = 53", ""))?;
    let answer = host.cli(&["apply", &host.root.join("bad.toml").to_string_lossy()])?;
    ensure!(answer.code != 0 && answer.err.contains("udp://[::]:20354 is in use"), "{answer:?}");
    drop(taken);
    host.stop()
}
