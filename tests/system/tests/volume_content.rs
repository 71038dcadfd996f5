//! What is in a volume goes in and out as tar streams, whole or not at all, and leads nowhere.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{Host, HostOptions};

const STORE: &str = r#"tenant = "TENANT"
[vps.NAME]
image   = "debian:redis-server"
command = ["redis-server", "--bind", "*", "--protected-mode", "no", "--dir", "/var/lib/redis", "--appendonly", "yes", "--appendfsync", "always"]
user    = "redis"
volumes = { data = "/var/lib/redis" }
ready   = { listen = 6379 }
"#;

fn store(host: &Host, tenant: &str, name: &str) -> Result<()> {
    host.apply("store.toml", &STORE.replace("TENANT", tenant).replace("NAME", name))?;
    host.run(&["start", name]).map(drop)
}

fn redis(host: &Host, name: &str, words: &str) -> Result<String> {
    let mut command = vec!["exec", name, "--", "redis-cli"];
    command.extend(words.split(' '));
    Ok(host.run(&command)?.trim().to_owned())
}

fn sh(script: &str, at: &Path) -> Result<()> {
    let done = Command::new("sh").args(["-ec", script]).current_dir(at).status()?;
    ensure!(done.success(), "`{script}` failed");
    Ok(())
}

fn work(host: &Host) -> Result<PathBuf> {
    let path = host.root.join("work");
    fs::create_dir_all(&path)?;
    Ok(path)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

#[test]
fn a_servers_data_moves_to_another_tenant_with_its_owners() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let work = work(&host)?;
    store(&host, "acme", "db")?;
    redis(&host, "db", "set moved yes")?;
    // While a VPS that uses it is up it can be read, and not be replaced.
    let refused = host.cli(&["volume", "import", "acme/data", text(&work), "--replace"])?;
    ensure!(refused.code == 4 && refused.err.contains("used by vps \"db\""), "{refused:?}");
    host.run(&["stop", "db"])?;
    let archive = work.join("data.tar.gz");
    sh(&format!("{} --root {} volume export acme/data | gzip > data.tar.gz", bailiwick(), host.root.display()), &work)?;
    // Ids in there are those that programs inside see, whoever reads it.
    let listed = Command::new("tar").args(["-tzvf", text(&archive), "--numeric-owner"]).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    ensure!(listed.contains("appendonly") && !listed.contains("70000") && !listed.contains("10485"), "{listed}");

    // Into a volume that is not there yet, packed; and one that is, which has to be said.
    host.run(&["volume", "import", "beta/data", text(&archive)])?;
    let refused = host.cli(&["volume", "import", "beta/data", text(&archive)])?;
    ensure!(refused.code == 4 && refused.err.contains("--replace"), "{refused:?}");
    store(&host, "beta", "other")?;
    ensure!(redis(&host, "other", "get moved")? == "yes", "what was exported is not there");
    let owner = host.run(&["exec", "other", "--", "stat", "-c", "%U:%G %a", "/var/lib/redis"])?;
    ensure!(owner.trim() == "redis:redis 750", "it belongs to {owner}");
    redis(&host, "other", "set mine now")?;
    host.run(&["stop", "other"])?;

    // A directory of somebody else's, given to the server's user.
    sh("mkdir tree && tar -xzf data.tar.gz -C tree && chown -R 4321:4321 tree", &work)?;
    let ids = host.run(&["exec", "other", "--", "sh", "-c", "echo $(id -u redis):$(id -g redis)"])?;
    host.run(&["stop", "other"])?;
    host.run(&["volume", "import", "beta/data", text(&work.join("tree")), "--replace", "--owner", ids.trim()])?;
    host.run(&["start", "other"])?;
    ensure!(redis(&host, "other", "get moved")? == "yes" && redis(&host, "other", "get mine")?.is_empty());
    host.stop()
}

fn bailiwick() -> String {
    bailiwick_system_tests::host::programs().join("bailiwick").display().to_string()
}

#[test]
fn a_hostile_archive_gets_nothing() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let work = work(&host)?;
    sh("mkdir a b c && ln -s /etc a/l && mkdir b/l && echo x > b/l/bailiwick-was-here && echo x > c/f", &work)?;
    sh("tar -cf through.tar -C a l && tar -rf through.tar -C ../work/b l/bailiwick-was-here", &work)?;
    sh("tar -cf upwards.tar -P --transform 's,^,../../../../../../tmp/,' c/f", &work)?;
    sh(&format!("tar -cPf absolute.tar {}/c/f", work.display()), &work)?;
    sh("tar -cf owner.tar --owner=70000 --group=0 c", &work)?;
    for (archive, why) in
        [("through", "leads through"), ("upwards", "by `..`"), ("absolute", "absolute path"), ("owner", "id 70000")]
    {
        let refused = host.cli(&["volume", "import", "acme/v", text(&work.join(format!("{archive}.tar")))])?;
        ensure!(refused.code == 2 && refused.err.contains(why), "{archive}: {refused:?}");
        ensure!(host.json(&["volume", "ls"])?.as_array().is_some_and(Vec::is_empty), "{archive} left a volume");
    }
    ensure!(!Path::new("/etc/bailiwick-was-here").exists() && fs::read(work.join("c/f"))? == b"x\n");
    ensure!(fs::read_dir(host.root.join("lib/volumes/acme"))?.next().is_none() || leftovers_go(&host)?);

    // Devices are left out. Setuid files stay what they are: nobody on the host reaches them, and inside they gain nothing.
    sh("mknod c/null c 1 3 && cp /bin/true c/suid && chmod 4755 c/suid && ln -s /etc/passwd c/link", &work)?;
    let told = host.run(&["volume", "import", "acme/v", text(&work.join("c"))])?;
    ensure!(told.contains("1 devices and sockets were left out"), "{told}");
    let data = host.root.join("lib/volumes/acme/v/data");
    let suid = fs::symlink_metadata(data.join("suid"))?;
    ensure!((suid.uid(), suid.mode() & 0o7777) == (700_000, 0o4755), "{} {:o}", suid.uid(), suid.mode());
    ensure!(fs::metadata(data.parent().context("a parent")?)?.mode() & 0o777 == 0o700, "anyone can reach it");
    ensure!(!data.join("null").exists() && fs::read_link(data.join("link"))? == Path::new("/etc/passwd"));
    host.stop()
}

/// What was unpacked in part goes in a child process.
fn leftovers_go(host: &Host) -> Result<bool> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::read_dir(host.root.join("lib/volumes/acme"))?.next().is_some() {
        ensure!(Instant::now() < deadline, "something stays of an import that failed");
        std::thread::yield_now();
    }
    Ok(true)
}

/// An import whose archive has begun and does not end.
fn begun(host: &Host, replace: bool) -> Result<std::process::Child> {
    let mut arguments = vec!["volume", "import", "acme/v", "-"];
    arguments.extend(replace.then_some("--replace"));
    let mut command = host.command(&arguments);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut archive = Vec::new();
    let mut tar = Command::new("tar").args(["-cf", "-", "-C", "/usr/share", "doc"]).stdout(Stdio::piped()).spawn()?;
    tar.stdout.take().context("output")?.take(8 << 20).read_to_end(&mut archive)?;
    tar.kill()?;
    tar.wait()?;
    child.stdin.as_mut().context("input")?.write_all(&archive)?;
    let new = host.root.join("lib/volumes/acme/.new-v/data");
    let deadline = Instant::now() + Duration::from_secs(20);
    while fs::read_dir(&new).map_or(0, Iterator::count) == 0 {
        ensure!(Instant::now() < deadline, "nothing is being unpacked");
        std::thread::yield_now();
    }
    Ok(child)
}

#[test]
fn an_import_that_is_killed_leaves_the_volume_as_it_was() -> Result<()> {
    let mut host = Host::start(HostOptions::default())?;
    let work = work(&host)?;
    sh("mkdir kept && echo kept > kept/file", &work)?;

    // The client goes: there is no volume.
    let mut client = begun(&host, false)?;
    let other = host.cli(&["volume", "import", "acme/v", text(&work.join("kept"))])?;
    ensure!(other.code == 4 && other.err.contains("is being imported"), "{other:?}");
    client.kill()?;
    client.wait()?;
    leftovers_go(&host)?;
    ensure!(host.json(&["volume", "ls"])?.as_array().is_some_and(Vec::is_empty), "half a volume is there");

    // The daemon goes: what was there stays.
    host.run(&["volume", "import", "acme/v", text(&work.join("kept"))])?;
    let mut client = begun(&host, true)?;
    host.kill(host.daemon()?)?;
    drop(client.stdin.take());
    let ended = client.wait_with_output()?;
    ensure!(!ended.status.success(), "an import succeeded whose daemon was killed");
    let deadline = Instant::now() + Duration::from_secs(10);
    while host.cli(&["volume", "ls"])?.code != 0 {
        ensure!(Instant::now() < deadline, "the daemon does not come back");
    }
    let volumes = host.root.join("lib/volumes/acme");
    while fs::read_dir(&volumes)?.count() > 1 {
        ensure!(Instant::now() < deadline, "something stays of an import that was killed");
        std::thread::yield_now();
    }
    ensure!(fs::read(volumes.join("v/data/file"))? == b"kept\n", "what was there is lost");

    // One that ends early is none.
    let mut client = begun(&host, true)?;
    drop(client.stdin.take());
    let ended = client.wait_with_output()?;
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(ended.status.code() == Some(2) && told.contains("ends early"), "{told}");
    ensure!(fs::read(volumes.join("v/data/file"))? == b"kept\n", "what was there is lost");
    host.stop()
}
