//! Writes archives as pax(1) describes them; the same entries always give the same bytes.

use std::io::{self, Write};

use super::{BLOCK, Entry, Kind};

/// An archive that is being written.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
}

impl<W: Write> Writer<W> {
    /// Begins with nothing.
    pub fn new(output: W) -> Self {
        Self { output }
    }

    /// An entry; `entry.size` bytes of content and `pad` follow where it is a file.
    pub fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        let extended = extended(entry);
        if !extended.is_empty() {
            let about = Entry { path: b"extended".to_vec(), size: extended.len() as u64, ..Entry::default() };
            self.output.write_all(&header(&about, b'x'))?;
            self.output.write_all(&extended)?;
            self.pad(extended.len() as u64)?;
        }
        let kind = match entry.kind {
            Kind::File => b'0',
            Kind::Link => b'1',
            Kind::Symlink => b'2',
            Kind::Device => b'3',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        };
        self.output.write_all(&header(entry, kind))
    }

    /// A part of the content.
    pub fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)
    }

    /// What follows content of `size` bytes.
    pub fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = (size % BLOCK as u64) as usize;
        if over == 0 { Ok(()) } else { self.output.write_all(&[0; BLOCK][over..]) }
    }

    /// The end.
    pub fn finish(mut self) -> io::Result<()> {
        self.output.write_all(&[0; 2 * BLOCK])?;
        self.output.flush()
    }
}

/// What has no room in the header.
fn extended(entry: &Entry) -> Vec<u8> {
    let mut records = Vec::new();
    let mut add = |key: &[u8], value: &[u8]| {
        // the length counts its own digits
        let rest = key.len() + value.len() + 3;
        let length = (1..).map(|digits| rest + digits).find(|length| rest + length.to_string().len() == *length);
        records.extend_from_slice(length.unwrap_or(rest).to_string().as_bytes());
        records.extend([b" ", key, b"=", value, b"\n"].concat());
    };
    if entry.path.len() > 100 {
        add(b"path", &entry.path);
    }
    if entry.link.len() > 100 {
        add(b"linkpath", &entry.link);
    }
    for (key, number, room) in [("size", entry.size, 33), ("uid", entry.uid, 21), ("gid", entry.gid, 21)] {
        if number >> room != 0 {
            add(key.as_bytes(), number.to_string().as_bytes());
        }
    }
    if !(0..1 << 33).contains(&entry.mtime) {
        add(b"mtime", entry.mtime.to_string().as_bytes());
    }
    for (name, value) in &entry.xattrs {
        add(&[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    records
}

fn header(entry: &Entry, kind: u8) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    let octal = |number: u64, digits: usize| format!("{:0digits$o}\0", number & ((1 << (3 * digits)) - 1)).into_bytes();
    put(0, &entry.path[..entry.path.len().min(100)]);
    put(100, &octal(u64::from(entry.mode), 7));
    put(108, &octal(entry.uid, 7));
    put(116, &octal(entry.gid, 7));
    put(124, &octal(entry.size, 11));
    put(136, &octal(u64::try_from(entry.mtime).unwrap_or(0), 11));
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &entry.link[..entry.link.len().min(100)]);
    put(257, b"ustar\x0000");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
