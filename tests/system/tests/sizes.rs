//! Sizes of volumes and of what a VPS writes elsewhere, where the file system counts them.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{Host, HostOptions, disk::Disk};

const SPEC: &str = r#"tenant = "acme"
[vps.sh]
image   = "debian:"
command = ["sleep", "1000000"]
volumes = { small = "/srv/small", free = "/srv/free" }
limits  = { disk = "24MiB" }
[volume.small]
size = "16MiB"
"#;

fn inside(host: &Host, script: &str) -> Result<(i32, String)> {
    let answer = host.cli(&["exec", "sh", "--", "sh", "-c", script])?;
    Ok((answer.code, answer.err))
}

/// A file of so many MiB, on disk.
fn write(host: &Host, path: &str, mib: u32) -> Result<(i32, String)> {
    inside(
        host,
        &format!(
            "dd if=/dev/urandom of={path} bs=1M count={mib} conv=fsync 2>&1 >/dev/null | cat >&2; test $(stat -c %s {path}) = $(({mib} << 20))"
        ),
    )
}

/// What programs are told: xfs calls a project that is full a disk that is full (xfs_quota(8)).
fn is_full(said: &str) -> bool {
    ["quota exceeded", "No space left on device"].iter().any(|words| said.contains(words))
}

fn enforced(host: &mut Host) -> Result<()> {
    let told = host.apply("sh.toml", SPEC)?;
    ensure!(!told.contains("not enforced"), "{told}");
    host.run(&["start", "sh"])?;
    for (path, fits) in [("/srv/small/file", 8), ("/root/file", 8)] {
        let (code, err) = write(host, path, fits)?;
        ensure!(code == 0, "{fits} MiB do not fit in {path}: {err}");
        let (code, err) = write(host, path, 40)?;
        ensure!(code != 0 && is_full(&err), "40 MiB in {path}: {code} {err}");
    }
    // What is beside it has its own account, and a subvolume of its own making is no way out.
    let (code, err) = write(host, "/srv/free/file", 40)?;
    ensure!(code == 0, "what has no size is bounded: {err}");
    let rows = host.json(&["volume", "ls"])?;
    let row = |name: &str| rows.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == name)).cloned();
    let (small, free) = (row("small").context("small")?, row("free").context("free")?);
    let used = small["used"].as_u64().context("used")?;
    ensure!(small["size"] == 16 << 20 && (4 << 20..=17 << 20).contains(&used), "{small}");
    ensure!(free["used"].as_u64().is_some_and(|used| used >= 40 << 20), "{free}");

    // A larger size counts from the next start; an import is bounded too.
    host.run(&["stop", "sh"])?;
    let refused = host.cli(&["volume", "import", "acme/small", "/usr/share", "--replace"])?;
    ensure!(refused.code == 7 && is_full(&refused.err) && refused.err.contains("its size is 16 MiB"), "{refused:?}");
    host.apply("sh.toml", &SPEC.replace("16MiB", "64MiB").replace("24MiB", "64MiB"))?;
    host.run(&["start", "sh"])?;
    for path in ["/srv/small/file", "/root/file"] {
        let (code, err) = write(host, path, 40)?;
        ensure!(code == 0, "40 MiB do not fit in {path} of 64: {err}");
    }

    // A VPS that comes in an archive has the sizes of its spec; one whose content is larger does not come.
    let file = host.root.join("sh.tar");
    let path = file.to_string_lossy().into_owned();
    host.run(&["export", "sh", &path])?;
    host.run(&["delete", "sh", "--volumes", "--yes"])?;
    let good = fs::read(&file)?;
    let mut smaller = good.clone();
    let size = b"size = \\\"64MiB";
    let at = smaller.windows(size.len()).position(|part| part == size).context("a size")?;
    smaller[at + size.len() - 5..][..2].copy_from_slice(b"16");
    fs::write(&file, &smaller)?;
    let refused = host.cli(&["import", &path])?;
    ensure!(refused.code == 7 && is_full(&refused.err) && refused.err.contains("its size is 16 MiB"), "{refused:?}");
    ensure!(host.cli(&["get", "sh"])?.code == 3 && host.json(&["volume", "ls"])?.as_array().is_some_and(Vec::is_empty));
    fs::write(&file, &good)?;
    host.run(&["import", &path])?;
    host.run(&["start", "sh"])?;
    let (code, err) = write(host, "/srv/small/more", 40)?;
    ensure!(code != 0 && is_full(&err), "80 MiB fit in 64 that were imported: {code} {err}");
    // What is full can be removed.
    host.run(&["delete", "sh", "--volumes", "--yes"])?;
    let until = Instant::now() + Duration::from_secs(20);
    while ["volumes/acme", "vps"].iter().any(|path| {
        let entries = fs::read_dir(host.root.join("lib").join(path)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with(".dead-"))
    }) {
        ensure!(Instant::now() < until, "what was at its size can't be removed: {}", host.daemon_log());
        std::thread::yield_now();
    }
    Ok(())
}

#[test]
fn btrfs_enforces_sizes() -> Result<()> {
    let disk = Disk::new(512, &["mkfs.btrfs", "-q"], "loop")?;
    let enabled = Command::new("btrfs").args(["quota", "enable"]).arg(disk.path()).status()?;
    ensure!(enabled.success(), "btrfs quota enable");
    let mut host = Host::start(HostOptions { root: Some(disk.root.clone()), ..HostOptions::default() })?;
    enforced(&mut host)?;
    host.stop()
}

/// Where the kernel has project quotas; `make test-v2` runs it where it has.
fn projects(mkfs: &[&str]) -> Result<()> {
    let disk = match Disk::new(512, mkfs, "loop,prjquota") {
        Ok(disk) => disk,
        Err(error) if std::env::var_os("BAILIWICK_PROJECT_QUOTAS").is_some() => return Err(error),
        Err(_) => {
            eprintln!("this kernel has no project quotas");
            return Ok(());
        }
    };
    let mut host = Host::start(HostOptions { root: Some(disk.root.clone()), ..HostOptions::default() })?;
    enforced(&mut host)?;
    host.stop()
}

#[test]
fn ext4_enforces_sizes_with_project_quotas() -> Result<()> {
    projects(&["mkfs.ext4", "-q", "-m", "0", "-O", "quota,project"])
}

#[test]
fn xfs_enforces_sizes_with_project_quotas() -> Result<()> {
    projects(&["mkfs.xfs", "-q"])
}

#[test]
fn a_size_that_is_not_enforced_is_told() -> Result<()> {
    let disk = Disk::new(300, &["mkfs.ext4", "-q"], "loop")?;
    let mut host = Host::start(HostOptions { root: Some(disk.root.clone()), ..HostOptions::default() })?;
    let told = host.apply("sh.toml", SPEC)?;
    ensure!(told.contains("volume `acme/small` is not enforced: its ext4 counts no projects"), "{told}");
    ensure!(told.contains("limits.disk of vps \"sh\" is not enforced"), "{told}");
    host.run(&["start", "sh"])?;
    let listed = host.run(&["volume", "ls"])?;
    ensure!(listed.contains("16 MiB (not enforced)"), "{listed}");
    let doctor = host.cli(&["doctor"])?;
    ensure!(doctor.out.contains("sizes on disk") && doctor.out.contains("counts no projects"), "{doctor:?}");
    host.stop()
}
