//! What of the outside a VPS may connect to: by name, by address, and by port; and nothing else.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    netns::{CLIENT, Client, in_own_network, sh},
};

/// The outside's addresses.
const GOOD: [&str; 2] = ["203.0.113.7", "2001:db8:7::7"];
const OTHER: [&str; 2] = ["203.0.113.8", "2001:db8:7::8"];

/// A name server that looks into a file: a name, its time to live, its addresses.
const NAMES: &str = r#"use IO::Socket::IP; use Socket qw(inet_pton AF_INET AF_INET6); $| = 1;
    my $u = IO::Socket::IP->new(LocalHost => "::", LocalPort => 53, V6Only => 0, Proto => "udp") or die $@;
    print "listening\n";
    while (my $from = recv $u, my $q, 999, 0) {
        my ($at, @labels) = (12);
        while (my $n = ord substr $q, $at, 1) { push @labels, lc substr $q, $at + 1, $n; $at += $n + 1 }
        my ($name, $kind) = (join(".", @labels), unpack "n", substr $q, $at + 1, 2);
        my ($known, @found) = (0);
        open my $f, "<", $ARGV[0]; while (<$f>) { my ($n, $ttl, @a) = split; next if $n ne $name; $known = 1;
            for (@a) { my $v6 = /:/; next if $kind != ($v6 ? 28 : 1);
                push @found, pack("n3N", 0xc00c, $kind, 1, $ttl) . pack("n/a", inet_pton($v6 ? AF_INET6 : AF_INET, $_)) } }
        send $u, substr($q, 0, 2) . pack("n5", $known ? 0x8180 : 0x8183, 1, scalar @found, 0, 0)
            . substr($q, 12, $at + 5 - 12) . join("", @found), 0, $from }"#;

/// Answers each line with it, at each of its ports.
const ECHO: &str = r#"use IO::Socket::IP; $| = 1; $SIG{CHLD} = "IGNORE";
    my @s = map { IO::Socket::IP->new(LocalHost => "::", LocalPort => $_, V6Only => 0, Listen => 99, ReuseAddr => 1) or die $@ } @ARGV;
    print "listening\n";
    for my $s (@s) { next if fork; while (1) { my $c = $s->accept or next; next if fork; while (<$c>) { print $c $_ } exit } }
    sleep 100000"#;

/// The outside, its programs, and a host.
struct World {
    host: Host,
    _programs: Vec<Program>,
    _outside: Client,
    names: PathBuf,
}

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl World {
    /// With lines of host.toml, and what two VPSs' files say of what they may connect to.
    fn new(more: &str, egress: &str) -> Result<Self> {
        let outside = Client::new()?;
        let [good, other] = [GOOD, OTHER].map(|all| all.map(|a| format!("ip addr add {a} dev lo; ")).concat());
        outside.sh(&format!("{good}{other} ip addr add 198.51.100.5 dev lo"))?;
        sh(&format!("ip route add default via {}; ip -6 route add default via {}", CLIENT[0], CLIENT[1]))?;
        sh("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")?;
        let config = format!("[network]\nuplink = \"eth0\"\nresolvers = [\"{}\"]\n{more}\n", CLIENT[0]);
        let host = Host::start(HostOptions { config, ..HostOptions::default() })?;
        let names = host.root.join("names");
        let program = |script: &str, arguments: &[&str]| -> Result<Program> {
            let mut perl = outside.command("unshare");
            perl.args(["--pid", "--kill-child", "perl", "-e", script]).args(arguments).stdout(Stdio::piped());
            let mut child = Program(perl.spawn()?);
            BufReader::new(child.0.stdout.as_mut().context("stdout")?).read_line(&mut String::new())?;
            Ok(child)
        };
        std::fs::write(&names, "")?;
        let path = names.to_str().context("a path")?;
        let programs = vec![program(NAMES, &[path])?, program(ECHO, &["8000", "8001"])?];
        let vps = |name: &str, more: &str| {
            format!(
                "[vps.{name}]\nimage = \"debian:\"\ncommand = [\"sleep\", \"infinity\"]\nidle = \"never\"\n{more}\n"
            )
        };
        let spec = format!("tenant = \"acme\"\n{}{}", vps("only", egress), vps("free", ""));
        host.apply("acme.toml", &spec)?;
        host.run(&["start", "only", "free"])?;
        let world = Self { host, _programs: programs, _outside: outside, names };
        world.names(&format!("good.example.org 60 {} {}\nevil.example.com 60 {}\n", GOOD[0], GOOD[1], GOOD[0]))?;
        Ok(world)
    }

    fn names(&self, lines: &str) -> Result<()> {
        let new = self.names.with_extension("new");
        std::fs::write(&new, lines)?;
        Ok(std::fs::rename(new, &self.names)?)
    }

    /// What a VPS gets from there: `x`, or why nothing.
    fn ask(&self, vps: &str, to: &str, port: u16) -> Result<String> {
        let program = "use IO::Socket::IP; my $s = IO::Socket::IP->new(PeerHost => shift, PeerPort => shift, Timeout => 20) \
                       or do { print $@ || $!; exit }; print $s qq(x\\n); my $l = <$s>; print defined $l ? $l : qq(closed: $!)";
        Ok(self.host.run(&["exec", vps, "--", "perl", "-e", program, to, &port.to_string()])?.trim().to_owned())
    }

    fn is_refused(&self, vps: &str, to: &str, port: u16) -> Result<()> {
        let begun = Instant::now();
        let got = self.ask(vps, to, port)?;
        ensure!(got.contains("refused"), "{vps} got {got:?} from {to}:{port}");
        ensure!(begun.elapsed() < Duration::from_secs(10), "it was not told, and waited");
        Ok(())
    }
}

#[test]
fn a_vps_connects_to_what_it_may_and_to_nothing_else() -> Result<()> {
    in_own_network("a_vps_connects_to_what_it_may_and_to_nothing_else", || {
        let mut world = World::new("", "egress = [\"*.example.org:8000\", \"198.51.100.0/24:8001-8002\"]")?;
        // An address that no name has opened yet.
        for address in GOOD {
            world.is_refused("only", address, 8000)?;
            ensure!(world.ask("free", address, 8000)? == "x", "the probe itself does not work");
        }
        for _ in 0..2 {
            ensure!(world.ask("only", "good.example.org", 8000)? == "x");
            for address in GOOD {
                world.is_refused("only", address, 8001)?;
                ensure!(world.ask("only", address, 8000)? == "x", "{address}: its name was asked for");
            }
            for address in OTHER {
                world.is_refused("only", address, 8000)?;
            }
            ensure!(world.ask("only", "198.51.100.5", 8001)? == "x");
            world.is_refused("only", "198.51.100.5", 8000)?;
            // Not even a name can be asked for that it may not connect to; others can.
            let got = world.ask("only", "evil.example.com", 8000)?;
            ensure!(got.contains("not known"), "{got}");
            ensure!(world.ask("free", "evil.example.com", 8000)? == "x");
            // All of that again after the end of who looks after it; and what the name has opened is open.
            let network = world.host.pid_of("network")?;
            world.host.kill(network)?;
            for address in GOOD {
                ensure!(world.ask("only", address, 8000)? == "x", "{address}: it closed with its service");
                world.is_refused("only", address, 8001)?;
            }
        }
        // What it did, and what it was refused, is told.
        let rules = world.host.run(&["network", "rules", "only"])?;
        let line = |kind: &str, to: &str| {
            let words = |line: &&str| line.split_whitespace().skip(1).take(2).eq([kind, to]);
            rules.lines().find(words).map(str::to_owned).with_context(|| format!("no {kind} {to} in:\n{rules}"))
        };
        line("egress", "*.example.org:8000")?;
        let counted: u64 =
            line("egress", "198.51.100.0/24:8001-8002")?.split_whitespace().nth(3).context("packets")?.parse()?;
        ensure!(counted > 2, "{rules}");
        ensure!(line("opened", &format!("{}:8000", GOOD[0]))?.contains("good.example.org, for "), "{rules}");
        line("refused", &format!("{}:8001", GOOD[0]))?;
        line("refused", &format!("[{}]:8001", GOOD[1]))?;
        ensure!(!rules.contains("free"), "{rules}");
        // And what would be: with a packet that proves it.
        let test = |to: &str, code: i32, expected: &[&str]| -> Result<()> {
            let told = world.host.cli(&["network", "test", "only", to])?;
            ensure!(told.code == code && expected.iter().all(|part| told.out.contains(part)), "{to}: {told:?}");
            Ok(())
        };
        test(
            "good.example.org:8000",
            0,
            &["allowed: \"*.example.org:8000\" of `egress` in only's spec", "it came there"],
        )?;
        test("198.51.100.5:8001", 0, &["allowed: \"198.51.100.0/24:8001-8002\"", "it came there"])?;
        test("198.51.100.5:8002", 1, &["allowed: ", "Connection refused"])?;
        test(
            "198.51.100.5:8000",
            1,
            &["refused: `egress` in only's spec lets it connect to no more than", "Connection refused"],
        )?;
        test("udp://198.51.100.5:8001", 1, &["refused: ", "a packet to udp://198.51.100.5:8001: "])?;
        test("evil.example.com:8000", 1, &["refused: ", "has no address"])?;
        test("free:80", 1, &["refused: no rule lets it; `allow = [\"only -> free:80\"]` would", "No route to host"])?;
        test("nobody:80", 3, &[])?;
        test("198.51.100.0/24:80", 2, &[])?;
        // A change counts at once.
        let spec = std::fs::read_to_string(world.host.root.join("acme.toml"))?;
        world.host.apply("acme.toml", &spec.replace("*.example.org:8000", "good.example.org:8001"))?;
        for address in GOOD {
            world.is_refused("only", address, 8000)?;
        }
        ensure!(world.ask("only", "good.example.org", 8001)? == "x");
        world.host.apply("acme.toml", &spec.replace("egress = [", "# egress = ["))?;
        ensure!(world.ask("only", OTHER[0], 8000)? == "x");
        world.host.stop()
    })
}

#[test]
fn what_a_name_has_opened_stays_while_it_is_used_and_there() -> Result<()> {
    in_own_network("what_a_name_has_opened_stays_while_it_is_used_and_there", || {
        let mut world = World::new("", "egress = [\"good.example.org:8000\"]")?;
        world.names(&format!("good.example.org 1 {}\n", GOOD[0]))?;
        let talk = "use IO::Socket::IP; $| = 1; my $s = IO::Socket::IP->new(PeerHost => 'good.example.org', PeerPort => 8000) or die $@; \
                    while (1) { print $s qq(x\\n); my $l = <$s>; print defined $l ? 'got x' : 'closed', qq(\\n); last unless defined $l; \
                    select undef, undef, undef, 0.5 }";
        let mut talk =
            world.host.command(&["exec", "only", "--", "perl", "-e", talk]).stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(talk.stdout.take().context("stdout")?).lines();
        let begun = Instant::now();
        // Its time is 30 s at least. Another address by then: who is connected stays.
        ensure!(lines.next().context("a line")?? == "got x");
        world.names(&format!("good.example.org 1 {}\n", OTHER[0]))?;
        while begun.elapsed() < Duration::from_secs(45) {
            let line = lines.next().context("a line")??;
            ensure!(line == "got x", "after {:?}: {line}", begun.elapsed());
        }
        world.names("")?;
        let closed = lines.by_ref().map_while(Result::ok).find(|line| line == "closed");
        ensure!(closed.is_some(), "it did not close");
        ensure!(begun.elapsed() < Duration::from_secs(110), "it closed after {:?}", begun.elapsed());
        talk.wait()?;
        world.is_refused("only", GOOD[0], 8000)?;
        world.host.stop()
    })
}

#[test]
fn a_tenant_chooses_within_what_the_operator_allows() -> Result<()> {
    in_own_network("a_tenant_chooses_within_what_the_operator_allows", || {
        let bound = "egress = [\"*.example.org:8000\", \"203.0.113.8\"]\n[tenant.free]\negress = [\"*\"]";
        let mut world = World::new(bound, "egress = [\"good.example.org:8000\"]")?;
        ensure!(world.ask("only", "good.example.org", 8000)? == "x");
        world.is_refused("only", OTHER[0], 8000)?;
        // Who says nothing may all that its tenant may, and no more.
        ensure!(world.ask("free", "good.example.org", 8000)? == "x");
        ensure!(world.ask("free", OTHER[0], 8001)? == "x");
        world.is_refused("free", GOOD[0], 8001)?;
        let spec = std::fs::read_to_string(world.host.root.join("acme.toml"))?;
        let refused = world
            .host
            .apply("acme.toml", &spec.replace("good.example.org:8000", "*:25"))
            .err()
            .context("it was taken")?;
        ensure!(format!("{refused}").contains("tenant acme may not connect to *:25"), "{refused}");
        ensure!(format!("{refused}").contains("it may: *.example.org:8000, 203.0.113.8"), "{refused}");
        world.host.apply("free.toml", &spec.replace("\"acme\"", "\"free\"").replace("vps.", "vps.of-"))?;
        world.host.run(&["start", "of-free"])?;
        ensure!(world.ask("of-free", GOOD[0], 8001)? == "x");
        world.host.stop()
    })
}

#[test]
fn who_floods_the_outside_leaves_the_others_theirs() -> Result<()> {
    in_own_network("who_floods_the_outside_leaves_the_others_theirs", || {
        let mut world = World::new("", "egress = [\"203.0.113.0/24\"]")?;
        let network = world.host.pid_of("network")?;
        let inside = |what: &str| sh(&format!("nsenter -t {network} -n sh -c '{what}'"));
        let number = |text: String| Ok::<u64, anyhow::Error>(text.trim().parse()?);
        let most = number(inside("cat /proc/sys/net/netfilter/nf_conntrack_max")?)?;
        // Twice as many flows as the table has places.
        let flood = "use Socket; socket S, AF_INET, SOCK_DGRAM, 0; my $n = shift; \
                     for my $host (1..250) { next if $host == 7; my $to = inet_aton(qq(203.0.113.$host)); \
                     for my $port (1..($n / 250)) { send S, q(x), 0, sockaddr_in($port, $to) } } print qq(done)";
        let said = world.host.run(&["exec", "only", "--", "perl", "-e", flood, &(2 * most).to_string()])?;
        ensure!(said == "done", "{said}");
        let count = number(inside("cat /proc/sys/net/netfilter/nf_conntrack_count")?)?;
        ensure!(count < most / 4, "{count} of {most} places are taken");
        ensure!(count > 500, "the probe itself does not work: {count}");
        ensure!(world.ask("free", GOOD[0], 8000)? == "x");
        world.host.stop()
    })
}
