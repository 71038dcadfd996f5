//! How file systems count what is below a directory: btrfs by subvolume and quota group (btrfs-ioctl(2)), ext4 and xfs by
//! project (quotactl(2), ioctl_xfs_fsgetxattr(2)).

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, mkdirat, openat, statat, statfs};

const BTRFS_SUBVOL_CREATE: libc::c_ulong = 0x5000_940e;
const BTRFS_TREE_SEARCH: libc::c_ulong = 0xd000_9411;
const BTRFS_INO_LOOKUP: libc::c_ulong = 0xd000_9412;
const BTRFS_QGROUP_LIMIT: libc::c_ulong = 0x8030_942b;
const GET_XATTR: libc::c_ulong = 0x801c_581f;
const SET_XATTR: libc::c_ulong = 0x401c_5820;
/// The inode number of a subvolume's root, and the tree of quota groups.
const SUBVOLUME: u64 = 256;
const QUOTA_TREE: u64 = 8;
const QGROUP_INFO: u64 = 242;
const PROJINHERIT: u32 = 0x200;
const GET_QUOTA: i32 = (0x80_0007 << 8) | 2;
const SET_QUOTA: i32 = (0x80_0008 << 8) | 2;
const BLOCK_LIMITS: u32 = 1;
/// Projects of ours have this bit, and a directory's inode number below it, which no other has.
const PROJECT: u32 = 0x4000_0000;

/// How it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counting {
    /// A directory is a subvolume, whose quota group counts.
    Subvolume,
    /// A directory has a project of its own, which what is made below it inherits.
    Project,
}

/// How the file system at `path` counts; an error says why it does not, and what would help.
pub fn counting(path: &Path) -> Result<Counting, String> {
    let open = || openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let file = open().map_err(|error| format!("{}: {error}", path.display()))?;
    let kind = statfs(path).map_err(|error| format!("{}: {error}", path.display()))?.f_type as u64 & 0xffff_ffff;
    match kind {
        0x9123_683e => match qgroup(file.as_fd(), 0) {
            Ok(_) => Ok(Counting::Subvolume),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                Err(format!("quotas of this btrfs are off (btrfs quota enable {})", path.display()))
            }
            Err(error) => Err(format!("its btrfs does not tell its quotas: {error}")),
        },
        0xef53 | 0x5846_5342 => match get_quota(file.as_fd(), 0) {
            Ok(_) => Ok(Counting::Project),
            Err(_) if kind == 0xef53 => {
                Err("its ext4 counts no projects (tune2fs -O project,quota, and mount it with prjquota)".to_owned())
            }
            Err(_) => Err("its xfs counts no projects (mount it with prjquota)".to_owned()),
        },
        _ => Err("its file system counts no directories (btrfs, ext4 and xfs do)".to_owned()),
    }
}

/// Makes the directory `path` so that what will be in it is counted.
pub fn make_directory(counting: Option<Counting>, path: &Path, mode: u32) -> io::Result<()> {
    if counting != Some(Counting::Subvolume) {
        mkdirat(CWD, path, Mode::from_raw_mode(mode))?;
        if counting == Some(Counting::Project) {
            let directory = open(path)?;
            let mut attributes = get_attributes(directory.as_fd())?;
            (attributes[0], attributes[3]) = (attributes[0] | PROJINHERIT, project_of(fstat(&directory)?.st_ino));
            ioctl(directory.as_fd(), SET_XATTR, &mut attributes)?;
        }
        return Ok(());
    }
    let parent = open(path.parent().unwrap_or(Path::new("/")))?;
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    if name.len() > 255 {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    // struct btrfs_ioctl_vol_args: a descriptor that is not used, then the name.
    let mut arguments = [0u8; 4096];
    arguments[8..8 + name.len()].copy_from_slice(name);
    ioctl(parent.as_fd(), BTRFS_SUBVOL_CREATE, &mut arguments)?;
    Ok(rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(mode), AtFlags::empty())?)
}

/// Bounds what is in a directory that `make_directory` made; none: no bound.
///
/// # Errors
/// It was made otherwise, or the file system refuses.
pub fn limit(counting: Counting, path: &Path, bytes: Option<u64>) -> io::Result<()> {
    let directory = open(path)?;
    match counting {
        Counting::Subvolume => {
            if statat(CWD, path, AtFlags::empty())?.st_ino != SUBVOLUME {
                return Err(io::ErrorKind::Unsupported.into());
            }
            // Group 0 is that of the descriptor's subvolume; flags: only the first number; all ones: none.
            let mut arguments = [0, 1, bytes.unwrap_or(u64::MAX), 0, 0, 0];
            ioctl(directory.as_fd(), BTRFS_QGROUP_LIMIT, &mut arguments)
        }
        Counting::Project => {
            let project = own_project(directory.as_fd())?;
            // struct if_dqblk: limits in KiB, hard and soft; the last word says what is set.
            let mut quota = [0u64; 9];
            let blocks = bytes.map_or(0, |bytes| bytes.div_ceil(1024).max(1));
            (quota[0], quota[1], quota[8]) = (blocks, blocks, u64::from(BLOCK_LIMITS));
            quotactl(directory.as_fd(), SET_QUOTA, project, &mut quota)
        }
    }
}

/// Bytes that are in a directory that `make_directory` made.
pub fn used(counting: Counting, path: &Path) -> io::Result<u64> {
    let directory = open(path)?;
    match counting {
        Counting::Subvolume if fstat(&directory)?.st_ino == SUBVOLUME => {
            let mut lookup = [0u64; 512];
            lookup[1] = SUBVOLUME;
            ioctl(directory.as_fd(), BTRFS_INO_LOOKUP, &mut lookup)?;
            qgroup(directory.as_fd(), lookup[0])?.ok_or_else(|| io::ErrorKind::NotFound.into())
        }
        Counting::Subvolume => Err(io::ErrorKind::Unsupported.into()),
        Counting::Project => Ok(get_quota(directory.as_fd(), own_project(directory.as_fd())?)?[2]),
    }
}

fn open(path: &Path) -> io::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

fn project_of(inode: u64) -> u32 {
    PROJECT | (inode as u32 & (PROJECT - 1))
}

/// struct fsxattr: flags, extent size, extents, project, and what is not used here.
fn get_attributes(directory: BorrowedFd<'_>) -> io::Result<[u32; 7]> {
    let mut attributes = [0; 7];
    ioctl(directory, GET_XATTR, &mut attributes)?;
    Ok(attributes)
}

fn own_project(directory: BorrowedFd<'_>) -> io::Result<u32> {
    let project = get_attributes(directory)?[3];
    if project == project_of(fstat(directory)?.st_ino) { Ok(project) } else { Err(io::ErrorKind::Unsupported.into()) }
}

fn get_quota(file: BorrowedFd<'_>, project: u32) -> io::Result<[u64; 9]> {
    let mut quota = [0; 9];
    quotactl(file, GET_QUOTA, project, &mut quota)?;
    Ok(quota)
}

/// Bytes that a quota group of level 0 refers to; none: there is no such group.
fn qgroup(file: BorrowedFd<'_>, id: u64) -> io::Result<Option<u64>> {
    // struct btrfs_ioctl_search_args: a key of 13 words, then what is found: a header of 4 words, then the item, whose second
    // word is it.
    let mut search = [0u64; 512];
    search[0] = QUOTA_TREE;
    (search[3], search[4]) = (id, id);
    search[6] = u64::MAX;
    search[7] = QGROUP_INFO | (QGROUP_INFO << 32);
    search[8] = 1;
    ioctl(file, BTRFS_TREE_SEARCH, &mut search)?;
    Ok((search[8] as u32 > 0).then_some(search[18]))
}

/// Integers and arrays of them, for which any bytes are a value.
trait Plain {}
impl Plain for [u8; 4096] {}
impl Plain for [u64; 512] {}
impl Plain for [u64; 6] {}
impl Plain for [u32; 7] {}

fn ioctl<T: Plain>(file: BorrowedFd<'_>, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: each request of this file is used with an argument of the size that is part of its number, which is what the
    // kernel reads and writes; any bytes are a value of `T`.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), request as _, std::ptr::from_mut(argument)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn quotactl(file: BorrowedFd<'_>, command: i32, id: u32, quota: &mut [u64; 9]) -> io::Result<()> {
    // SAFETY: both commands read or write one struct if_dqblk, 72 bytes, as long as `quota`.
    let done =
        unsafe { libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, id, std::ptr::from_mut(quota)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
