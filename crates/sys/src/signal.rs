//! Signals as a descriptor (signalfd(2)).

use std::{
    io,
    os::fd::{AsFd, FromRawFd, OwnedFd},
};

use rustix::{io::Errno, process::Signal};

/// Bytes of a `signalfd_siginfo`; its number comes first.
const INFO: usize = 128;

/// Signals that wait to be read instead of interrupting; they stay blocked for the calling thread and its children.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks `signals` and opens a non-blocking descriptor for them.
    pub fn open(signals: &[Signal]) -> io::Result<Self> {
        // SAFETY: the set is initialised by sigemptyset before it is used, and the other calls only read it.
        let fd = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in signals {
                libc::sigaddset(&raw mut set, signal.as_raw());
            }
            if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) < 0 {
                return Err(io::Error::last_os_error());
            }
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd returned a new descriptor.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The number of a signal that came; none: none waits.
    pub fn take(&self) -> io::Result<Option<i32>> {
        let mut info = [0; INFO];
        match rustix::io::read(&self.0, &mut info) {
            Ok(INFO) => Ok(Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))),
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
