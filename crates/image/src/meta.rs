//! What a layer keeps of a file besides its content.

use std::{
    ffi::{CStr, CString},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown, fgetxattr,
        flistxattr, fsetxattr, futimens, utimensat,
    },
    io::Errno,
};

use crate::error::{Doing, StoreError};

/// Extended attributes of one file, by name.
pub type Xattrs = Vec<(CString, Vec<u8>)>;

/// The kernel's limits (xattr(7)).
const LIST_MAX: usize = 64 << 10;
const VALUE_MAX: usize = 64 << 10;

/// Attributes that are part of an image. Of overlayfs's own only the opaque mark: the rest describes where a file was
/// copied up from, which is not so in another place.
pub(crate) fn is_kept(name: &CStr) -> bool {
    let name = name.to_bytes();
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        b"user.overlay.opaque" => true,
        _ => name.starts_with(b"user.") && !name.starts_with(b"user.overlay."),
    }
}

/// The attributes of an open file that a layer keeps, sorted.
pub fn read_xattrs(file: BorrowedFd<'_>, path: &Path) -> Result<Xattrs, StoreError> {
    let mut list = vec![0; LIST_MAX];
    let length = match flistxattr(file, &mut list[..]) {
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        length => length.doing("listing attributes of", path)?,
    };
    let mut found = Vec::new();
    for name in list[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if is_kept(name) {
            let mut value = vec![0; VALUE_MAX];
            let length = fgetxattr(file, name, &mut value[..]).doing("reading attributes of", path)?;
            value.truncate(length);
            found.push((name.to_owned(), value));
        }
    }
    found.sort();
    Ok(found)
}

/// Owner, mode and time of a file, in whole seconds like tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permissions.
    pub mode: u32,
    /// Unix time of the last change.
    pub mtime: i64,
}

impl From<&Stat> for Meta {
    fn from(stat: &Stat) -> Self {
        Self { uid: stat.st_uid, gid: stat.st_gid, mode: stat.st_mode, mtime: stat.st_mtime }
    }
}

impl Meta {
    fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.mtime, tv_nsec: 0 };
        Timestamps { last_access: time, last_modification: time }
    }

    fn owner(&self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }
}

/// Gives an open file its owner, mode, attributes and time. The owner first: changing it clears setuid bits and
/// capabilities.
pub fn apply(file: BorrowedFd<'_>, meta: &Meta, xattrs: &Xattrs, path: &Path) -> Result<(), StoreError> {
    let (uid, gid) = meta.owner();
    fchown(file, uid, gid).doing("setting the owner of", path)?;
    fchmod(file, Mode::from_raw_mode(meta.mode & 0o7777)).doing("setting the mode of", path)?;
    for (name, value) in xattrs {
        fsetxattr(file, name.as_c_str(), value, XattrFlags::empty()).map_err(|error| StoreError::Attribute {
            path: path.to_owned(),
            name: name.clone(),
            source: error,
        })?;
    }
    futimens(file, &meta.times()).doing("setting the time of", path)
}

/// The same for what cannot be opened: a symbolic link, a fifo.
pub fn apply_at(directory: impl AsFd, name: &CStr, meta: &Meta, path: &Path) -> Result<(), StoreError> {
    let (uid, gid) = meta.owner();
    let directory = directory.as_fd();
    chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).doing("setting the owner of", path)?;
    utimensat(directory, name, &meta.times(), AtFlags::SYMLINK_NOFOLLOW).doing("setting the time of", path)
}
