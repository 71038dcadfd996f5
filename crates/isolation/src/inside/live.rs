//! Steps, carried out.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{CWD, Mode, OFlags, chmodat, open, symlinkat},
    io::Errno,
    mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags, mount_change, unmount},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with},
    process::{chdir, fchdir, pivot_root},
    system::sethostname,
    thread::{CapabilitySet, remove_capability_from_bounding_set, set_no_new_privs},
};
use sys::mount::{Attributes, set_attributes};

use super::{Kernel, Step, files::write_file, mounts, network, seccomp, secrets, volume};

/// Where the new root is put until it is `/`: a directory of the shim's root that nothing needs once the overlay is
/// mounted.
const STAGE: &str = "/layers";
/// A file system without anything in it, for copies over directories that shall look empty.
const EMPTY: &str = "/sys/fs/cgroup";
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const DEVICE_LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("/proc/kcore", "core"),
    ("pts/ptmx", "ptmx"),
];

/// The kernel in earnest, for the process that shall be inside; and what steps brought.
#[derive(Debug, Default)]
pub struct Live {
    root: Option<OwnedFd>,
    /// What secrets say, for `Step::Secrets`.
    pub secrets: Option<OwnedFd>,
    /// Where held calls come out (`Step::Seccomp`).
    pub listener: Option<OwnedFd>,
    /// The socket of `Step::NotifySocket`.
    pub notify: Option<OwnedFd>,
    /// The socket of `Step::LogSocket`.
    pub syslog: Option<OwnedFd>,
}

impl Live {
    fn root(&self) -> io::Result<BorrowedFd<'_>> {
        self.root.as_ref().map(AsFd::as_fd).ok_or_else(|| io::Error::other("there is no root yet"))
    }

    fn put_root(&mut self, mount: OwnedFd) -> io::Result<()> {
        mounts::attach_at(&mount, STAGE)?;
        self.root = Some(open(STAGE, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?);
        Ok(())
    }

    fn devices(&self) -> io::Result<()> {
        let dev = mounts::own_directory(self.root()?, "/dev")?;
        for name in DEVICES {
            let place = mounts::mount_point_file(dev.as_fd(), &format!("/{name}"))?;
            mounts::attach(mounts::copy(format!("/dev/{name}"), false)?, place)?;
        }
        for (target, name) in DEVICE_LINKS {
            symlinkat(target, &dev, name)?;
        }
        Ok(())
    }

    fn bind(&self, index: usize, target: &str, directory: bool) -> io::Result<()> {
        let place = match directory {
            true => mounts::directory(self.root()?, target)?,
            false => mounts::mount_point_file(self.root()?, target)?,
        };
        Ok(mounts::attach(mounts::copy(format!("/binds/{index}"), true)?, place)?)
    }

    fn enter_root(&self) -> io::Result<()> {
        fchdir(self.root()?)?;
        pivot_root(".", ".")?;
        // The old root lies over the new one now.
        unmount(".", UnmountFlags::DETACH)?;
        Ok(chdir("/")?)
    }
}

fn read_only(path: &str, except: &[&str]) -> io::Result<()> {
    let kept = except.iter().map(|path| Ok((path, mounts::copy(path, true)?))).collect::<Result<Vec<_>, Errno>>();
    let (Some(kept), Some(tree)) = (present(kept)?, present(mounts::copy(path, true))?) else { return Ok(()) };
    set_attributes(tree.as_fd(), Attributes::RDONLY, None, true)?;
    mounts::attach_at(tree, path)?;
    Ok(kept.into_iter().try_for_each(|(path, tree)| mounts::attach_at(tree, path))?)
}

/// What is not there, needs no hiding.
fn present<T>(result: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match result {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        done => done.map(Some),
    }
}

/// A socket that takes datagrams at `path`.
fn datagrams(path: &str) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    // Whoever the program runs as.
    chmodat(CWD, path, Mode::from(0o666), rustix::fs::AtFlags::empty())?;
    Ok(socket)
}

fn bound(keep: CapabilitySet) -> io::Result<()> {
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if !keep.contains(capability) {
            match remove_capability_from_bounding_set(capability) {
                // Past the last one that this kernel knows.
                Err(Errno::INVAL) => break,
                done => done?,
            }
        }
    }
    Ok(())
}

impl Kernel for Live {
    fn apply(&mut self, step: &Step) -> io::Result<()> {
        match step {
            Step::Hostname(name) => Ok(sethostname(name.as_bytes())?),
            Step::PrivateMounts => Ok(mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?),
            Step::Overlay { layers } => self.put_root(mounts::overlay(*layers)?),
            Step::BareRoot => {
                let flags = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
                self.put_root(mounts::new("tmpfs", &[("mode", "755"), ("size", "1m"), ("nr_inodes", "4096")], flags)?)
            }
            Step::Mount { kind, target, options, flags } => {
                let place = mounts::own_directory(self.root()?, target)?;
                Ok(mounts::attach(mounts::new(kind, options, *flags)?, place)?)
            }
            Step::BindSysfs => {
                let tree = mounts::copy("/sys", false)?;
                set_attributes(tree.as_fd(), Attributes::RDONLY, None, false)?;
                Ok(mounts::attach(tree, mounts::own_directory(self.root()?, "/sys")?)?)
            }
            Step::Devices => self.devices(),
            Step::Bind { index, target, directory } => self.bind(*index, target, *directory),
            Step::Volume { index, target } => volume::mount(self.root()?, &format!("/binds/{index}"), target),
            Step::File { path, content, optional } => match write_file(self.root()?, path, content) {
                Err(error) if *optional && error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(()),
                done => done,
            },
            Step::Secrets { user, secrets } => {
                let source = self.secrets.take().ok_or_else(|| io::Error::other("they did not come"))?;
                secrets::place(source.as_fd(), user, secrets)
            }
            Step::ReadOnlyRoot => set_attributes(self.root()?, Attributes::RDONLY, None, false),
            Step::EnterRoot => self.enter_root(),
            Step::MaskFile(path) => {
                present(mounts::copy("/dev/null", false).and_then(|null| mounts::attach_at(null, path)))?;
                Ok(())
            }
            Step::MaskDirectory(path) => {
                present(mounts::copy(EMPTY, false).and_then(|empty| mounts::attach_at(empty, path)))?;
                Ok(())
            }
            Step::ReadOnly { path, except } => read_only(path, except),
            Step::Loopback => network::loopback(),
            Step::Link(link) => network::ethernet(link),
            Step::NotifySocket => {
                self.notify = Some(datagrams("/run/notify")?);
                Ok(())
            }
            Step::LogSocket => {
                self.syslog = Some(datagrams("/dev/log")?);
                Ok(())
            }
            Step::Bound(keep) => bound(*keep),
            Step::NoNewPrivileges => Ok(set_no_new_privs(true)?),
            Step::Seccomp { listen } => {
                let filter = seccomp::filter(*listen).ok_or_else(|| io::Error::other("the profile is too long"))?;
                self.listener = filter.load(*listen)?;
                Ok(())
            }
        }
    }
}
