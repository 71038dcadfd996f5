//! A volume's content as a tar stream, in and out, or copied to be one later: a confined child reads or writes it, since
//! whoever wrote the stream or the files is hostile.

use std::{
    fs::File,
    io::ErrorKind::{FileTooLarge, StorageFull},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use archive::{ArchiveError, CopyTo, Counts, Pack, Unpack, copy, pack, unpack};
use isolation::host::{BLOCK, Confine, spawn_confined};
use model::api::ErrorKind;
use rustix::{
    fs::{FileType, Mode, OFlags, fstat, mkdirat, openat, syncfs},
    io::{Errno, ioctl_fionbio},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{Signal, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};
use sys::share::{Range, share};
use tokio::io::unix::AsyncFd;
use wire::{Fault, host::Moved};

use crate::watch::watch;

/// Bytes and entries between two words of the child's.
const BYTES: u64 = 8 << 20;
const ENTRIES: u64 = 1000;
/// What a volume's directory holds that VPSs see.
const DATA: &str = "data";

/// Bytes of a volume that are copied where they can't be shared: about as many as are read and written in a second.
const UNSHARED: u64 = 256 << 20;

/// Which way.
#[derive(Debug, Clone, Copy)]
pub enum Way<'a> {
    /// From the stream into a new `data`; one owner for all, or whom the stream says.
    In(&'a OwnedFd, Option<(u32, u32)>),
    /// From `data` to the stream.
    Out(&'a OwnedFd),
    /// From `data` to two files.
    Copy(&'a Files),
}

/// What a volume is copied to.
#[derive(Debug)]
pub struct Files {
    /// The stream but for what is shared.
    pub log: File,
    /// What is shared.
    pub content: File,
    /// Whether the file system can.
    pub shares: bool,
}

/// What the child says.
#[derive(Debug, Serialize, Deserialize)]
enum Said {
    Going,
    Done(Moved),
    Failed(Fault),
}

/// A child that moves. When it is dropped the child is killed.
#[derive(Debug)]
pub struct Transfer {
    socket: AsyncFd<OwnedFd>,
    child: OwnedFd,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // It is reaped with all others.
        let _ = pidfd_send_signal(&self.child, Signal::KILL);
    }
}

impl Transfer {
    /// Starts it for the volume at `directory`.
    pub fn begin(way: Way<'_>, directory: &Path, mount_point: &Path) -> Result<Self, Fault> {
        let failed = |error: String| Fault::new(ErrorKind::Failed, format!("moving files: {error}"));
        let given = match way {
            Way::In(stream, _) | Way::Out(stream) => {
                let kind = fstat(stream).map(|stat| FileType::from_raw_mode(stat.st_mode));
                if !matches!(kind, Ok(FileType::Fifo | FileType::Socket | FileType::RegularFile)) {
                    return Err(Fault::new(ErrorKind::Invalid, "an archive is a pipe, a socket or a file"));
                }
                vec![stream.as_fd()]
            }
            Way::Copy(Files { log, content, .. }) => vec![log.as_fd(), content.as_fd()],
        };
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (ours, theirs) = pair.map_err(|error| failed(error.to_string()))?;
        let confine = Confine {
            directory,
            writable: matches!(way, Way::In(..)),
            mount_point,
            keep: &[&given[..], &[theirs.as_fd()]].concat(),
        };
        let say = |said: &Said| wire::shim::send(theirs.as_fd(), said, &[]);
        let report = |error: &isolation::host::HostError| {
            let _ = say(&Said::Failed(failed(error.explain())));
        };
        let run = |root: OwnedFd| {
            let last = match moved(way, &root, &mut || say(&Said::Going)) {
                Ok(counts) => Said::Done(reply(&counts)),
                Err(error) => Said::Failed(fault(&error)),
            };
            i32::from(say(&last).is_err())
        };
        let child = spawn_confined(&confine, report, run).map_err(|error| failed(error.explain()))?;
        drop(theirs);
        let nonblocking = ioctl_fionbio(&ours, true).map_err(std::io::Error::from).and_then(|()| watch(ours));
        let socket = nonblocking.map_err(|error| failed(error.to_string()))?;
        Ok(Self { socket, child: child.pidfd })
    }

    /// Waits for its end; `going` is asked again and again, and ends it by a fault.
    pub async fn finish(&self, mut going: impl FnMut() -> Result<(), Fault>) -> Result<Moved, Fault> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| wire::shim::recv::<Said>(socket.as_fd())) {
                Err(_) => {}
                Ok(Ok(Some((Said::Going, _)))) => going()?,
                Ok(Ok(Some((Said::Done(moved), _)))) => return Ok(moved),
                Ok(Ok(Some((Said::Failed(fault), _)))) => return Err(fault),
                Ok(Ok(None) | Err(_)) => {
                    return Err(Fault::new(ErrorKind::Failed, "the process that moved the files was killed"));
                }
            }
        }
    }
}

fn moved(way: Way<'_>, root: &OwnedFd, going: &mut dyn FnMut() -> std::io::Result<()>) -> Result<Counts, ArchiveError> {
    let system = |doing| move |source: Errno| ArchiveError::System { doing, path: DATA.into(), source };
    let blocking = |stream: &OwnedFd| -> Result<File, ArchiveError> {
        ioctl_fionbio(stream, false).map_err(system("opening the stream of"))?;
        Ok(File::from(stream.try_clone()?))
    };
    let mut last = (0, 0);
    let mut heard = |counts: &Counts| {
        if counts.bytes - last.0 < BYTES && counts.entries - last.1 < ENTRIES {
            return Ok(());
        }
        last = (counts.bytes, counts.entries);
        going()
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match way {
        Way::In(stream, owner) => {
            let stream = blocking(stream)?;
            mkdirat(root, DATA, Mode::from(0o755)).map_err(system("making"))?;
            let data = openat(root, DATA, flags, Mode::empty()).map_err(system("opening"))?;
            let counts = unpack(stream, data.as_fd(), Unpack { owner, ids: BLOCK }, &mut heard)?;
            syncfs(&data).map_err(system("writing"))?;
            Ok(counts)
        }
        Way::Out(stream) => {
            let stream = blocking(stream)?;
            let data = openat(root, DATA, flags, Mode::empty()).map_err(system("opening"))?;
            pack(data.as_fd(), std::io::BufWriter::with_capacity(64 << 10, stream), Pack::Volume, &mut heard)
        }
        Way::Copy(Files { log, content, shares }) => {
            let data = openat(root, DATA, flags, Mode::empty()).map_err(system("opening"))?;
            let share: archive::Share = |from, at, length, to, there| share(from, Range { at, length }, to, there);
            let to = CopyTo { log, content, share, limit: UNSHARED, shares: *shares };
            copy(data.as_fd(), &to, &mut heard)
        }
    }
}

fn reply(counts: &Counts) -> Moved {
    let Counts { entries, bytes, left_out, changed } = *counts;
    Moved { entries, bytes, left_out, changed }
}

fn fault(error: &ArchiveError) -> Fault {
    let kind = match error {
        ArchiveError::System { source: Errno::NOSPC | Errno::DQUOT, .. } => ErrorKind::Lacking,
        ArchiveError::Stream(error) if matches!(error.kind(), StorageFull | FileTooLarge) => ErrorKind::Lacking,
        ArchiveError::System { .. } | ArchiveError::Stream(_) => ErrorKind::Failed,
        _ => ErrorKind::Invalid,
    };
    Fault::new(kind, error.to_string())
}
