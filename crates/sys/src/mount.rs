//! What of the mount API rustix lacks: mount_setattr(2), with id-mapping.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Flags of a mount (`MOUNT_ATTR_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes(u64);

impl Attributes {
    /// Read-only.
    pub const RDONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);
    /// No setuid bits, no file capabilities.
    pub const NOSUID: Self = Self(libc::MOUNT_ATTR_NOSUID);
    /// No device nodes.
    pub const NODEV: Self = Self(libc::MOUNT_ATTR_NODEV);
    /// No programs.
    pub const NOEXEC: Self = Self(libc::MOUNT_ATTR_NOEXEC);
}

impl std::ops::BitOr for Attributes {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Sets `attributes` on the mount behind `mount`, and on all below it if `recursive`; with `idmap`, a user namespace,
/// its ids on disk appear mapped: an id inside that namespace is on disk, the one outside is seen. A mount can be
/// id-mapped once, and only before it is attached anywhere.
pub fn set_attributes(
    mount: BorrowedFd<'_>,
    attributes: Attributes,
    idmap: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> io::Result<()> {
    let idmapped = if idmap.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 };
    let attr = libc::mount_attr {
        attr_set: attributes.0 | idmapped,
        attr_clr: 0,
        propagation: 0,
        userns_fd: idmap.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, `attr` is a whole mount_attr and its size is given; the kernel reads it
    // only during the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
