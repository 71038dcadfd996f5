//! A whole VPS out of a host and into it again, under writes.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{Host, HostOptions};

const STORE: &str = r#"tenant = "acme"
[vps.store]
image   = "debian:redis-server"
command = ["redis-server", "--bind", "*", "--protected-mode", "no", "--dir", "/var/lib/redis", "--appendonly", "yes", "--appendfsync", "always"]
user    = "redis"
volumes = { data = "/var/lib/redis" }
secrets = { auth = "/run/secrets/auth" }
routes  = { "tcp://127.0.0.1:PORT" = 6379 }
idle    = "never"
"#;

const SECRET: &str = "zq7-not-in-an-archive";

fn set_secret(host: &Host, name: &str, value: &str) -> Result<()> {
    let mut set = host.command(&["secret", "set", name]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    std::io::Write::write_all(&mut set.stdin.take().context("input")?, value.as_bytes())?;
    ensure!(set.wait()?.success());
    Ok(())
}

fn host(port: u16) -> Result<Host> {
    let host = Host::start(HostOptions::default())?;
    set_secret(&host, "acme/auth", SECRET)?;
    host.apply("store.toml", &STORE.replace("PORT", &port.to_string()))?;
    host.run(&["start", "store"])?;
    Ok(host)
}

fn redis(host: &Host, name: &str, words: &str) -> Result<String> {
    let mut command = vec!["exec", name, "--", "redis-cli"];
    command.extend(words.split(' '));
    Ok(host.run(&command)?.trim().to_owned())
}

/// Counts up a key through the route for as long as it may; what was acknowledged last.
fn count(port: u16, stop: &AtomicBool, acknowledged: &AtomicU64) -> Result<()> {
    use std::io::{BufRead, BufReader, Write};
    while !stop.load(Ordering::Relaxed) {
        let Ok(stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else { continue };
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let (mut to, from) = (stream.try_clone()?, BufReader::new(stream));
        let mut lines = from.lines();
        while !stop.load(Ordering::Relaxed) && to.write_all(b"INCR n\r\n").is_ok() {
            let Some(Ok(line)) = lines.next() else { break };
            acknowledged.fetch_max(line.trim_start_matches(':').parse().unwrap_or(0), Ordering::Relaxed);
        }
    }
    Ok(())
}

#[test]
fn what_was_acknowledged_before_an_export_is_there_after_its_import() -> Result<()> {
    let port = 21_479;
    let mut host = host(port)?;
    let archive = host.root.join("store.tar");
    let file = archive.to_string_lossy().into_owned();
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = std::thread::spawn({
        let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
        move || count(port, &stop, &acknowledged)
    });
    let until = Instant::now() + Duration::from_secs(20);
    while acknowledged.load(Ordering::Relaxed) < 100 {
        ensure!(Instant::now() < until, "nothing is written");
        std::thread::yield_now();
    }
    let before = acknowledged.load(Ordering::Relaxed);
    host.run(&["export", "store", &file])?;
    let after = acknowledged.load(Ordering::Relaxed);
    // It goes on as it was.
    host.await_state("store", "running", Duration::from_secs(10))?;
    while acknowledged.load(Ordering::Relaxed) <= after {
        ensure!(Instant::now() < until, "nothing is written after the export");
        std::thread::yield_now();
    }
    stop.store(true, Ordering::Relaxed);
    let ended: Result<()> = writer.join().map_err(|_| anyhow::anyhow!("the writer died"))?;
    ended?;
    let bytes = fs::read(&archive)?;
    ensure!(!bytes.windows(21).any(|part| part == b"zq7-not-in-an-archive"), "a secret is in the archive");

    let again = host.cli(&["export", "store", &file])?;
    ensure!(again.code == 4 && again.err.contains("--force"), "{again:?}");
    let same = host.cli(&["import", &file])?;
    ensure!(same.code == 4 && same.err.contains("--name NEW"), "{same:?}");
    let routes = host.cli(&["import", &file, "--name", "copy"])?;
    ensure!(routes.code == 4 && routes.err.contains("belongs to vps \"store\""), "{routes:?}");
    let told = host.run(&["import", &file, "--name", "copy", "--no-routes"])?;
    ensure!(told.contains("volume data is acme/copy-data here"), "{told}");
    host.run(&["start", "copy"])?;
    let n: u64 = redis(&host, "copy", "get n")?.parse()?;
    ensure!((before..=after).contains(&n), "{n} is not from {before} to {after}");
    // Its secret goes with it only to who knows the passphrase.
    let at = |name: &str| host.root.join(name).to_string_lossy().into_owned();
    let (phrase, wrong, sealed) = (at("phrase"), at("wrong"), at("sealed.tar"));
    fs::write(&phrase, "correct horse battery")?;
    fs::write(&wrong, "battery horse correct")?;
    host.run(&["export", "store", &sealed, "--with-secrets", "--passphrase-file", &phrase])?;
    ensure!(!fs::read(&sealed)?.windows(21).any(|part| part == SECRET.as_bytes()), "a secret is in the archive");
    let beta = ["import", &sealed, "--name", "third", "--tenant", "beta", "--no-routes"];
    let without = host.cli(&beta)?;
    ensure!(without.code == 3 && without.err.contains("--with-secrets"), "{without:?}");
    let refused = host.cli(&[&beta[..], &["--with-secrets", "--passphrase-file", &wrong]].concat())?;
    ensure!(refused.code == 5 && refused.err.contains("not the passphrase"), "{refused:?}");
    host.run(&[&beta[..], &["--with-secrets", "--passphrase-file", &phrase]].concat())?;
    let read = host.run(&["exec", "third", "--", "cat", "/run/secrets/auth"])?;
    ensure!(read == SECRET, "its secret says {read:?}");
    // One that is set here is not another's to change.
    set_secret(&host, "acme/auth", "changed-since-then")?;
    let again = ["import", &sealed, "--name", "fourth", "--no-routes", "--passphrase-file", &phrase];
    let other = host.cli(&again)?;
    ensure!(other.code == 4 && other.err.contains("set here already"), "{other:?}");
    host.run(&["delete", "third", "--volumes", "--yes"])?;
    host.run(&["secret", "rm", "beta/auth"])?;
    // Another tenant has not set the secret.
    let foreign = host.cli(&["import", &file, "--name", "third", "--tenant", "beta", "--no-routes"])?;
    ensure!(foreign.code == 3 && foreign.err.contains("secret set beta/auth"), "{foreign:?}");
    host.stop()
}

#[test]
fn an_import_of_a_bad_archive_leaves_nothing() -> Result<()> {
    let mut host = host(21_480)?;
    redis(&host, "store", "set kept yes")?;
    let file = host.root.join("store.tar").to_string_lossy().into_owned();
    host.run(&["export", "store", &file])?;
    let good = fs::read(&file)?;
    let volumes = host.run(&["volume", "ls"])?;
    let at = good.windows(8).rposition(|part| part == b"end.json").context("an end")?;
    let mut flipped = good.clone();
    // The first hexadecimal digit of a checksum.
    let digit = at + good[at..].windows(8).position(|part| part == b"\"data\": ").context("a checksum")? + 9;
    flipped[digit] = if flipped[digit] == b'0' { b'1' } else { b'0' };
    let newer = String::from_utf8_lossy(&good[..2048]).replace("\"format\": 1", "\"format\": 9");
    let bad: [(&str, Vec<u8>, &str); 5] = [
        ("cut", good[..at].to_vec(), "broke off"),
        ("half", good[..good.len() / 2].to_vec(), "broke off"),
        ("flipped", flipped, "damaged"),
        ("other", vec![b'x'; 4096], "none of `bailiwick export`"),
        ("newer", [newer.as_bytes(), &good[2048..]].concat(), "in a format that"),
    ];
    for (what, bytes, says) in bad {
        fs::write(&file, bytes)?;
        let refused = host.cli(&["import", &file, "--name", "copy", "--no-routes"])?;
        ensure!(refused.code == 2 && refused.err.contains(says), "{what}: {refused:?}");
        ensure!(host.run(&["volume", "ls"])? == volumes, "{what}: a volume is left");
        ensure!(host.cli(&["get", "copy"])?.code == 3, "{what}: a vps is left");
    }
    host.stop()
}

#[test]
fn an_export_that_fails_in_the_middle_says_so_and_leaves_no_file() -> Result<()> {
    let mut host = host(21_481)?;
    // What no archive takes, which nobody knows before it is there.
    let deep = "cd /var/lib/redis && for n in $(seq 600); do mkdir d && cd d; done";
    host.run(&["exec", "store", "--", "sh", "-ec", deep])?;
    let file = host.root.join("store.tar");
    let failed = host.cli(&["export", "store", &file.to_string_lossy()])?;
    ensure!(failed.code == 1, "{failed:?}");
    ensure!(failed.err.contains("vps \"store\" was not exported: volume `acme/data`"), "{failed:?}");
    ensure!(failed.err.contains("is deeper than 512 directories"), "{failed:?}");
    let left =
        fs::read_dir(&host.root)?.flatten().any(|entry| entry.file_name().to_string_lossy().contains("store.tar"));
    ensure!(!left, "part of a file is left");
    host.await_state("store", "running", Duration::from_secs(10))?;
    // What came of it on standard output is not taken for a whole one.
    let output = host.command(&["export", "store", "-"]).output()?;
    ensure!(output.status.code() == Some(1) && !output.stdout.is_empty(), "{output:?}");
    ensure!(String::from_utf8_lossy(&output.stderr).contains("was not exported"), "{output:?}");
    fs::write(&file, &output.stdout)?;
    let refused = host.cli(&["import", &file.to_string_lossy(), "--name", "copy", "--no-routes"])?;
    ensure!(refused.code == 2 && refused.err.contains("broke off"), "{refused:?}");
    // Without it all is well again.
    host.run(&["exec", "store", "--", "rm", "-r", "/var/lib/redis/d"])?;
    fs::remove_file(&file)?;
    host.run(&["export", "store", &file.to_string_lossy()])?;
    host.stop()
}

const POSTGRES: &str = r#"tenant = "acme"
[vps.db]
image   = "debian:postgresql"
command = ["sh", "-c", "cd /usr/lib/postgresql/*/bin; exec ./postgres -D /var/lib/postgresql/*/main -c config_file=$(echo /etc/postgresql/*/main/postgresql.conf) -c unix_socket_directories=/tmp -c ssl=off"]
user    = "postgres"
volumes = { data = "/var/lib/postgresql" }
ready   = { listen = 5432, run = ["pg_isready", "-h", "/tmp"] }
start_deadline = "60s"
"#;

/// Writes rows as fast as they are acknowledged, and says each that was.
const WRITES: &str =
    "i=0; while i=$((i+1)); do echo \"insert into t values ($i) returning n;\"; done | psql -h /tmp -qAt";

#[test]
fn a_database_that_is_written_to_has_all_acknowledged_rows_after_its_import() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    host.apply("db.toml", POSTGRES)?;
    host.run(&["start", "db"])?;
    let sql = |vps: &str, text: &str| -> Result<String> {
        let said = host.run(&["exec", vps, "--user", "postgres", "--", "psql", "-h", "/tmp", "-qAtc", text])?;
        Ok(said.trim().to_owned())
    };
    sql("db", "create table t (n int primary key)")?;
    let mut writer = host.command(&["exec", "db", "--user", "postgres", "--", "sh", "-c", WRITES]);
    let mut writer = writer.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let acknowledged = Arc::new(AtomicU64::new(0));
    let lines = BufReader::new(writer.stdout.take().context("output")?).lines();
    let reader = std::thread::spawn({
        let acknowledged = acknowledged.clone();
        move || lines.map_while(Result::ok).for_each(|n| acknowledged.store(n.parse().unwrap_or(0), Ordering::Relaxed))
    });
    let until = Instant::now() + Duration::from_secs(60);
    let more_than = |n: u64| -> Result<u64> {
        loop {
            match acknowledged.load(Ordering::Relaxed) {
                now if now > n => return Ok(now),
                _ => ensure!(Instant::now() < until, "nothing is written"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let before = more_than(200)?;
    let file = host.root.join("db.tar").to_string_lossy().into_owned();
    host.run(&["export", "db", &file])?;
    // It goes on.
    more_than(acknowledged.load(Ordering::Relaxed))?;
    writer.kill()?;
    writer.wait()?;
    reader.join().map_err(|_| anyhow::anyhow!("the reader died"))?;
    host.run(&["import", &file, "--name", "copy"])?;
    host.run(&["start", "copy"])?;
    let rows: u64 = sql("copy", "select count(*) from t")?.parse()?;
    let last: u64 = sql("copy", "select max(n) from t")?.parse()?;
    ensure!(rows == last && rows >= before, "{rows} rows up to {last}; {before} were acknowledged before");
    host.stop()
}

#[test]
fn a_vps_brings_its_image_along() -> Result<()> {
    const SPEC: &str = "tenant = \"acme\"\n[vps.sh]\nimage = \"debian:redis-server\"\ncommand = [\"sleep\", \"1000000\"]\n\
                        volumes = { data = \"/srv/data\" }\n";
    let place = tempfile::Builder::new().prefix("bailiwick-").tempdir_in("/var/tmp")?;
    let file = place.path().join("sh.tar").to_string_lossy().into_owned();
    let mut host = Host::start(HostOptions::default())?;
    host.apply("sh.toml", SPEC)?;
    host.run(&["exec", "sh", "--", "sh", "-c", "echo kept > /srv/data/file"])?;
    host.run(&["export", "sh", &file, "--with-image"])?;
    let layers = host.json(&["image", "inspect", "debian:redis-server"])?["layers"].clone();
    // Here it is the same image as ever.
    host.run(&["import", &file, "--name", "copy"])?;
    ensure!(host.run(&["get", "copy"])?.contains("\"debian:redis-server\""));
    host.stop()?;

    // A machine that has no image at all.
    let store = place.path().join("layers");
    let mut host = Host::start(HostOptions { layers: Some(store.clone()), ..HostOptions::default() })?;
    let good = fs::read(&file)?;
    let mut bad = good.clone();
    let at = good.windows(7).position(|part| part == b"layers/").context("a layer")?;
    // Within a file, not in what means nothing, as the mode of a link.
    bad[at + 400_000] ^= 1;
    fs::write(&file, &bad)?;
    let refused = host.cli(&["import", &file])?;
    ensure!(refused.code != 0 && refused.err.contains("layer"), "{refused:?}");
    ensure!(host.cli(&["get", "sh"])?.code == 3 && host.json(&["images"])?.as_array().is_some_and(Vec::is_empty));
    ensure!(fs::read_dir(store.join("layers"))?.count() == 0, "a layer of a damaged archive is left");
    fs::write(&file, &good)?;
    let told = host.run(&["import", &file])?;
    // Nobody can call an image what others mean by another.
    ensure!(told.contains("its image is tar:sh@sha256:"), "{told}");
    ensure!(host.json(&["images"])?[0]["layers"] == layers, "another image");
    let said = host.run(&["exec", "sh", "--", "sh", "-c", "cat /srv/data/file; redis-server --version"])?;
    ensure!(said.starts_with("kept\nRedis server"), "{said}");
    host.run(&["image", "verify"])?;
    host.stop()
}
