//! Addresses that are routed to the host for VPSs alone: routes to them are the network VPS's, and the gateway's only to wake.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    netns::{CLIENT, Client, HOST, in_own_network, sh},
};

const OWNED: [&str; 2] = ["198.51.100.16/28", "2001:db8:1::/64"];
/// Whose routes are at 17, and at 18.
const WEB: [&str; 2] = ["198.51.100.17", "[2001:db8:1::17]"];
const OTHER: [&str; 2] = ["198.51.100.18", "[2001:db8:1::18]"];

const NGINX: &str = r#"
error_log stderr; events {}
http { access_log off; server { listen 80; listen [::]:80; return 200 "NAME $remote_addr"; } }
"#;

fn vps(name: &str, addresses: [&str; 2], idle: &str) -> String {
    let nginx = NGINX.replace("NAME", name);
    let [v4, v6] = addresses;
    format!(
        "[vps.{name}]\nimage = \"debian:nginx-light\"\ncommand = [\"nginx\", \"-c\", \"/etc/nginx.conf\", \"-g\", \"daemon off;\"]\n\
         files = {{ \"/etc/nginx.conf\" = '''{nginx}''' }}\nidle = {idle}\n\
         routes = {{ \"tcp://{v4}:80\" = 80, \"tcp://{v6}:80\" = 80 }}\n"
    )
}

fn start(client: &Client) -> Result<Host> {
    let [v4, v6] = OWNED;
    client.sh(&format!("ip route add {v4} via {}; ip route add {v6} via {}", HOST[0], HOST[1]))?;
    let config = format!("[network]\nuplink = \"eth0\"\naddresses = [{v4:?}, {v6:?}]\n");
    // Before Linux 6.17 the host has to be a router for IPv6 already.
    sh("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")?;
    Host::start(HostOptions { config, ..HostOptions::default() })
}

fn get(client: &Client, host: &str) -> Result<String> {
    client.sh(&format!("curl --silent --show-error --max-time 20 http://{host}/"))
}

#[test]
fn a_route_by_an_owned_address_wakes_and_shows_its_client() -> Result<()> {
    in_own_network("a_route_by_an_owned_address_wakes_and_shows_its_client", || {
        let client = Client::new()?;
        let mut host = start(&client)?;
        let both = vps("web", WEB, "\"never\"") + &vps("other", OTHER, "\"never\"");
        host.apply("web.toml", &format!("tenant = \"acme\"\n{both}"))?;
        for _ in 0..2 {
            for (name, addresses) in [("web", WEB), ("other", OTHER)] {
                for (address, from) in addresses.iter().zip(CLIENT) {
                    let told = get(&client, address)?;
                    ensure!(told == format!("{name} {from}"), "{address}: {told}");
                }
            }
        }
        host.stop()
    })
}

/// Waits until new connections to `web` go past the gateway, or don't.
fn await_direct(host: &Host, direct: bool) -> Result<()> {
    let list = format!("nsenter -t {} -n nft list map inet bailiwick ways4", host.pid_of("network")?);
    let deadline = Instant::now() + Duration::from_secs(20);
    // A protocol has a name only where there is /etc/protocols.
    let is = |listed: &str| ["6", "tcp"].iter().any(|tcp| listed.contains(&format!("{} . {tcp} . 80", WEB[0])));
    while is(&sh(&list)?) != direct {
        ensure!(Instant::now() < deadline, "direct: {direct} does not come\n{}", host.daemon_log());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn once_it_is_up_its_connections_go_past_the_gateway() -> Result<()> {
    in_own_network("once_it_is_up_its_connections_go_past_the_gateway", || {
        let client = Client::new()?;
        let mut host = start(&client)?;
        host.apply("web.toml", &format!("tenant = \"acme\"\n{}", vps("web", WEB, "{ after = \"1s\" }")))?;
        ensure!(get(&client, WEB[0])? == format!("web {}", CLIENT[0]));
        await_direct(&host, true)?;
        let gateway = host.pid_of("gateway")?;
        sh(&format!("kill -STOP {gateway}"))?;
        for (address, from) in WEB.iter().zip(CLIENT) {
            ensure!(get(&client, address)? == format!("web {from}"), "{address}");
        }
        // One that is open keeps it up, and it sleeps when that has ended.
        let script = "use IO::Socket::INET; my $s = IO::Socket::INET->new(q(198.51.100.17:80)) or die; $| = 1; \
                      print qq(open\n); <STDIN>; print $s qq(GET / HTTP/1.0\r\n\r\n); print <$s>";
        let mut open = client.command("perl");
        let mut open = open.args(["-e", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut said = BufReader::new(open.stdout.take().context("stdout")?);
        said.read_line(&mut String::new())?;
        sh(&format!("kill -CONT {gateway}"))?;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(4) {
            ensure!(host.row("web")?["state"] == "running", "it was stopped under an open connection");
            std::thread::sleep(Duration::from_millis(50));
        }
        drop(open.stdin.take());
        let mut answer = String::new();
        said.read_to_string(&mut answer)?;
        open.wait()?;
        ensure!(answer.ends_with(&format!("web {}", CLIENT[0])), "{answer}");
        host.await_state("web", "asleep", Duration::from_secs(20))?;
        await_direct(&host, false)?;
        ensure!(get(&client, WEB[0])? == format!("web {}", CLIENT[0]));
        host.stop()
    })
}

#[test]
fn a_server_that_listens_by_ipv4_alone_is_reached_by_ipv6_too() -> Result<()> {
    in_own_network("a_server_that_listens_by_ipv4_alone_is_reached_by_ipv6_too", || {
        let client = Client::new()?;
        let mut host = start(&client)?;
        let spec = vps("web", WEB, "\"never\"").replace("listen [::]:80;", "");
        host.apply("web.toml", &format!("tenant = \"acme\"\n{spec}"))?;
        for _ in 0..3 {
            ensure!(get(&client, WEB[0])? == format!("web {}", CLIENT[0]));
            await_direct(&host, true)?;
            let told = get(&client, WEB[1])?;
            ensure!(told.starts_with("web 10."), "{told}: the gateway comes in its client's place");
        }
        host.stop()
    })
}

/// Sends one segment (PSH and ACK), with a true checksum: FROM TO SOURCE-PORT DESTINATION-PORT.
const FORGE: &str = r#"use Socket; my ($from, $to, $sport, $dport) = @ARGV; my ($f, $t) = (inet_aton($from), inet_aton($to));
    my $tcp = pack("nnNNCCnnn", $sport, $dport, 7, 7, 0x50, 0x18, 1024, 0, 0);
    my $sum = unpack("%32n*", $f . $t . pack("CCn", 0, 6, 20) . $tcp); $sum = ($sum >> 16) + ($sum & 0xffff);
    substr($tcp, 16, 2) = pack("n", ~(($sum >> 16) + $sum) & 0xffff);
    my $ip = pack("CCnnnCCna4a4", 0x45, 0, 40, 0, 0, 64, 6, 0, $f, $t);
    socket(my $s, PF_INET, SOCK_RAW, 255) or die $!; send($s, $ip . $tcp, 0, sockaddr_in(0, $t)) or die $!"#;

#[test]
fn nobody_sends_into_anothers_connection() -> Result<()> {
    in_own_network("nobody_sends_into_anothers_connection", || {
        let client = Client::new()?;
        let mut host = start(&client)?;
        let other = vps("other", OTHER, "\"never\"");
        host.apply("a.toml", &format!("tenant = \"acme\"\n{}", vps("web", WEB, "\"never\"")))?;
        host.apply("b.toml", &format!("tenant = \"beta\"\n{other}"))?;
        for address in [WEB[0], OTHER[0]] {
            get(&client, address)?;
        }
        await_direct(&host, true)?;
        let script = "use IO::Socket::INET; my $s = IO::Socket::INET->new(PeerAddr => q(198.51.100.17:80), LocalPort => 45000) \
                      or die; $| = 1; print qq(open\n); <STDIN>";
        let mut open = client.command("perl");
        let mut open = open.args(["-e", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        BufReader::new(open.stdout.take().context("stdout")?).read_line(&mut String::new())?;
        client.sh("nft add table inet w; nft add chain inet w c { type filter hook prerouting priority -300\\; }
                   nft add rule inet w c tcp sport 80 tcp dport 45000 tcp flags psh counter")?;
        let seen = || -> Result<u64> {
            let listed = client.sh("nft list table inet w")?;
            let packets = listed.split("packets ").nth(1).and_then(|rest| rest.split(' ').next());
            Ok(packets.context("a counter")?.parse()?)
        };
        let server = host.row("web")?["address"].as_str().context("an address")?.to_owned();
        // The kernel's own look at sequence numbers is not what is to be shown.
        let liberal = "echo 1 > /proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";
        sh(&format!("nsenter -t {} -n sh -ec '{liberal}'", host.pid_of("network")?))?;
        let forge = |vps: &str| -> Result<()> {
            let pid = host.row(vps)?["pid"].to_string();
            let mut send = Command::new("nsenter");
            let sent =
                send.args(["-t", &pid, "-n", "perl", "-e", FORGE, &server, CLIENT[0], "80", "45000"]).status()?;
            ensure!(sent.success(), "nothing was sent");
            Ok(())
        };
        for _ in 0..5 {
            forge("other")?;
        }
        // Packets of one way are in order, and these come by another one.
        get(&client, OTHER[0])?;
        ensure!(seen()? == 0, "another tenant's packet came through");
        forge("web")?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while seen()? == 0 {
            ensure!(Instant::now() < deadline, "the probe itself does not work");
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(open.stdin.take());
        open.wait()?;
        host.stop()
    })
}

#[test]
fn an_address_of_the_uplinks_own_network_is_answered_for_while_the_host_runs() -> Result<()> {
    in_own_network("an_address_of_the_uplinks_own_network_is_answered_for_while_the_host_runs", || {
        let client = Client::new()?;
        let spec = format!("tenant = \"acme\"\n{}", vps("web", ["192.0.2.77", "[2001:db8:1::17]"], "\"never\""));
        let config = |addresses: &str| format!("[network]\nuplink = \"eth0\"\naddresses = [{addresses}]\n");
        for (addresses, says) in [
            ("\"192.0.2.1\"", "192.0.2.1/32 overlaps the host's own"),
            ("\"192.0.2.0/24\"", "192.0.2.0/24 overlaps the host's own"),
            ("\"2001:db8::77\"", "have to be routed to it"),
        ] {
            let started = Host::start(HostOptions { config: config(addresses), ..HostOptions::default() });
            let told = started.err().context("it was not refused")?.to_string();
            ensure!(told.contains(says), "{told}");
        }
        let config = config("\"192.0.2.77\", \"192.0.2.128/30\", \"2001:db8:1::/64\"");
        let mut host = Host::start(HostOptions { config, ..HostOptions::default() })?;
        host.apply("web.toml", &spec)?;
        for _ in 0..2 {
            ensure!(get(&client, "192.0.2.77")? == format!("web {}", CLIENT[0]));
        }
        ensure!(sh("ip neigh show proxy")?.lines().count() == 5, "{}", sh("ip neigh show proxy")?);
        // Also after a crash nothing of it stays.
        let daemon = host.daemon()?;
        sh(&format!("kill -STOP {daemon}"))?;
        host.crash()?;
        host.kill(daemon)?;
        let mut host = host.again()?;
        client.sh("ip neigh flush all")?;
        ensure!(get(&client, "192.0.2.77")? == format!("web {}", CLIENT[0]));
        host.stop()?;
        ensure!(sh("ip neigh show proxy")?.is_empty(), "{}", sh("ip neigh show proxy")?);
        Ok(())
    })
}

#[test]
fn nobody_is_lost_while_it_falls_asleep_and_wakes() -> Result<()> {
    in_own_network("nobody_is_lost_while_it_falls_asleep_and_wakes", || {
        let client = Client::new()?;
        let mut host = start(&client)?;
        host.apply("web.toml", &format!("tenant = \"acme\"\n{}", vps("web", WEB, "{ after = \"1s\" }")))?;
        // Connections in pairs, at all distances from the end of the idle time; every second time it is stopped by hand.
        let deadline = Instant::now() + Duration::from_secs(12);
        let mut pause = 900;
        for n in 0.. {
            if Instant::now() > deadline {
                break;
            }
            let stop =
                (n % 2 == 1).then(|| host.command(&["stop", "web"]).stdout(Stdio::null()).spawn()).transpose()?;
            for _ in 0..3 {
                let told = get(&client, WEB[0])?;
                ensure!(told == format!("web {}", CLIENT[0]), "{told}");
            }
            if let Some(mut stop) = stop {
                stop.wait()?;
            }
            std::thread::sleep(Duration::from_millis(pause));
            pause = if pause > 1200 { 900 } else { pause + 37 };
        }
        let starts = host.json(&["inspect", "web"])?["wakes"].clone();
        ensure!(!starts.is_null() || host.row("web").is_ok(), "{starts}");
        host.stop()
    })
}

#[test]
fn connections_and_ways_outlive_the_services_and_end_with_the_vps() -> Result<()> {
    in_own_network("connections_and_ways_outlive_the_services_and_end_with_the_vps", || {
        let client = Client::new()?;
        let mut host = start(&client)?;
        host.apply("web.toml", &format!("tenant = \"acme\"\n{}", vps("web", WEB, "\"never\"")))?;
        get(&client, WEB[0])?;
        await_direct(&host, true)?;
        for service in ["network", "gateway", "control"] {
            host.kill(host.pid_of(service)?)?;
            ensure!(get(&client, WEB[0])? == format!("web {}", CLIENT[0]));
        }
        host.await_state("network", "running", Duration::from_secs(20))?;
        await_direct(&host, true)?;
        // Its end, seen by nobody but the kernel, ends its ways too: who comes a moment later wakes it. Until then the kernel refuses.
        for _ in 0..3 {
            let pid = host.pid_of("web")?;
            host.kill(pid)?;
            let deadline = Instant::now() + Duration::from_secs(1);
            let told = loop {
                match get(&client, WEB[0]) {
                    Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
                    told => break told?,
                }
            };
            ensure!(told == format!("web {}", CLIENT[0]), "{told}");
            await_direct(&host, true)?;
        }
        host.run(&["delete", "--yes", "web"])?;
        await_direct(&host, false)?;
        ensure!(get(&client, WEB[0]).is_err(), "a deleted VPS answers");
        host.stop()
    })
}
