use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::PathBuf,
};

use archive::Writer;
use proptest::prelude::*;
use rustix::fs::getxattr;
use tempfile::TempDir;

use super::*;
use crate::Store;

const LIMITS: Limits = Limits { bytes: 8 << 20, entries: 1000, reserve: 0 };

fn file(path: &str) -> Member {
    Member { path: path.into(), mode: 0o644, ..Member::default() }
}

fn link(path: &str, kind: Kind, to: &str) -> Member {
    Member { path: path.into(), kind, link: to.into(), mode: 0o777, ..Member::default() }
}

fn directory(path: &str) -> Member {
    Member { path: path.into(), kind: Kind::Directory, mode: 0o755, ..Member::default() }
}

/// An archive; a file's content is its path.
fn archive(entries: &[Member]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes);
    for entry in entries {
        let content = if entry.kind == Kind::File { entry.path.clone() } else { Vec::new() };
        let size = content.len() as u64;
        writer.member(&Member { size, extents: vec![(0, size)], ..entry.clone() }).expect("written");
        writer.content(&content).expect("written");
    }
    writer.finish().expect("written");
    bytes
}

struct Place {
    directory: TempDir,
    store: Store,
}

fn place() -> Place {
    let directory = tempfile::tempdir().expect("a directory");
    fs::create_dir(directory.path().join("store")).expect("made");
    fs::create_dir(directory.path().join("outside")).expect("made");
    fs::write(directory.path().join("outside/file"), "outside").expect("written");
    let store = Store::open(&directory.path().join("store")).expect("a store");
    Place { directory, store }
}

impl Place {
    fn unpack(&self, bytes: &[u8]) -> Result<PathBuf, StoreError> {
        let added = self.store.add_with(|root| unpack(bytes, root, LIMITS));
        let (id, _) = added?;
        Ok(self.store.layer_path(&id))
    }

    fn said(&self, entries: &[Member]) -> String {
        let error = self.unpack(&archive(entries)).expect_err("it is refused").to_string();
        assert!(!error.contains(char::is_control), "{error:?}");
        assert_eq!(
            fs::read_dir(self.store.layer_path(&"0".repeat(64).try_into().expect("an id")).parent().expect("layers"))
                .expect("layers")
                .count(),
            0
        );
        let left = fs::read_dir(self.directory.path().join("store")).expect("a store");
        assert!(!left.flatten().any(|e| e.file_name().as_bytes().starts_with(b".tmp")), "something is left");
        error
    }

    /// All there is beside the store, with what a write would change.
    fn outside(&self) -> Vec<(PathBuf, u32, u64, i64, i64)> {
        let mut found = Vec::new();
        let mut todo = vec![self.directory.path().join("outside")];
        while let Some(path) = todo.pop() {
            let stat = path.symlink_metadata().expect("it is there");
            found.push((path.clone(), stat.mode(), stat.nlink(), stat.ctime(), stat.ctime_nsec()));
            if stat.is_dir() {
                todo.extend(fs::read_dir(path).expect("read").flatten().map(|entry| entry.path()));
            }
        }
        found
    }
}

#[test]
fn an_archive_becomes_a_tree_with_what_it_says() {
    let place = place();
    let su = Member { mode: 0o4755, modified: (1_700_000_000, 0), ..file("./usr/bin/su") };
    let attribute = Member { attributes: vec![(b"user.note".to_vec(), b"a\nb=c".to_vec())], ..file("noted") };
    let entries = [
        Member { modified: (7, 0), ..directory("./") },
        Member { modified: (8, 0), mode: 0o2750, ..directory("./usr") },
        su,
        link("./usr/bin/other", Kind::Hard, "./usr/bin/su"),
        link("bin", Kind::Symlink, "usr/bin"),
        // through the link, as in trees whose /bin has moved
        file("bin/through"),
        link("abs", Kind::Symlink, "/etc/passwd"),
        file("/absolute"),
        file("twice"),
        file("twice"),
        link("fifo", Kind::Fifo, ""),
        link("dev/null", Kind::Device, ""),
        file(&format!("long/{}", "n".repeat(200))),
        attribute,
    ];
    let bytes = archive(&entries);
    let layer = place.unpack(&bytes).expect("unpacked");
    let stat = |path: &str| layer.join(path).symlink_metadata().expect("it is there");
    assert_eq!(
        (stat("usr/bin/su").mode(), stat("usr/bin/su").mtime(), stat("usr/bin/su").nlink()),
        (0o104_755, 1_700_000_000, 2)
    );
    assert_eq!((stat("usr").mode(), stat("usr").mtime(), stat("").mtime()), (0o42_750, 8, 7));
    assert_eq!(fs::read(layer.join("usr/bin/through")).expect("read"), b"bin/through");
    assert_eq!(fs::read(layer.join("absolute")).expect("read"), b"/absolute");
    assert!(stat("fifo").mode() & 0o170_000 == 0o010_000 && !layer.join("dev").exists());
    assert_eq!(stat(&format!("long/{}", "n".repeat(200))).len(), 205);
    let mut value = [0; 16];
    assert_eq!(getxattr(layer.join("noted"), "user.note", &mut value[..]), Ok(5));
    // an archive always is the same layer, whatever it is compressed with
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, &bytes).expect("compressed");
    assert_eq!(place.unpack(&gz.finish().expect("compressed")).expect("unpacked"), layer);
    let frames: Vec<u8> = bytes.chunks(3000).flat_map(zstd).collect();
    assert_eq!(place.unpack(&frames).expect("unpacked"), layer);
}

/// One frame, and one to be skipped.
fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut frame = ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Uncompressed);
    frame.extend([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
    frame
}

#[test]
fn a_packed_directory_unpacks_to_itself() {
    let place = place();
    let tree = place.directory.path().join("tree");
    fs::create_dir_all(tree.join("a/b")).expect("made");
    fs::write(tree.join("a/b/file"), vec![7; 100_000]).expect("written");
    fs::hard_link(tree.join("a/b/file"), tree.join("second")).expect("linked");
    symlink("/nowhere", tree.join("link")).expect("linked");
    let packed = || {
        let mut bytes = Vec::new();
        let root = rustix::fs::open(&tree, DIRECTORY, Mode::empty()).expect("opened");
        archive::pack(root.as_fd(), &mut bytes, archive::Pack::Image, &mut |_| Ok(())).expect("packed");
        bytes
    };
    let bytes = packed();
    assert_eq!(bytes, packed());
    assert_eq!(
        place.unpack(&bytes).expect("unpacked"),
        place.store.layer_path(&place.store.add_layer(&tree).expect("added").0)
    );
}

#[test]
fn nothing_leads_out_of_a_layer() {
    let place = place();
    let outside = place.directory.path().join("outside");
    let before = place.outside();
    let to = outside.to_str().expect("a path");
    assert!(place.said(&[file("../../outside/file")]).contains("`..`"));
    assert!(place.said(&[file("a/../../x")]).contains("`..`"));
    assert!(place.said(&[link("x", Kind::Hard, "../../outside/file")]).contains("`..`"));
    // what is at these paths is looked for in the layer
    assert!(place.said(&[link("x", Kind::Hard, &format!("{to}/file"))]).contains("hard link"));
    assert!(place.said(&[link("d", Kind::Symlink, to), file("d/file")]).contains("link to nothing"));
    assert!(place.said(&[link("d", Kind::Symlink, "../../../../outside"), file("d/file")]).contains("link to nothing"));
    assert!(place.said(&[link("d", Kind::Symlink, to), link("x", Kind::Hard, "d/file")]).contains("hard link"));
    assert!(place.said(&[link("loop", Kind::Symlink, "loop"), file("loop/x")]).contains("a loop of them"));
    // a directory becomes a link, then is written through
    assert!(place.said(&[directory("d"), link("d", Kind::Symlink, to), file("d/file")]).contains("link to nothing"));
    assert!(place.said(&[file("d/x"), link("d", Kind::Symlink, to), file("d/file")]).contains("comes again"));
    // a link is replaced, not written through
    let layer =
        place.unpack(&archive(&[link("f", Kind::Symlink, &format!("{to}/file")), file("f")])).expect("unpacked");
    assert_eq!(fs::read(layer.join("f")).expect("read"), b"f");
    assert_eq!(place.outside(), before);
}

#[test]
fn what_no_layer_may_hold_is_named() {
    let place = place();
    assert!(place.said(&[link("sda", Kind::Device, "")]).contains("`sda` is a device node"));
    assert!(place.said(&[Member { owner: (65_536, 0), ..file("x") }]).contains("belongs to user 65536"));
    assert!(place.said(&[Member { owner: (0, u64::MAX), ..file("x") }]).contains("belongs to group"));
    assert!(place.said(&[file(&"d/".repeat(129).replace("d/", "d/d/"))]).contains("directories deep"));
    assert!(place.said(&[file(&"n".repeat(256))]).contains("255 bytes"));
    assert!(place.said(&[Member { owner: (70_000, 0), ..file("new\nline\u{1b}[31m") }]).contains("new\\nline"));
    assert!(place.said(&[]).contains("empty"));
    let many: Vec<_> = (0..1001).map(|n| directory(&format!("{n}"))).collect();
    assert!(place.said(&many).contains("more than 1000 entries"));
    let capability =
        |value: Vec<u8>| Member { attributes: vec![(b"security.capability".to_vec(), value)], ..file("x") };
    assert!(place.said(&[capability(vec![1; 7])]).contains("unknown form"));
}

#[test]
fn attributes_of_overlayfs_and_of_the_hosts_are_left_out() {
    let place = place();
    let names = [
        "user.overlay.opaque",
        "user.overlay.redirect",
        "trusted.overlay.opaque",
        "trusted.x",
        "security.selinux",
        "security.ima",
    ];
    let xattrs = names.iter().map(|name| (name.as_bytes().to_vec(), b"y".to_vec())).collect();
    let layer = place.unpack(&archive(&[Member { attributes: xattrs, ..directory("d") }])).expect("unpacked");
    let mut value = [0; 16];
    for name in names {
        assert!(getxattr(layer.join("d"), name, &mut value[..]).is_err(), "{name}");
    }
}

#[test]
fn large_cut_and_endless_archives_end() {
    let place = place();
    let mut huge = archive(&[file("x")]);
    huge.truncate(512);
    // what is read is bounded, before anything is believed
    let header = Member { size: LIMITS.bytes, extents: vec![(0, LIMITS.bytes)], ..file("huge") };
    let mut bytes = Vec::new();
    Writer::new(&mut bytes).member(&header).expect("written");
    let endless = std::io::Read::chain(&bytes[..], std::io::repeat(0));
    let said = place.store.add_with(|root| unpack(endless, root, LIMITS)).expect_err("it ends").to_string();
    assert!(said.contains("larger than 8388608 bytes"), "{said}");
    // nothing but zeros after the end
    let ended = archive(&[file("x")]);
    let endless = std::io::Read::chain(&ended[..], std::io::repeat(0));
    assert!(place.store.add_with(|root| unpack(endless, root, LIMITS)).is_err());
    assert!(place.unpack(&huge).expect_err("cut").to_string().contains("ends early"));
    assert!(place.unpack(b"hello").expect_err("no archive").to_string().contains("no tar archive"));
    assert!(place.unpack(&[7; 4096]).expect_err("no archive").to_string().contains("no tar archive"));
    let full = Limits { reserve: 100, ..LIMITS };
    let said =
        place.store.add_with(|root| unpack(&archive(&[file("x")])[..], root, full)).expect_err("full").to_string();
    assert!(said.contains("are reserved"), "{said}");
    assert_eq!(fs::read_dir(place.directory.path().join("store/layers")).expect("layers").count(), 0);
}

#[test]
fn holes_are_kept_and_counted() {
    let place = place();
    let sparse = |size, extents: &[(u64, u64)]| {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        writer.member(&Member { size, extents: extents.to_vec(), ..file("sparse") }).expect("written");
        for (_, length) in extents {
            writer.content(&vec![7; *length as usize]).expect("written");
        }
        writer.finish().expect("written");
        bytes
    };
    let layer = place.unpack(&sparse(6 << 20, &[(4096, 10), (4 << 20, 3)])).expect("unpacked");
    let content = fs::read(layer.join("sparse")).expect("read");
    assert_eq!((content.len(), &content[4094..4108]), (6 << 20, &[0, 0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0][..]));
    assert!(layer.join("sparse").metadata().expect("there").blocks() < 1000);
    for size in [9 << 20, 1 << 50, i64::MAX as u64, u64::MAX] {
        let said = place.unpack(&sparse(size, &[(0, 1)])).expect_err("too large").to_string();
        assert!(said.contains("larger than 8388608 bytes") || said.contains("not that of its parts"), "{said}");
    }
}

fn name() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        8 => "[a-c]",
        1 => Just("..".to_owned()),
        1 => Just(".".to_owned()),
        1 => Just("dev".to_owned()),
        1 => Just(String::new()),
    ];
    proptest::collection::vec(word, 1..5).prop_map(|words| words.join("/"))
}

fn entry() -> impl Strategy<Value = Member> {
    let kind = prop_oneof![
        Just(Kind::File),
        Just(Kind::Hard),
        Just(Kind::Symlink),
        Just(Kind::Symlink),
        Just(Kind::Directory),
        Just(Kind::Device),
        Just(Kind::Fifo)
    ];
    let to = prop_oneof![
        name(),
        Just("/".to_owned()),
        Just("../../outside".to_owned()),
        Just("../../outside/file".to_owned())
    ];
    (name(), kind, to, 0u32..0o10000, 0u64..3).prop_map(|(path, kind, to, mode, uid)| Member {
        path: path.into(),
        kind,
        link: to.into(),
        mode,
        owner: (uid, 0),
        ..Member::default()
    })
}

/// Cases per property: few in `make test`, as many as `PROPTEST_CASES` says otherwise.
fn cases() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn random_archives_change_nothing_outside(entries in proptest::collection::vec(entry(), 1..40)) {
        let place = place();
        let before = place.outside();
        let made = place.unpack(&archive(&entries));
        prop_assert_eq!(place.outside(), before);
        if let Ok(layer) = made {
            let name = layer.file_name().and_then(|name| name.to_str()).expect("an id").to_owned();
            place.store.verify(&name.try_into().expect("an id")).expect("it is what its name says");
        }
    }

    #[test]
    fn random_bytes_are_an_error_or_an_archive(
        mut bytes in Just(archive(&[directory("a"), file("a/b"), link("c", Kind::Hard, "a/b")])),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        mend in any::<bool>(),
    ) {
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            // most changes would be caught by the checksum alone
            if mend {
                let block = at / 512 * 512;
                bytes[block + 148..block + 156].fill(b' ');
                let sum: u64 = bytes[block..block + 512].iter().map(|byte| u64::from(*byte)).sum();
                bytes[block + 148..block + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let place = place();
        let before = place.outside();
        let _ = place.unpack(&bytes);
        prop_assert_eq!(place.outside(), before);
    }
}

#[test]
fn file_capabilities_and_owners_come_from_the_archive() {
    // set by root only
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let place = place();
    // VFS_CAP_REVISION_3, cap_net_raw+ep, of a root that is 1000 elsewhere (capabilities(7))
    let mut value = vec![1, 0, 0, 3, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    value.extend(1000u32.to_le_bytes());
    let xattrs = vec![(b"security.capability".to_vec(), value.clone())];
    let layer =
        place.unpack(&archive(&[Member { owner: (33, 44), attributes: xattrs, ..file("ping") }])).expect("unpacked");
    let stat = layer.join("ping").metadata().expect("it is there");
    assert_eq!((stat.uid(), stat.gid()), (33, 44));
    let mut kept = [0; 64];
    let length = getxattr(layer.join("ping"), "security.capability", &mut kept[..]).expect("kept");
    assert_eq!((length, kept[3], kept[5]), (20, 2, 0x20));
}
