//! VPSs of one tenant: they find each other by name, connect where a rule says so, and nowhere else.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    spec::{ECHO, server},
};

const LONG: Duration = Duration::from_secs(60);

/// Two VPSs that may reach a third, one that may not, and one of another tenant.
fn house(db: &str) -> Result<Host> {
    let host = Host::start(HostOptions::default())?;
    let serve = server("", ECHO)
        .replace("INET->new(", "IP->new(LocalHost => '::', ")
        .replace("IO::Socket::INET;", "IO::Socket::IP;");
    let idle = "command = [\"sleep\", \"1000000\"]\nimage = \"debian:\"\n";
    let spec = format!(
        "tenant = \"acme\"\nallow = [\"web -> db:7\", \"tool -> db:7\"]\n[vps.web]\n{idle}[vps.tool]\n{idle}[vps.alone]\n{idle}\
         [vps.db]\nimage = \"debian:\"\ncommand = [\"perl\", \"-e\", {serve:?}]\n{db}\n"
    );
    host.apply("acme.toml", &spec)?;
    host.apply("beta.toml", &format!("tenant = \"beta\"\n[vps.foreign]\n{idle}"))?;
    for name in ["web", "alone", "foreign"] {
        host.run(&["start", name])?;
    }
    Ok(host)
}

fn inside(host: &Host, name: &str, script: &str) -> Result<String> {
    Ok(host.run(&["exec", name, "--", "sh", "-c", script])?.trim().to_owned())
}

/// What a VPS gets from `to`: `x`, or the error of connecting or reading.
fn echo(host: &Host, from: &str, to: &str) -> Result<String> {
    let program = "use IO::Socket::IP; my $s = IO::Socket::IP->new(PeerHost => shift, PeerPort => 7, Timeout => 30) \
                   or do { print $@ || $!; exit }; print $s qq(x\\n); my $l = <$s>; print defined $l ? $l : qq(closed: $!)";
    Ok(host.run(&["exec", from, "--", "perl", "-e", program, to])?.trim().to_owned())
}

/// What a kernel says where no way leads, for IPv4 and IPv6.
fn is_nowhere(got: &str) -> bool {
    got.contains("No route to host") || got.contains("Network is unreachable")
}

fn addresses(host: &Host, name: &str) -> Result<(String, String)> {
    let v4 = host.row(name)?["address"].as_str().context("an address")?.to_owned();
    let last: std::net::Ipv4Addr = v4.parse()?;
    let v6 = format!("fd80:ba11::{:x}:{:x}", u32::from(last) >> 16, u32::from(last) & 0xffff);
    Ok((v4, v6))
}

#[test]
fn a_neighbour_is_found_by_name_and_woken_by_a_connection() -> Result<()> {
    let mut host = house("idle = { after = \"1s\", then = \"stop\" }")?;
    let (v4, v6) = addresses(&host, "db")?;
    ensure!(host.state("db")? == "asleep");
    for name in ["db", "db.vps.internal"] {
        let found = inside(&host, "web", &format!("getent ahosts {name} | cut -d' ' -f1 | sort -u"))?;
        ensure!(found.lines().eq([v4.as_str(), v6.as_str()]), "{name} is {found}, not {v4} and {v6}");
    }
    ensure!(host.state("db")? == "asleep", "a name woke it");
    ensure!(echo(&host, "web", "db")? == "x");
    let row = host.row("db")?;
    ensure!(row["last_wake"]["by"] == "connection from web", "{row}");
    ensure!(host.run(&["ps"])?.contains("(internal) :7"), "{}", host.run(&["ps"])?);
    let routes = host.run(&["routes"])?;
    ensure!(routes.contains("(internal) db:7") && routes.contains("for tool, web"), "{routes}");
    let spec = host.run(&["get", "db"])?;
    ensure!(spec.contains("allow = [\"tool -> db:7\", \"web -> db:7\"]"), "{spec}");
    // Nobody is connected: it sleeps, and is woken by IPv6 as well.
    for address in [&v6, &v4] {
        host.await_state("db", "asleep", LONG)?;
        ensure!(echo(&host, "web", address)? == "x");
    }
    host.stop()
}

#[test]
fn who_is_wanted_is_woken_together_and_sleeps_by_its_own_time() -> Result<()> {
    let mut host = house("idle = { after = \"1s\", then = \"stop\" }")?;
    let web = |wants: &str| {
        format!(
            "tenant = \"acme\"\n[vps.front]\nimage = \"debian:\"\ncommand = [\"sleep\", \"infinity\"]\nwants = [{wants}]\n\
             idle = \"never\"\n"
        )
    };
    let unknown = host.apply("front.toml", &web("\"db\", \"dbb\"")).err().context("an unknown one was taken")?;
    ensure!(format!("{unknown}").contains("tenant acme has no vps \"dbb\""), "{unknown}");
    ensure!(format!("{unknown}").contains("did you mean `db`?"), "{unknown}");
    let foreign = host.apply("front.toml", &web("\"foreign\"")).err().context("another tenant's was taken")?;
    ensure!(format!("{foreign}").contains("tenant acme has no vps \"foreign\""), "{foreign}");
    host.apply("front.toml", &web("\"db\", \"front\""))?;
    host.run(&["start", "front"])?;
    host.await_state("db", "running", LONG)?;
    let row = host.row("db")?;
    ensure!(row["last_wake"]["by"] == "wanted by front", "{row}");
    // Nobody connected to it.
    host.await_state("db", "asleep", LONG)?;
    ensure!(host.state("front")? == "running");
    host.stop()
}

#[test]
fn who_has_no_rule_neither_resolves_foreign_names_nor_connects() -> Result<()> {
    let mut host = house("idle = \"never\"")?;
    host.run(&["start", "db"])?;
    let (v4, v6) = addresses(&host, "db")?;
    ensure!(echo(&host, "web", "db")? == "x", "the probe itself does not work");
    let found = |from: &str, name: &str| -> Result<bool> {
        Ok(inside(&host, from, &format!("getent ahosts {name} >/dev/null && echo found || echo nothing"))? == "found")
    };
    ensure!(found("alone", "db")?, "VPSs of a tenant find each other");
    ensure!(!found("foreign", "db")? && !found("foreign", "db.vps.internal")?, "a foreign name was told");
    ensure!(!found("web", "foreign")?, "a foreign name was told");
    ensure!(!found("web", "example.org")?, "there are no resolvers");
    for from in ["alone", "foreign"] {
        for address in [&v4, &v6] {
            let got = echo(&host, from, address)?;
            ensure!(is_nowhere(&got), "{from} got {got:?} from {address}");
        }
    }
    // The other way round there is no rule, nor to another port.
    let (web, _) = addresses(&host, "web")?;
    let got = echo(&host, "alone", &web)?;
    ensure!(is_nowhere(&got), "{got}");
    let other =
        "perl -MIO::Socket::IP -e 'IO::Socket::IP->new(PeerHost => q(db), PeerPort => 22, Timeout => 30); print $@'";
    let got = inside(&host, "web", other)?;
    ensure!(got.contains("Connection refused"), "{got}");
    // Neither datagrams nor pings, allowed or not.
    let udp = |to: &str| {
        format!(
            "perl -MIO::Socket::IP -e 'my $s = IO::Socket::IP->new(PeerHost => q({to}), PeerPort => 7, Proto => q(udp)); \
             print $s q(x); $SIG{{ALRM}} = sub {{ print q(nothing); exit }}; alarm 2; sysread($s, my $b, 9) or print $!'"
        )
    };
    let got = inside(&host, "web", &udp(&v4))?;
    ensure!(got.contains("Connection refused"), "a datagram: {got}");
    let got = inside(&host, "alone", &udp(&v4))?;
    ensure!(got == "nothing", "a datagram: {got}");
    let ping = |to: &str| {
        let program = "use Socket; socket(S, AF_INET, SOCK_RAW, 1) or die; $SIG{ALRM} = sub { print q(nothing); exit }; alarm 2; \
                       send(S, pack(q(CCnnn), 8, 0, 0xe5ca, 0x1234, 1), 0, sockaddr_in(0, inet_aton(shift))) or die; \
                       do { recv(S, $b, 99, 0) } until ord(substr($b, 20, 1)) == 0; print q(answered)";
        host.run(&["exec", "web", "--", "perl", "-e", program, to])
    };
    ensure!(ping("127.0.0.1")? == "answered", "the probe itself does not work");
    ensure!(ping(&v4)? == "nothing", "a ping was answered");

    // A rule that is taken back holds no longer, and the others do.
    let spec = std::fs::read_to_string(host.root.join("acme.toml"))?;
    let answer = host.apply("acme.toml", &spec.replace("\"web -> db:7\", ", ""))?;
    ensure!(answer.contains("1 changed"), "{answer}");
    let got = echo(&host, "web", &v4)?;
    ensure!(is_nowhere(&got), "{got}");
    host.run(&["start", "tool"])?;
    ensure!(echo(&host, "tool", "db")? == "x");
    host.stop()
}

#[test]
fn rules_and_names_outlive_the_end_of_any_service() -> Result<()> {
    let mut host = house("idle = \"never\"")?;
    let (v4, _) = addresses(&host, "db")?;
    ensure!(echo(&host, "web", "db")? == "x");
    for victim in ["gateway", "network", "control", "bailiwickd"] {
        let pid = if victim == "bailiwickd" { host.daemon()? } else { host.pid_of(victim)? };
        host.kill(pid)?;
        // At once: a connection waits, and is not refused; who has no rule gets nowhere meanwhile.
        let got = echo(&host, "web", &v4)?;
        ensure!(got == "x", "after SIGKILL of {victim} web got {got:?}");
        let got = echo(&host, "foreign", &v4)?;
        ensure!(is_nowhere(&got), "after SIGKILL of {victim} foreign got {got:?}");
        let name = inside(&host, "web", "for i in 1 2 3 4 5 6 7 8 9 10; do getent hosts db && break; sleep 0.1; done")?;
        ensure!(name.contains("db.vps.internal"), "after SIGKILL of {victim}: {name}");
    }
    host.stop()
}

/// Connects every few milliseconds, by turns to each address, until a file appears; prints each outcome but success. What was taken, and
/// ended with who had taken it, is no refusal.
const HAMMER: &str = "use IO::Socket::IP; use Errno; my $n = 0; until (-e '/tmp/enough') { my $to = $ARGV[$n++ % @ARGV]; \
    my $s = IO::Socket::IP->new(PeerHost => $to, PeerPort => 7, Timeout => 30); \
    print $to, ' ', $@ || $!, qq(\n) unless $s || $!{ECONNRESET}; \
    undef $s; select(undef, undef, undef, 0.003) } print qq($n times\n)";

#[test]
fn a_gateway_that_is_killed_refuses_no_neighbour() -> Result<()> {
    let mut host = house("idle = \"never\"")?;
    let (v4, v6) = addresses(&host, "db")?;
    ensure!(echo(&host, "web", "db")? == "x");
    let mut hammer = host.command(&["exec", "web", "--", "perl", "-e", HAMMER, &v4, &v6]);
    let hammer = hammer.stdout(std::process::Stdio::piped()).spawn()?;
    for _ in 0..3 {
        // Its successor serves before it is killed too.
        for address in [&v4, &v6] {
            let got = echo(&host, "tool", address)?;
            ensure!(got == "x", "{address}: {got:?}");
        }
        host.kill(host.pid_of("gateway")?)?;
    }
    ensure!(echo(&host, "tool", "db")? == "x");
    inside(&host, "web", "touch /tmp/enough")?;
    let told = String::from_utf8(hammer.wait_with_output()?.stdout)?;
    ensure!(told.lines().count() == 1 && told.ends_with(" times\n"), "{told}");
    // Where no door is, it is said at once.
    let other = "use IO::Socket::IP; IO::Socket::IP->new(PeerHost => shift, PeerPort => 8, Timeout => 30); print $@";
    for address in [&v4, &v6] {
        let got = host.run(&["exec", "web", "--", "perl", "-e", other, address])?;
        ensure!(got.contains("Connection refused"), "{got}");
    }
    host.stop()
}

#[test]
fn a_silent_connection_lets_its_server_sleep() -> Result<()> {
    let mut host = house("idle = { after = \"1s\", then = \"freeze\", quiet = \"1s\" }")?;
    // A client that says one line, is silent until a file appears, and says another.
    let client = "use IO::Socket::IP; $| = 1; my $s = IO::Socket::IP->new(PeerHost => 'db', PeerPort => 7) or die $@; \
                  for (1, 2) { print $s \"$_\\n\"; my $l = <$s>; print defined $l ? \"got $l\" : \"closed\\n\"; \
                  until (-e '/tmp/go') { select(undef, undef, undef, 0.05) } }";
    let talk =
        || host.command(&["exec", "web", "--", "perl", "-e", client]).stdout(std::process::Stdio::piped()).spawn();
    let frozen = talk()?;
    host.await_state("db", "frozen", LONG)?;
    inside(&host, "web", "touch /tmp/go")?;
    let said = String::from_utf8(frozen.wait_with_output()?.stdout)?;
    ensure!(said == "got 1\ngot 2\n", "over a freeze: {said:?}");

    // A stop ends it: the client sees the end, and its next connection wakes the server.
    inside(&host, "web", "rm /tmp/go")?;
    let stopped = talk()?;
    host.await_state("db", "frozen", LONG)?;
    host.run(&["stop", "db"])?;
    inside(&host, "web", "touch /tmp/go")?;
    let said = String::from_utf8(stopped.wait_with_output()?.stdout)?;
    ensure!(said == "got 1\nclosed\n", "over a stop: {said:?}");
    ensure!(host.state("db")? == "asleep", "the end of a connection woke it");
    ensure!(echo(&host, "web", "db")? == "x");
    host.stop()
}

#[test]
fn more_rules_than_one_message_holds_are_in_force() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let name = |n: usize| format!("{}-{n}", "long".repeat(13));
    let mut all = 0;
    for file in 0..3 {
        let (mut rules, mut vpss) = (Vec::new(), String::new());
        for n in (0..100).map(|n| file * 100 + n) {
            let next = if n % 100 == 99 { n - 99 } else { n + 1 };
            rules.extend([80, 443].map(|port| format!("{:?}", format!("{} -> {}:{port}", name(n), name(next)))));
            vpss += &format!("[vps.{}]\nimage = \"debian:\"\ncommand = [\"sleep\", \"infinity\"]\n", name(n));
        }
        all += rules.len();
        host.apply(&format!("{file}.toml"), &format!("tenant = \"acme\"\nallow = [{}]\n{vpss}", rules.join(", ")))?;
    }
    let deadline = std::time::Instant::now() + LONG;
    loop {
        let rules = host.json(&["network", "rules"])?.as_array().map_or(0, Vec::len);
        if rules == all {
            break;
        }
        ensure!(std::time::Instant::now() < deadline, "{rules} of {all} rules are in force");
        std::thread::sleep(Duration::from_millis(100));
    }
    let told = host.run(&["logs", "control"]).unwrap_or_default();
    ensure!(!told.contains("was not told"), "{told}");
    host.stop()
}

#[test]
fn a_rule_by_label_is_about_whoever_has_it() -> Result<()> {
    let mut host = house("idle = \"never\"")?;
    let spec = std::fs::read_to_string(host.root.join("acme.toml"))?;
    let rules = "\"web -> db:7\", \"tool -> db:7\"";
    let labelled = |names: &[&str]| {
        let mut text = spec.replace(rules, "\"@clients -> db:7\"");
        for name in names {
            text = text.replace(&format!("[vps.{name}]\n"), &format!("[vps.{name}]\nlabels = [\"clients\"]\n"));
        }
        text
    };
    host.apply("acme.toml", &labelled(&["web"]))?;
    ensure!(echo(&host, "web", "db")? == "x");
    ensure!(is_nowhere(&echo(&host, "alone", "db")?));
    // Who gets it later, in whichever file, may too; at once.
    host.apply("acme.toml", &labelled(&["web", "alone"]))?;
    for name in ["web", "alone"] {
        ensure!(echo(&host, name, "db")? == "x", "{name}");
    }
    let rules = host.run(&["network", "rules"])?;
    ensure!(rules.contains("alone  allow  db:7") && rules.contains("web    allow  db:7"), "{rules}");
    // Another tenant's label of the same name is another one.
    let beta = "tenant = \"beta\"\n[vps.foreign]\nimage = \"debian:\"\ncommand = [\"sleep\", \"1000000\"]\nlabels = [\"clients\"]\n";
    host.apply("beta.toml", beta)?;
    let (v4, _) = addresses(&host, "db")?;
    ensure!(is_nowhere(&echo(&host, "foreign", &v4)?));
    host.apply("acme.toml", &labelled(&["alone"]))?;
    ensure!(is_nowhere(&echo(&host, "web", &v4)?));
    ensure!(echo(&host, "alone", "db")? == "x");
    let refused = host.apply("acme.toml", &labelled(&[])).err().context("it was taken")?;
    ensure!(format!("{refused}").contains("tenant acme has no vps with the label \"clients\""), "{refused}");
    host.stop()
}
