//! What an image may hold, and gives nobody anything by.

use std::{
    fs,
    io::Write,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use archive::{Kind, Member};
use rustix::fs::{getxattr, llistxattr};

use crate::place::{Place, archive_of, busybox, directory, file, link, with};

/// Ids of the host that layers' files belong to.
const LAYER_IDS: std::ops::Range<u32> = 700_000..765_536;

/// Changes of owners and of the own user, and what root may read: of those that a VPS's root has.
const ABLE: u32 = 1 << 0 | 1 << 1 | 1 << 7;

/// Capabilities of whoever runs a file (capabilities(7), revision 2).
fn capabilities(low: u32) -> Vec<u8> {
    [0x0200_0001, low, 0, 0, 0].into_iter().flat_map(u32::to_le_bytes).collect()
}

/// A program with what it is linked to: `cat`, which shows by `/proc/self/status` what it is.
fn programs() -> Result<Vec<(Member, Vec<u8>)>> {
    let linked = Command::new("ldd").arg("/bin/cat").output()?;
    let linked = String::from_utf8(linked.stdout)?;
    let mut found = vec![busybox()?];
    for path in linked.split_whitespace().filter(|word| word.starts_with('/')) {
        found.push((Member { mode: 0o755, ..file(path) }, fs::read(path)?));
    }
    let cat = fs::read("/bin/cat")?;
    let owned = |path: &str, mode, id| Member { mode, owner: (id, id), ..file(path) };
    found.push((owned("bin/cat", 0o755, 0), cat.clone()));
    found.push((owned("bin/cat-root", 0o6755, 0), cat.clone()));
    found.push((owned("bin/cat-other", 0o6755, 4321), cat.clone()));
    found.push((owned("bin/cat-last", 0o6755, 65_535), cat.clone()));
    found.push((with(owned("bin/cat-able", 0o755, 0), "security.capability", &capabilities(ABLE)), cat.clone()));
    found.push((with(owned("bin/cat-all", 0o755, 0), "security.capability", &capabilities(u32::MAX)), cat));
    Ok(found)
}

/// Everything that was tried and is taken, besides the programs.
fn oddities() -> Vec<Member> {
    let overlay = |member: Member| {
        let mut member = member;
        for (name, value) in
            [("opaque", "y"), ("redirect", "/etc"), ("metacopy", ""), ("origin", "x"), ("whiteout", "y")]
        {
            member = with(
                with(member, &format!("user.overlay.{name}"), value.as_bytes()),
                &format!("trusted.overlay.{name}"),
                value.as_bytes(),
            );
        }
        with(with(member, "trusted.other", b"x"), "security.ima", b"x")
    };
    vec![
        overlay(directory("marked")),
        overlay(file("marked/file")),
        overlay(file("bare")),
        with(file("noted"), "user.note", b"kept"),
        // what an access list says is for ids inside: user 65534 may read
        with(Member { mode: 0o640, ..file("listed") }, "system.posix_acl_access", &access_list()),
        file(".wh.bin"),
        file("marked/.wh..wh..opq"),
        link("dev/sda", Kind::Device, ""),
        link("pipe", Kind::Fifo, ""),
        link("root", Kind::Symlink, "/"),
        link("up", Kind::Symlink, "../../../../../../.."),
        // through it into the layer, wherever that is
        file("up/came-up"),
        link("hard-link-of-a-link", Kind::Hard, "root"),
        link("self", Kind::Symlink, "/proc/self/root/etc/shadow"),
        // a link, then a directory, then a link again, then a file
        link("turns", Kind::Symlink, "/etc"),
        directory("turns"),
        link("turns", Kind::Symlink, "/bin/busybox"),
        file("turns"),
        file(b"no-text-\xff\xfe\x80".to_vec()),
        file(format!("long/{}", "n".repeat(255))),
        directory("d/".repeat(128)),
        Member { mode: 0o7777, owner: (65_535, 65_535), ..file("all-bits") },
        Member { modified: (i64::MAX, 0), ..file("late") },
        Member { modified: (i64::MIN, 0), ..file("early") },
    ]
}

/// `u::rw-,u:65534:r--,g::r--,m::r--,o::---` (acl(5), as the kernel keeps it).
fn access_list() -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1u16, 6u16, u32::MAX), (2, 4, 65_534), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
    {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

fn image() -> Result<Vec<u8>> {
    let mut all = programs()?;
    all.extend(oddities().into_iter().map(|member| {
        let content = if member.kind == Kind::File { member.path.clone() } else { Vec::new() };
        (member, content)
    }));
    Ok(archive_of(&all))
}

const SPEC: &str = r#"tenant = "acme"
[vps.odd]
image   = "tar:odd.tar"
command = ["/bin/busybox", "sleep", "1000000"]
idle    = "never"
"#;

#[test]
fn what_is_taken_belongs_to_nobody_of_the_host() -> Result<()> {
    let mut place = Place::new("")?;
    let layer = place.taken("odd", &image()?)?;
    look(&layer)?;
    // Its file capabilities are the layers' root's, which is nobody on the host (revision 3, with that root's id).
    let mut value = [0; 64];
    let length = getxattr(layer.join("bin/cat-able"), "security.capability", &mut value[..])?;
    ensure!(length == 24 && value[3] == 3, "{:?}", &value[..length]);
    ensure!(u32::from_le_bytes(value[20..24].try_into()?) == LAYER_IDS.start, "{:?}", &value[..length]);
    // A user of the host has no way to them; were there one, it would lead to nobody.
    ensure!(fs::metadata(&place.layers)?.mode() & 0o7777 == 0o700, "the layer store is open");
    for (name, id) in [("cat-root", 0), ("cat-other", 4321), ("cat-last", 65_535)] {
        let seen = run_as_user(&layer.join("bin").join(name))?;
        let effective = LAYER_IDS.start + id;
        ensure!(field(&seen, "Uid") == format!("65534 {effective} {effective} {effective}"), "{name}: {seen}");
        ensure!(u64::from_str_radix(&field(&seen, "CapEff"), 16)? == 0, "{name}: {seen}");
    }
    for name in ["cat-able", "cat-all"] {
        let seen = run_as_user(&layer.join("bin").join(name))?;
        for set in ["CapEff", "CapPrm", "CapAmb"] {
            ensure!(u64::from_str_radix(&field(&seen, set), 16)? == 0, "{name}: {seen}");
        }
    }
    place.host.stop()
}

/// All that is in a layer has an owner that layers have, and no kind or attribute that would mean something to the host or
/// to an overlay.
fn look(path: &Path) -> Result<()> {
    let stat = path.symlink_metadata()?;
    ensure!(
        LAYER_IDS.contains(&stat.uid()) && LAYER_IDS.contains(&stat.gid()),
        "{path:?}: {}:{}",
        stat.uid(),
        stat.gid()
    );
    let mut names = vec![0; 65_536];
    let length = llistxattr(path, &mut names[..])?;
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let kept = [&b"user.note"[..], b"security.capability", b"system.posix_acl_access"].contains(&name);
        ensure!(kept, "{path:?} has {}", String::from_utf8_lossy(name));
    }
    let kind = stat.file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            look(&entry?.path())?;
        }
    } else {
        use std::os::unix::fs::FileTypeExt as _;
        ensure!(kind.is_file() || kind.is_symlink() || kind.is_fifo(), "{path:?} is a {kind:?}");
    }
    Ok(())
}

/// Runs a program of a layer as a user of the host, who was handed it open since it has no way there; what it is then.
fn run_as_user(program: &Path) -> Result<String> {
    let program = fs::File::open(program)?;
    rustix::io::fcntl_setfd(&program, rustix::io::FdFlags::empty())?;
    let path = format!("/proc/self/fd/{}", program.as_raw_fd());
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", &path, "/proc/self/status"]);
    let output = command.output()?;
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{}", said());
    Ok(String::from_utf8(output.stdout)?)
}

/// A line of `/proc/PID/status`, with single blanks.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn what_is_taken_runs_and_gives_the_vpss_own_root_alone() -> Result<()> {
    let mut place = Place::new("")?;
    let (host, store) = (&place.host, place.layers.clone());
    fs::write(host.root.join("odd.tar"), image()?)?;
    host.apply("odd.toml", SPEC)?;
    host.run(&["start", "odd"])?;
    let status = |user: &str, program: &str| host.run(&["exec", "odd", "-u", user, "--", program, "/proc/self/status"]);
    ensure!(field(&status("1000", "/bin/cat")?, "Uid") == "1000 1000 1000 1000");
    for (program, id) in [("/bin/cat-root", 0), ("/bin/cat-other", 4321), ("/bin/cat-last", 65_535)] {
        let seen = status("1000", program)?;
        ensure!(field(&seen, "Uid") == format!("1000 {id} {id} {id}"), "{program}: {seen}");
    }
    // No more than its own root may: what is bounded is bounded for it too.
    let bounded = field(&status("root", "/bin/cat")?, "CapBnd");
    let able = status("1000", "/bin/cat-able")?;
    ensure!(u64::from_str_radix(&field(&able, "CapEff"), 16)? == u64::from(ABLE), "{able}");
    ensure!(field(&able, "CapBnd") == bounded, "{able}");
    let all = host.cli(&["exec", "odd", "-u", "1000", "--", "/bin/cat-all", "/proc/self/status"])?;
    ensure!(all.code == 126 && all.err.contains("not permitted"), "{all:?}");
    // The same, as the host sees it.
    let block = serde_json::from_slice::<serde_json::Value>(&fs::read(host.root.join("lib/vps/odd/ids"))?)?;
    let first = 1_048_576 + 65_536 * block["first"].as_u64().context("its first block")?;
    let mut waits = host.command(&["exec", "-i", "odd", "-u", "1000", "--", "/bin/cat-root"]);
    let mut waits = waits.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let seen = of_the_host("cat-root", host.pid_of("odd")?);
    let _ = waits.stdin.take().context("its input")?.flush();
    waits.wait()?;
    let seen = seen?;
    let (real, root) = (first + 1000, first);
    ensure!(field(&seen, "Uid") == format!("{real} {root} {root} {root}"), "{seen}");

    // It sees its own tree, and none of the marks in there hides or shows anything.
    let run = |script: &str| host.run(&["exec", "odd", "--", "/bin/busybox", "sh", "-c", script]);
    ensure!(run("cat /marked/file /bare /came-up /turns")? == "marked/filebareup/came-upturns");
    ensure!(run("busybox ls -a /marked | busybox tr '\\n' ' '")?.trim() == ". .. .wh..wh..opq file");
    ensure!(host.run(&["exec", "odd", "-u", "65534", "--", "/bin/cat", "/listed"])? == "listed");
    ensure!(host.cli(&["exec", "odd", "-u", "1000:1000", "--", "/bin/cat", "/listed"])?.code != 0);
    ensure!(run("cat /self 2>&1 || true")?.contains("No such file"), "it sees a file of the host's");
    ensure!(run("echo ../* /up/* /root/* | busybox tr ' ' '\\n' | busybox grep -c outside || true")?.trim() == "0");
    let mounts = run("cat /proc/self/mountinfo")?;
    ensure!(!mounts.contains(&*store.to_string_lossy()), "{mounts}");
    let nodes = run("busybox find / -xdev '(' -type b -o -type c ')' 2>/dev/null || true")?;
    ensure!(nodes.is_empty(), "{nodes}");
    let other = run("busybox find / -xdev -name secret 2>/dev/null || true")?;
    ensure!(other.is_empty(), "it sees another image's file: {other}");
    // What it does to its files is its own, and not the layer's.
    run(
        "busybox rm -rf /marked /bin/cat-able; echo new > /bare; busybox chown 7 /noted; busybox mknod /null c 1 3; true",
    )?;
    host.run(&["image", "verify"])?;
    place.host.stop()
}

/// `/proc/PID/status` of the program of that name in the VPS whose first process is `init`.
fn of_the_host(name: &str, init: i32) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children"))?;
        for pid in children.split_whitespace() {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            if field(&status, "Name") == name {
                return Ok(status);
            }
        }
        // It is execing: nobody tells when it has.
        ensure!(Instant::now() < deadline, "no process {name} below {init}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_directory_with_sockets_pipes_and_whiteouts_is_one_image_or_none() -> Result<()> {
    let mut place = Place::new("")?;
    let tree = place.host.root.join("tree");
    fs::create_dir_all(tree.join("bin"))?;
    fs::copy("/bin/busybox", tree.join("bin/busybox"))?;
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket"))?;
    std::os::unix::fs::symlink(place.host.root.join("outside"), tree.join("link"))?;
    fs::hard_link(place.host.root.join("outside/file"), tree.join("shared"))?;
    let before = place.outside()?;
    let build = || place.host.cli(&["image", "build", &format!("dir:{}", tree.display())]);
    let answer = build()?;
    ensure!(answer.code == 0, "{answer:?}");
    let outside = |path: &Path| path.starts_with(place.host.root.join("outside"));
    let kept = |seen: std::collections::BTreeMap<_, _>| -> Vec<_> {
        seen.into_iter().filter(|(path, _): &(std::path::PathBuf, _)| outside(path)).collect()
    };
    ensure!(kept(before) == kept(place.outside()?), "its source was changed");
    let has = |name: &str| -> Result<bool> {
        Ok(place.layers()?.iter().any(|layer| layer.join(name).symlink_metadata().is_ok()))
    };
    ensure!(!has("socket")? && has("shared")? && has("link")?, "{:?}", place.layers()?);

    let node = |name: &str, kind: &str, numbers: &[&str]| -> Result<()> {
        let made = Command::new("mknod").arg(tree.join(name)).arg(kind).args(numbers).status()?;
        ensure!(made.success(), "mknod {name}");
        Ok(())
    };
    // a whiteout, which is a device too, and one that is a disk
    for (name, kind, numbers) in [("gone", "c", ["0", "0"]), ("disk", "b", ["8", "0"])] {
        node(name, kind, &numbers)?;
        let answer = build()?;
        ensure!(answer.code == 2 && answer.err.contains(&format!("`{name}` is a device node")), "{answer:?}");
        fs::remove_file(tree.join(name))?;
    }
    node("pipe", "p", &[])?;
    let answer = build()?;
    ensure!(answer.code == 0, "{answer:?}");
    for what in ["/dev/zero", "/proc/self/fd/0"] {
        let answer = place.host.cli(&["image", "build", &format!("tar:{what}")])?;
        ensure!(answer.code == 2 && answer.err.contains("no file"), "{what}: {answer:?}");
    }
    place.host.stop()
}
