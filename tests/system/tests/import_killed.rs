//! Whatever is killed when an import has just filled a volume, no volume is left without its VPS, and nobody else's goes.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{Host, HostOptions};

const SPEC: &str = r#"tenant = "acme"
[vps.sh]
image   = "debian:"
command = ["sleep", "1000000"]
volumes = { a = "/srv/a", b = "/srv/b" }
"#;

const WITHIN: Duration = Duration::from_secs(20);

/// A host, the archive of its VPS, and where the archive's end begins.
fn exported() -> Result<(Host, Vec<u8>, usize)> {
    let host = Host::start(HostOptions::default())?;
    host.apply("sh.toml", SPEC)?;
    host.run(&["exec", "sh", "--", "sh", "-c", "echo a > /srv/a/file; echo b > /srv/b/file"])?;
    let file = host.root.join("sh.tar");
    host.run(&["export", "sh", &file.to_string_lossy()])?;
    let archive = fs::read(&file)?;
    let end = archive.windows(9).rposition(|part| part == b"end.json\0").context("an end")?;
    Ok((host, archive, end))
}

fn volume(host: &Host, name: &str) -> PathBuf {
    host.root.join("lib/volumes/acme").join(name)
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + WITHIN;
    while !is_so() {
        ensure!(Instant::now() < deadline, "{what}");
        std::hint::spin_loop();
    }
    Ok(())
}

/// An import of all but the end, whose last volume has just appeared.
fn filled(host: &Host, archive: &[u8], end: usize) -> Result<Child> {
    let mut import = host.command(&["import", "-", "--name", "copy"]);
    let mut import = import.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    // With the header of what follows a volume its stream is over.
    import.stdin.as_mut().context("input")?.write_all(&archive[..end + 512])?;
    let last = volume(host, "copy-b");
    until("no volume appears", || last.exists())?;
    Ok(import)
}

fn nothing_is_left(host: &Host) -> Result<()> {
    let there = || -> Vec<_> {
        let entries = fs::read_dir(volume(host, "")).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        names.sort();
        names
    };
    until("a volume is left without its vps", || there() == ["a", "b"])?;
    ensure!(host.cli(&["get", "copy"])?.code == 3, "a vps is left");
    Ok(())
}

#[test]
fn who_dies_when_a_volume_has_just_been_filled_leaves_none() -> Result<()> {
    let (mut host, archive, end) = exported()?;
    type Victims = fn(&Host) -> Result<Vec<i32>>;
    let all: [(&str, Victims); 3] = [
        ("daemon", |host| Ok(vec![host.daemon()?])),
        ("control", |host| Ok(vec![host.pid_of("control")?])),
        ("both", |host| Ok(vec![host.pid_of("control")?, host.daemon()?])),
    ];
    for (what, victims) in all {
        let victims = victims(&host)?;
        let mut import = filled(&host, &archive, end)?;
        victims.iter().try_for_each(|pid| host.kill(*pid))?;
        drop(import.stdin.take());
        let ended = import.wait_with_output()?;
        ensure!(!ended.status.success(), "{what}: an import succeeded without its end");
        until("the host does not come back", || host.cli(&["volume", "ls"]).is_ok_and(|answer| answer.code == 0))?;
        nothing_is_left(&host).context(what)?;
    }
    // All at once, as when the machine stops.
    let import = filled(&host, &archive, end)?;
    host.crash()?;
    import.wait_with_output()?;
    let mut host = host.again()?;
    nothing_is_left(&host)?;

    // What a VPS has used is no import's any more.
    fs::write(host.root.join("whole.tar"), &archive)?;
    host.run(&["import", &host.root.join("whole.tar").to_string_lossy(), "--name", "copy"])?;
    ensure!(volume(&host, "copy-a").join("import").exists());
    ensure!(host.run(&["exec", "copy", "--", "cat", "/srv/a/file"])? == "a\n");
    ensure!(!volume(&host, "copy-a").join("import").exists());
    host.stop()
}

/// Puts a volume of somebody else's in the place of one.
fn foreign(volume: &Path) -> Result<()> {
    fs::remove_dir_all(volume)?;
    fs::create_dir_all(volume.join("data"))?;
    Ok(fs::write(volume.join("data/theirs"), "kept")?)
}

#[test]
fn what_somebody_else_made_meanwhile_stays() -> Result<()> {
    let (mut host, archive, end) = exported()?;
    let all = [host.pid_of("control")?, host.daemon()?];
    let import = filled(&host, &archive, end)?;
    host.crash()?;
    until("control or daemon outlives the host", || {
        !all.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists())
    })?;
    import.wait_with_output()?;
    foreign(&volume(&host, "copy-a"))?;
    let mut host = host.again()?;
    // The first one has been looked at when the second one goes.
    let second = volume(&host, "copy-b");
    until("what was imported stays", || !second.exists())?;
    ensure!(fs::read(volume(&host, "copy-a").join("data/theirs"))? == b"kept", "somebody's volume is gone");
    host.stop()
}
