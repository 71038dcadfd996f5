//! From a directory into a stream.

use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    io::Write,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fgetxattr, flistxattr, fstat, openat, readlinkat, seek,
        statat,
    },
    io::{Errno, pread},
};

use crate::{
    ArchiveError, CHUNK, Counts, PATH, Refusal,
    error::Doing,
    header::Kind,
    pax::RECORDS,
    read::{Attributes, Member},
    travels,
    write::{Bytes, Output, Writer},
};

const DEPTH: usize = 512;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Bytes of the list of a file's attributes, and of one value, at most (xattr(7)).
const ATTRIBUTE: usize = 64 << 10;
/// Extents of a sparse file that are told apart; what follows is one more.
const EXTENTS: usize = 16 << 10;

/// What a directory is packed as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pack {
    /// Data that is in use: what changes or goes meanwhile is counted, devices are left out.
    Volume,
    /// A root filesystem: with file capabilities, in the order of names, so that the same tree always gives the same bytes.
    /// Devices are there for the reader to refuse, what is mounted on a directory is not, and nothing may change.
    Image,
}

/// Packs what is in `root`, and what it is itself. `heard` is told how it goes on, and ends it by an error.
///
/// # Errors
/// Something can't be read, or the stream not be written to.
pub fn pack(
    root: BorrowedFd<'_>,
    output: impl Write,
    how: Pack,
    heard: &mut dyn FnMut(&Counts) -> std::io::Result<()>,
) -> Result<Counts, ArchiveError> {
    pack_to(root, Bytes(output), how, heard)
}

pub(crate) fn pack_to(
    root: BorrowedFd<'_>,
    output: impl Output,
    how: Pack,
    heard: &mut dyn FnMut(&Counts) -> std::io::Result<()>,
) -> Result<Counts, ArchiveError> {
    let root = openat(root, ".", DIRECTORY, Mode::empty()).doing("opening", b".")?;
    let device = fstat(&root).doing("looking at", b".")?.st_dev;
    let (writer, links) = (Writer::new(output), HashMap::new());
    let mut this = Packing { writer, how, device, heard, counts: Counts::default(), links, buffer: vec![0; CHUNK] };
    this.directory(&root, b"", 0)?;
    this.writer.finish()?;
    Ok(this.counts)
}

struct Packing<'a, W> {
    writer: Writer<W>,
    how: Pack,
    /// The file system that `root` is on.
    device: u64,
    heard: &'a mut dyn FnMut(&Counts) -> std::io::Result<()>,
    counts: Counts,
    /// The first path of each file that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

impl<W: Output> Packing<'_, W> {
    fn directory(&mut self, directory: &OwnedFd, path: &[u8], depth: usize) -> Result<(), ArchiveError> {
        let refused = |why| ArchiveError::Member { path: path.to_vec(), why };
        if depth > DEPTH {
            return Err(refused(Refusal::Deep(DEPTH)));
        }
        let stat = fstat(directory).doing("looking at", path)?;
        let own = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
        let attributes = self.attributes(directory.as_fd(), path)?;
        self.put(&Member { kind: Kind::Directory, attributes, ..member(own, &stat) })?;
        if self.how == Pack::Image && stat.st_dev != self.device {
            return Ok(());
        }
        let entries = Dir::read_from(directory).doing("reading", path)?.filter_map(|entry| match entry {
            Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => None,
            entry => Some(entry.map(|entry| entry.file_name().to_owned()).doing("reading", path)),
        });
        let inner = |this: &mut Self, name: Result<CString, ArchiveError>| this.name(directory, &name?, path, depth);
        if self.how == Pack::Image {
            let mut names: Vec<_> = entries.collect::<Result<_, _>>()?;
            names.sort_unstable();
            names.into_iter().try_for_each(|name| inner(self, Ok(name)))
        } else {
            // There may be millions.
            entries.into_iter().try_for_each(|name| inner(self, name))
        }
    }

    fn name(&mut self, at: &OwnedFd, name: &CStr, above: &[u8], depth: usize) -> Result<(), ArchiveError> {
        let path = if above.is_empty() { name.to_bytes().to_vec() } else { [above, b"/", name.to_bytes()].concat() };
        if path.len() >= PATH {
            return Err(ArchiveError::Member { path: above.to_vec(), why: Refusal::Path });
        }
        match self.entry(at.as_fd(), name, &path, depth) {
            // Whoever uses the directory removed it meanwhile.
            Err(ArchiveError::System { source: Errno::NOENT, .. }) if self.how == Pack::Volume => {}
            done => done?,
        }
        Ok((self.heard)(&self.counts)?)
    }

    fn entry(&mut self, at: BorrowedFd<'_>, name: &CStr, path: &[u8], depth: usize) -> Result<(), ArchiveError> {
        let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW).doing("looking at", path)?;
        let member = member(path.to_vec(), &stat);
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let directory = openat(at, name, DIRECTORY, Mode::empty()).doing("opening", path)?;
                return self.directory(&directory, path, depth + 1);
            }
            FileType::RegularFile => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice | FileType::BlockDevice if self.how == Pack::Image => {
                return self.put(&Member { kind: Kind::Device, ..member });
            }
            _ => {
                self.counts.left_out += 1;
                return Ok(());
            }
        };
        let id = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1
            && let Some(first) = self.links.get(&id).cloned()
        {
            return self.put(&Member { kind: Kind::Hard, link: first, ..member });
        }
        match kind {
            Kind::Symlink => {
                let link = readlinkat(at, name, Vec::new()).doing("reading", path)?.into_bytes();
                self.put(&Member { kind, link, ..member })?;
            }
            Kind::File => {
                // NONBLOCK: it may have become a pipe meanwhile.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = openat(at, name, flags, Mode::empty()).doing("opening", path)?;
                let stat = fstat(&file).doing("looking at", path)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    self.changed(path)?;
                    self.counts.left_out += 1;
                    return Ok(());
                }
                self.file(&file, path, &stat)?;
            }
            _ => self.put(&Member { kind, ..member })?,
        }
        if stat.st_nlink > 1 {
            self.links.insert(id, path.to_vec());
        }
        Ok(())
    }

    fn file(&mut self, file: &OwnedFd, path: &[u8], stat: &Stat) -> Result<(), ArchiveError> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let attributes = self.attributes(file.as_fd(), path)?;
        let full = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) >= size;
        let extents = if full { vec![(0, size)] } else { extents(file, size, path)? };
        let member = Member { size, extents, attributes, ..member(path.to_vec(), stat) };
        self.put(&member)?;
        self.content(file, path, &member.extents)
    }

    /// Writes these parts of a file, whatever becomes of it meanwhile: the header has said how long they are.
    fn content(&mut self, file: &OwnedFd, path: &[u8], extents: &[(u64, u64)]) -> Result<(), ArchiveError> {
        let mut cut = false;
        for (offset, length) in extents {
            let (mut at, end) = (*offset, offset + length);
            while at < end {
                let taken = self.writer.take(file.as_fd(), at, end - at)?;
                if taken > 0 {
                    at += taken;
                    self.counts.bytes += taken;
                    (self.heard)(&self.counts)?;
                    continue;
                }
                let most = self.buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
                let n = match pread(file, &mut self.buffer[..most], at) {
                    Err(Errno::INTR) => continue,
                    read => read.doing("reading", path)?,
                };
                if n == 0 {
                    self.changed(path)?;
                    cut = true;
                    self.buffer[..most].fill(0);
                }
                let n = if n == 0 { most } else { n };
                self.writer.content(&self.buffer[..n])?;
                at += n as u64;
                self.counts.bytes += n as u64;
                (self.heard)(&self.counts)?;
            }
        }
        self.counts.changed += u64::from(cut);
        Ok(())
    }

    /// What is in use may change, an image may not.
    fn changed(&self, path: &[u8]) -> Result<(), ArchiveError> {
        match self.how {
            Pack::Volume => Ok(()),
            Pack::Image => Err(ArchiveError::Member { path: path.to_vec(), why: Refusal::Changed }),
        }
    }

    fn attributes(&self, file: BorrowedFd<'_>, path: &[u8]) -> Result<Attributes, ArchiveError> {
        let image = self.how == Pack::Image;
        attributes(file, path, |name| travels(name) || image && name == b"security.capability")
    }

    fn put(&mut self, member: &Member) -> Result<(), ArchiveError> {
        self.counts.entries += 1;
        Ok(self.writer.member(member)?)
    }
}

/// What all members have; a file's size and content are missing.
fn member(path: Vec<u8>, stat: &Stat) -> Member {
    Member {
        path,
        mode: stat.st_mode & 0o7777,
        owner: (stat.st_uid.into(), stat.st_gid.into()),
        modified: (stat.st_mtime, 0),
        ..Member::default()
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

fn attributes(file: BorrowedFd<'_>, path: &[u8], kept: impl Fn(&[u8]) -> bool) -> Result<Attributes, ArchiveError> {
    let mut found = Vec::new();
    let mut names = vec![0; ATTRIBUTE];
    let length = match flistxattr(file, names.as_mut_slice()) {
        Err(Errno::OPNOTSUPP) => return Ok(found),
        length => length.doing("reading attributes of", path)?,
    };
    let (mut value, mut total) = (Vec::new(), 0);
    for name in names[..length].split(|byte| *byte == 0).filter(|name| kept(name)) {
        value.resize(ATTRIBUTE, 0);
        match fgetxattr(file, name, value.as_mut_slice()) {
            Err(Errno::NODATA) => {}
            length => {
                let length = length.doing("reading attributes of", path)?;
                total += length + name.len() + 64;
                // What a reader would refuse.
                if total as u64 <= RECORDS / 2 {
                    found.push((name.to_vec(), value[..length].to_vec()));
                }
            }
        }
    }
    Ok(found)
}
