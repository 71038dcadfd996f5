//! Secrets: there for the program, and nowhere else to be found.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{Answer, Host, HostOptions};

/// Neither is part of anything else here.
const FIRST: &str = "vq8-first-w0rd-Kx2";
const SECOND: &str = "vq8-second-w0rd-Zt7";

/// Redis reads its password from a file that it includes.
const STORE: &str = r#"tenant = "acme"
[vps.store]
image   = "debian:redis-server"
command = ["redis-server", "/etc/redis/store.conf"]
user    = "redis"
secrets = { redis-auth = "/run/secrets/redis/auth.conf" }
files   = { "/etc/redis/store.conf" = "bind *\ndir /tmp\ninclude /run/secrets/redis/auth.conf\n" }
ready   = { listen = 6379 }
"#;

/// A CLI call with standard input.
fn with_input(host: &Host, args: &[&str], input: &str) -> Result<Answer> {
    let mut command = host.command(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("standard input")?.write_all(input.as_bytes())?;
    let output: Output = child.wait_with_output()?;
    Ok(output.into())
}

fn set(host: &Host, says: &str) -> Result<String> {
    let answer = with_input(host, &["secret", "set", "acme/redis-auth"], &format!("requirepass {says}\n"))?;
    ensure!(answer.code == 0, "{answer:?}");
    Ok(answer.out)
}

/// What redis says to a client with that password. The password goes by standard input.
fn ping(host: &Host, password: &str) -> Result<String> {
    let script = format!("AUTH {password}\nPING\n");
    Ok(with_input(host, &["exec", "store", "--", "redis-cli"], &script)?.out)
}

fn get(host: &Host, path: &str) -> Result<String> {
    let mut stream = UnixStream::connect(host.root.join("run/api.sock"))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// All regular files below, as bytes; what goes away meanwhile is left out.
fn files(path: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    let Ok(kind) = fs::symlink_metadata(path) else { return };
    if kind.is_dir() {
        fs::read_dir(path).into_iter().flatten().flatten().for_each(|entry| files(&entry.path(), found));
    } else if kind.is_file() {
        found.extend(fs::read(path).ok().map(|bytes| (path.display().to_string(), bytes)));
    }
}

/// Everything that somebody could read: the host's files, answers of the API, arguments and environment of all processes.
fn everything(host: &Host) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    files(&host.root, &mut found);
    for path in ["vps", "vps?all=true", "vps/store", "vps/store/spec", "vps/store/why", "secrets", "events", "volumes"]
    {
        found.push((path.to_owned(), get(host, &format!("/v1/{path}"))?.into_bytes()));
    }
    for vps in ["store", "control", "gateway", "network", "apps"] {
        found.push((format!("log of {vps}"), get(host, &format!("/v1/vps/{vps}/logs?lines=10000"))?.into_bytes()));
    }
    for process in fs::read_dir("/proc")?.flatten() {
        for file in ["cmdline", "environ", "comm"] {
            let path = process.path().join(file);
            found.extend(fs::read(&path).ok().map(|bytes| (path.display().to_string(), bytes)));
        }
    }
    Ok(found)
}

fn nowhere(host: &Host, text: &str) -> Result<()> {
    let all = everything(host)?;
    for kind in ["/state.redb", "secret.key", "/cmdline", "bailiwickd.log", "vps/store/spec"] {
        ensure!(
            all.iter().any(|(place, bytes)| place.ends_with(kind) && !bytes.is_empty()),
            "nothing was read of {kind}"
        );
    }
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    for needle in [text.as_bytes(), hex.as_bytes()] {
        for (place, bytes) in &all {
            ensure!(!bytes.windows(needle.len()).any(|part| part == needle), "{place} says it");
        }
    }
    Ok(())
}

#[test]
fn a_secret_reaches_its_program_and_is_nowhere_else() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let path = host.root.join("store.toml");
    fs::write(&path, STORE)?;
    let spec = path.to_string_lossy().into_owned();
    for dry in [&["apply", &spec][..], &["apply", &spec, "--dry-run"]] {
        let refused = host.cli(dry)?;
        let told = "store.toml:6:13  secret `acme/redis-auth` is not set";
        ensure!(refused.code == 3 && refused.err.contains(told), "{refused:?}");
        ensure!(refused.err.contains("bailiwick secret set acme/redis-auth"), "no next step: {refused:?}");
    }
    ensure!(set(&host, FIRST)? == "acme/redis-auth: set\n");
    host.run(&["apply", &spec])?;
    host.run(&["start", "store"])?;
    ensure!(ping(&host, FIRST)?.contains("PONG") && !ping(&host, SECOND)?.contains("PONG"));

    // A new one counts from the next start on, and who sets it or applies the spec is told.
    let told = set(&host, SECOND)?;
    ensure!(
        told.contains("set anew") && told.contains("vps store has it at its next start: bailiwick restart store"),
        "{told}"
    );
    let told = host.run(&["apply", &spec])?;
    ensure!(told.contains("redis-auth was set since it was started") && told.contains("restart store"), "{told}");
    ensure!(ping(&host, FIRST)?.contains("PONG"));
    host.run(&["restart", "store"])?;
    ensure!(ping(&host, SECOND)?.contains("PONG") && !ping(&host, FIRST)?.contains("PONG"));
    ensure!(!host.run(&["apply", &spec])?.contains("was set since"));

    // The daemon and control go on with it, and a new host too.
    host.kill(host.daemon()?)?;
    host.kill(host.pid_of("control")?)?;
    host.run(&["restart", "store"])?;
    ensure!(ping(&host, SECOND)?.contains("PONG"));
    for text in [FIRST, SECOND] {
        nowhere(&host, text)?;
    }
    host.stop()?;
    let mut host = host.again()?;
    host.run(&["start", "store"])?;
    ensure!(ping(&host, SECOND)?.contains("PONG"));

    let rows = host.json(&["secret", "ls"])?;
    ensure!(rows[0]["name"] == "redis-auth" && rows[0]["used_by"]["store"] == "/run/secrets/redis/auth.conf", "{rows}");
    let refused = host.cli(&["secret", "rm", "acme/redis-auth"])?;
    ensure!(refused.code == 4 && refused.err.contains("used by vps \"store\""), "{refused:?}");
    host.run(&["secret", "rm", "acme/redis-auth", "--force"])?;
    let failed = host.cli(&["restart", "store"])?;
    ensure!(failed.code != 0 && failed.err.contains("bailiwick secret set acme/redis-auth"), "{failed:?}");
    for text in [FIRST, SECOND] {
        nowhere(&host, text)?;
    }
    host.stop()
}
