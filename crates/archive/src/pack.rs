//! From a directory into a stream.

use std::{
    collections::HashMap,
    ffi::CStr,
    io::Write,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fgetxattr, flistxattr, fstat, openat, readlinkat, seek,
        statat,
    },
    io::{Errno, read},
};

use crate::{
    ArchiveError, BLOCK, CHUNK, Counts, PATH, Refusal,
    error::Doing,
    header::Header,
    pax::{Pax, RECORDS},
    travels,
};

const DEPTH: usize = 512;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Bytes of the list of a file's attributes, and of one value, at most (xattr(7)).
const ATTRIBUTE: usize = 64 << 10;
/// What a header can say by itself.
const NAME: usize = 100;
const SIZE: u64 = 1 << 33;
const ID: u32 = 1 << 21;
/// Extents of a sparse file that are told apart; what follows is one more.
const EXTENTS: usize = 16 << 10;

/// Packs what is in `root`, and what it is itself. `heard` is told how it goes on, and ends it by an error.
///
/// # Errors
/// Something can't be read, or the stream not be written to.
pub fn pack(
    root: BorrowedFd<'_>,
    output: impl Write,
    heard: &mut dyn FnMut(&Counts) -> std::io::Result<()>,
) -> Result<Counts, ArchiveError> {
    let root = openat(root, ".", DIRECTORY, Mode::empty()).doing("opening", b".")?;
    let mut this = Packing { output, heard, counts: Counts::default(), links: HashMap::new(), buffer: vec![0; CHUNK] };
    this.directory(&root, b"", 0)?;
    this.output.write_all(&[0; 2 * BLOCK])?;
    this.output.flush()?;
    Ok(this.counts)
}

struct Packing<'a, W> {
    output: W,
    heard: &'a mut dyn FnMut(&Counts) -> std::io::Result<()>,
    counts: Counts,
    /// The first path of each file that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

impl<W: Write> Packing<'_, W> {
    fn directory(&mut self, directory: &OwnedFd, path: &[u8], depth: usize) -> Result<(), ArchiveError> {
        let refused = |why| ArchiveError::Member { path: path.to_vec(), why };
        if depth > DEPTH {
            return Err(refused(Refusal::Deep(DEPTH)));
        }
        let stat = fstat(directory).doing("looking at", path)?;
        let own = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
        self.header(b'5', &own, b"", &stat, 0, attributes(directory.as_fd(), path)?)?;
        for entry in Dir::read_from(directory).doing("reading", path)? {
            let entry = entry.doing("reading", path)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let path = if path.is_empty() { name.to_bytes().to_vec() } else { [path, b"/", name.to_bytes()].concat() };
            if path.len() >= PATH {
                return Err(refused(Refusal::Path));
            }
            match self.entry(directory.as_fd(), name, &path, depth) {
                // Whoever uses the directory removed it meanwhile.
                Err(ArchiveError::System { source: Errno::NOENT, .. }) => {}
                done => done?,
            }
            (self.heard)(&self.counts)?;
        }
        Ok(())
    }

    fn entry(&mut self, at: BorrowedFd<'_>, name: &CStr, path: &[u8], depth: usize) -> Result<(), ArchiveError> {
        let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW).doing("looking at", path)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if matches!(kind, FileType::Directory) {
            let directory = openat(at, name, DIRECTORY, Mode::empty()).doing("opening", path)?;
            return self.directory(&directory, path, depth + 1);
        }
        if !matches!(kind, FileType::RegularFile | FileType::Symlink | FileType::Fifo) {
            self.counts.left_out += 1;
            return Ok(());
        }
        let id = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1
            && let Some(first) = self.links.get(&id).cloned()
        {
            return self.header(b'1', path, &first, &stat, 0, Pax::default());
        }
        match kind {
            FileType::Symlink => {
                let target = readlinkat(at, name, Vec::new()).doing("reading", path)?;
                self.header(b'2', path, target.to_bytes(), &stat, 0, Pax::default())?;
            }
            FileType::Fifo => self.header(b'6', path, b"", &stat, 0, Pax::default())?,
            _ => {
                // NONBLOCK: it may have become a pipe meanwhile.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = openat(at, name, flags, Mode::empty()).doing("opening", path)?;
                let stat = fstat(&file).doing("looking at", path)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    self.counts.left_out += 1;
                    return Ok(());
                }
                self.file(&file, path, &stat)?;
            }
        }
        if stat.st_nlink > 1 {
            self.links.insert(id, path.to_vec());
        }
        Ok(())
    }

    fn file(&mut self, file: &OwnedFd, path: &[u8], stat: &Stat) -> Result<(), ArchiveError> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut pax = attributes(file.as_fd(), path)?;
        let full = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) >= size;
        let extents = if full { vec![(0, size)] } else { extents(file, size, path)? };
        if extents == [(0, size)] {
            self.header(b'0', path, b"", stat, size, pax)?;
        } else {
            // GNU's form 1.0: the parts as decimal lines in blocks of their own, before the content.
            let line = |(offset, length): &(u64, u64)| format!("{offset}\n{length}\n");
            let mut map = format!("{}\n{}", extents.len(), extents.iter().map(line).collect::<String>()).into_bytes();
            map.resize(map.len().next_multiple_of(BLOCK), 0);
            pax.put(b"GNU.sparse.major", b"1");
            pax.put(b"GNU.sparse.minor", b"0");
            pax.put(b"GNU.sparse.name", path);
            pax.put(b"GNU.sparse.realsize", size.to_string().as_bytes());
            let stored = extents.iter().map(|(_, length)| length).sum::<u64>() + map.len() as u64;
            self.header(b'0', path, b"", stat, stored, pax)?;
            self.output.write_all(&map)?;
        }
        self.content(file, path, &extents)
    }

    /// Writes these parts of a file, whatever becomes of it meanwhile: the header has said how long they are.
    fn content(&mut self, file: &OwnedFd, path: &[u8], extents: &[(u64, u64)]) -> Result<(), ArchiveError> {
        let (mut changed, mut stored) = (false, 0u64);
        for (offset, length) in extents {
            seek(file, SeekFrom::Start(*offset)).doing("reading", path)?;
            let mut left = *length;
            while left > 0 {
                let most = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let n = match read(file, &mut self.buffer[..most]) {
                    Err(Errno::INTR) => continue,
                    read => read.doing("reading", path)?,
                };
                if n == 0 {
                    changed = true;
                    self.buffer[..most].fill(0);
                }
                let n = if n == 0 { most } else { n };
                self.output.write_all(&self.buffer[..n])?;
                left -= n as u64;
                self.counts.bytes += n as u64;
                (self.heard)(&self.counts)?;
            }
            stored += length;
        }
        self.counts.changed += u64::from(changed);
        self.pad(stored)
    }

    fn pad(&mut self, size: u64) -> Result<(), ArchiveError> {
        let padding = size.wrapping_neg() % BLOCK as u64;
        Ok(self.output.write_all(&[0; BLOCK][..padding as usize])?)
    }

    fn header(
        &mut self,
        letter: u8,
        path: &[u8],
        link: &[u8],
        stat: &Stat,
        size: u64,
        mut pax: Pax,
    ) -> Result<(), ArchiveError> {
        if path.len() > NAME {
            pax.put(b"path", path);
        }
        if link.len() > NAME {
            pax.put(b"linkpath", link);
        }
        if size >= SIZE {
            pax.put(b"size", size.to_string().as_bytes());
        }
        if stat.st_uid >= ID {
            pax.put(b"uid", stat.st_uid.to_string().as_bytes());
        }
        if stat.st_gid >= ID {
            pax.put(b"gid", stat.st_gid.to_string().as_bytes());
        }
        if !pax.is_empty() {
            let records = pax.render();
            let header =
                Header::new(b'x', b"./PaxHeaders/x", b"", 0o644, (0, 0), records.len() as u64, stat.st_mtime as _);
            self.output.write_all(&header.0)?;
            self.output.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        let owner = (stat.st_uid, stat.st_gid);
        let header = Header::new(letter, path, link, stat.st_mode & 0o7777, owner, size, stat.st_mtime as _);
        self.output.write_all(&header.0)?;
        self.counts.entries += 1;
        Ok(())
    }
}

/// Where a file has content, in order.
fn extents(file: &OwnedFd, size: u64, path: &[u8]) -> Result<Vec<(u64, u64)>, ArchiveError> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            // A file system that does not tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(vec![(0, size)]),
            found => found.doing("reading", path)?.min(size),
        };
        let end = seek(file, SeekFrom::Hole(start)).map_or(size, |end| end.min(size));
        if end <= start {
            break;
        }
        if extents.len() == EXTENTS {
            extents.push((start, size - start));
            break;
        }
        extents.push((start, end - start));
        at = end;
    }
    if extents.last().is_none_or(|(offset, length)| offset + length < size) {
        // What tar(1) knows a hole at the end by.
        extents.push((size, 0));
    }
    Ok(extents)
}

fn attributes(file: BorrowedFd<'_>, path: &[u8]) -> Result<Pax, ArchiveError> {
    let mut pax = Pax::default();
    let mut names = vec![0; ATTRIBUTE];
    let length = match flistxattr(file, names.as_mut_slice()) {
        Err(Errno::OPNOTSUPP) => return Ok(pax),
        length => length.doing("reading attributes of", path)?,
    };
    let (mut value, mut total) = (Vec::new(), 0);
    for name in names[..length].split(|byte| *byte == 0).filter(|name| travels(name)) {
        value.resize(ATTRIBUTE, 0);
        match fgetxattr(file, name, value.as_mut_slice()) {
            Err(Errno::NODATA) => {}
            length => {
                let length = length.doing("reading attributes of", path)?;
                total += length + name.len() + 64;
                // What a reader would refuse.
                if total as u64 <= RECORDS / 2 {
                    pax.put_attribute(name, &value[..length]);
                }
            }
        }
    }
    Ok(pax)
}
