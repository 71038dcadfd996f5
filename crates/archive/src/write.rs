//! The members of a stream, as pax(1) describes them; the same members always give the same bytes.

use std::{
    io::{self, Write},
    os::fd::BorrowedFd,
};

use crate::{
    BLOCK,
    header::{Header, Kind},
    pax::Pax,
    read::Member,
};

/// What a header can say by itself.
const NAME: usize = 100;
const NUMBER: u64 = 1 << 33;
const ID: u64 = 1 << 21;

/// Where a stream goes that may have a file's content otherwise than by its bytes.
pub(crate) trait Output: Write {
    /// Takes bytes of a file, `length` at most, that begin `at` there: how many. None: they are to be written.
    fn take(&mut self, file: BorrowedFd<'_>, at: u64, length: u64) -> io::Result<u64>;
}

/// Bytes alone.
pub(crate) struct Bytes<W>(pub W);

impl<W: Write> Write for Bytes<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<W: Write> Output for Bytes<W> {
    fn take(&mut self, _: BorrowedFd<'_>, _: u64, _: u64) -> io::Result<u64> {
        Ok(0)
    }
}

/// A stream that is being written.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    /// Bytes of the member's content so far.
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Nothing has been written.
    pub fn new(output: W) -> Self {
        Self { output, written: 0 }
    }

    /// Begins a member. Of a file the content of its extents follows, one after the other.
    pub fn member(&mut self, member: &Member) -> io::Result<()> {
        self.pad()?;
        let mut pax = Pax::default();
        let file = member.kind == Kind::File;
        let stored: u64 = member.extents.iter().map(|(_, length)| length).sum();
        let map = if file && stored != member.size { sparse(member, &mut pax) } else { Vec::new() };
        let size = if file { stored + map.len() as u64 } else { 0 };
        if member.path.len() > NAME {
            pax.put(b"path", &member.path);
        }
        if member.link.len() > NAME {
            pax.put(b"linkpath", &member.link);
        }
        let (uid, gid) = member.owner;
        for (key, number, end) in [("size", size, NUMBER), ("uid", uid, ID), ("gid", gid, ID)] {
            if number >= end {
                pax.put(key.as_bytes(), number.to_string().as_bytes());
            }
        }
        let (seconds, _) = member.modified;
        if !(0..NUMBER as i64).contains(&seconds) {
            pax.put(b"mtime", seconds.to_string().as_bytes());
        }
        for (name, value) in &member.attributes {
            pax.put_attribute(name, value);
        }
        if !pax.is_empty() {
            let records = pax.render();
            let time = seconds.clamp(0, NUMBER as i64 - 1);
            let header = Header::new(b'x', b"./PaxHeaders/x", b"", 0o644, (0, 0), records.len() as u64, time);
            self.output.write_all(&header.0)?;
            self.content(&records)?;
            self.pad()?;
        }
        let owner = (u32::try_from(uid).unwrap_or(u32::MAX), u32::try_from(gid).unwrap_or(u32::MAX));
        let letter = member.kind.letter();
        let header = Header::new(letter, &member.path, &member.link, member.mode & 0o7777, owner, size, seconds);
        self.output.write_all(&header.0)?;
        self.content(&map)
    }

    /// A part of the member's content.
    pub fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.output.write_all(bytes)
    }

    /// The same, of a file, if it can be had without reading it: how many bytes were.
    pub(crate) fn take(&mut self, file: BorrowedFd<'_>, at: u64, length: u64) -> io::Result<u64>
    where
        W: Output,
    {
        let taken = self.output.take(file, at, length)?;
        self.written += taken;
        Ok(taken)
    }

    /// The end.
    pub fn finish(mut self) -> io::Result<()> {
        self.pad()?;
        self.output.write_all(&[0; 2 * BLOCK])?;
        self.output.flush()
    }

    /// Zeroes up to the next block.
    fn pad(&mut self) -> io::Result<()> {
        let padding = std::mem::take(&mut self.written).wrapping_neg() % BLOCK as u64;
        self.output.write_all(&[0; BLOCK][..padding as usize])
    }
}

/// GNU's form 1.0: the parts as decimal lines in blocks of their own, before the content.
fn sparse(member: &Member, pax: &mut Pax) -> Vec<u8> {
    let line = |(offset, length): &(u64, u64)| format!("{offset}\n{length}\n");
    let lines: String = member.extents.iter().map(line).collect();
    let mut map = format!("{}\n{lines}", member.extents.len()).into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    pax.put(b"GNU.sparse.major", b"1");
    pax.put(b"GNU.sparse.minor", b"0");
    pax.put(b"GNU.sparse.name", &member.path);
    pax.put(b"GNU.sparse.realsize", member.size.to_string().as_bytes());
    map
}
