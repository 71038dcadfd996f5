//! One header (`tar(5)` of FreeBSD describes them all), and what extended headers say over it.

use super::{ArchiveError, BLOCK, PATH, text};
use crate::error::shown;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// A file; its content follows.
    #[default]
    File,
    /// Another name of the file at `link`.
    Link,
    /// A symbolic link to `link`.
    Symlink,
    /// A device node.
    Device,
    /// A directory.
    Directory,
    /// A fifo.
    Fifo,
}

/// Extended attributes: names and values.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// Its path as it is written: maybe absolute, maybe with `..`.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions, with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Unix time, seconds.
    pub mtime: i64,
    /// Bytes of its content.
    pub size: u64,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

pub(super) enum Type {
    Entry(u8),
    Extended,
    Global,
    LongPath,
    LongLink,
}

pub(super) struct Header {
    pub kind: Type,
    pub size: u64,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: i64,
}

/// What extended headers say of the entry that follows.
#[derive(Default)]
pub(super) struct Extended {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    xattrs: Xattrs,
    sparse: bool,
}

impl Header {
    pub fn parse(block: &[u8; BLOCK], at: u64) -> Result<Self, ArchiveError> {
        let damaged = |what| ArchiveError::Damaged { at, what };
        let sum: u64 =
            block.iter().enumerate().map(|(n, b)| u64::from(if (148..156).contains(&n) { b' ' } else { *b })).sum();
        if number(&block[148..156]).and_then(|n| u64::try_from(n).ok()) != Some(sum) {
            return Err(if at == 0 { ArchiveError::NotTar } else { damaged("its checksum is another") });
        }
        let positive = |field: &[u8], what| number(field).and_then(|n| u64::try_from(n).ok()).ok_or(damaged(what));
        let kind = match block[156] {
            b'x' | b'X' => Type::Extended,
            b'g' => Type::Global,
            b'L' => Type::LongPath,
            b'K' => Type::LongLink,
            kind => Type::Entry(kind),
        };
        let size = positive(&block[124..136], "its size is no number")?;
        // only files and headers have content, whatever is written
        let holds = !matches!(kind, Type::Entry(b'1'..=b'6'));
        Ok(Self {
            kind,
            size: if holds { size } else { 0 },
            mode: (positive(&block[100..108], "its mode is no number")? & 0o7777) as u32,
            uid: positive(&block[108..116], "its owner is no number")?,
            gid: positive(&block[116..124], "its group is no number")?,
            mtime: number(&block[136..148]).ok_or(damaged("its time is no number"))?,
        })
    }

    pub fn entry(self, kind: u8, block: &[u8; BLOCK], extended: Extended, at: u64) -> Result<Entry, ArchiveError> {
        let mut path = extended.path.unwrap_or_else(|| {
            let name = text(block[..100].to_vec());
            let prefix = if &block[257..263] == b"ustar\0" { text(block[345..500].to_vec()) } else { Vec::new() };
            if prefix.is_empty() { name } else { [&prefix[..], b"/", &name].concat() }
        });
        let mut link = extended.link.unwrap_or_else(|| text(block[157..257].to_vec()));
        for (what, text) in [("the path", &mut path), ("the link", &mut link)] {
            if text.len() > PATH {
                return Err(ArchiveError::TooLong { at, what, limit: PATH as u64 });
            }
        }
        if kind == b'S' || extended.sparse {
            return Err(ArchiveError::Sparse { path: shown(&path) });
        }
        let kind = match kind {
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::Link,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(ArchiveError::UnknownKind { at, kind: char::from(other) }),
        };
        Ok(Entry {
            path,
            kind,
            mode: self.mode,
            uid: extended.uid.unwrap_or(self.uid),
            gid: extended.gid.unwrap_or(self.gid),
            mtime: extended.mtime.unwrap_or(self.mtime),
            size: if kind == Kind::File { extended.size.unwrap_or(self.size) } else { 0 },
            link,
            xattrs: extended.xattrs,
        })
    }
}

impl Extended {
    /// Records of `LENGTH KEY=VALUE\n` (pax(1)); a value may hold anything.
    pub fn read(&mut self, mut bytes: &[u8], at: u64) -> Result<(), ArchiveError> {
        let damaged = |what| ArchiveError::Damaged { at, what };
        while !bytes.is_empty() {
            let wrong = || damaged("an extended record is not whole");
            let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or_else(wrong)?;
            let length: usize = digits(&bytes[..space]).and_then(|n| n.try_into().ok()).ok_or_else(wrong)?;
            let record = bytes.get(space + 1..length).ok_or_else(wrong)?;
            let record = record.strip_suffix(b"\n").ok_or_else(wrong)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let whole = || digits(value).ok_or(damaged("an extended record is no number"));
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(whole()?),
                b"uid" => self.uid = Some(whole()?),
                b"gid" => self.gid = Some(whole()?),
                b"mtime" => self.mtime = Some(seconds(value).ok_or(damaged("its time is no number"))?),
                _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
            bytes = &bytes[length..];
        }
        Ok(())
    }
}

fn digits(text: &[u8]) -> Option<u64> {
    let legal = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    legal.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

/// Whole seconds of a time with a fraction, which may be negative.
fn seconds(text: &[u8]) -> Option<i64> {
    let whole = text.split(|byte| *byte == b'.').next()?;
    std::str::from_utf8(whole).ok()?.parse().ok()
}

/// A number field: octal digits, or base 256 with the first bit set (GNU).
fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        let first = i128::from(field[0] & 0x7f);
        let negative = field[0] & 0x40 != 0;
        let first = if negative { first - 0x80 } else { first };
        // eleven more bytes at most: 88 bits
        let value = field[1..].iter().fold(first, |value, byte| value << 8 | i128::from(*byte));
        return value.try_into().ok();
    }
    let trimmed = field.iter().skip_while(|byte| **byte == b' ').take_while(|byte| !matches!(byte, 0 | b' '));
    trimmed.into_iter().try_fold(0i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}
