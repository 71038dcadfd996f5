//! Secrets: files of a tmpfs, each mounted where the spec says. Their bytes go from the file that the host sent straight
//! there: this process never has them in its memory.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{Gid, Mode, OFlags, Uid, fchmod, fchown, open, openat, sendfile},
    mount::{MountAttrFlags, UnmountFlags, unmount},
};
use sys::mount::{Attributes, set_attributes};

use super::{account, mounts, plan::Secret};

/// Where the tmpfs is attached until its files are where they belong: only what is attached can be mounted elsewhere.
/// The path is the kernel's, so no link of the image leads it astray.
const STAGE: &str = "/sys/fs/cgroup";
const PAGE: u64 = 4096;

/// Puts `secrets` in place in the root of the calling process: readable for `user`, and for its group where `user` names
/// one. A path is made where it is missing.
pub(super) fn place(source: BorrowedFd<'_>, user: &str, secrets: &[Secret]) -> io::Result<()> {
    let account = account::look_up(user).map_err(io::Error::other)?;
    let owner = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    let mode = Mode::from(if user.contains(':') { 0o440 } else { 0o400 });
    let pages: u64 = secrets.iter().map(|secret| secret.length.div_ceil(PAGE) + 1).sum();
    let (size, inodes) = ((pages * PAGE).to_string(), (secrets.len() + 2).to_string());
    let options = [("mode", "700"), ("size", size.as_str()), ("nr_inodes", inodes.as_str())];
    let flags =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let store = mounts::new("tmpfs", &options, flags)?;
    for (number, secret) in secrets.iter().enumerate() {
        write(source, &store, number, secret, owner, mode).map_err(|error| named(secret, &error))?;
    }
    mounts::attach_at(&store, STAGE)?;
    let root = open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for (number, secret) in secrets.iter().enumerate() {
        mount(&root, number, secret).map_err(|error| named(secret, &error))?;
    }
    Ok(unmount(STAGE, UnmountFlags::DETACH)?)
}

fn named(secret: &Secret, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("`{}` at {}: {error}", secret.name, secret.path))
}

fn write(
    source: BorrowedFd<'_>,
    store: &OwnedFd,
    number: usize,
    secret: &Secret,
    (uid, gid): (Uid, Gid),
    mode: Mode,
) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(store, number.to_string(), flags, Mode::empty())?;
    let (mut at, end) = (secret.start, secret.start + secret.length);
    while at < end {
        let left = usize::try_from(end - at).map_err(io::Error::other)?;
        if sendfile(&file, source, Some(&mut at), left)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    fchown(&file, Some(uid), Some(gid))?;
    Ok(fchmod(&file, mode)?)
}

fn mount(root: &OwnedFd, number: usize, secret: &Secret) -> io::Result<()> {
    use std::os::fd::AsFd;
    let file = mounts::copy(format!("{STAGE}/{number}"), false)?;
    set_attributes(file.as_fd(), Attributes::RDONLY, None, false)?;
    Ok(mounts::attach(file, mounts::mount_point_file(root.as_fd(), &secret.path)?)?)
}
