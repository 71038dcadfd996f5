//! What a part that was taken over could try: each test acts as that part, with the socket or the rights that it has.

use std::{
    collections::BTreeSet,
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{
    Host, HostOptions,
    spec::{ECHO, perl, server},
};
use serde_json::{Value, json};

const DESIGNATED: [&str; 4] = ["apps", "control", "gateway", "network"];
/// Connections that the daemon serves of one designated VPS.
const CONNECTIONS: usize = 256;

/// A host with a VPS `web` that is up.
fn host(port: u16) -> Result<Host> {
    let host = Host::start(HostOptions::default())?;
    host.apply("web.toml", &perl("web", port, &server("", ECHO), "idle = \"never\""))?;
    host.run(&["start", "web"])?;
    Ok(host)
}

/// A connection of the designated VPS `vps` to the daemon: its capability.
fn capability(host: &Host, vps: &str) -> Result<UnixStream> {
    let stream = UnixStream::connect(host.root.join("run/designated").join(vps).join("host.sock"))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    Ok(stream)
}

/// Calls a method of the daemon; its answer.
fn call(stream: &mut UnixStream, method: &str, parameters: &Value) -> Result<Value> {
    let call = json!({ "method": format!("io.bailiwick.Host.{method}"), "parameters": parameters });
    stream.write_all(format!("{call}\0").as_bytes())?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte != [0] {
        answer.push(byte[0]);
    }
    serde_json::from_slice(&answer).with_context(|| format!("{method}: {}", String::from_utf8_lossy(&answer)))
}

/// Asks as `vps`; what kind of refusal came.
fn refused(host: &Host, vps: &str, method: &str, parameters: &Value) -> Result<String> {
    let answer = call(&mut capability(host, vps)?, method, parameters)?;
    let kind = answer["parameters"]["kind"].as_str().filter(|_| answer["error"].is_string());
    Ok(kind.with_context(|| format!("{vps} was allowed {method} {parameters}: {answer}"))?.to_owned())
}

fn run_spec(name: &str) -> Value {
    json!({
        "name": name, "hostname": null, "root": "bare", "command": ["/bin/true"], "env": {}, "cwd": "/", "user": "root",
        "files": {}, "volumes": {}, "limits": {}, "link": null, "resolvers": [], "setuid": false, "nesting": false,
        "ready": "notify", "stop": { "signal": 15, "grace_ms": 0 },
    })
}

#[test]
fn gateway_network_and_apps_get_nothing_of_the_daemon_that_is_not_granted() -> Result<()> {
    let mut host = host(20900)?;
    let name = json!({ "name": "web" });
    let exec = json!({ "name": "web", "command": ["id"], "env": {}, "user": "root", "cwd": "/" });
    let common = [
        ("Create", json!({ "name": "new", "tenant": "acme", "ids": 65536 })),
        ("Stop", json!({ "name": "web", "grace_ms": 0 })),
        ("Freeze", name.clone()),
        ("Thaw", name.clone()),
        ("Delete", name.clone()),
        ("Logs", name.clone()),
        ("Volumes", json!({})),
        ("DeleteVolume", json!({ "tenant": "acme", "name": "data" })),
        ("List", json!({})),
        ("Events", json!({})),
        ("Connect", json!({ "service": "apps" })),
        ("Narrow", json!({ "grants": ["stop : *"] })),
        ("OpenTarget", json!({ "target": "json:/etc/passwd" })),
    ];
    let sockets = [
        ("Listen", json!({ "address": "127.0.0.1:20901" })),
        ("Unlisten", json!({ "address": "127.0.0.1:20900" })),
        ("Listening", json!({})),
        ("Connect", json!({ "service": "control" })),
    ];
    for vps in ["gateway", "network", "apps"] {
        for (method, parameters) in common.iter().chain(sockets.iter().filter(|_| vps != "gateway")) {
            let kind = refused(&host, vps, method, parameters)?;
            ensure!(kind == "denied", "{vps} {method}: {kind}");
        }
        // Needs three descriptors; who may not is told so first.
        ensure!(refused(&host, vps, "Exec", &exec)? == "denied");
        let kind = refused(&host, vps, "Start", &json!({ "run": run_spec("web") }))?;
        ensure!(kind == "denied", "{vps} Start: {kind}");
    }
    ensure!(host.state("web")? == "running");
    host.stop()
}

#[test]
fn who_ships_logs_opens_what_host_toml_names_and_nothing_else() -> Result<()> {
    let directory = tempfile::Builder::new().prefix("bailiwick-ship-").tempdir_in("/var/tmp")?;
    let file = directory.path().join("all.jsonl").to_string_lossy().into_owned();
    let config = format!("[logs]\nship = [\"json:{file}\"]\n");
    let mut host = Host::start(HostOptions { config, ..HostOptions::default() })?;
    host.apply("web.toml", &perl("web", 20990, &server("", ECHO), "idle = \"never\""))?;
    host.run(&["start", "web"])?;
    for target in ["json:/etc/passwd", &format!("json:{file}x"), &format!("json+unix:{file}"), "syslog+unix:/dev/log"] {
        let kind = refused(&host, "logs", "OpenTarget", &json!({ "target": target }))?;
        ensure!(kind == "denied", "{target}: {kind}");
    }
    refused(&host, "logs", "OpenTarget", &json!({ "target": "json:../x" }))?;
    for vps in DESIGNATED {
        let kind = refused(&host, vps, "OpenTarget", &json!({ "target": format!("json:{file}") }))?;
        ensure!(kind == "denied", "{vps}: {kind}");
    }
    let name = json!({ "name": "web" });
    let exec = json!({ "name": "web", "command": ["id"], "env": {}, "user": "root", "cwd": "/" });
    for (method, parameters) in [("Stop", &json!({ "name": "web", "grace_ms": 0 })), ("Delete", &name), ("Exec", &exec)]
    {
        ensure!(refused(&host, "logs", method, parameters)? == "denied", "{method}");
    }
    ensure!(refused(&host, "logs", "Connect", &json!({ "service": "control" }))? == "denied");
    // It has no network, where no target needs one.
    let pid = host.pid_of("logs")?;
    let links = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    ensure!(links.lines().filter(|line| line.contains(':')).count() == 1, "{links}");
    ensure!(host.state("web")? == "running");
    host.stop()
}

#[test]
fn control_reaches_neither_designated_vpss_nor_paths_of_the_host() -> Result<()> {
    let mut host = host(20910)?;
    let before: Vec<_> = DESIGNATED.iter().map(|name| host.pid_of(name)).collect::<Result<_>>()?;
    for path in ["../web", "/etc", "a/b", "", ".new-x"] {
        for method in ["Delete", "Logs", "Freeze"] {
            refused(&host, "control", method, &json!({ "name": path }))?;
        }
        refused(&host, "control", "Create", &json!({ "name": path, "tenant": "acme", "ids": 65536 }))?;
        refused(&host, "control", "Create", &json!({ "name": "fine", "tenant": path, "ids": 65536 }))?;
        refused(&host, "control", "DeleteVolume", &json!({ "tenant": path, "name": "data" }))?;
        refused(&host, "control", "DeleteVolume", &json!({ "tenant": "acme", "name": path }))?;
        refused(&host, "control", "Connect", &json!({ "service": path }))?;
        let mut run = run_spec("web");
        run["root"] = json!({ "layers": [path] });
        refused(&host, "control", "Start", &json!({ "run": run }))?;
    }
    for name in DESIGNATED {
        ensure!(refused(&host, "control", "Delete", &json!({ "name": name }))? == "conflict");
        ensure!(refused(&host, "control", "Start", &json!({ "run": run_spec(name) }))? == "conflict");
    }
    // What only the host's root may ask is not there at all.
    refused(&host, "control", "Upgrade", &json!({ "directory": "/tmp", "vps": null, "check": false }))?;
    let after: Vec<_> = DESIGNATED.iter().map(|name| host.pid_of(name)).collect::<Result<_>>()?;
    ensure!(before == after, "a designated VPS was restarted");
    host.stop()
}

#[test]
fn connections_of_one_designated_vps_are_bounded_and_keep_no_other_from_the_daemon() -> Result<()> {
    let mut host = host(20920)?;
    let mut answered = 0;
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS + 8 {
        let mut stream = capability(&host, "apps")?;
        stream.set_read_timeout(Some(Duration::from_millis(if answered < CONNECTIONS - 16 { 30_000 } else { 300 })))?;
        match call(&mut stream, "Config", &json!({})) {
            Ok(_) => answered += 1,
            Err(error) => {
                let waits = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
                ensure!(waits == Some(ErrorKind::WouldBlock), "{error:#}");
            }
        }
        open.push(stream);
    }
    ensure!((CONNECTIONS - 16..=CONNECTIONS).contains(&answered), "{answered} are served at once");
    ensure!(host.state("web")? == "running", "control is kept from the daemon");
    drop(open);
    call(&mut capability(&host, "apps")?, "Config", &json!({}))?;
    host.stop()
}

#[test]
fn a_designated_vps_has_none_of_the_host_s_ids_files_or_sockets() -> Result<()> {
    let mut host = host(20930)?;
    for name in DESIGNATED {
        let process = format!("/proc/{}", host.pid_of(name)?);
        let map = fs::read_to_string(format!("{process}/uid_map"))?;
        let first: u64 = map.split_whitespace().nth(1).context("a map")?.parse()?;
        ensure!(map.lines().count() == 1 && first >= 1_048_576, "{name} has ids of the host: {map}");
        let entries = |path: &str| -> Result<BTreeSet<String>> {
            let all = fs::read_dir(format!("{process}/root/{path}"))?;
            all.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        };
        ensure!(
            entries("run/bailiwick")? == ["host.sock".to_owned()].into(),
            "{name}: {:?}",
            entries("run/bailiwick")?
        );
        for path in ["root", "home", "var/lib/bailiwick", "etc/shadow", "etc/bailiwick", "boot", "dev/sda", "dev/mem"] {
            ensure!(!fs::exists(format!("{process}/root/{path}"))?, "{name} sees /{path}");
        }
    }
    host.stop()
}

#[test]
fn apps_writes_to_its_layers_and_its_own_and_to_nothing_else_of_the_host() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let pid = host.pid_of("apps")?;
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let mut seen = BTreeSet::new();
    for line in mounts.lines() {
        let (mount, file_system) = line.split_once(" - ").context("a line of proc(5)")?;
        let fields: Vec<_> = mount.split(' ').collect();
        let (place, options) = (fields[4], fields[5].split(',').collect::<Vec<_>>());
        seen.insert(place.to_owned());
        let own = ["/layers", "/data"].contains(&place);
        // What has a disk below it is the host's; the kernel's own file systems are its namespaces'.
        let of_a_disk = file_system.split(' ').nth(1).is_some_and(|source| source.starts_with('/'));
        ensure!(!of_a_disk || own || options.contains(&"ro"), "{line}");
        // Nothing is a device but the few that every VPS has.
        let device = place.starts_with("/dev/") || place == "/dev";
        ensure!(device || !of_a_disk || options.contains(&"nodev"), "{line}");
    }
    for place in ["/layers", "/data", "/usr"] {
        ensure!(seen.contains(place), "{place} is not mounted: {mounts}");
    }
    // As its root, which is nobody on the host: with all that a service could do there.
    let ids = fs::read_to_string(format!("/proc/{pid}/uid_map"))?;
    let first: u32 = ids.split_whitespace().nth(1).context("a map")?.parse()?;
    ensure!(first >= 1_048_576, "{ids}");
    let target = pid.to_string();
    let mut enter = Command::new("nsenter");
    enter.args(["--target", &target, "--user", "--mount", "--setuid", "0", "--setgid", "0", "--wdns=/", "sh", "-c"]);
    let script = "for d in / /usr /usr/bin /etc /usr/lib /sys /layers/hosts; do touch $d/x 2>/dev/null && echo $d; done; \
                  touch /layers/x /data/x && rm /layers/x /data/x && echo own; mount -o remount,rw /usr 2>/dev/null && echo remounted; true";
    let output = enter.arg(script).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(said == "own\n", "{said}{}", String::from_utf8_lossy(&output.stderr));
    host.stop()
}

fn status(pid: i32) -> Result<impl Fn(&str) -> String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(move |field: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_default().split_whitespace().next().unwrap_or_default().to_owned()
    })
}

/// Runs a shell command as a uid of the host, without any capability.
fn as_user(uid: &str, script: &str) -> Result<bool> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", uid, "--regid", uid, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
    Ok(command.args(["sh", "-c", script]).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success())
}

#[test]
fn a_shim_has_no_capability_sees_its_own_vps_alone_and_reaches_no_other() -> Result<()> {
    let mut host = host(20940)?;
    host.apply("other.toml", &perl("other", 20941, &server("", ECHO), "idle = \"never\""))?;
    host.run(&["start", "other"])?;
    let (init, other) = (host.pid_of("web")?, host.pid_of("other")?);
    let shim: i32 = status(init)?("PPid").parse()?;
    let other_shim: i32 = status(other)?("PPid").parse()?;
    let (own, neighbour) = (status(shim)?, status(other_shim)?);
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        ensure!(own(set) == "0000000000000000", "{set}: {}", own(set));
    }
    let uid = own("Uid");
    ensure!(uid.parse::<u32>()? >= 600_000 && uid != neighbour("Uid"), "{uid}");
    // Its root: what this VPS is made of.
    let root = fs::read_dir(format!("/proc/{shim}/root"))?;
    let root: BTreeSet<_> =
        root.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<_>>()?;
    let expected = ["binds", "dev", "layers", "log", "proc", "state", "sys"].map(str::to_owned);
    ensure!(root.is_subset(&expected.into()), "{root:?}");
    // The host's directories would hide what is below them; here only their own modes count.
    fs::set_permissions(&host.root, fs::Permissions::from_mode(0o755))?;
    let root = host.root.display();
    ensure!(as_user(&uid, "true")?, "the probe itself does not work");
    for probe in [
        format!("kill -0 {other_shim}"),
        format!("kill -0 {other}"),
        format!("kill -0 {}", host.daemon()?),
        format!("kill -0 {}", host.keeper()),
        format!("ls {root}/lib/vps/web/log || ls {root}/lib/vps/other/log"),
        format!("cat {root}/lib/vps/other/ids"),
        format!("ls {root}/lib/designated/control"),
        format!("cat /proc/{other_shim}/environ || ls /proc/{other_shim}/fd"),
        format!("ls {root}/run/vps"),
    ] {
        ensure!(!as_user(&uid, &probe)?, "a shim could: {probe}");
    }
    for socket in ["admin.sock", "api.sock", "service/apps.sock", "designated/control/host.sock"] {
        let connect =
            format!("perl -MIO::Socket::UNIX -e 'exit(IO::Socket::UNIX->new(\"{root}/run/{socket}\") ? 0 : 1)'");
        ensure!(!as_user(&uid, &connect)?, "a shim could connect to {socket}");
        UnixStream::connect(host.root.join("run").join(socket)).with_context(|| format!("{socket} does not listen"))?;
    }
    host.stop()
}

#[test]
fn a_user_of_the_host_reaches_no_file_of_a_vps_and_no_layer() -> Result<()> {
    let layers = tempfile::Builder::new().prefix("bailiwick-layers-").tempdir_in("/var/tmp")?;
    fs::set_permissions(layers.path(), fs::Permissions::from_mode(0o755))?;
    let mut host = Host::start(HostOptions { layers: Some(layers.path().to_owned()), ..HostOptions::default() })?;
    fs::set_permissions(&host.root, fs::Permissions::from_mode(0o755))?;
    // Made by the daemon, whatever it was before.
    ensure!(fs::metadata(layers.path())?.permissions().mode() & 0o777 == 0o700, "the layer store is open");
    for name in DESIGNATED {
        let vps = host.root.join("lib/vps").join(name);
        ensure!(fs::metadata(&vps)?.permissions().mode() & 0o777 == 0o700, "{} is open", vps.display());
        ensure!(!as_user("65534", &format!("ls {}/state", vps.display()))?);
    }
    ensure!(!as_user("65534", &format!("ls {}", layers.path().display()))?);
    host.stop()
}

/// A process that makes sockets and listens on them without a pause, and ends others of its kind meanwhile.
const STORM: &str = "if (!fork) { for (1..24) { last if !fork } use Socket; while (1) { \
    socket(my $t, PF_INET, SOCK_STREAM, 0); listen($t, 1); socket(my $u, PF_UNIX, SOCK_STREAM, 0); listen($u, 1); \
    socket(my $n, 16, SOCK_RAW, 0); listen($n, 1); if (rand() < 0.01) { my $k = fork; if (!$k) { listen($t, 1) while 1 } \
    kill 9, $k; waitpid $k, 0 } } }";

#[test]
fn a_storm_of_listens_holds_up_neither_exec_nor_freeze_nor_stop() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let spec = perl("storm", 20960, &server(STORM, ECHO), "idle = \"never\"\nlimits = { processes = 64, cpu = 0.5 }");
    host.apply("storm.toml", &spec)?;
    host.run(&["start", "storm"])?;
    let begun = std::time::Instant::now();
    for _ in 0..3 {
        ensure!(host.run(&["exec", "storm", "--", "hostname"])? == "storm\n");
        host.run(&["freeze", "storm"])?;
        host.run(&["thaw", "storm"])?;
    }
    host.run(&["stop", "storm"])?;
    // The grace of its stop is 10 s: it ends by its signal, not by its end.
    ensure!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    host.stop()
}

#[test]
fn hostile_names_of_files_that_init_writes_lead_it_nowhere_and_do_not_hang_it() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    // A minimal machine may have none.
    let hosts = fs::read("/etc/hosts").ok();
    for hostile in [
        "ln -s /proc/self/mem hosts",
        "ln -s ../../../../../../etc/hosts hosts",
        "ln -s /proc/1/root/etc/hosts hosts",
        "ln -s hosts hosts",
        "mkfifo hosts",
        "mkdir hosts",
        "cd / && mv etc away && ln -s /proc/self/cwd etc",
    ] {
        host.apply("h.toml", &perl("hostile", 20970, &server("", ECHO), "idle = \"never\"\nrestart = \"never\""))?;
        host.run(&["start", "hostile"])?;
        host.run(&["exec", "hostile", "--", "sh", "-c", &format!("cd /etc && rm -f hosts && {hostile}")])?;
        host.run(&["stop", "hostile"])?;
        let begun = std::time::Instant::now();
        let started = host.cli(&["start", "hostile"])?;
        ensure!(begun.elapsed() < Duration::from_secs(20), "{hostile}: {:?}", begun.elapsed());
        ensure!(started.code == 0 || started.err.contains("hostile"), "{hostile}: {started:?}");
        ensure!(fs::read("/etc/hosts").ok() == hosts, "{hostile}: the host's own file");
        host.run(&["delete", "--yes", "hostile"])?;
    }
    host.stop()
}

#[test]
fn what_a_client_writes_steers_no_terminal() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let spec = perl("web", 20980, &server("", ECHO), "");
    host.apply("web.toml", &spec.replace("tcp://127.0.0.1:20980", "http://web.test:20980"))?;
    for line in ["GET /\x1b[2J\x07 HTTP/1.1", "GET /a%1b%5b2J?\x1b HTTP/1.1", "G\x1bT / HTTP/1.1", "GET /fine HTTP/1.1"]
    {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", 20980))?;
        stream.write_all(format!("{line}\r\nHost: web.test\r\nConnection: close\r\n\r\n").as_bytes())?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let _ = stream.read(&mut [0; 64]);
    }
    host.await_state("web", "running", Duration::from_secs(30))?;
    for words in [&["ps"][..], &["why", "web"], &["events"], &["logs", "web"]] {
        let said = host.run(words)?;
        let bad = said.chars().find(|c| c.is_control() && *c != '\n' && *c != '\t');
        ensure!(bad.is_none(), "{words:?}: {said:?}");
    }
    ensure!(host.run(&["why", "web"])?.contains("127.0.0.1"), "who woke it is not told");
    host.stop()
}
