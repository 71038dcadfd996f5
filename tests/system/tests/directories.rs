//! Directories of the host: seen where host.toml allows it, as it allows it, and nowhere else.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
};

use anyhow::{Result, ensure};
use bailiwick_system_tests::{Host, HostOptions};

/// An id that nobody on the machine has.
const OWNER: u32 = 54_321;

fn make(path: &Path, owner: u32, file: &str) -> Result<()> {
    fs::create_dir_all(path)?;
    fs::write(path.join("file"), file)?;
    for path in [path, &path.join("file")] {
        chown(path, Some(owner), Some(owner))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    Ok(fs::set_permissions(path.join("file"), fs::Permissions::from_mode(0o600))?)
}

fn host(place: &Path) -> Result<Host> {
    let table = |name: &str, more: &str| {
        format!("[directory.{name}]\npath = {:?}\ntenants = [\"acme\"]\n{more}\n", place.join(name))
    };
    let config = ["photos", "swapped"].map(|name| table(name, "")).concat()
        + &table("inbox", "write = true\nprograms = false")
        + &table("roots", "write = true")
        + &table("granted", "write = true\nroot = true")
        + &format!("[directory.own]\npath = {:?}\ntenants = [\"*\"]\n", place.join("host/lib/vps"));
    Host::start(HostOptions { config, root: Some(place.join("host")), ..HostOptions::default() })
}

fn spec(tenant: &str, name: &str, directories: &str) -> String {
    format!(
        "tenant = \"{tenant}\"\n[vps.{name}]\nimage = \"debian:\"\ncommand = [\"sleep\", \"1000000\"]\nnesting = true\n\
         directories = {{ {directories} }}\n"
    )
}

fn inside(host: &Host, name: &str, script: &str) -> Result<String> {
    let answer = host.cli(&["exec", name, "--", "sh", "-c", script])?;
    Ok((answer.out + &answer.err).trim().to_owned())
}

#[test]
fn what_host_toml_allows_is_seen_and_nothing_else() -> Result<()> {
    let place = tempfile::Builder::new().prefix("bailiwick-").tempdir_in("/var/tmp")?;
    let at = |name: &str| place.path().join(name);
    for (name, owner) in [("photos", OWNER), ("inbox", OWNER), ("swapped", OWNER), ("roots", 0), ("granted", 0)] {
        make(&at(name), owner, name)?;
    }
    // Of somebody else's, in a directory that is seen.
    fs::write(at("photos/others"), "secret")?;
    fs::set_permissions(at("photos/others"), fs::Permissions::from_mode(0o600))?;
    let mut host = host(place.path())?;
    let refused = |text: &str, says: &[&str]| -> Result<()> {
        fs::write(host.root.join("refused.toml"), text)?;
        let answer = host.cli(&["apply", &host.root.join("refused.toml").to_string_lossy()])?;
        let all = answer.code != 0 && says.iter().all(|says| answer.err.contains(says));
        ensure!(all, "{says:?} in {answer:?}");
        Ok(())
    };
    refused(&spec("acme", "a", "etc = \"/mnt\""), &["no directory `etc`", "[directory.etc]"])?;
    refused(&spec("beta", "a", "photos = \"/mnt\""), &["beta may not see", "`tenants` of [directory.photos]"])?;
    refused(&spec("acme", "a", "photos = { path = \"/m\", write = true }"), &["only read", "[directory.photos]"])?;
    refused(&spec("acme", "a", "roots = { path = \"/m\", write = true }"), &["belongs to root", "[directory.roots]"])?;
    refused(&spec("acme", "a", "own = \"/mnt\""), &["this host's own"])?;
    symlink("/etc", at("link"))?;
    fs::rename(at("swapped"), at("real"))?;
    symlink(at("real"), at("swapped"))?;
    refused(&spec("acme", "a", "swapped = \"/mnt\""), &["symbolic link", "[directory.swapped]"])?;
    // Who looks at the whole host is told before a start is refused.
    let found: serde_json::Value = serde_json::from_str(&host.cli(&["doctor", "--json"])?.out)?;
    let found: Vec<_> = found.as_array().into_iter().flatten().filter(|one| one["what"] == "directory").collect();
    let told = |parts: &[&str]| {
        let seen =
            |one: &&&serde_json::Value| parts.iter().all(|part| one["seen"].as_str().is_some_and(|s| s.contains(part)));
        found.iter().filter(seen).count() == 1
    };
    let all =
        told(&["`swapped`", "symbolic link"]) && told(&["`own`", "this host's own"]) && told(&["`roots`", "to root"]);
    ensure!(all && found.len() == 3, "{found:#?}");
    fs::remove_file(at("swapped"))?;
    fs::rename(at("real"), at("swapped"))?;

    let seen = "photos = \"/photos\", swapped = \"/swapped\", granted = { path = \"/granted\", write = true }, \
                inbox = { path = \"/inbox\", write = true, owner = \"33:33\" }";
    host.apply("a.toml", &spec("acme", "a", seen))?;
    host.run(&["start", "a"])?;
    // Its owner on the host is root inside, or whom the spec names; others are nobody, and stay out of reach.
    let owners = inside(&host, "a", "stat -c '%u:%g' /photos/file /inbox/file /photos/others")?;
    ensure!(owners == "0:0\n33:33\n65534:65534", "{owners}");
    ensure!(
        inside(&host, "a", "cat /photos/file /photos/others")?.starts_with("photoscat: /photos/others: Permission")
    );
    for script in [
        "touch /photos/new",
        "mount -o remount,bind,rw /photos && touch /photos/new",
        "unshare -Urm sh -c 'mount -o remount,bind,rw /photos && touch /photos/new'",
        "umount /photos; touch /photos/new",
        "rm -f /photos/file",
    ] {
        inside(&host, "a", script)?;
        ensure!(at("photos/file").exists() && !at("photos/new").exists(), "{script} changed what is read-only");
    }
    // What it writes is the owner's on the host; nobody else's can be made, nor a setuid program or a device of use.
    let script = "cd /inbox; su -s /bin/sh www-data -c 'echo hello > letter'; touch root; \
                  cp /bin/true p; chmod 4755 p; ./p && echo ran; mknod null c 1 3 && cat null; ls";
    let said = inside(&host, "a", script)?;
    ensure!(fs::read_to_string(at("inbox/letter"))? == "hello\n" && !said.contains("ran"), "{said}");
    let owned = |name: &str| fs::metadata(at(name)).map(|found| (found.uid(), found.gid()));
    ensure!(owned("inbox/letter")? == (OWNER, OWNER) && !at("inbox/root").exists(), "{said}");
    inside(&host, "a", "echo x > /granted/x")?;
    ensure!(owned("granted/x")? == (0, 0), "root = true does not make files of root's");

    // A link in its place is not followed by the next start, though the spec was accepted.
    host.run(&["stop", "a"])?;
    fs::rename(at("swapped"), at("real"))?;
    symlink("/etc", at("swapped"))?;
    let answer = host.cli(&["start", "a"])?;
    ensure!(answer.code != 0 && answer.err.contains("symbolic link"), "{answer:?}");
    fs::remove_file(at("swapped"))?;
    fs::rename(at("real"), at("swapped"))?;
    host.run(&["start", "a"])?;

    // It is neither exported nor deleted.
    host.run(&["export", "a", &at("a.tar").to_string_lossy()])?;
    host.run(&["delete", "a", "--volumes", "--yes"])?;
    ensure!(fs::read_to_string(at("inbox/letter"))? == "hello\n" && at("photos/file").exists());
    let archive = fs::read(at("a.tar"))?;
    ensure!(!archive.windows(5).any(|window| window == b"hello"), "what the host has is in the archive");
    host.stop()
}
