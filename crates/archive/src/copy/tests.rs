//! Where blocks can't be shared, bytes in their place show the same.

use std::{fs, os::unix::fs::FileExt, path::Path};

use super::*;
use crate::tests::{directory, packed, tree};

const COPIES: Share = |from, at, length, to, there| {
    assert!(at.is_multiple_of(4096) && length.is_multiple_of(4096) && there.is_multiple_of(4096), "no whole blocks");
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    let from = File::from(from.try_clone_to_owned()?);
    from.read_exact_at(&mut bytes, at)?;
    File::from(to.try_clone_to_owned()?).write_all_at(&bytes, there)
};
const REFUSES: Share = |_, _, _, _, _| Err(Errno::INVAL.into());

struct Copied {
    log: File,
    content: File,
    result: Result<Counts, ArchiveError>,
}

fn copied(path: &Path, share: Share, shares: bool, limit: u64) -> Copied {
    let (log, content) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let to = CopyTo { log: &log, content: &content, share, limit, shares };
    let result = copy(directory(path).as_fd(), &to, &mut |_| Ok(()));
    Copied { log, content, result }
}

fn replayed(copied: &Copied) -> Vec<u8> {
    let mut stream = Vec::new();
    replay(&copied.log, &copied.content, &mut stream).expect("a copy");
    stream
}

#[test]
fn a_copy_becomes_the_stream_of_what_was_copied() {
    let place = tempfile::tempdir().unwrap();
    tree(place.path());
    fs::write(place.path().join("whole"), vec![3; 8 * 4096]).unwrap();
    fs::write(place.path().join("more"), vec![4; (3 << 20) + 77]).unwrap();
    let stream = packed(place.path());
    for (share, shares) in [(COPIES, true), (REFUSES, true), (REFUSES, false)] {
        let copied = copied(place.path(), share, shares, 64 << 20);
        assert!(copied.result.is_ok(), "{:?}", copied.result);
        assert!(replayed(&copied) == stream, "another stream");
        // Content is shared, and not read: what is left is little.
        let (log, content) = (copied.log.metadata().unwrap().len(), copied.content.metadata().unwrap().len());
        assert!((log < 100 << 10 && content > 3 << 20) == shares_any(share), "{log} and {content} bytes");
    }
    // What becomes of the files is of no matter any more.
    let before = copied(place.path(), COPIES, true, 0);
    fs::write(place.path().join("more"), "less").unwrap();
    fs::remove_dir_all(place.path().join("a")).unwrap();
    assert!(replayed(&before) == stream, "another stream");
}

fn shares_any(share: Share) -> bool {
    std::ptr::fn_addr_eq(share, COPIES)
}

#[test]
fn what_cant_be_shared_is_bounded() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("file"), vec![3; 1 << 20]).unwrap();
    assert!(copied(place.path(), REFUSES, true, 1 << 20).result.is_ok());
    for shares in [true, false] {
        let refused = copied(place.path(), REFUSES, shares, (1 << 20) - 1).result;
        assert!(refused.is_err_and(|error| error.to_string().contains("can't be shared")));
    }
    // Small ones count only where nothing is shared.
    fs::write(place.path().join("file"), vec![3; 10_000]).unwrap();
    assert!(copied(place.path(), COPIES, true, 0).result.is_ok());
    assert!(copied(place.path(), COPIES, false, 9999).result.is_err());
}

#[test]
fn a_full_disk_ends_it() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("file"), vec![3; 1 << 20]).unwrap();
    let full: Share = |_, _, _, _, _| Err(Errno::NOSPC.into());
    assert!(copied(place.path(), full, true, u64::MAX).result.is_err());
}

#[test]
fn files_that_are_no_copy_make_no_stream() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("file"), vec![3; 1 << 20]).unwrap();
    let copied = copied(place.path(), COPIES, true, 0);
    copied.content.set_len(1 << 19).unwrap();
    assert!(replay(&copied.log, &copied.content, io::sink()).is_err(), "content is missing");
    for cut in [1, 9, 600] {
        copied.log.set_len(copied.log.metadata().unwrap().len() - cut).unwrap();
        assert!(replay(&copied.log, &copied.content, io::sink()).is_err(), "the log is cut");
    }
    for word in [u64::MAX, SHARED, SHARED - 1] {
        copied.log.write_all_at(&word.to_le_bytes(), 0).unwrap();
        assert!(replay(&copied.log, &copied.content, io::sink()).is_err(), "{word:x}");
    }
}
