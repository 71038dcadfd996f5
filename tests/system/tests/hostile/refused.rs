use anyhow::Result;
use archive::Kind;

use crate::place::{Place, archive, directory, file, gzip, link, with};

/// Deeper than its names say: each link is a way to the end of the last part.
fn deep(parts: usize) -> Vec<archive::Member> {
    let names = vec!["d"; 120].join("/");
    let mut members = vec![directory(format!("l0/{names}"))];
    for n in 1..parts {
        members.push(link(format!("l{n}"), Kind::Symlink, format!("l{}/{names}", n - 1)));
        members.push(directory(format!("l{n}/{names}")));
    }
    members
}

#[test]
fn what_leads_out_of_a_layer_is_refused_or_stays_in_it() -> Result<()> {
    let mut place = Place::new("images = { size = \"64MiB\", files = 3000 }")?;
    let layer = place.layers()?.remove(0);
    let id = layer.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // as `apps` sees them
    let other = format!("/layers/layers/{id}");
    let outside = place.host.root.join("outside").to_string_lossy().into_owned();
    for to in [
        &outside,
        &other,
        "/layers",
        "/data",
        "/tmp",
        "../../../layers",
        "/proc/self/root",
        "/proc/self/cwd",
        "/dev/shm",
    ] {
        let d = link("d", Kind::Symlink, to);
        place.refused("through", &archive(&[d.clone(), file("d/file")]), &["`d`", "link to nothing"])?;
        place.refused("late", &archive(&[directory("d"), d.clone(), file("d/file")]), &["`d`", "link to nothing"])?;
        place.refused("hard", &archive(&[d, link("x", Kind::Hard, "d/file")]), &["`x`", "hard link"])?;
    }
    for to in [format!("{outside}/file"), format!("{other}/etc/secret"), "/etc/passwd".to_owned()] {
        place.refused("hard", &archive(&[link("x", Kind::Hard, to)]), &["`x`", "is no file before it"])?;
    }
    for path in ["../x", "a/../../x", "/../x", "a/..", "./../layers/x", ".."] {
        place.refused("upwards", &archive(&[file(path)]), &[path, "`..`"])?;
        place.refused("upwards", &archive(&[directory(path)]), &[path, "`..`"])?;
        place.refused("upwards", &archive(&[file("f"), link("h", Kind::Hard, path)]), &["`..`"])?;
    }
    // the same name again, as something else
    place.refused(
        "again",
        &archive(&[file("d/x"), link("d", Kind::Symlink, "/layers"), file("d/x")]),
        &["comes again"],
    )?;
    place.refused("loop", &archive(&[link("l", Kind::Symlink, "l"), file("l/x")]), &["a loop of them"])?;
    place.refused("no directory", &archive(&[file("f"), file("f/x")]), &["`f` has content, and is no directory"])?;
    // deeper than descriptors and paths reach; the kernel itself follows no more than 40 links
    place.refused("deep", &archive(&deep(18)), &["directories deep"])?;
    place.refused("links", &archive(&deep(50)), &["too many links"])?;
    place.host.run(&["image", "verify"])?;
    place.host.stop()
}

#[test]
fn what_no_layer_may_hold_is_named() -> Result<()> {
    let mut place = Place::new("images = { size = \"64MiB\", files = 3000 }")?;
    let owned = |uid, gid| archive::Member { owner: (uid, gid), mode: 0o4755, ..file("bin/su") };
    for id in [65_536, 65_537, 700_000, 1 << 31, u64::from(u32::MAX), 1 << 32, (1 << 32) + 1, u64::MAX] {
        let number = id.to_string();
        place.refused("user", &archive(&[owned(id, 0)]), &["bin/su", "belongs to user", &number])?;
        place.refused("group", &archive(&[owned(0, id)]), &["bin/su", "belongs to group", &number])?;
    }
    // -1 and -2, as GNU's tar writes them
    for last in [0xff, 0xfe] {
        let mut bytes = archive(&[file("bin/su")]);
        bytes[108..116].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, last]);
        place.refused("negative", &summed(bytes), &["bin/su", "belongs to user"])?;
    }
    place.refused("device", &archive(&[link("sda", Kind::Device, "")]), &["`sda` is a device node"])?;
    place.refused("device", &archive(&[link("etc/sda", Kind::Device, "")]), &["`etc/sda` is a device node"])?;
    place.refused("device", &archive(&[link("device", Kind::Device, "")]), &["`device` is a device node"])?;
    place.refused("root", &archive(&[link("./", Kind::Symlink, "/layers")]), &["image's root"])?;
    for value in [&b""[..], b"x", &[1; 12], &[0; 20], &[0xff; 24], &[0; 65_536]] {
        place.refused(
            "capability",
            &archive(&[with(file("x"), "security.capability", value)]),
            &["`x`", "capabilities"],
        )?;
    }
    for value in [&b"x"[..], &[0xff; 28], &[0; 4], &[2, 0, 0, 0, 1, 0, 7, 0, 0, 0, 0, 0]] {
        let acl = with(file("x"), "system.posix_acl_access", value);
        place.refused("access list", &archive(&[acl]), &["`x`", "system.posix_acl_access"])?;
    }
    place.refused("attribute", &archive(&[with(file("x"), "user.large", &[7; 65_537])]), &["`x`", "user.large"])?;
    place.refused(
        "attribute",
        &archive(&[with(file("x"), &format!("user.{}", "n".repeat(300)), b"x")]),
        &["`x`", "attribute"],
    )?;
    place.refused("name", &archive(&[file("n".repeat(256))]), &["255 bytes"])?;
    place.refused("path", &archive(&[file("p/".repeat(2500))]), &["no path"])?;
    place.refused("deep", &archive(&[directory("d/".repeat(200))]), &["directories deep"])?;
    place.refused(
        "shown",
        &archive(&[archive::Member { owner: (70_000, 0), ..file("a\u{1b}[2J\nb\u{202e}") }]),
        &["a\\u{1b}[2J\\nb"],
    )?;
    place.refused(
        "no text",
        &archive(&[archive::Member { owner: (70_000, 0), ..file(b"\xff\xfe/x".to_vec()) }]),
        &["belongs to"],
    )?;
    place.refused("empty", &archive(&[]), &["empty"])?;
    place.refused("nothing", b"", &["no tar archive"])?;
    place.host.stop()
}

/// With the checksum of what its first header says now.
fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[148..156].fill(b' ');
    let sum: u64 = bytes[..512].iter().map(|byte| u64::from(*byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes
}

#[test]
fn what_is_too_much_is_refused_with_the_bound() -> Result<()> {
    let mut place = Place::new("images = { size = \"64MiB\", files = 3000 }")?;
    let many: Vec<_> = (0..3001).map(|n| file(format!("{n}"))).collect();
    place.refused("many", &archive(&many), &["3000 entries", "images.files"])?;
    place.refused("zeroes", &gzip(&vec![0; 80 << 20])?, &["goes on after its end"])?;
    // a label of 80 MiB, which is passed over, and what is before the first file
    let mut bytes = archive(&[file("x")]);
    bytes[156] = b'V';
    bytes[124..136].copy_from_slice(b"00500000000\0");
    let mut bytes = summed(bytes);
    bytes.resize(90 << 20, 0);
    place.refused("bomb", &gzip(&bytes)?, &["it is larger than 67108864 bytes", "images.size"])?;
    // holes: as large as a disk, on the paper of a few blocks
    for size in [65 << 20, 1 << 40, i64::MAX as u64] {
        let member = archive::Member { size, extents: vec![(0, 1)], ..file("holes") };
        let mut bytes = Vec::new();
        let mut writer = archive::Writer::new(&mut bytes);
        writer.member(&member)?;
        writer.content(b"x")?;
        writer.finish()?;
        place.refused("holes", &bytes, &["larger than 67108864 bytes", "images.size"])?;
    }
    let whole = archive(&[file("a"), file("b")]);
    place.refused("cut", &whole[..1500], &["ends early"])?;
    let mut later = whole.clone();
    later[1024 + 5] ^= 0xff;
    place.refused("changed", &later, &["damaged at byte"])?;
    place.host.stop()
}
