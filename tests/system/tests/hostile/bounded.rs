//! However much an image is: what is reserved stays free, and memory and time end somewhere.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use archive::{Kind, Member, Writer};
use bailiwick_system_tests::disk::Disk;

use crate::place::{Place, archive, archive_of, busybox, directory, file, link};

/// Sends a body in parts, as long as it is taken, and reads the answer.
fn send(place: &Place, image: &str, parts: impl Iterator<Item = Vec<u8>>) -> Result<String> {
    let mut stream = UnixStream::connect(place.host.root.join("run/api.sock"))?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    stream.set_write_timeout(Some(Duration::from_secs(120)))?;
    let image = image.replace(':', "%3A").replace('@', "%40");
    write!(stream, "POST /v1/images/{image}/content HTTP/1.1\r\nhost: x\r\nconnection: close\r\n")?;
    write!(stream, "transfer-encoding: chunked\r\n\r\n")?;
    let mut taken = true;
    for part in parts.map(|part| [format!("{:x}\r\n", part.len()).as_bytes(), &part, b"\r\n"].concat()) {
        match stream.write_all(&part) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                taken = false;
                break;
            }
            Err(error) => return Err(error).context("sending"),
        }
    }
    if taken {
        stream.write_all(b"0\r\n\r\n")?;
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn reference(digit: char) -> String {
    format!("tar:sent@sha256:{}", digit.to_string().repeat(64))
}

/// Bytes and files that are free where the layers are.
fn free(place: &Place) -> Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(&place.layers)?;
    Ok((stat.f_bavail * stat.f_frsize, stat.f_favail))
}

/// The header of a file that is larger than any disk here, and zeroes without an end.
fn endless() -> impl Iterator<Item = Vec<u8>> {
    let mut head = Vec::new();
    let size = 15 << 30;
    Writer::new(&mut head).member(&Member { size, extents: vec![(0, size)], ..file("endless") }).expect("written");
    std::iter::once(head).chain(std::iter::repeat_with(|| vec![7; 1 << 20]))
}

const SPEC: &str = r#"tenant = "acme"
[vps.quiet]
image   = "tar:busybox.tar"
command = ["/bin/busybox", "sleep", "1000000"]
idle    = "never"
"#;

#[test]
fn an_image_without_an_end_stops_at_the_reserve_and_leaves_nothing() -> Result<()> {
    let disk = Disk::new(160, &["mkfs.ext4", "-q", "-m", "0"], "loop")?;
    let mut place = Place::on(&disk, "reserve = { disk = \"20%\" }")?;
    fs::write(place.host.root.join("busybox.tar"), archive_of(&[busybox()?]))?;
    place.host.apply("quiet.toml", SPEC)?;
    let (before, _) = free(&place)?;
    let mut least = u64::MAX;
    let layers = place.layers.clone();
    let parts = endless().inspect(|_| {
        let stat = rustix::fs::statvfs(&layers);
        least = least.min(stat.map_or(u64::MAX, |stat| stat.f_bavail * stat.f_frsize));
    });
    let answer = send(&place, &reference('1'), parts)?;
    ensure!(answer.contains("are reserved") && answer.contains("image prune"), "{answer}");
    // a fifth of 160 MiB, without what the file system takes for itself, and what is written between two looks
    ensure!(least > 20 << 20, "{least} bytes were left");
    ensure!(place.half_made()?.is_empty() && place.layers()?.len() == 2, "something is left");
    ensure!(free(&place)?.0 + (4 << 20) > before, "{before} bytes were free, {:?} are", free(&place)?);
    // The others go on.
    place.host.run(&["start", "quiet"])?;
    place.host.stop()
}

#[test]
fn an_image_of_nothing_but_names_stops_at_the_reserve_of_files() -> Result<()> {
    let disk = Disk::new(160, &["mkfs.ext4", "-q", "-m", "0", "-N", "8192"], "loop")?;
    let mut place = Place::on(&disk, "reserve = { disk = \"20%\" }")?;
    let before = free(&place)?.1;
    for (name, entry) in [("file", file as fn(String) -> Member), ("directory", directory), ("pipe", pipe)] {
        let many: Vec<_> = (0..before).map(|n| entry(format!("{n}"))).collect();
        let empty: Vec<_> = many.into_iter().map(|member| (member, Vec::new())).collect();
        let answer = place.build(name, &archive_of(&empty))?;
        ensure!(
            answer.code == 7 && answer.err.contains("more files") && answer.err.contains("are reserved"),
            "{answer:?}"
        );
        ensure!(place.half_made()?.is_empty() && free(&place)?.1 + 64 > before, "{name}: something is left");
    }
    place.host.stop()
}

fn pipe(path: String) -> Member {
    link(path, Kind::Fifo, "")
}

#[test]
fn many_long_names_take_little_memory_and_what_was_not_said_is_refused() -> Result<()> {
    let mut place = Place::new("images = { size = \"1GiB\", files = 30_000 }")?;
    let init = place.host.pid_of("apps")?;
    let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children"))?;
    let service: i32 = children.trim().parse()?;
    let name = |n: usize| format!("{n:0>255}");
    let mut members: Vec<_> = (0..14_000).map(|n| directory(name(n))).collect();
    members.extend((14_000..28_000).map(|n| file(name(n))));
    members.extend((0..1000).map(|n| link(format!("link-{n}"), Kind::Hard, name(14_000 + n))));
    place.taken("names", &archive(&members))?;
    let status = fs::read_to_string(format!("/proc/{service}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("its peak")?;
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse()?;
    ensure!(peak < 96 << 10, "apps took {peak} KiB");

    // Another content than its name says, half of it, and one that somebody else has.
    let whole = archive(&[file("x")]);
    for part in [&whole[..], &whole[..700], b""] {
        let answer = send(&place, &reference('2'), std::iter::once(part.to_vec()).filter(|part| !part.is_empty()))?;
        ensure!(answer.contains("what was sent is not tar:sent") || answer.contains("no tar archive"), "{answer}");
    }
    ensure!(place.layers()?.len() == 2 && place.half_made()?.is_empty(), "{:?}", place.layers()?);
    let listed = place.host.run(&["images"])?;
    ensure!(!listed.contains("tar:sent"), "{listed}");

    // Refused at its first entry, whatever comes then: at once, and not after all of it was read.
    let begun = Instant::now();
    let upwards = archive(&[file("../x")]);
    let answer =
        send(&place, &reference('3'), std::iter::once(upwards).chain(std::iter::repeat_with(|| vec![0; 1 << 20])))?;
    ensure!(answer.contains("leads out of the image"), "{answer}");
    ensure!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    place.host.stop()
}

#[test]
fn a_hole_of_an_image_is_one_in_a_volume_too() -> Result<()> {
    let disk = Disk::new(160, &["mkfs.ext4", "-q", "-m", "0"], "loop")?;
    let mut place = Place::on(&disk, "reserve = { disk = \"20%\" }")?;
    let tree = place.host.root.join("tree");
    fs::create_dir_all(tree.join("bin"))?;
    fs::create_dir_all(tree.join("srv"))?;
    fs::copy("/bin/busybox", tree.join("bin/busybox"))?;
    let holes = fs::File::create(tree.join("srv/holes"))?;
    (&holes).write_all(b"begin")?;
    holes.set_len(2 << 30)?;
    std::os::unix::fs::FileExt::write_at(&holes, b"middle", 1 << 30)?;
    fs::create_dir(tree.join("srv/deep"))?;
    Command::new("mkfifo").arg(tree.join("srv/pipe")).status()?;
    let spec = SPEC.replace("tar:busybox.tar", "dir:tree").replace("idle ", "volumes = { data = \"/srv\" }\nidle ");
    place.host.apply("quiet.toml", &spec)?;
    place.host.run(&["start", "quiet"])?;
    let run = |script: &str| place.host.run(&["exec", "quiet", "--", "/bin/busybox", "sh", "-c", script]);
    ensure!(run("busybox stat -c %s /srv/holes")?.trim() == (2u64 << 30).to_string());
    ensure!(run("busybox dd if=/srv/holes bs=1M skip=1024 count=1 2>/dev/null | busybox head -c 6")? == "middle");
    ensure!(run("busybox head -c 5 /srv/holes")? == "begin");
    let blocks: u64 = run("busybox stat -c %b /srv/holes")?.trim().parse()?;
    ensure!(blocks < 1000, "{blocks} blocks");
    place.host.stop()
}
