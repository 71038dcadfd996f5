//! Images of archives and directories. The store is the test's own: what is pruned is nobody else's.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use bailiwick_system_tests::{Host, HostOptions};

fn host() -> Result<(Host, tempfile::TempDir)> {
    let layers = tempfile::tempdir_in("/var/tmp")?;
    Ok((Host::start(HostOptions { layers: Some(layers.path().to_owned()), ..HostOptions::default() })?, layers))
}

/// A root filesystem of one program.
fn rootfs(host: &Host, marker: &str) -> Result<()> {
    let root = host.root.join("rootfs");
    fs::create_dir_all(root.join("bin"))?;
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    let _ = std::os::unix::fs::symlink("busybox", root.join("bin/sh"));
    let _ = std::os::unix::fs::symlink("busybox", root.join("bin/cat"));
    fs::write(root.join("marker"), marker)?;
    let arguments = ["--numeric-owner", "-czf", "app.tar.gz", "-C", "rootfs", "."];
    ensure!(Command::new("tar").args(arguments).current_dir(&host.root).status()?.success(), "tar");
    Ok(())
}

fn spec(image: &str) -> String {
    format!("tenant = \"acme\"\n[vps.app]\nimage = \"{image}\"\ncommand = [\"/bin/busybox\", \"sleep\", \"1000\"]\n")
}

#[test]
fn an_archive_and_a_directory_run_and_a_change_is_seen() -> Result<()> {
    let (mut host, _layers) = host()?;
    for (image, first, second) in [("tar:app.tar.gz", "one", "two"), ("dir:./rootfs", "three", "four")] {
        rootfs(&host, first)?;
        let path = host.root.join("app.toml");
        fs::write(&path, spec(image))?;
        let file = path.to_str().context("a path")?;
        host.run(&["apply", file])?;
        let marker = || host.run(&["exec", "app", "--", "/bin/cat", "/marker"]);
        host.run(&["restart", "app"])?;
        ensure!(marker()? == first, "{}", marker()?);
        ensure!(host.run(&["apply", file])?.contains("1 as they were"), "nothing has changed");
        ensure!(host.run(&["get", "app"])?.contains("@sha256:"), "the digest is stored");
        rootfs(&host, second)?;
        let changed = host.run(&["apply", file, "--dry-run"])?;
        ensure!(changed.contains("image = ") && changed.contains("1 to change"), "{changed}");
        host.run(&["apply", file])?;
        // it still runs the older one
        host.run(&["image", "prune"])?;
        ensure!(marker()? == first, "its layer was taken");
        host.run(&["restart", "app"])?;
        ensure!(marker()? == second, "{}", marker()?);
    }
    host.stop()
}

#[test]
fn a_damaged_layer_is_named_and_mended() -> Result<()> {
    let (mut host, layers) = host()?;
    rootfs(&host, "one")?;
    let path = host.root.join("app.toml");
    fs::write(&path, spec("tar:app.tar.gz"))?;
    let file = path.to_str().context("a path")?;
    host.run(&["apply", file])?;
    let rows = host.json(&["image", "ls"])?;
    let (image, layer) =
        (rows[0]["reference"].as_str().context("a name")?, rows[0]["layers"][0].as_str().context("an id")?);
    host.run(&["image", "verify", image])?;
    let tree = layers.path().join("layers").join(layer);
    fs::write(tree.join("marker"), "two")?;
    let answer = host.cli(&["image", "verify", image])?;
    ensure!(answer.code != 0 && answer.err.contains(layer) && answer.err.contains("--refresh"), "{answer:?}");
    let archive = format!("tar:{}", host.root.join("app.tar.gz").display());
    host.run(&["image", "build", "--refresh", &archive])?;
    host.run(&["image", "verify", image])?;
    fs::remove_dir_all(&tree)?;
    host.cli(&["stop", "app"])?;
    let answer = host.cli(&["start", "app"])?;
    ensure!(answer.code != 0 && answer.err.contains(layer) && answer.err.contains("missing"), "{answer:?}");
    host.stop()
}

#[test]
fn what_is_unused_is_pruned_and_a_hostile_archive_leaves_nothing() -> Result<()> {
    let (mut host, layers) = host()?;
    rootfs(&host, "one")?;
    let archive = format!("tar:{}", host.root.join("app.tar.gz").display());
    host.run(&["image", "build", &archive])?;
    ensure!(host.run(&["image", "prune", "--dry-run"])?.contains("would be removed"), "it is not seen");
    ensure!(host.json(&["image", "ls"])?.as_array().is_some_and(|rows| rows.len() == 1), "a dry run removed it");
    host.run(&["image", "prune"])?;
    ensure!(fs::read_dir(layers.path().join("layers"))?.count() == 0, "its layer is left");
    // GNU tar writes what it is told: out of the tree, and through a link
    let outside = host.root.join("outside");
    fs::create_dir_all(host.root.join("evil/d"))?;
    fs::write(host.root.join("evil/d/x"), "evil")?;
    let name = outside.display();
    for transform in ["s,evil/d/x,../../../../../../../..{}/x,", "s,evil/d/x,a/../../b,"] {
        let transform = transform.replace("{}", &name.to_string());
        let arguments = ["-cPf", "evil.tar", "--transform", &transform, "evil/d/x"];
        ensure!(Command::new("tar").args(arguments).current_dir(&host.root).status()?.success(), "tar");
        let answer = host.cli(&["image", "build", &format!("tar:{}", host.root.join("evil.tar").display())])?;
        ensure!(answer.code == 2 && answer.err.contains("`..`"), "{answer:?}");
    }
    fs::write(host.root.join("no.tar"), [7; 2048])?;
    let answer = host.cli(&["image", "build", &format!("tar:{}", host.root.join("no.tar").display())])?;
    ensure!(answer.code == 2 && answer.err.contains("no tar archive"), "{answer:?}");
    ensure!(!outside.exists() && fs::read_dir(layers.path().join("layers"))?.count() == 0, "something was written");
    host.stop()
}
