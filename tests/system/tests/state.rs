//! All that `control` was told, out of one host and into another.

use std::{fs, io::Write, os::unix::fs::PermissionsExt, process::Stdio};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{Host, HostOptions};
use serde_json::Value;

const SECRET: &str = "zq7-what-nobody-may-read";
const BLOG: &str = r#"tenant = "acme"
allow = ["blog -> db:3306"]
[vps.blog]
image   = "debian:"
command = ["sleep", "1000000"]
secrets = { db = "/run/secrets/db" }
env     = { "odd name" = "of 'several'\nlines" }
[vps.db]
image   = "debian:"
command = ["perl", "-MIO::Socket::INET", "-e", "$s = IO::Socket::INET->new(LocalPort => 3306, Listen => 9) or die; sleep 1000000"]
volumes = { data = "/var/lib/data" }
[[vps.db.job]]
name  = "night"
run   = ["sh", "-c", "echo dumped; exit 3"]
every = "30d"
[volume.data]
size = "64MiB"
"#;
const OTHER: &str = "tenant = \"beta\"\n[vps.shop]\nimage = \"debian:\"\ncommand = [\"perl\", \"-MIO::Socket::INET\", \"-e\", \
                     \"$s = IO::Socket::INET->new(LocalPort => 80, Listen => 9) or die; sleep 1000000\"]\n\
                     routes = { \"http://shop.example:21490\" = 80 }\n";

fn set_secret(host: &Host, name: &str, value: &str) -> Result<()> {
    let mut set = host.command(&["secret", "set", name]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    set.stdin.take().context("input")?.write_all(value.as_bytes())?;
    ensure!(set.wait()?.success());
    Ok(())
}

/// What a file says came about: addresses, wakes, jobs. Whether a VPS is up is not the other host's.
fn pasts(file: &str) -> Result<Value> {
    let mut pasts = serde_json::from_slice::<Value>(&fs::read(file)?)?["past"].take();
    for past in pasts.as_object_mut().context("an object")?.values_mut() {
        past["wakes"].as_object_mut().map(|wakes| wakes.remove("up"));
    }
    Ok(pasts)
}

fn specs(host: &Host) -> Result<Vec<String>> {
    ["blog", "db", "shop"].iter().map(|name| host.run(&["get", name])).collect()
}

#[test]
fn a_host_is_rebuilt_on_another_machine() -> Result<()> {
    let place = tempfile::tempdir()?;
    let at = |name: &str| place.path().join(name).to_string_lossy().into_owned();
    let (file, phrase, wrong, bare) = (at("host.state"), at("phrase"), at("wrong"), at("bare.state"));
    fs::write(&phrase, "correct horse battery\n")?;
    fs::write(&wrong, "battery horse correct\n")?;
    let mut host = Host::start(HostOptions::default())?;
    set_secret(&host, "acme/db", SECRET)?;
    // Set, and used by nobody.
    set_secret(&host, "beta/spare", "spare")?;
    host.apply("blog.toml", BLOG)?;
    host.apply("shop.toml", OTHER)?;
    let before = specs(&host)?;
    // What came about: wakes, addresses, and what a job did.
    host.run(&["start", "db", "shop"])?;
    host.run(&["stop", "db"])?;
    host.run(&["start", "db"])?;
    ensure!(host.cli(&["job", "run", "db", "night"])?.code == 3, "the job's own end");
    let asked = host.cli(&["state", "export", &file])?;
    ensure!(asked.code == 2 && asked.err.contains("--passphrase-file"), "{asked:?}");
    host.run(&["state", "export", &file, "--passphrase-file", &phrase])?;
    host.run(&["state", "export", &bare, "--no-secrets"])?;
    let past = pasts(&file)?;
    let (db, shop) = (&past["db"], &past["shop"]);
    ensure!(db["wakes"]["starts"] == 2 && db["jobs"]["night"]["last"]["status"] == 3, "{past:#}");
    ensure!(shop["wakes"]["starts"] == 1 && shop["address"].is_string(), "{past:#}");
    ensure!(fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600, "others can read it");
    for file in [&file, &bare] {
        ensure!(!fs::read_to_string(file)?.contains(SECRET), "a secret is in {file}");
    }
    let again = host.cli(&["state", "export", &file, "--passphrase-file", &phrase])?;
    ensure!(again.code == 4 && again.err.contains("--force"), "{again:?}");
    // A host that has something is left alone.
    let refused = host.cli(&["state", "import", &file, "--passphrase-file", &phrase])?;
    ensure!(refused.code == 4 && refused.err.contains("3 VPSs and 2 secrets"), "{refused:?}");
    // What was changed since becomes as it was; what is new stays.
    host.apply("db.toml", &BLOG.replace("64MiB", "32MiB"))?;
    host.apply("new.toml", &OTHER.replace("shop", "new"))?;
    host.run(&["state", "import", &file, "--passphrase-file", &phrase, "--replace"])?;
    ensure!(specs(&host)? == before && host.cli(&["get", "new"])?.code == 0);
    host.stop()?;

    // Another machine: nothing is there but images.
    let mut host = Host::start(HostOptions::default())?;
    let denied = host.cli(&["state", "import", &file, "--passphrase-file", &wrong])?;
    ensure!(denied.code == 5 && denied.err.contains("not the passphrase"), "{denied:?}");
    let unset = host.cli(&["state", "import", &bare])?;
    ensure!(unset.code == 3 && unset.err.contains("secret set acme/db"), "{unset:?}");
    let mut newer: serde_json::Value = serde_json::from_slice(&fs::read(&bare)?)?;
    newer["format"] = 9.into();
    fs::write(&bare, newer.to_string())?;
    let refused = host.cli(&["state", "import", &bare])?;
    ensure!(refused.code == 2 && refused.err.contains("in a format that"), "{refused:?}");
    fs::write(&bare, "tenant = \"acme\"\n")?;
    ensure!(host.cli(&["state", "import", &bare])?.err.contains("no file of `bailiwick state export`"));
    ensure!(
        host.run(&["ps"])?.starts_with("no VPSs")
            && host.json(&["secret", "ls"])?.as_array().is_some_and(Vec::is_empty)
    );

    let told = host.run(&["state", "import", &file, "--passphrase-file", &phrase])?;
    ensure!(told.starts_with("3 VPSs and 2 secrets"), "{told}");
    ensure!(specs(&host)? == before, "a spec is another");
    let again = at("again.state");
    host.run(&["state", "export", &again, "--no-secrets"])?;
    ensure!(pasts(&again)? == past, "{:#}", pasts(&again)?);
    ensure!(host.row("db")?["address"] == past["db"]["address"]);
    let read = host.run(&["exec", "blog", "--", "cat", "/run/secrets/db"])?;
    ensure!(read == SECRET, "its secret says {read:?}");
    host.stop()
}
