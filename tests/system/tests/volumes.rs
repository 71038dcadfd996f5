//! Volumes outlive the VPSs that use them, and begin with what the image has.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{Host, HostOptions};

/// Debian's redis keeps its data in /var/lib/redis, which its package made for the user `redis`.
const STORE: &str = r#"tenant = "acme"
[vps.NAME]
image   = "debian:redis-server"
command = ["redis-server", "--bind", "*", "--protected-mode", "no", "--dir", "/var/lib/redis", "--appendonly", "yes", "--appendfsync", "always"]
user    = "redis"
volumes = { data = "/var/lib/redis" }
ready   = { listen = 6379 }
"#;

fn host() -> Result<Host> {
    Host::start(HostOptions::default())
}

fn store(host: &Host, name: &str) -> Result<()> {
    host.apply("store.toml", &STORE.replace("NAME", name))?;
    host.run(&["start", name]).map(drop)
}

fn redis(host: &Host, name: &str, words: &str) -> Result<String> {
    let mut command = vec!["exec", name, "--", "redis-cli"];
    command.extend(words.split(' '));
    Ok(host.run(&command)?.trim().to_owned())
}

fn inside(host: &Host, name: &str, script: &str) -> Result<String> {
    Ok(host.run(&["exec", name, "--", "sh", "-c", script])?.trim().to_owned())
}

#[test]
fn data_stays_when_its_vps_is_deleted() -> Result<()> {
    let mut host = host()?;
    store(&host, "db")?;
    let seen = inside(&host, "db", "stat -c '%U:%G %a' /var/lib/redis")?;
    ensure!(seen == "redis:redis 750", "what the package made is {seen} on the volume");
    redis(&host, "db", "set kept yes")?;
    let rows = host.json(&["volume", "ls"])?;
    ensure!(rows[0]["name"] == "data" && rows[0]["used_by"]["db"] == "/var/lib/redis", "{rows}");

    // A VPS that uses it keeps it.
    let refused = host.cli(&["volume", "rm", "acme/data", "--yes"])?;
    ensure!(refused.code == 4 && refused.err.contains("used by vps \"db\""), "{refused:?}");
    host.run(&["delete", "db", "--yes"])?;
    let told = host.run(&["volume", "ls"])?;
    ensure!(told.contains("acme/data") && told.contains("nobody"), "{told}");

    // Another VPS has other ids, and finds the same owners.
    store(&host, "filler")?;
    host.run(&["delete", "filler", "--yes"])?;
    store(&host, "other")?;
    ensure!(redis(&host, "other", "get kept")? == "yes", "what was written is lost");
    redis(&host, "other", "set again yes")?;

    host.run(&["delete", "other", "--volumes", "--yes"])?;
    let rows = host.json(&["volume", "ls"])?;
    ensure!(rows.as_array().is_some_and(Vec::is_empty), "{rows}");
    host.stop()
}

#[test]
fn a_volume_begins_with_what_the_image_has() -> Result<()> {
    let mut host = host()?;
    let spec = r#"tenant = "acme"
[vps.sh]
image   = "debian:"
command = ["sleep", "1000000"]
volumes = { etc = "/etc", new = "/srv/a/b", mail = "/var/mail" }
"#;
    host.apply("sh.toml", spec)?;
    host.run(&["start", "sh"])?;
    ensure!(inside(&host, "sh", "head -c4 /etc/passwd")? == "root", "no /etc/passwd on the volume");
    ensure!(inside(&host, "sh", "readlink /etc/os-release")? == "../usr/lib/os-release", "a link is not one any more");
    ensure!(
        inside(&host, "sh", "stat -c '%U:%G %a' /etc/shadow /var/mail /srv/a/b")?
            == "root:shadow 640\nroot:mail 2775\nroot:root 755"
    );
    // Once filled, it is the tenant's.
    inside(&host, "sh", "rm /etc/os-release; echo mine > /srv/a/b/file")?;
    host.run(&["restart", "sh"])?;
    ensure!(inside(&host, "sh", "cat /srv/a/b/file; test -e /etc/os-release || echo gone")? == "mine\ngone");
    // What is beside it on disk is out of reach, and a device node on it means nothing.
    ensure!(inside(&host, "sh", "ls -a /srv/a/b | tr '\n' ' '")? == ". .. file");
    let node = host.cli(&["exec", "sh", "--", "mknod", "/srv/a/b/null", "c", "1", "3"])?;
    ensure!(node.code != 0, "a device node was made on a volume");
    host.stop()
}

#[test]
fn a_start_that_is_killed_while_it_fills_a_volume_leaves_no_half() -> Result<()> {
    let mut host = host()?;
    let spec = "tenant = \"acme\"\n[vps.sh]\nimage = \"debian:\"\ncommand = [\"sleep\", \"1000000\"]\nvolumes = { usr = \"/usr\" }\n";
    host.apply("sh.toml", spec)?;
    let place = host.root.join("lib/volumes/acme/usr");
    let starting = host.command(&["start", "sh"]).spawn()?;
    // It is being filled: its first file is there, and the whole is not.
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while fs::read_dir(place.join("new")).map_or(0, Iterator::count) == 0 {
        ensure!(std::time::Instant::now() < deadline && !place.join("data").exists(), "it is never being filled");
        std::thread::yield_now();
    }
    host.kill(host.pid_of("sh")?)?;
    drop(starting.wait_with_output()?);
    ensure!(!place.join("data").exists(), "a half-filled volume is in use");
    host.run(&["start", "sh"])?;
    ensure!(place.join("data").exists() && !place.join("new").exists(), "it is not whole");
    let count = |path: &Path| -> Result<String> {
        let command = format!("find {} | wc -l", path.display());
        Ok(String::from_utf8(std::process::Command::new("sh").args(["-c", &command]).output()?.stdout)?)
    };
    let seen = inside(&host, "sh", "find /usr | wc -l")?;
    ensure!(count(&place.join("data"))?.trim() == seen, "what is seen is not what is there");
    ensure!(seen.parse::<u32>().context("a number")? > 1000, "{seen} files are not a /usr");
    host.stop()
}
