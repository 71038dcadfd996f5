//! Against the real tar(1), and against what no tar would write.

use std::{
    fs,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    },
    path::Path,
    process::{Command, Stdio},
};

use proptest::prelude::*;
use rustix::fs::{CWD, Mode, OFlags, XattrFlags, open, setxattr};

use crate::{
    ArchiveError, Counts, Pack, Refusal, Unpack,
    header::Header,
    pack,
    pax::{Pax, RECORDS},
    unpack,
};

const HOW: Unpack = Unpack { owner: None, ids: 65_536 };

pub(crate) fn directory(path: &Path) -> OwnedFd {
    open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).expect("a directory")
}

fn unpacked(archive: &[u8], path: &Path) -> Result<Counts, ArchiveError> {
    unpack(archive, directory(path).as_fd(), HOW, &mut |_| Ok(()))
}

pub(crate) fn packed(path: &Path) -> Vec<u8> {
    let mut archive = Vec::new();
    pack(directory(path).as_fd(), &mut archive, Pack::Volume, &mut |_| Ok(())).expect("packed");
    archive
}

/// One member with its content.
fn member(letter: u8, path: &str, link: &str, content: &[u8]) -> Vec<u8> {
    let owner = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let header = Header::new(letter, path.as_bytes(), link.as_bytes(), 0o644, owner, content.len() as u64, 1);
    let mut block = header.0.to_vec();
    block.extend(content);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 1024]].concat()
}

/// A tree with one of each kind that is taken.
pub(crate) fn tree(path: &Path) {
    let long = "long".repeat(40);
    fs::create_dir_all(path.join("a/b").join(&long).join(&long)).unwrap();
    fs::write(path.join("a/b").join(&long).join(&long).join("file"), "deep").unwrap();
    fs::write(path.join("a/file"), vec![7; 300_000]).unwrap();
    fs::set_permissions(path.join("a/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(path.join("a/file"), path.join("hard")).unwrap();
    symlink("/etc/passwd", path.join("a/absolute")).unwrap();
    symlink(&long, path.join("relative")).unwrap();
    rustix::fs::mkfifoat(CWD, path.join("pipe"), Mode::from(0o600)).unwrap();
    fs::write(path.join("empty"), "").unwrap();
    let holes = fs::File::create(path.join("holes")).unwrap();
    for at in [1 << 20, 5 << 20] {
        std::os::unix::fs::FileExt::write_all_at(&holes, b"island", at).unwrap();
    }
    holes.set_len(1 << 40).unwrap();
    let _ = setxattr(path.join("a"), "user.note", b"kept", XattrFlags::empty());
    fs::set_permissions(path.join("a"), fs::Permissions::from_mode(0o2750)).unwrap();
}

/// All there is to say about a tree.
fn listing(path: &Path) -> String {
    let script = "cd \"$0\" && find . -printf '%P %y %m %U %G %s %l %n %Ts\\n' | grep -v '^ ' | sort \
                  && find . -type f -size -100M -print0 | sort -z | xargs -0 sha256sum && getfattr -Rd . 2>/dev/null; true";
    let out = Command::new("sh").args(["-c", script]).arg(path).output().expect("sh");
    String::from_utf8(out.stdout).expect("text").replace(" d 2750 ", " d 2750 (size) ")
}

fn comparable(listing: &str) -> Vec<&str> {
    // The size of a directory is the file system's own.
    listing.lines().filter(|line| !line.contains(" d ")).collect()
}

#[test]
fn what_is_packed_is_unpacked_the_same() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree(from.path());
    let archive = packed(from.path());
    assert!(archive.len() < 2 << 20, "holes are not written out: {} bytes", archive.len());
    let counts = unpacked(&archive, to.path()).unwrap();
    assert!(counts.entries > 8, "{counts:?}");
    let (a, b) = (listing(from.path()), listing(to.path()));
    assert_eq!(comparable(&a), comparable(&b));
    assert_eq!(fs::metadata(to.path().join("a")).unwrap().mode() & 0o7777, 0o2750);
    assert!(fs::metadata(to.path().join("holes")).unwrap().blocks() < 1 << 10);
}

/// Runs tar(1) with `archive` on its input; its output.
fn tar(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new("tar").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("tar");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let out = child.wait_with_output().expect("tar");
    assert!(out.status.success(), "tar {arguments:?}");
    let _ = writer.join();
    out.stdout
}

#[test]
fn tar_reads_what_is_packed() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree(from.path());
    tar(&["-xpf", "-", "--numeric-owner", "--xattrs", "-C", to.path().to_str().unwrap()], &packed(from.path()));
    let (a, b) = (listing(from.path()), listing(to.path()));
    assert_eq!(comparable(&a), comparable(&b));
}

#[test]
fn what_tar_writes_in_any_of_its_forms_is_read() {
    let from = tempfile::tempdir().unwrap();
    tree(from.path());
    for form in [
        &["--format=gnu", "-S"][..],
        &["--format=pax", "-S", "--xattrs"],
        &["--format=pax", "-S", "--sparse-version=0.1"],
    ] {
        let to = tempfile::tempdir().unwrap();
        let arguments = [form, &["-cf", "-", "--numeric-owner", "-C", from.path().to_str().unwrap(), "."]].concat();
        unpacked(&tar(&arguments, b""), to.path()).unwrap_or_else(|error| panic!("{form:?}: {error}"));
        let (a, b) = (listing(from.path()), listing(to.path()));
        assert_eq!(comparable(&a), comparable(&b), "{form:?}");
    }
}

#[test]
fn nothing_is_written_outside() {
    let around = tempfile::tempdir().unwrap();
    let inner = around.path().join("inner");
    fs::write(around.path().join("kept"), "kept").unwrap();
    let out = around.path().to_str().unwrap();
    let hostile: [(&str, Vec<Vec<u8>>, Refusal); 8] = [
        ("absolute", vec![member(b'0', &format!("{out}/new"), "", b"x")], Refusal::Absolute),
        ("upwards", vec![member(b'0', "a/../../new", "", b"x")], Refusal::Upwards),
        (
            "a link, then through it",
            vec![member(b'2', "l", out, b""), member(b'0', "l/new", "", b"x")],
            Refusal::Through,
        ),
        ("the same upwards", vec![member(b'2', "l", "..", b""), member(b'5', "l/new", "", b"")], Refusal::Through),
        ("a hard link out", vec![member(b'1', "h", "../kept", b"")], Refusal::NoTarget),
        (
            "a hard link through a link",
            vec![member(b'2', "l", "..", b""), member(b'1', "h", "l/kept", b"")],
            Refusal::NoTarget,
        ),
        (
            "a hard link to a directory",
            vec![member(b'5', "d", "", b""), member(b'1', "h", "d", b"")],
            Refusal::NoTarget,
        ),
        ("another kind", vec![member(b'Z', "z", "", b"")], Refusal::Kind(b'Z')),
    ];
    for (what, members, expected) in hostile {
        let _ = fs::remove_dir_all(&inner);
        fs::create_dir(&inner).unwrap();
        match unpacked(&archive(&members), &inner) {
            Err(ArchiveError::Member { why, .. }) => assert_eq!(why, expected, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
        let names: Vec<_> = fs::read_dir(around.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{what}: {names:?}");
        assert_eq!(fs::read(around.path().join("kept")).unwrap(), b"kept", "{what}");
    }
}

#[test]
fn a_link_to_outside_is_replaced_and_not_written_through() {
    let around = tempfile::tempdir().unwrap();
    let (inner, kept) = (around.path().join("inner"), around.path().join("kept"));
    fs::create_dir(&inner).unwrap();
    fs::write(&kept, "kept").unwrap();
    let members = [member(b'2', "file", kept.to_str().unwrap(), b""), member(b'0', "file", "", b"new")];
    unpacked(&archive(&members), &inner).unwrap();
    assert_eq!((fs::read(&kept).unwrap(), fs::read(inner.join("file")).unwrap()), (b"kept".to_vec(), b"new".to_vec()));
}

#[test]
fn devices_are_left_out_and_owners_have_an_end() {
    let to = tempfile::tempdir().unwrap();
    let counts =
        unpacked(&archive(&[member(b'3', "null", "", b""), member(b'6', "pipe", "", b"")]), to.path()).unwrap();
    assert_eq!((counts.left_out, counts.entries), (1, 1));
    assert!(fs::symlink_metadata(to.path().join("pipe")).unwrap().file_type().is_fifo());
    let mut header = Header::new(b'0', b"file", b"", 0o644, (65_536, 0), 0, 1).0.to_vec();
    header.resize(2048, 0);
    let refused = unpacked(&header, to.path()).unwrap_err();
    assert!(matches!(refused, ArchiveError::Member { why: Refusal::Owner(65_536), .. }), "{refused}");
    let how = Unpack { owner: Some((0, 0)), ids: 65_536 };
    unpack(header.as_slice(), directory(to.path()).as_fd(), how, &mut |_| Ok(())).unwrap();
}

#[test]
fn what_is_cut_or_no_archive_is_told() {
    let to = tempfile::tempdir().unwrap();
    let whole = archive(&[member(b'0', "file", "", &[1; 2000])]);
    assert!(matches!(unpacked(b"", to.path()), Err(ArchiveError::NotTar)));
    assert!(matches!(unpacked(&[7; 4096], to.path()), Err(ArchiveError::NotTar)));
    for cut in [512, 600, 1500, 2560] {
        assert!(matches!(unpacked(&whole[..cut], to.path()), Err(ArchiveError::Ends(_))), "cut at {cut}");
    }
    let mut damaged = whole.clone();
    damaged[2560..3072].fill(9);
    assert!(matches!(unpacked(&damaged, to.path()), Err(ArchiveError::Damaged { at: 3072, .. })));
}

#[test]
fn deep_directories_have_an_end() {
    let to = tempfile::tempdir().unwrap();
    let deep = member(b'0', &"d/".repeat(49), "", b"");
    assert!(unpacked(&archive(&[deep]), to.path()).is_ok());
    let mut records = Pax::default();
    records.put(b"path", "d/".repeat(1000).as_bytes());
    let deep = archive(&[member(b'x', "x", "", &records.render()), member(b'5', "d", "", b"")]);
    assert!(matches!(unpacked(&deep, to.path()), Err(ArchiveError::Member { why: Refusal::Deep(_), .. })));
}

#[test]
fn records_count_their_own_length() {
    let mut pax = Pax::default();
    for length in 80..120 {
        pax.put(format!("key{length}").as_bytes(), &vec![b'v'; length]);
    }
    let mut again = Pax::default();
    assert!(again.parse(&pax.render(), RECORDS));
    assert_eq!(pax, again);
    for wrong in ["x", "5 a=b", "999 a=b\n", "6 ab\n\n", "-3 a=b\n", "0 a=b\n"] {
        assert!(!Pax::default().parse(wrong.as_bytes(), RECORDS), "{wrong}");
    }
}

proptest! {
    /// Blocks that are like headers, in any order and with any bytes changed: an answer, never a panic, and nothing outside.
    #[test]
    fn any_stream_has_an_answer(
        letters in proptest::collection::vec(proptest::sample::select(b"0123567xgLKSVD".to_vec()), 1..6),
        content in proptest::collection::vec(any::<u8>(), 0..1500),
        flips in proptest::collection::vec((0usize..4096, any::<u8>()), 0..4),
    ) {
        let around = tempfile::tempdir().unwrap();
        let inner = around.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let mut stream: Vec<u8> = letters.iter().enumerate().flat_map(|(n, letter)| member(*letter, &format!("m{n}"), "m0", &content)).collect();
        for (at, byte) in flips {
            let at = at % stream.len();
            stream[at] = byte;
            // Only what has a right sum is looked into.
            let block = at / 512 * 512;
            let mut header = stream[block..block + 512].to_vec();
            header[148..156].fill(b' ');
            let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
            stream[block + 148..block + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        stream.extend([0; 1024]);
        let _ = unpacked(&stream, &inner);
        prop_assert_eq!(fs::read_dir(around.path()).unwrap().count(), 1);
    }
}
