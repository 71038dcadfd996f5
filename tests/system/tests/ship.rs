//! Logs that are shipped: JSON lines, syslog, journald.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    net::TcpListener,
    os::unix::net::{UnixDatagram, UnixListener},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{Host, HostOptions};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

/// What cannot look like two lines, or like another tenant's.
const HOSTILE: &str = r#"","tenant":"beta"} <0>1 - beta x - - - forged"#;

fn app(name: &str, tenant: &str) -> String {
    format!(
        "tenant = \"{tenant}\"\n[vps.{name}]\nimage = \"debian:\"\nlogs = [\"/var/log/*.log\"]\n\
         command = [\"sh\", \"-c\", \"echo started; exec sleep 1000\"]\n"
    )
}

/// A host that ships to `targets`, each with the directory in it.
fn host(targets: &[&str]) -> Result<(tempfile::TempDir, Host)> {
    let directory = tempfile::Builder::new().prefix("bailiwick-ship-").tempdir_in("/var/tmp")?;
    let quoted: Vec<_> = targets
        .iter()
        .map(|target| format!("{:?}", target.replace("DIR", &directory.path().to_string_lossy())))
        .collect();
    let config = format!("[logs]\nship = [{}]\n", quoted.join(", "));
    Ok((directory, Host::start(HostOptions { config, ..HostOptions::default() })?))
}

/// Waits until `look` finds it.
fn until<T>(what: &str, host: &Host, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        ensure!(Instant::now() < end, "no {what}\n{}", host.run(&["logs", "logs"])?);
        // A file of another program's: nothing tells of it that is worth its code here.
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn objects(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect()
}

fn say(host: &Host, vps: &str, command: &str) -> Result<()> {
    host.run(&["exec", vps, "--", "sh", "-c", command]).map(drop)
}

#[test]
fn json_lines_have_everybodys_lines_once() -> Result<()> {
    let (directory, mut host) = host(&["json:DIR/all.jsonl"])?;
    let file = directory.path().join("all.jsonl");
    host.apply("a.toml", &app("blog", "acme"))?;
    host.apply("b.toml", &app("shop", "beta"))?;
    host.run(&["start", "blog", "shop"])?;
    let find = |text: &str, vps: &str| objects(&file).into_iter().find(|o| o["text"] == text && o["vps"] == vps);
    let started = until("started", &host, || find("started", "blog"))?;
    ensure!(started["tenant"] == "acme" && started["source"] == "out" && started["severity"] == "info", "{started}");
    ensure!(until("started", &host, || find("started", "shop"))?["tenant"] == "beta");

    say(&host, "blog", "logger -p daemon.err -t probe it broke; echo in a file > /var/log/x.log")?;
    let line = until("syslog", &host, || find("it broke", "blog"))?;
    ensure!(line["severity"] == "err" && line["facility"] == "daemon" && line["tag"] == "probe", "{line}");
    let line = until("a file's line", &host, || find("in a file", "blog"))?;
    ensure!(line["source"] == "file" && line["file"] == "/var/log/x.log", "{line}");
    say(&host, "blog", &format!("printf '%s\\n' '{HOSTILE}' >> /var/log/x.log"))?;
    ensure!(until("hostile text", &host, || find(HOSTILE, "blog"))?["tenant"] == "acme");

    // Who ships is killed, then its file is rotated: nothing is missed, and what was sent last may come twice.
    let shipper = host.pid_of("logs")?;
    host.kill(shipper)?;
    say(&host, "blog", "echo after the kill >> /var/log/x.log")?;
    until("the line after the kill", &host, || find("after the kill", "blog"))?;
    fs::rename(&file, directory.path().join("old.jsonl"))?;
    until("a new file", &host, || {
        say(&host, "shop", "echo again >> /var/log/y.log").ok()?;
        find("again", "shop")
    })?;
    // The whole host stops and starts.
    host.run(&["stop", "blog", "shop"])?;
    host.stop()?;
    let host = host.again()?;
    host.run(&["start", "blog"])?;
    until("started again", &host, || find("started", "blog"))?;
    let again = objects(&file).into_iter().filter(|o| o["text"] == "started" || o["text"] == "after the kill").count();
    ensure!(again == 1, "{:#?}", objects(&file));
    ensure!(!host.run(&["doctor"]).context("doctor")?.contains("logs to json"), "a fault where there is none");
    Ok(())
}

/// Takes lines from whoever connects, until it is dropped: then it is gone, with its connections.
struct Collector {
    lines: Arc<Mutex<Vec<u8>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A connection, or none for now.
type Accept = Box<dyn FnMut() -> Option<Box<dyn Read + Send>> + Send>;

impl Collector {
    fn tcp(at: &str) -> Result<Self> {
        let listener = TcpListener::bind(at)?;
        listener.set_nonblocking(true)?;
        Ok(Self::start(Box::new(move || {
            let stream = listener.accept().ok()?.0;
            stream.set_read_timeout(Some(Duration::from_millis(20))).ok()?;
            Some(Box::new(stream))
        })))
    }

    fn unix(at: &Path) -> Result<Self> {
        let _ = fs::remove_file(at);
        let listener = UnixListener::bind(at)?;
        listener.set_nonblocking(true)?;
        Ok(Self::start(Box::new(move || {
            let stream = listener.accept().ok()?.0;
            stream.set_read_timeout(Some(Duration::from_millis(20))).ok()?;
            Some(Box::new(stream))
        })))
    }

    fn start(mut accept: Accept) -> Self {
        let (lines, ended) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::<AtomicBool>::default());
        let (kept, end) = (lines.clone(), ended.clone());
        let thread = std::thread::spawn(move || {
            let (mut streams, mut buffer) = (Vec::new(), [0; 4096]);
            while !end.load(Ordering::Relaxed) {
                streams.extend(accept());
                for stream in &mut streams {
                    if let Ok(n) = stream.read(&mut buffer) {
                        kept.lock().unwrap().extend(&buffer[..n]);
                    }
                }
                if streams.is_empty() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        });
        Self { lines, ended, thread: Some(thread) }
    }

    /// What has come in whole lines; each must be an object.
    fn objects(&self) -> Vec<Value> {
        let lines = self.lines.lock().unwrap();
        let whole = lines.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        whole.map(|line| serde_json::from_slice(line).expect("an object a line")).collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[test]
fn json_lines_by_tcp_and_by_a_socket_wait_while_nobody_takes_them() -> Result<()> {
    const LINES: usize = 500;
    let (directory, mut host) = host(&["json+tcp://127.0.0.1:5516", "json+unix:DIR/lines.sock"])?;
    let socket = directory.path().join("lines.sock");
    host.apply("a.toml", &app("blog", "acme"))?;
    host.run(&["start", "blog"])?;
    let start = |tcp: bool| if tcp { Collector::tcp("127.0.0.1:5516") } else { Collector::unix(&socket) };
    for tcp in [true, false] {
        let first = start(tcp)?;
        let started = || first.objects().into_iter().find(|o| o["text"] == "started" && o["vps"] == "blog");
        let object = until("started", &host, started)?;
        ensure!(object["tenant"] == "acme" && object["source"] == "out", "{object}");
        say(&host, "blog", &format!("printf '%s\n' '{HOSTILE}' >> /var/log/x.log"))?;
        let forged = until("hostile text", &host, || first.objects().into_iter().find(|o| o["text"] == HOSTILE))?;
        ensure!(forged["tenant"] == "acme", "{forged}");
        drop(first);
        // Nobody takes these; what was sent into the connection that ended may be lost with it, and they tell where that began.
        say(
            &host,
            "blog",
            &format!("seq -f 'away %.0f {tcp}' {LINES} >> /var/log/x.log; echo last {tcp} >> /var/log/x.log"),
        )?;
        let second = start(tcp)?;
        until("the last line", &host, || second.objects().into_iter().find(|o| o["text"] == format!("last {tcp}")))?;
        let came: Vec<_> = second.objects().iter().filter_map(|o| Some(o["text"].as_str()?.to_owned())).collect();
        let missing: Vec<_> =
            (1..=LINES).map(|n| format!("away {n} {tcp}")).filter(|text| !came.contains(text)).collect();
        let counted = came.iter().any(|text| text.contains("were not shipped"));
        ensure!(missing.is_empty() || counted, "{missing:?} of {came:?}");
        ensure!(missing.len() < LINES / 2, "{missing:?}");
    }
    host.stop()
}

/// rsyslog from Debian, which writes the parts of each message as it understood them.
struct Rsyslog(Child);

impl Rsyslog {
    fn start(directory: &Path, port: u16) -> Result<Self> {
        let at = directory.display();
        let parts = "%inputname%|%hostname%|%app-name%|%procid%|%msgid%|%structured-data%|%syslogfacility-text%.%syslogseverity-text%|%msg%\\n";
        let config = format!(
            "global(workDirectory=\"{at}\" maxMessageSize=\"16k\")\nmodule(load=\"imtcp\")\nmodule(load=\"imudp\")\nmodule(load=\"imuxsock\" SysSock.Use=\"off\")\n\
             template(name=\"parts\" type=\"string\" string=\"{parts}\")\n\
             input(type=\"imtcp\" port=\"{port}\")\ninput(type=\"imudp\" port=\"{port}\")\n\
             input(type=\"imuxsock\" Socket=\"{at}/log.sock\" UseSpecialParser=\"off\" RateLimit.Interval=\"0\")\n\
             action(type=\"omfile\" file=\"{at}/out\" template=\"parts\")\n"
        );
        fs::write(directory.join("rsyslog.conf"), config)?;
        let arguments = ["-n".into(), "-f".into(), directory.join("rsyslog.conf"), "-i".into(), directory.join("pid")];
        let child = Command::new("rsyslogd").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Ok(Self(child.context("rsyslogd; it is Debian's package rsyslog")?))
    }
}

impl Drop for Rsyslog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines that rsyslog has written whose parts hold all these.
fn received(directory: &Path, parts: &[&str]) -> Vec<String> {
    let text = String::from_utf8_lossy(&fs::read(directory.join("out")).unwrap_or_default()).into_owned();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().filter(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned).collect()
}

#[test]
fn rsyslog_understands_what_comes_by_tcp_udp_and_a_socket() -> Result<()> {
    let targets = ["syslog+tcp://localhost:5514", "syslog+udp://127.0.0.1:5514", "syslog+unix:DIR/log.sock"];
    let (directory, mut host) = host(&targets)?;
    let at = directory.path();
    let _rsyslog = Rsyslog::start(at, 5514)?;
    host.apply("a.toml", &app("blog", "acme"))?;
    host.run(&["start", "blog"])?;
    for input in ["imtcp|", "imudp|", "imuxsock|"] {
        let find = |parts: &[&str]| received(at, &[&[input, "|blog|"], parts].concat()).into_iter().next();
        // `control` logs what is run. A datagram is lost where nobody listens yet: again until it comes.
        until(input, &host, || {
            say(&host, "blog", "logger -p mail.warning -t probe is it there").ok()?;
            find(&["is it there"])
        })?;
        say(&host, "blog", "logger -i -p daemon.err -t probe it broke")?;
        let line = until("it broke", &host, || find(&["it broke"]))?;
        let parts: Vec<_> = line.split('|').collect();
        ensure!(parts[1..3] == ["blog", "probe"] && parts[3].parse::<u32>().is_ok(), "{line}");
        ensure!(parts[4] == "log" && parts[6] == "daemon.err", "{line}");
        ensure!(parts[5].starts_with("[bailiwick@32473 vps=\"blog\" tenant=\"acme\" source=\"log\" host="), "{line}");
        say(&host, "blog", &format!("printf '%s\\n' '{HOSTILE}' >> /var/log/x.log"))?;
        let line = until("hostile text", &host, || find(&["forged"]))?;
        ensure!(line.contains("|blog|blog|-|file|[") && line.contains(&format!("|{HOSTILE}")), "{line}");
        say(&host, "blog", "rm /var/log/x.log")?;
    }
    ensure!(received(at, &["|beta|"]).is_empty());
    host.stop()
}

#[test]
fn what_a_target_misses_while_it_is_away_comes_later_and_what_is_lost_is_counted() -> Result<()> {
    const LINES: usize = 10_000;
    let (directory, mut host) = host(&["syslog+tcp://127.0.0.1:5515"])?;
    let at = directory.path();
    host.apply(
        "a.toml",
        "tenant = \"acme\"\n[vps.blog]\nimage = \"debian:\"\n\
         command = [\"sh\", \"-c\", \"mkfifo /in; exec cat <>/in\"]\n",
    )?;
    host.run(&["start", "blog"])?;
    say(&host, "blog", "while [ ! -p /in ]; do sleep 0.01; done; echo before > /in")?;
    // Where a person looks, that is said.
    until("that it is away", &host, || {
        let said = host.cli(&["ps"]).ok()?;
        (said.out + &said.err).contains("logs to syslog+tcp://127.0.0.1:5515: it takes no lines").then_some(())
    })?;
    let rsyslog = Rsyslog::start(at, 5515)?;
    until("what waited", &host, || received(at, &["|blog|", "|before"]).pop())?;
    drop(rsyslog);
    say(&host, "blog", "echo between > /in")?;
    // More than a log holds.
    let long = "x".repeat(3000);
    say(&host, "blog", &format!("seq -f 'flood %.0f {long}' {LINES} > /in; echo after > /in"))?;
    until("the end of the flood", &host, || {
        host.run(&["logs", "blog", "-n", "1"]).ok()?.contains("out after").then_some(())
    })?;
    let _rsyslog = Rsyslog::start(at, 5515)?;
    let told = until("what was lost", &host, || received(at, &["|vps|", "were not shipped"]).pop())?;
    until("the last line", &host, || received(at, &["|after"]).pop())?;
    let lost: usize = told.rsplit('|').next().and_then(|text| text.split(' ').next()).context("a number")?.parse()?;
    let came = received(at, &["|flood "]);
    // `between` was before the flood.
    ensure!(came.len() + lost == LINES + 1, "{} came, {told}", came.len());
    ensure!(came.last().is_some_and(|line| line.contains(&format!("|flood {LINES} x"))));
    ensure!(host.run(&["doctor"])?.contains(&format!("{lost} lines were lost")), "doctor does not say it");
    host.stop()
}

/// As systemd-journald reads it.
fn journal_fields(mut rest: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
        let (name, after) = (String::from_utf8_lossy(&rest[..end]).into_owned(), &rest[end + 1..]);
        let (length, after) = after.split_first_chunk().expect("a length");
        let (value, after) = after.split_at(u64::from_le_bytes(*length) as usize);
        let before = fields.insert(name, String::from_utf8_lossy(value).into_owned());
        assert_eq!(before, None, "a field twice");
        rest = after.strip_prefix(b"\n").expect("an end");
    }
    fields
}

#[test]
fn journald_gets_fields_that_no_text_can_forge() -> Result<()> {
    let (directory, mut host) = host(&["journald:DIR/journal.sock"])?;
    let socket = UnixDatagram::bind(directory.path().join("journal.sock"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    host.apply("a.toml", &app("blog", "acme"))?;
    host.run(&["start", "blog"])?;
    say(
        &host,
        "blog",
        "printf '%s\\n' 'BAILIWICK_TENANT=beta' 'MESSAGE' > /var/log/x.log; logger -p daemon.err -t probe it broke",
    )?;
    let mut found = BTreeMap::new();
    while found.len() < 4 {
        let mut message = vec![0; 64 << 10];
        let n = socket.recv(&mut message).context("nothing more comes")?;
        let fields = journal_fields(&message[..n]);
        if fields["BAILIWICK_VPS"] == "blog" {
            found.insert(fields["MESSAGE"].clone(), fields);
        }
    }
    for (text, source, priority) in [
        ("started", "out", "6"),
        ("BAILIWICK_TENANT=beta", "file", "6"),
        ("MESSAGE", "file", "6"),
        ("it broke", "log", "3"),
    ] {
        let fields = found.get(text).with_context(|| format!("no {text}: {found:?}"))?;
        ensure!(fields["BAILIWICK_TENANT"] == "acme" && fields["SYSLOG_IDENTIFIER"] == "blog", "{fields:?}");
        ensure!(fields["BAILIWICK_SOURCE"] == source && fields["PRIORITY"] == priority, "{fields:?}");
    }
    ensure!(found["it broke"]["BAILIWICK_TAG"] == "probe" && found["it broke"]["SYSLOG_FACILITY"] == "3");
    host.stop()
}
