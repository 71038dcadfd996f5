//! A terminal of the VPS's own, for a program that is about to be executed.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use model::run::WindowSize;
use rustix::{
    fs::{Mode, OFlags, Uid, fchown},
    io::read,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    process::ioctl_tiocsctty,
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

/// Makes a terminal of the `devpts` inside the controlling one of the calling process, which leads a session; the slave. The
/// master goes to `socket`, and whoever is there answers a byte when it is ready to read.
///
/// Called in the child that becomes the program: `/dev/ptmx` is the tenant's, so opening it may hang, and is killed then.
pub(super) fn open(size: WindowSize, owner: u32, socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let master = rustix::fs::open("/dev/ptmx", OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    unlockpt(&master)?;
    tcsetwinsize(&master, Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 })?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    if owner != u32::MAX {
        fchown(&slave, Some(Uid::from_raw(owner)), None)?;
    }
    ioctl_tiocsctty(&slave)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [master.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(socket, &[IoSlice::new(b"t")], &mut control, SendFlags::NOSIGNAL)?;
    // Only who reads the terminal holds its master from here on, so that their end is its hang-up.
    drop(master);
    if read(socket, &mut [0; 1])? == 0 {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    Ok(slave)
}
