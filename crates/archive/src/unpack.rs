//! From a stream into an empty directory.

use std::{
    io::Read,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, SeekFrom, Timespec, Timestamps, Uid, XattrFlags, chownat,
        fchmod, fchown, fsetxattr, ftruncate, futimens, linkat, mkdirat, mkfifoat, openat, openat2, seek, statat,
        symlinkat, unlinkat, utimensat,
    },
    io::{Errno, write},
};

use crate::{
    ArchiveError, CHUNK, Counts, PATH, Refusal,
    error::Doing,
    header::Kind,
    read::{Attributes, Member, Members},
    travels,
};

/// Directories in each other at most; those that are being filled are held.
const DEPTH: usize = 512;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// How a stream is unpacked.
#[derive(Debug, Clone, Copy)]
pub struct Unpack {
    /// Who owns all of it, instead of whom it says.
    pub owner: Option<(u32, u32)>,
    /// Ids from 0 on that there are.
    pub ids: u32,
}

/// Unpacks `input` into `root`. `heard` is told how it goes on, and ends it by an error.
///
/// # Errors
/// The stream is no archive, or one of its members can't be taken; what was unpacked until then stays.
pub fn unpack(
    input: impl Read,
    root: BorrowedFd<'_>,
    how: Unpack,
    heard: &mut dyn FnMut(&Counts) -> std::io::Result<()>,
) -> Result<Counts, ArchiveError> {
    let directory = openat(root, ".", DIRECTORY, Mode::empty()).doing("opening", b".")?;
    let open = vec![Filling { path: Vec::new(), directory, attributes: Vec::new(), modified: None }];
    let mut this = Unpacking { how, heard, counts: Counts::default(), open, buffer: vec![0; CHUNK] };
    let mut members = Members::new(input);
    while let Some(member) = members.next_member()? {
        this.member(&member, &mut members)?;
        (this.heard)(&this.counts)?;
    }
    while let Some(directory) = this.open.pop() {
        directory.finish()?;
    }
    Ok(this.counts)
}

struct Unpacking<'a> {
    how: Unpack,
    heard: &'a mut dyn FnMut(&Counts) -> std::io::Result<()>,
    counts: Counts,
    /// Directories that are being filled, the outer before what is in it, the whole first.
    open: Vec<Filling>,
    buffer: Vec<u8>,
}

/// A directory that members go to. Its time and attributes are set when it is left: what is made in it would change the
/// one, and inherit of the other.
struct Filling {
    path: Vec<u8>,
    directory: OwnedFd,
    attributes: Attributes,
    modified: Option<(i64, u32)>,
}

impl Filling {
    fn finish(self) -> Result<(), ArchiveError> {
        set_attributes(self.directory.as_fd(), &self.attributes, &self.path)?;
        match self.modified {
            Some(modified) => futimens(&self.directory, &times(modified)).doing("setting the time of", &self.path),
            None => Ok(()),
        }
    }
}

impl Unpacking<'_> {
    fn member<R: Read>(&mut self, member: &Member, members: &mut Members<R>) -> Result<(), ArchiveError> {
        let parts = parts(&member.path)?;
        let (uid, gid) = self.owner(member)?;
        if member.kind == Kind::Device {
            self.counts.left_out += 1;
            return Ok(());
        }
        if parts.is_empty() && member.kind == Kind::Directory {
            self.enter(&[], member)?;
            return self.dress_directory(member, (uid, gid));
        }
        let Some((name, above)) = parts.split_last() else { return Err(refused(member, Refusal::InTheWay)) };
        let parent = self.enter(above, member)?;
        match member.kind {
            Kind::Directory => {
                match mkdirat(self.at(parent), *name, Mode::RWXU) {
                    Err(Errno::EXIST) if self.is_directory(parent, name) => {}
                    Err(Errno::EXIST) => {
                        self.remove(parent, name, member)?;
                        mkdirat(self.at(parent), *name, Mode::RWXU).doing("making", &member.path)?;
                    }
                    made => made.doing("making", &member.path)?,
                }
                self.enter(&parts, member)?;
                self.dress_directory(member, (uid, gid))?;
            }
            Kind::Hard => self.link(member, parent, name)?,
            Kind::Symlink => {
                self.make(parent, name, member, |at| symlinkat(member.link.as_slice(), at, *name))?;
                let at = self.at(parent);
                chownat(at, *name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).doing("owning", &member.path)?;
                utimensat(at, *name, &times(member.modified), AtFlags::SYMLINK_NOFOLLOW)
                    .doing("setting the time of", &member.path)?;
            }
            Kind::Fifo => {
                self.make(parent, name, member, |at| mkfifoat(at, *name, Mode::RUSR))?;
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let pipe = openat(self.at(parent), *name, flags, Mode::empty()).doing("opening", &member.path)?;
                dress(pipe.as_fd(), member, (uid, gid))?;
            }
            _ => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = self.make(parent, name, member, |at| openat(at, *name, flags, Mode::RUSR | Mode::WUSR))?;
                self.fill(&file, member, members)?;
                dress(file.as_fd(), member, (uid, gid))?;
            }
        }
        self.counts.entries += 1;
        Ok(())
    }

    fn owner(&self, member: &Member) -> Result<(Uid, Gid), ArchiveError> {
        let (uid, gid) = match self.how.owner {
            Some((uid, gid)) => (u64::from(uid), u64::from(gid)),
            None => member.owner,
        };
        for id in [uid, gid] {
            if id >= u64::from(self.how.ids) {
                return Err(refused(member, Refusal::Owner(id)));
            }
        }
        Ok((Uid::from_raw(uid as u32), Gid::from_raw(gid as u32)))
    }

    /// The directory that is so deep.
    fn at(&self, depth: usize) -> BorrowedFd<'_> {
        self.open[depth].directory.as_fd()
    }

    /// Goes to the directory of these names, which are made where they are missing; how deep it is.
    fn enter(&mut self, names: &[&[u8]], member: &Member) -> Result<usize, ArchiveError> {
        if names.len() > DEPTH {
            return Err(refused(member, Refusal::Deep(DEPTH)));
        }
        let name = |filling: &Filling| filling.path.rsplit(|byte| *byte == b'/').next().map(<[u8]>::to_vec);
        let same =
            self.open[1..].iter().zip(names).take_while(|(open, wanted)| name(open).as_deref() == Some(**wanted));
        let same = same.count();
        // From the inner to the outer, since each may change the one around it.
        while self.open.len() > same + 1 {
            if let Some(left) = self.open.pop() {
                left.finish()?;
            }
        }
        for depth in same..names.len() {
            let path = names[..=depth].join(&b'/');
            let at = self.at(depth);
            let directory = match openat(at, names[depth], DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) => {
                    mkdirat(at, names[depth], Mode::from(0o755)).doing("making", &path)?;
                    openat(at, names[depth], DIRECTORY, Mode::empty()).doing("opening", &path)?
                }
                Err(Errno::LOOP | Errno::NOTDIR) => return Err(refused(member, Refusal::Through)),
                opened => opened.doing("opening", &path)?,
            };
            self.open.push(Filling { path, directory, attributes: Vec::new(), modified: None });
        }
        Ok(names.len())
    }

    /// Dresses the directory that was entered last.
    fn dress_directory(&mut self, member: &Member, (uid, gid): (Uid, Gid)) -> Result<(), ArchiveError> {
        let Some(filling) = self.open.last_mut() else { return Ok(()) };
        fchown(&filling.directory, Some(uid), Some(gid)).doing("owning", &member.path)?;
        let mode = Mode::from_raw_mode(member.mode);
        fchmod(&filling.directory, mode).doing("setting the mode of", &member.path)?;
        filling.attributes.clone_from(&member.attributes);
        filling.modified = Some(member.modified);
        Ok(())
    }

    fn is_directory(&self, parent: usize, name: &[u8]) -> bool {
        let stat = statat(self.at(parent), name, AtFlags::SYMLINK_NOFOLLOW);
        stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    /// Makes what is no directory; a later member of the same path takes the place of an earlier one, as with tar(1).
    fn make<T>(
        &mut self,
        parent: usize,
        name: &[u8],
        member: &Member,
        make: impl Fn(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, ArchiveError> {
        match make(self.at(parent)) {
            Err(Errno::EXIST) => {
                self.remove(parent, name, member)?;
                make(self.at(parent)).doing("making", &member.path)
            }
            made => made.doing("making", &member.path),
        }
    }

    fn remove(&mut self, parent: usize, name: &[u8], member: &Member) -> Result<(), ArchiveError> {
        let at = self.at(parent);
        match unlinkat(at, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => match unlinkat(at, name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => Err(refused(member, Refusal::InTheWay)),
                removed => removed.doing("replacing", &member.path),
            },
            removed => removed.doing("replacing", &member.path),
        }
    }

    fn link(&mut self, member: &Member, parent: usize, name: &[u8]) -> Result<(), ArchiveError> {
        let target = parts(&member.link).map_err(|_| refused(member, Refusal::NoTarget))?;
        let Some((last, above)) = target.split_last() else { return Err(refused(member, Refusal::NoTarget)) };
        let above = if above.is_empty() { b".".to_vec() } else { above.join(&b'/') };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let missing = |_| refused(member, Refusal::NoTarget);
        let directory = openat2(self.at(0), above.as_slice(), flags, Mode::empty(), resolve).map_err(missing)?;
        let stat = statat(&directory, *last, AtFlags::SYMLINK_NOFOLLOW).map_err(missing)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(refused(member, Refusal::NoTarget));
        }
        let link = |at: BorrowedFd<'_>| linkat(&directory, *last, at, name, AtFlags::empty());
        match link(self.at(parent)) {
            Err(Errno::EXIST) => {
                let there =
                    statat(self.at(parent), name, AtFlags::SYMLINK_NOFOLLOW).doing("looking at", &member.path)?;
                if (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino) {
                    return Ok(());
                }
                self.remove(parent, name, member)?;
                link(self.at(parent)).doing("linking", &member.path)
            }
            made => made.doing("linking", &member.path),
        }
    }

    fn fill<R: Read>(&mut self, file: &OwnedFd, member: &Member, members: &mut Members<R>) -> Result<(), ArchiveError> {
        for (offset, length) in &member.extents {
            if *offset > 0 {
                seek(file, SeekFrom::Start(*offset)).doing("writing", &member.path)?;
            }
            let mut left = *length;
            while left > 0 {
                let most = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let read = members.read(&mut self.buffer[..most])?;
                let mut bytes = &self.buffer[..read];
                while !bytes.is_empty() {
                    match write(file, bytes) {
                        Err(Errno::INTR) => {}
                        written => bytes = &bytes[written.doing("writing", &member.path)?..],
                    }
                }
                left -= read as u64;
                self.counts.bytes += read as u64;
                (self.heard)(&self.counts)?;
            }
        }
        if member.extents.last().map_or(0, |(offset, length)| offset + length) < member.size {
            ftruncate(file, member.size).doing("writing", &member.path)?;
        }
        Ok(())
    }
}

fn refused(member: &Member, why: Refusal) -> ArchiveError {
    ArchiveError::Member { path: member.path.clone(), why }
}

/// The names of a path that stays where it begins.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>, ArchiveError> {
    let refuse = |why| ArchiveError::Member { path: path.to_vec(), why };
    if path.starts_with(b"/") {
        return Err(refuse(Refusal::Absolute));
    }
    if path.is_empty() || path.len() > PATH || path.contains(&0) {
        return Err(refuse(Refusal::Path));
    }
    let parts: Vec<_> = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&b"..".as_slice()) { Err(refuse(Refusal::Upwards)) } else { Ok(parts) }
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn dress(file: BorrowedFd<'_>, member: &Member, (uid, gid): (Uid, Gid)) -> Result<(), ArchiveError> {
    fchown(file, Some(uid), Some(gid)).doing("owning", &member.path)?;
    set_attributes(file, &member.attributes, &member.path)?;
    // After the owner, whose change takes setuid bits away, and after an access list, which sets the mode too.
    fchmod(file, Mode::from_raw_mode(member.mode)).doing("setting the mode of", &member.path)?;
    futimens(file, &times(member.modified)).doing("setting the time of", &member.path)
}

fn set_attributes(file: BorrowedFd<'_>, attributes: &[(Vec<u8>, Vec<u8>)], path: &[u8]) -> Result<(), ArchiveError> {
    for (name, value) in attributes.iter().filter(|(name, _)| travels(name)) {
        match fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
            // A file system without them, a link or pipe that can have none, an access list of ids that are not there.
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::INVAL) => {}
            set => set.doing("setting attributes of", path)?,
        }
    }
    Ok(())
}
