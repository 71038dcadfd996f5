//! One tenant fills the disk; the others, and the host, go on.

use std::{fs, process::Stdio, time::Duration};

use anyhow::{Result, ensure};
use bailiwick_system_tests::{Host, HostOptions, disk::Disk};

const WITHIN: Duration = Duration::from_secs(60);

const SPEC: &str = r#"tenant = "acme"
[vps.filler]
image   = "debian:"
command = ["sleep", "1000000"]
idle    = "never"
[vps.late]
image   = "debian:"
command = ["sleep", "1000000"]
"#;

const NEIGHBOUR: &str = r#"tenant = "beta"
[vps.db]
image   = "debian:redis-server"
command = ["redis-server", "--bind", "*", "--protected-mode", "no", "--dir", "/var/lib/redis", "--appendonly", "yes", "--appendfsync", "always"]
user    = "redis"
volumes = { data = "/var/lib/redis" }
ready   = { listen = 6379 }
"#;

#[test]
fn who_fills_the_disk_stands_still_and_the_others_go_on() -> Result<()> {
    let disk = Disk::new(240, &["mkfs.ext4", "-q", "-m", "0"], "loop")?;
    let mut host = Host::start(HostOptions {
        root: Some(disk.root.clone()),
        config: "reserve = { disk = \"5%\" }".to_owned(),
        ..HostOptions::default()
    })?;
    host.apply("filler.toml", SPEC)?;
    host.apply("db.toml", NEIGHBOUR)?;
    host.run(&["start", "filler"])?;
    host.run(&["start", "db"])?;

    // To the brim, and again and again should it not be stopped.
    let script = "while :; do dd if=/dev/zero of=/fill bs=1M conv=notrunc oflag=append 2>/dev/null; done";
    let mut filling = host.command(&["exec", "filler", "--", "sh", "-c", script]).stdout(Stdio::null()).spawn()?;
    host.await_state("filler", "frozen", WITHIN)?;
    let why = host.run(&["why", "filler"])?;
    ensure!(why.contains("are reserved") && why.contains("wrote"), "{why}");
    let row = host.row("filler")?;
    ensure!(row["failure"].as_str().is_some_and(|failure| failure.contains("of the disk are free")), "{row}");
    ensure!(host.run(&["events"])?.contains("held"), "no event says so");
    let thawed = host.cli(&["thaw", "filler"])?;
    ensure!(host.state("filler")? == "frozen", "who filled the disk goes on: {thawed:?}");

    // The neighbour writes to its disk, and control to its own.
    for n in 0..20 {
        let value = n.to_string();
        let set = host.run(&["exec", "db", "--", "redis-cli", "set", "key", &value])?;
        ensure!(set.trim() == "OK", "the neighbour can't write: {set}");
    }
    host.apply("filler.toml", &SPEC.replace("late", "later"))?;
    let refused = host.cli(&["start", "later"])?;
    ensure!(refused.code != 0 && refused.err.contains("are reserved"), "{refused:?}");
    let refused = host.cli(&["volume", "import", "acme/v", "/etc/apt"])?;
    ensure!(refused.code == 7 && refused.err.contains("are reserved"), "{refused:?}");

    // Room again: it goes on by itself.
    filling.kill()?;
    filling.wait()?;
    fs::File::options().write(true).open(disk.path().join("vps/filler/state/upper/fill"))?.set_len(0)?;
    host.await_state("filler", "running", WITHIN)?;
    host.run(&["start", "later"])?;
    host.stop()
}
