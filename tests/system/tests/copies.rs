//! How short a VPS stands still while it is exported, where its volumes' blocks can be shared, and where they can't.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bailiwick_system_tests::{Host, HostOptions, disk::Disk};

/// Writes each number to one volume, then to the other.
const SPEC: &str = r#"tenant = "acme"
[vps.pair]
image   = "debian:"
command = ["sh", "-c", "i=0; while i=$((i+1)); do echo $i >> /srv/a/log; echo $i >> /srv/b/log; sleep 0.01; done"]
volumes = { a = "/srv/a", b = "/srv/b" }
idle    = "never"
[volume.a]
size = "100MiB"
"#;

/// What is in the first one besides, of each kind.
const CONTENT: &str = "cd /srv/a && rm -rf * && head -c 60000001 /dev/urandom > big && ln big hard && mkdir -p deep/er && \
    for n in $(seq 300); do echo $n > deep/er/$n; done && truncate -s 1T holes && \
    dd if=/dev/urandom of=holes bs=4096 seek=1000000 count=3 conv=notrunc 2>/dev/null && mkfifo fifo && \
    ln -s /etc/passwd link && chown 33:44 big && chmod 4711 deep/er/7 && touch -d @1000000 deep";

const WITHIN: Duration = Duration::from_secs(20);

fn host(disk: &Disk) -> Result<Host> {
    let host = Host::start(HostOptions { root: Some(disk.root.clone()), ..HostOptions::default() })?;
    host.apply("pair.toml", SPEC)?;
    host.run(&["start", "pair"])?;
    Ok(host)
}

fn inside(host: &Host, script: &str) -> Result<String> {
    host.run(&["exec", "pair", "--", "sh", "-ec", script])
}

fn lines(host: &Host) -> Result<u64> {
    Ok(inside(host, "wc -l < /srv/b/log")?.trim().parse()?)
}

/// Waits until it writes; nothing that stands still does.
fn goes_on(host: &Host) -> Result<()> {
    let (before, until) = (lines(host)?, Instant::now() + WITHIN);
    while lines(host)? == before {
        ensure!(Instant::now() < until, "it does not go on");
    }
    host.await_state("pair", "running", Duration::from_secs(1))
}

/// An export that has begun, and of which nobody reads more than the first bytes.
struct Begun {
    export: Child,
    start: Vec<u8>,
}

fn begin(host: &Host) -> Result<Begun> {
    let mut export = host.command(&["export", "pair", "-"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut start = vec![0; 512];
    match export.stdout.as_mut().context("output")?.read_exact(&mut start) {
        Ok(()) => Ok(Begun { export, start }),
        Err(error) => bail!("{error}: {}", String::from_utf8_lossy(&export.wait_with_output()?.stderr)),
    }
}

impl Begun {
    /// The whole archive.
    fn read(mut self, to: &Path) -> Result<()> {
        let mut file = fs::File::create(to)?;
        file.write_all(&self.start)?;
        std::io::copy(self.export.stdout.as_mut().context("output")?, &mut file)?;
        let ended = self.export.wait_with_output()?;
        ensure!(ended.status.success(), "{}: {}", ended.status, String::from_utf8_lossy(&ended.stderr));
        Ok(())
    }

    fn give_up(mut self) -> Result<()> {
        self.export.kill()?;
        self.export.wait()?;
        Ok(())
    }
}

/// Files of the volumes' file system that nothing leads to any more, and that somebody holds.
fn held(disk: &Disk) -> usize {
    let prefix = format!("{}/volumes/#", disk.path().display());
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let fds = processes.filter_map(|process| fs::read_dir(process.path().join("fd")).ok()).flatten().flatten();
    fds.filter_map(|fd| fs::read_link(fd.path()).ok()).filter(|to| to.to_string_lossy().starts_with(&prefix)).count()
}

fn nothing_is_held(disk: &Disk) -> Result<()> {
    let until = Instant::now() + WITHIN;
    while held(disk) > 0 {
        ensure!(Instant::now() < until, "somebody still holds a copy");
        std::thread::yield_now();
    }
    let volumes = fs::read_dir(disk.path().join("volumes/acme"))?.flatten().map(|entry| entry.file_name());
    let mut volumes: Vec<_> = volumes.filter(|name| !name.to_string_lossy().starts_with(".dead-")).collect();
    volumes.sort();
    ensure!(volumes == ["a", "b"], "something is left: {volumes:?}");
    ensure!(fs::read_dir(disk.path().join("volumes"))?.count() == 1, "something is left beside the tenant's volumes");
    Ok(())
}

/// What find(1) and sha256sum(1) say of a volume, but for its log.
fn listing(disk: &Disk, volume: &str) -> Result<String> {
    let script = "find . ! -name log -printf '%P %y %m %U %G %s %l %n ' -printf '%Ts\\n' | sed 's/^ .*//' | sort; \
                  sha256sum big hard deep/er/*; dd if=holes bs=4096 skip=999999 count=5 2>/dev/null | sha256sum; getfattr -Rd . 2>&1";
    let data = disk.path().join("volumes/acme").join(volume).join("data");
    let out = Command::new("sh").args(["-c", script]).current_dir(&data).output()?;
    Ok(String::from_utf8(out.stdout)?)
}

/// The last number of a log of which every line is whole.
fn last(disk: &Disk, volume: &str) -> Result<u64> {
    let log = fs::read_to_string(disk.path().join("volumes/acme").join(volume).join("data/log"))?;
    ensure!(log.ends_with('\n'), "half a line in {volume}");
    Ok(log.lines().last().context("a line")?.parse()?)
}

/// How long it stood still, as the event of its export says it.
fn stood(host: &Host) -> Result<String> {
    let events = host.json(&["events"])?;
    let of_it = |event: &&serde_json::Value| event["what"] == "exported";
    let last = events.as_array().and_then(|events| events.iter().rfind(of_it)).context("no event says so")?;
    Ok(last["detail"].as_str().unwrap_or_default().to_owned())
}

/// It goes on while its archive has hardly begun, whatever becomes of its files or of the daemon; and the archive has what
/// was there at one moment.
fn goes_on_at_once(mkfs: &[&str]) -> Result<()> {
    // What a copy takes is nothing that counts as the volume's.
    let counts = mkfs[0] == "mkfs.xfs" && std::env::var_os("BAILIWICK_PROJECT_QUOTAS").is_some();
    let disk = Disk::new(1000, mkfs, if counts { "loop,prjquota" } else { "loop" })?;
    let mut host = host(&disk)?;
    inside(&host, CONTENT)?;
    if mkfs[0] == "mkfs.btrfs" {
        // Files that are written in place share no blocks with others.
        let set = Command::new("chattr").arg("+C").arg(disk.path().join("volumes/acme/b/data")).status()?;
        ensure!(set.success());
    }
    inside(&host, "head -c 1000000 /dev/urandom > /srv/b/in-place")?;
    ensure!(host.cli(&["doctor"])?.out.contains("they share blocks at"));
    let (before, first) = (listing(&disk, "a")?, last(&disk, "b")?);
    let begun = begin(&host)?;
    ensure!(held(&disk) > 0, "nothing was copied");
    goes_on(&host)?;
    host.kill(host.daemon()?)?;
    inside(&host, "cd /srv/a; echo other > big; rm -r deep; truncate -s 0 holes")?;
    goes_on(&host)?;
    let file = host.root.join("pair.tar");
    begun.read(&file)?;
    ensure!(stood(&host)?.starts_with("stood still for ") && !stood(&host)?.contains(':'), "{}", stood(&host)?);
    nothing_is_held(&disk)?;
    host.run(&["import", &file.to_string_lossy(), "--name", "copy"])?;
    ensure!(listing(&disk, "copy-a")? == before, "{before}\nbecame\n{}", listing(&disk, "copy-a")?);
    let holes = fs::metadata(disk.path().join("volumes/acme/copy-a/data/holes"))?;
    ensure!(holes.blocks() * 512 < 1 << 20, "holes are filled");
    let (a, b) = (last(&disk, "copy-a")?, last(&disk, "copy-b")?);
    ensure!(b >= first && (a == b || a == b + 1), "{a} and {b} were never there at once");
    let same = |volume: &str| fs::read(disk.path().join("volumes/acme").join(volume).join("data/in-place"));
    ensure!(same("b")? == same("copy-b")?);
    host.run(&["delete", "copy", "--volumes", "--yes"])?;

    // Who reads it goes; control goes; all go.
    inside(&host, CONTENT)?;
    begin(&host)?.give_up()?;
    nothing_is_held(&disk)?;
    let begun = begin(&host)?;
    host.kill(host.pid_of("control")?)?;
    nothing_is_held(&disk)?;
    begun.give_up()?;
    goes_on(&host)?;
    let begun = begin(&host)?;
    host.crash()?;
    nothing_is_held(&disk)?;
    begun.give_up()?;
    let mut host = host.again()?;
    host.await_state("pair", "running", WITHIN)?;
    goes_on(&host)?;
    host.stop()
}

#[test]
fn on_btrfs_it_goes_on_at_once() -> Result<()> {
    goes_on_at_once(&["mkfs.btrfs", "-q"])
}

#[test]
fn on_xfs_it_goes_on_at_once() -> Result<()> {
    goes_on_at_once(&["mkfs.xfs", "-q"])
}

#[test]
fn elsewhere_so_does_one_with_little_data_and_another_stands_still_for_as_long_as_it_is_read() -> Result<()> {
    let disk = Disk::new(900, &["mkfs.ext4", "-q"], "loop")?;
    let mut host = host(&disk)?;
    inside(&host, CONTENT)?;
    let begun = begin(&host)?;
    goes_on(&host)?;
    begun.give_up()?;
    nothing_is_held(&disk)?;

    // Where there is no room for a copy it is read while it stands still.
    let filler = disk.path().join("filler");
    let script = "free=$(df --output=avail -k . | tail -n 1); fallocate -l $((free - 16384))K filler";
    ensure!(Command::new("sh").args(["-ec", script]).current_dir(disk.path()).status()?.success());
    let begun = begin(&host)?;
    ensure!(host.state("pair")? == "frozen", "it is not held");
    begun.read(Path::new("/dev/null"))?;
    ensure!(
        stood(&host)?.contains("No space left on device"),
        "stood {:?}: {}",
        stood(&host)?,
        host.run(&["why", "pair"])?
    );
    fs::remove_file(filler)?;
    goes_on(&host)?;

    // More than is copied in a moment.
    ensure!(host.cli(&["doctor"])?.out.contains("they can't share blocks at"));
    inside(&host, "fallocate -l 300MiB /srv/b/much")?;
    let begun = begin(&host)?;
    ensure!(host.state("pair")? == "frozen", "it is not held");
    begun.read(&host.root.join("pair.tar"))?;
    host.await_state("pair", "running", WITHIN)?;
    ensure!(
        stood(&host)?.contains("more than 256 MiB can't be shared"),
        "stood {:?}: {}",
        stood(&host)?,
        host.run(&["why", "pair"])?
    );
    // The daemon goes, and with it who reads the volumes: it has begun to.
    let mut begun = begin(&host)?;
    let output = begun.export.stdout.as_mut().context("output")?;
    output.read_exact(&mut vec![0; 4 << 20])?;
    host.kill(host.daemon()?)?;
    output.read_to_end(&mut Vec::new())?;
    let ended = begun.export.wait_with_output()?;
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(
        ended.status.code() == Some(1) && told.contains("vps \"pair\" was not exported: "),
        "{}: {told}",
        ended.status
    );
    host.await_state("pair", "running", WITHIN)?;
    // Who reads it goes; control goes.
    begin(&host)?.give_up()?;
    host.await_state("pair", "running", WITHIN)?;
    let begun = begin(&host)?;
    host.kill(host.pid_of("control")?)?;
    host.await_state("pair", "running", WITHIN)?;
    begun.give_up()?;
    goes_on(&host)?;
    nothing_is_held(&disk)?;
    host.stop()
}
