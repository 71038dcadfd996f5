//! A whole host under input at random: at the sockets of the daemon, the HTTP API, the gateway and the name server. All of
//! them are the same processes afterwards, serve, and have not grown.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    fuzz::{Random, rounds},
};
use serde_json::{Value, json};

const DESIGNATED: [&str; 4] = ["apps", "control", "gateway", "network"];
const WITHIN: Duration = Duration::from_secs(20);
/// KiB that a process may have grown by, allocators' leftovers included.
const GROWTH: u64 = 48 << 10;
const PIECES: &[&[u8]] = &[
    b"\0", b"\r\n", b"\r\n\r\n", b"null", b"{}", b"..", b"/", b"\"", b"%00", b"\xff\xfe", b"1e400", b"-1", b"99999999999999999999",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: b\r\n", b"\xed\xa0\x80", b"\\ud800", b"debian:", b" ",
];

/// A host with a VPS `web` of nothing but busybox, in a layer store of its own: what is pruned is nobody else's.
fn host(port: u16) -> Result<(Host, tempfile::TempDir)> {
    let layers = tempfile::tempdir_in("/var/tmp")?;
    let host = Host::start(HostOptions { layers: Some(layers.path().to_owned()), ..HostOptions::default() })?;
    let root = host.root.join("rootfs");
    fs::create_dir_all(root.join("bin"))?;
    fs::create_dir_all(root.join("www"))?;
    fs::write(root.join("www/index.html"), "it works")?;
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
    let spec = format!(
        "tenant = \"acme\"\n[vps.web]\nimage = \"dir:./rootfs\"\nidle = \"never\"\n\
         command = [\"/bin/busybox\", \"httpd\", \"-f\", \"-p\", \"80\", \"-h\", \"/www\"]\n\
         routes = {{ \"http://a.example:{port}\" = 80 }}\n"
    );
    host.apply("web.toml", &spec)?;
    host.run(&["start", "web"])?;
    Ok((host, layers))
}

/// Everybody who must live: its process, and KiB of its memory.
fn alive(host: &Host) -> Result<Vec<(String, i32, u64)>> {
    let memory = |pid: i32| -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("RssAnon")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    let mut found = vec![("keeper".to_owned(), host.keeper()), ("bailiwickd".to_owned(), host.daemon()?)];
    for name in DESIGNATED {
        // Its init; the service is what it runs.
        let init = host.pid_of(name)?;
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children"))?;
        for child in children.split_whitespace() {
            found.push((name.to_owned(), child.parse()?));
        }
    }
    found.into_iter().map(|(name, pid)| Ok((name, pid, memory(pid)?))).collect()
}

fn same(host: &Host, before: &[(String, i32, u64)], what: &str) -> Result<()> {
    let now = alive(host)?;
    let names = |all: &[(String, i32, u64)]| all.iter().map(|(name, pid, _)| (name.clone(), *pid)).collect::<Vec<_>>();
    ensure!(names(before) == names(&now), "{what}: {before:?}, then {now:?}\n{}", host.daemon_log());
    for ((name, _, before), (_, _, now)) in before.iter().zip(&now) {
        ensure!(*now < before + GROWTH, "{what}: {name} grew from {before} to {now} KiB");
    }
    Ok(())
}

/// Sends `bytes`, ends, and reads what comes until the other end closes.
fn said(mut stream: impl Read + Write, bytes: &[u8], end: impl FnOnce()) -> Result<Vec<u8>> {
    // Who has refused already may have closed.
    let _ = stream.write_all(bytes);
    end();
    let mut answer = Vec::new();
    match stream.take(4 << 20).read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            anyhow::bail!("no answer and no end to {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(600)]))
        }
        _ => Ok(answer),
    }
}

fn unix(host: &Host, socket: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let stream = UnixStream::connect(host.root.join("run").join(socket))?;
    stream.set_read_timeout(Some(WITHIN))?;
    stream.set_write_timeout(Some(WITHIN))?;
    let end = stream.try_clone()?;
    said(stream, bytes, || drop(end.shutdown(std::net::Shutdown::Write)))
}

/// Calls of every method, as they may be sent.
fn calls() -> Vec<Vec<u8>> {
    let nobody = json!({ "name": "nobody" });
    let run = json!({
        "name": "nobody", "root": { "layers": ["0".repeat(64)] }, "command": ["/bin/true"], "ready": "started",
        "files": { "/etc/x": "y" }, "limits": { "memory": 1 << 30 }, "stop": { "signal": 15, "grace_ms": 0 },
    });
    let some = [
        ("Create", json!({ "name": "nobody", "tenant": "acme", "ids": 65536 })),
        ("Start", json!({ "run": run })),
        ("Prepare", json!({ "run": run })),
        ("MakeSpare", json!({ "run": run })),
        ("Stop", json!({ "name": "nobody", "grace_ms": 0 })),
        ("Freeze", nobody.clone()),
        ("Thaw", nobody.clone()),
        ("Delete", nobody.clone()),
        ("Logs", nobody.clone()),
        ("Exec", json!({ "name": "nobody", "command": ["id"], "env": {}, "user": "root", "cwd": "/" })),
        ("List", json!({})),
        ("Config", json!({})),
        ("Volumes", json!({})),
        ("DeleteVolume", json!({ "tenant": "acme", "name": "nothing" })),
        ("ImportVolume", json!({ "tenant": "acme", "name": "nothing", "owner": [0, 0] })),
        ("ExportVolume", json!({ "tenant": "acme", "name": "nothing" })),
        ("CopyVolume", json!({ "tenant": "acme", "name": "nothing" })),
        ("Listen", json!({ "address": "127.0.0.1:0" })),
        ("Unlisten", json!({ "address": "127.0.0.1:1" })),
        ("Listening", json!({})),
        ("Connect", json!({ "service": "nothing" })),
        ("Narrow", json!({ "grants": ["stop : *"] })),
    ];
    let call = |(method, parameters): &(&str, Value)| {
        format!("{}\0", json!({ "method": format!("io.bailiwick.Host.{method}"), "parameters": parameters }))
            .into_bytes()
    };
    some.iter().map(call).collect()
}

#[test]
fn the_daemon_and_its_services_take_anything() -> Result<()> {
    let (mut host, _layers) = host(20990)?;
    let (rounds, mut random) = rounds(400);
    let (calls, before) = (calls(), alive(&host)?);
    for round in 0..rounds {
        let vps = random.pick(&DESIGNATED);
        let mut bytes = if random.below(8) == 0 { random.bytes(2000) } else { Vec::new() };
        for _ in 0..random.below(4) {
            let call = calls[random.below(calls.len())].clone();
            bytes.extend(random.changed(call, PIECES));
        }
        let socket = format!("designated/{vps}/host.sock");
        unix(&host, &socket, &bytes).with_context(|| format!("round {round}, as {vps}"))?;
    }
    same(&host, &before, "calls")?;
    ensure!(host.state("web")? == "running", "{}", host.run(&["why", "web"])?);
    host.run(&["restart", "web"])?;
    host.stop()
}

/// Requests for every path of the API, with names and bodies that nobody expects.
fn request(random: &mut Random, paths: &[(String, String)]) -> Vec<u8> {
    const QUERIES: [&str; 5] =
        ["?", "?lines=-1", "?lines=99999999999999999999", "?since=%00&follow=maybe", "?a=b&a=b&volumes=yes"];
    const NAMES: &[&str] =
        &["nobody", "..", "%2e%2e%2f%2e%2e", "%00", "%ff", "a%20b", "~", "", "web%2f..", "-", "%F0%9F%98%80"];
    const BODIES: &[&[u8]] = &[
        b"",
        b"{}",
        b"null",
        b"[]",
        b"{\"files\":[{\"name\":\"a.toml\",\"text\":\"tenant = 3\"}],\"dry_run\":true}",
        b"{\"command\":[\"id\"],\"terminal\":{\"rows\":99999999,\"columns\":-1}}",
        b"{\"image\":\"tar:../../etc/passwd\"}",
        b"{\"files\":[{\"name\":\"\\u001b[31m\",\"text\":\"[vps.a]\\nimage = \\\"debian:\\\"\"}],\"take_routes\":true}",
    ];
    let (method, path) = &paths[random.below(paths.len())];
    let mut target = String::new();
    for part in path.split('/').skip(1) {
        target.push('/');
        if part.starts_with('{') && random.below(20) == 0 {
            target.push_str(&"x".repeat(5000));
        } else {
            target.push_str(if part.starts_with('{') { random.pick(NAMES) } else { part });
        }
    }
    if random.below(3) == 0 {
        target.push_str(random.pick(&QUERIES));
    }
    let body = if random.below(3) == 0 { random.bytes(3000) } else { random.pick(BODIES).to_vec() };
    let body = random.changed(body, PIECES);
    let length = if random.below(10) == 0 { random.below(10_000) } else { body.len() };
    let kind = random.pick(&["application/json", "application/x-tar", "text/plain\u{e4}"]);
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    let head = if random.below(4) == 0 { random.changed(head.into_bytes(), PIECES) } else { head.into_bytes() };
    [head, body].concat()
}

#[test]
fn the_api_takes_anything() -> Result<()> {
    let (mut host, _layers) = host(20991)?;
    let (rounds, mut random) = rounds(400);
    // A client that ends its side, as `unix` does, need not be answered.
    let stream = UnixStream::connect(host.root.join("run/api.sock"))?;
    stream.set_read_timeout(Some(WITHIN))?;
    let asked = b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let document = said(stream, asked, || ())?;
    let body = document.windows(4).position(|part| part == b"\r\n\r\n").context("an answer")? + 4;
    let document: Value = serde_json::from_slice(&document[body..]).context("openapi.json")?;
    let paths = document["paths"].as_object().context("paths")?;
    let methods = |(path, methods): (&String, &Value)| {
        let methods = methods.as_object().into_iter().flatten();
        methods.map(|(method, _)| (method.to_uppercase(), path.clone())).collect::<Vec<_>>()
    };
    let mut paths: Vec<_> = paths.iter().flat_map(methods).collect();
    ensure!(paths.len() > 20, "{paths:?}");
    paths.push(("BREW".to_owned(), "/v1/vps/{name}".to_owned()));
    // What follows never ends by itself.
    paths.retain(|(_, path)| path != "/v1/events");
    let before = alive(&host)?;
    for round in 0..rounds {
        let bytes = request(&mut random, &paths);
        let answer = unix(&host, "api.sock", &bytes).with_context(|| format!("round {round}"))?;
        ensure!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 "), "{:?}", String::from_utf8_lossy(&answer));
        ensure!(
            !answer.starts_with(b"HTTP/1.1 500"),
            "round {round}: {:?}\n{:?}",
            String::from_utf8_lossy(&bytes),
            String::from_utf8_lossy(&answer)
        );
    }
    same(&host, &before, "requests")?;
    ensure!(host.state("web")? == "running", "{}", host.run(&["why", "web"])?);
    host.stop()
}

#[test]
fn the_gateway_and_the_name_server_take_anything() -> Result<()> {
    const PORT: u16 = 20992;
    const HEAD: &[u8] =
        b"GET /index.html HTTP/1.1\r\nHost: a.example:20992\r\nUser-Agent: x\r\nConnection: close\r\n\r\n";
    let (mut host, _layers) = host(PORT)?;
    let (rounds, mut random) = rounds(400);
    let get = |bytes: &[u8], end: bool| -> Result<Vec<u8>> {
        let stream = TcpStream::connect(("127.0.0.1", PORT))?;
        stream.set_read_timeout(Some(WITHIN))?;
        let socket = stream.try_clone()?;
        said(stream, bytes, || drop(end.then(|| socket.shutdown(std::net::Shutdown::Write))))
    };
    let works = || -> Result<()> {
        let answer = get(HEAD, false)?;
        ensure!(answer.ends_with(b"it works"), "{:?}", String::from_utf8_lossy(&answer));
        Ok(())
    };
    works()?;
    let before = alive(&host)?;
    for round in 0..rounds {
        let bytes = if random.below(5) == 0 { random.bytes(5000) } else { random.changed(HEAD.to_vec(), PIECES) };
        let answer = get(&bytes, true).with_context(|| format!("round {round}"))?;
        ensure!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&answer));
    }
    works()?;
    // Queries for `web`, by UDP and TCP, from inside.
    let query = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x03vps\x08internal\x00\x00\x01\x00\x01";
    let resolver =
        host.run(&["exec", "web", "--", "/bin/busybox", "sed", "-n", "s/^nameserver //p", "/etc/resolv.conf"])?;
    let resolver = resolver.lines().find(|line| line.contains('.')).context("a resolver")?.to_owned();
    let queries = host.root.join("queries");
    fs::create_dir_all(&queries)?;
    for round in 0..rounds.min(2000) {
        let bytes = if random.below(4) == 0 { random.bytes(700) } else { random.changed(query.to_vec(), PIECES) };
        fs::write(queries.join(format!("{round}")), bytes)?;
    }
    let script = format!(
        "cd {}; for q in *; do cat $q >/dev/udp/{resolver}/53; done; n=0; for q in *; do n=$((n+1)); [ $n -gt 20 ] || cat $q 2>/dev/null >/dev/tcp/{resolver}/53; done; true",
        queries.display()
    );
    let pid = host.pid_of("web")?.to_string();
    let sent =
        Command::new("nsenter").args(["-t", &pid, "-n", "bash", "-c", &script]).stderr(Stdio::null()).status()?;
    ensure!(sent.success(), "nsenter");
    same(&host, &before, "heads and queries")?;
    // The rate of a VPS is bounded: it asks until it is heard again.
    let lookup = "until busybox nslookup web.vps.internal >/dev/null 2>&1; do :; done";
    host.run(&[
        "exec",
        "web",
        "--",
        "/bin/busybox",
        "timeout",
        "20",
        "/bin/busybox",
        "sh",
        "-c",
        &lookup.replace("busybox", "/bin/busybox"),
    ])?;
    host.stop()
}
