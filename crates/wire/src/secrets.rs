//! What secrets say, on its way from `control` to a VPS's first process: a sealed file in memory that goes beside
//! messages, never in them. Nobody between the two reads it, so that no buffer, log or message of theirs can hold it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create},
    io::{Errno, pread, write},
};

/// Bytes of one secret at most.
pub const MAX_SECRET: usize = 64 << 10;
/// Secrets of one VPS at most.
pub const MAX_SECRETS: usize = 32;
/// Bytes of the length before each.
const LENGTH: u64 = 4;

const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE).union(SealFlags::SEAL);

/// Where one secret is in the file: its first byte, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Offset in bytes.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

/// A file that holds `values`, in this order; nobody can change it.
pub fn pack<'a>(values: impl Iterator<Item = &'a [u8]>) -> io::Result<OwnedFd> {
    let file = memfd_create("secrets", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    for value in values {
        let length = u32::try_from(value.len()).map_err(io::Error::other)?;
        for mut rest in [&length.to_be_bytes()[..], value] {
            while !rest.is_empty() {
                rest = &rest[write(&file, rest)?..];
            }
        }
    }
    fcntl_add_seals(&file, SEALS)?;
    Ok(file)
}

/// Where the `count` secrets are in a file that came from another process. One that is not sealed is refused: reading it
/// could wait, and it could change meanwhile.
pub fn ranges(file: impl AsFd, count: usize) -> io::Result<Vec<Range>> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("secrets: {what}"));
    // What is no file in memory has no seals.
    let sealed = match fcntl_get_seals(&file) {
        Ok(seals) => seals.contains(SEALS),
        Err(Errno::INVAL) => false,
        Err(error) => return Err(error.into()),
    };
    if !sealed {
        return Err(wrong("not a sealed file in memory"));
    }
    let size = u64::try_from(fstat(&file)?.st_size).unwrap_or_default();
    let mut ranges = Vec::new();
    let mut at = 0;
    for _ in 0..count.min(MAX_SECRETS) {
        let mut length = [0; LENGTH as usize];
        if pread(&file, &mut length, at)? != length.len() {
            return Err(wrong("fewer than there should be"));
        }
        let range = Range { start: at + LENGTH, length: u32::from_be_bytes(length).into() };
        if range.length > MAX_SECRET as u64 || range.start + range.length > size {
            return Err(wrong("one is longer than it may be"));
        }
        at = range.start + range.length;
        ranges.push(range);
    }
    if count > MAX_SECRETS || at != size {
        return Err(wrong("more than there should be"));
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write};

    use super::*;

    #[test]
    fn what_is_packed_is_found() {
        let file = pack([&b"one"[..], b"", b"three"].into_iter()).expect("a file");
        let ranges = ranges(&file, 3).expect("three");
        let read = |range: &Range| {
            let mut bytes = vec![0; range.length as usize];
            assert_eq!(pread(&file, &mut bytes, range.start), Ok(bytes.len()));
            bytes
        };
        assert_eq!(ranges.iter().map(read).collect::<Vec<_>>(), [&b"one"[..], b"", b"three"]);
        for wrong in [0, 2, 4, 1000] {
            assert!(super::ranges(&file, wrong).is_err(), "{wrong}");
        }
        assert!(File::from(file).write_all(b"x").is_err(), "it can be changed");
    }

    #[test]
    fn what_is_not_sealed_or_lies_about_lengths_is_refused() {
        let open = memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a file");
        write(&open, &[0, 0, 0, 1, 7]).expect("written");
        assert!(ranges(&open, 1).is_err(), "not sealed");
        assert!(ranges(File::open("/dev/null").expect("there"), 1).is_err(), "a device");
        let (pipe, _other) = std::io::pipe().expect("a pipe");
        assert!(ranges(&pipe, 1).is_err(), "a pipe");
        for lie in [&[0, 0, 0, 2, 7][..], &[0xff; 8], &[0, 0]] {
            let file = memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a file");
            write(&file, lie).expect("written");
            fcntl_add_seals(&file, SEALS).expect("sealed");
            assert!(ranges(&file, 1).is_err(), "{lie:?}");
        }
    }
}
