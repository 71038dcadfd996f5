//! VPSs reach the outside through the host's uplink, and nothing else changes.
//!
//! Each test runs in a network namespace of its own, which is the host's; another one, joined to it by `eth0`, is the outside.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    netns::{in_own_network, sh},
};

/// Says to whoever connects, by IPv4 or IPv6, which address it came from.
const SERVER: &str = "use IO::Socket::IP; my $s = IO::Socket::IP->new(LocalHost=>q(::), LocalPort=>PORT, V6Only=>0, Listen=>128, \
                      ReuseAddr=>1) or die; $| = 1; print qq(listening\\n); \
                      while (my $c = $s->accept) { print $c $c->peerhost; close $c }";

/// The outside: a namespace with a server on port 8000.
struct Outside {
    server: Child,
}

impl Outside {
    fn new() -> Result<Self> {
        sh("ip link set lo up; ip link add eth0 type veth peer name out0; ip link set eth0 addrgenmode none
            ip addr add 192.0.2.10/24 dev eth0; ip link set eth0 up; ip addr add 2001:db8::10/64 dev eth0 nodad")?;
        let script =
            format!("ip link set lo up; echo ready; read go; exec perl -e '{}'", SERVER.replace("PORT", "8000"));
        let mut server = Command::new("unshare")
            .args(["--net", "sh", "-ec", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(server.stdout.take().context("stdout")?).lines();
        lines.next().context("the outside")??;
        let outside = Self { server };
        sh(&format!("ip link set out0 netns {}", outside.server.id()))?;
        // It knows a way to the VPSs, so that only the host keeps it away from them.
        outside
            .sh("ip addr add 192.0.2.1/24 dev out0; ip link set out0 up; ip addr add 2001:db8::1/64 dev out0 nodad
                    ip route add 10.80.0.0/15 via 192.0.2.10; ip route add fd80::/14 via 2001:db8::10")?;
        sh("ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8::1")?;
        let mut outside = outside;
        std::io::Write::write_all(&mut outside.server.stdin.take().context("stdin")?, b"go\n")?;
        lines.next().context("the outside's server")??;
        Ok(outside)
    }

    fn sh(&self, script: &str) -> Result<String> {
        sh(&format!("nsenter -t {} -n sh -ec '{script}'", self.server.id()))
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A name server: every name is 203.0.113.7, by UDP and TCP, IPv4 and IPv6.
const NAMES: &str = r#"use IO::Socket::IP; use Socket; $| = 1;
    sub answer { my $q = shift; my $end = index($q, "\0", 12) + 5; my $a = substr($q, $end - 4, 2) eq "\0\1";
        substr($q, 0, 2) . pack("n5", 0x8180, 1, $a ? 1 : 0, 0, 0) . substr($q, 12, $end - 12)
        . ($a ? pack("n3Nn", 0xc00c, 1, 1, 60, 4) . inet_aton("203.0.113.7") : "") }
    my %any = (LocalHost => "::", LocalPort => 53, V6Only => 0);
    my $u = IO::Socket::IP->new(%any, Proto => "udp") or die $@;
    my $t = IO::Socket::IP->new(%any, Listen => 9, ReuseAddr => 1) or die $@;
    print "listening\n";
    unless (fork) { while (my $c = $t->accept) { read $c, my $n, 2; read $c, my $q, unpack("n", $n); my $r = answer($q);
        print $c pack("n", length $r), $r; close $c } }
    while (my $from = recv $u, my $q, 999, 0) { send $u, answer($q), 0, $from }"#;

#[test]
fn names_of_the_outside_are_asked_of_the_resolvers() -> Result<()> {
    in_own_network("names_of_the_outside_are_asked_of_the_resolvers", || {
        let outside = Outside::new()?;
        let mut names = Command::new("nsenter")
            .args([
                "-t",
                &outside.server.id().to_string(),
                "-n",
                "unshare",
                "--pid",
                "--kill-child",
                "perl",
                "-e",
                NAMES,
            ])
            .stdout(Stdio::piped())
            .spawn()?;
        BufReader::new(names.stdout.take().context("stdout")?).lines().next().context("the name server")??;
        for resolver in ["192.0.2.1", "2001:db8::1"] {
            let mut host = start_with(80, &format!("resolvers = [{resolver:?}]"))?;
            for options in ["", "use-vc"] {
                let script =
                    format!("RES_OPTIONS={options} getent ahosts www.example.org; getent ahosts other || true");
                let told = inside(&host, &script)?;
                let addresses: Vec<_> = told.lines().filter_map(|line| line.split(' ').next()).collect();
                ensure!(addresses.contains(&"203.0.113.7"), "{resolver} {options}: {told}");
                ensure!(!told.contains("other"), "a name of one word was asked outside: {told}");
            }
            if resolver.contains(':') {
                // What was answered is known for a minute.
                names.kill()?;
                names.wait()?;
                for options in ["", "use-vc"] {
                    let told = inside(&host, &format!("RES_OPTIONS={options} getent ahosts www.example.org"))?;
                    ensure!(told.contains("203.0.113.7"), "{options}: {told}");
                }
                let told = inside(&host, "getent ahosts www.example.net || true")?;
                ensure!(told.is_empty(), "the probe itself does not work: {told}");
            }
            host.stop()?;
        }
        Ok(())
    })
}

/// A script that connects and shows what it is told, or that it is told nothing.
fn ask(address: &str, port: u16) -> String {
    format!(
        "perl -MIO::Socket::IP -e \"my \\$s = IO::Socket::IP->new(PeerHost=>q({address}), PeerPort=>{port}, Timeout=>2); \
         print \\$s ? <\\$s> : q(nothing)\""
    )
}

/// All that an uplink could change here.
fn network() -> Result<String> {
    let state = sh("nft list ruleset; ip -o link | sed s/^[0-9]*://; ip route show table all; ip -6 route show table all
                    ip rule; ip neigh show nud permanent
                    cd /proc/sys/net; grep -r . ipv4/conf/*/forwarding ipv4/ip_forward ipv6/conf/*/*forwarding ipv6/conf/*/accept_ra")?;
    // Seconds that an IPv6 route has left are no change.
    let lines = state.lines().map(|line| line.split(" expires ").next().unwrap_or(line).trim_end());
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

fn start(net: u8) -> Result<Host> {
    start_with(net, "")
}

/// With more lines of `[network]`.
fn start_with(net: u8, more: &str) -> Result<Host> {
    let config = format!(
        "[network]\nuplink = \"eth0\"\nsubnet = \"10.{net}.0.0/16\"\nsubnet6 = \"fd{net}:ba11::/96\"\n{more}\n"
    );
    let host = Host::start(HostOptions { config, ..HostOptions::default() })?;
    let spec = format!(
        "tenant = \"acme\"\n[vps.inner]\nimage = \"debian:\"\ncommand = [\"perl\", \"-e\", {:?}]\n",
        SERVER.replace("PORT", "7")
    );
    host.apply("inner.toml", &spec)?;
    host.run(&["start", "inner"])?;
    Ok(host)
}

fn inside(host: &Host, script: &str) -> Result<String> {
    host.run(&["exec", "inner", "--", "sh", "-c", script])
}

/// The VPS reaches the outside, where it is seen with the host's address.
fn reaches_outside(host: &Host) -> Result<()> {
    for (server, seen) in [("192.0.2.1", "::ffff:192.0.2.10"), ("2001:db8::1", "2001:db8::10")] {
        let told = inside(host, &ask(server, 8000))?;
        ensure!(told == seen, "{server} saw {told}, not {seen}\n{}\n{}", network()?, host.daemon_log());
    }
    Ok(())
}

#[test]
fn a_vps_reaches_the_outside_and_only_that() -> Result<()> {
    in_own_network("a_vps_reaches_the_outside_and_only_that", || {
        let outside = Outside::new()?;
        let before = network()?;
        let mut host = start(80)?;
        reaches_outside(&host)?;

        let address = host.row("inner")?["address"].as_str().context("an address")?.to_owned();
        ensure!(sh(&ask(&address, 7))? != "nothing", "the probe itself does not work");
        let told = outside.sh(&ask(&address, 7))?;
        ensure!(told == "nothing", "the outside reached {address}");

        // What the host listens on is the outside's to connect to, not a VPS's.
        let own = TcpListener::bind("[::]:9000")?;
        std::thread::spawn(move || own.incoming().flatten().for_each(drop));
        for host_address in ["192.0.2.10", "2001:db8::10"] {
            ensure!(outside.sh(&ask(host_address, 9000))?.is_empty(), "the probe itself does not work");
            let told = inside(&host, &ask(host_address, 9000))?;
            ensure!(told == "nothing", "a VPS reached {host_address}");
        }
        host.stop()?;
        let after = network()?;
        ensure!(before == after, "before:\n{before}\n\nafter:\n{after}");
        Ok(())
    })
}

#[test]
fn addresses_are_translated_in_the_network_vps() -> Result<()> {
    in_own_network("addresses_are_translated_in_the_network_vps", || {
        let _outside = Outside::new()?;
        let mut host = start(80)?;
        // Counts what reaches the host from the network VPS, by its source.
        sh("nft -f - <<END\ntable inet watch { chain seen { type filter hook prerouting priority -400;
            iifname bw-* ip daddr 192.0.2.1 ip saddr 10.80.0.1 counter comment one
            iifname bw-* ip daddr 192.0.2.1 ip saddr != 10.80.0.1 counter comment other
            iifname bw-* ip6 daddr 2001:db8::1 ip6 saddr fd80:ba11::a50:1 counter comment one
            iifname bw-* ip6 daddr 2001:db8::1 ip6 saddr != fd80:ba11::a50:1 counter comment other
            }
            }\nEND")?;
        let packets = || -> Result<(u64, u64)> {
            let listed = sh("nft list table inet watch")?;
            let count = |comment: &str| {
                let of = listed.lines().filter(|line| line.contains(&format!("comment \"{comment}\"")));
                let packets = of.map(|line| line.split("packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok());
                packets.collect::<Option<Vec<_>>>().filter(|all| all.len() == 2).context("two counters")
            };
            Ok((*count("one")?.iter().min().context("counters")?, count("other")?.iter().sum()))
        };
        reaches_outside(&host)?;
        let (one, other) = packets()?;
        ensure!(one > 0 && other == 0, "{one} packets with the one address, {other} with others");

        // A connection outlives the network service.
        host.run(&["exec", "inner", "--", "true"])?;
        host.kill(host.pid_of("network")?)?;
        reaches_outside(&host)?;

        // The new process installs its rules before it is ready; then they can be taken away for good.
        host.await_state("network", "running", Duration::from_secs(20))?;
        // Without the translation the host forwards nothing: a VPS's own address is none of the outside's.
        sh(&format!("nsenter -t {} -n nft flush ruleset", host.pid_of("network")?))?;
        for server in ["192.0.2.1", "2001:db8::1"] {
            let told = inside(&host, &ask(server, 8000))?;
            ensure!(told == "nothing", "{server} was reached from an address that is not translated");
        }
        ensure!(packets()?.1 > 0, "the probe itself does not work");
        host.stop()
    })
}

#[test]
fn what_is_sent_to_no_vps_does_not_come_back_to_the_host() -> Result<()> {
    in_own_network("what_is_sent_to_no_vps_does_not_come_back_to_the_host", || {
        let _outside = Outside::new()?;
        let mut host = start(80)?;
        sh("nft -f - <<END\ntable inet watch { chain sent { type filter hook postrouting priority -400;
            oifname bw-* ip daddr 10.80.77.7 counter\n }
            chain back { type filter hook prerouting priority -400; iifname bw-* ip daddr 10.80.77.7 counter\n }\n }\nEND")?;
        ensure!(sh(&ask("10.80.77.7", 7))? == "nothing", "a VPS that is not there answers");
        let counted = sh("nft list table inet watch")?;
        let packets = |chain: &str| -> Result<u64> {
            let of = counted.split(chain).nth(1).and_then(|rest| rest.split("packets ").nth(1)).context("a counter")?;
            Ok(of.split(' ').next().context("a count")?.parse()?)
        };
        ensure!(packets("chain sent")? > 0, "the probe itself does not work: {counted}");
        ensure!(packets("chain back")? == 0, "packets went round: {counted}");
        host.stop()
    })
}

#[test]
fn the_last_host_on_an_uplink_puts_the_settings_back() -> Result<()> {
    in_own_network("the_last_host_on_an_uplink_puts_the_settings_back", || {
        let _outside = Outside::new()?;
        let before = network()?;
        let (mut one, mut two) = (start(80)?, start(81)?);
        reaches_outside(&one)?;
        one.stop()?;
        reaches_outside(&two)?;
        // As a restart of the host's firewall does.
        sh("nft flush ruleset")?;
        two.stop()?;
        let after = network()?;
        ensure!(before == after, "before:\n{before}\n\nafter:\n{after}");
        Ok(())
    })
}

#[test]
fn an_uplink_outlives_the_daemon_and_is_undone_after_a_crash() -> Result<()> {
    in_own_network("an_uplink_outlives_the_daemon_and_is_undone_after_a_crash", || {
        let _outside = Outside::new()?;
        let before = network()?;
        let mut host = start(80)?;
        host.kill(host.daemon()?)?;
        reaches_outside(&host)?;
        let daemon = host.daemon()?;
        // The daemon stands still, so that it can't stop in order when its keeper is gone.
        sh(&format!("kill -STOP {daemon}"))?;
        host.crash()?;
        host.kill(daemon)?;
        ensure!(network()? != before, "the crash left nothing, so nothing is shown");
        let mut host = host.again()?;
        host.run(&["start", "inner"])?;
        reaches_outside(&host)?;
        host.stop()?;
        let after = network()?;
        ensure!(before == after, "before:\n{before}\n\nafter:\n{after}");
        Ok(())
    })
}

#[test]
fn an_uplink_that_cannot_work_is_refused_at_start() -> Result<()> {
    in_own_network("an_uplink_that_cannot_work_is_refused_at_start", || {
        let _outside = Outside::new()?;
        sh("ip route add 10.80.7.0/24 via 192.0.2.1")?;
        let before = network()?;
        for (config, expected) in [
            ("uplink = \"wan7\"", "uplink = \"wan7\": the host has no such network interface"),
            ("uplink = \"eth0\"", "subnet = \"10.80.0.0/16\" overlaps the host's own route to 10.80.7.0/24"),
        ] {
            let config = format!("[network]\n{config}\n");
            let started = Host::start(HostOptions { config, ..HostOptions::default() });
            let told = started.err().context("it was not refused")?.to_string();
            ensure!(told.contains(expected), "{told}");
            ensure!(network()? == before, "a refused start changed something");
        }
        Ok(())
    })
}
