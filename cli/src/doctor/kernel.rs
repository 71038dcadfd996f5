//! What the kernel can do for this user.

use std::{
    ffi::CString,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};
use rustix::{
    fs::CWD,
    mount::{MountFlags, MountPropagationFlags, OpenTreeFlags, mount, mount_change, open_tree},
    thread::UnshareFlags,
};
use sys::{
    mount::{Attributes, set_attributes},
    namespace::{IdMap, create_user, unshare},
    netlink::Netlink,
    process::spawn_child,
    quota::Counting,
    seccomp::{Action, Filter},
};

use super::Finding;

/// The oldest kernel that has all that is used.
const OLDEST: (u32, u32) = (6, 9);

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub fn root() -> Finding {
    let uid = rustix::process::geteuid().as_raw();
    match uid {
        0 => Finding::ok("root", "uid 0"),
        _ => Finding::missing(
            "root",
            format!("uid {uid}"),
            "ids, links and cgroups of many tenants need a root once",
            "run it as root: sudo bailiwick doctor",
        ),
    }
}

pub fn version() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found >= OLDEST {
        return Finding::ok("kernel", release);
    }
    let means = "processes are addressed by pidfd for threads too, and overlays by descriptor: both need Linux 6.9";
    Finding::missing("kernel", release, means, "boot Linux 6.9 or later; Debian 12 has one in bookworm-backports")
}

/// Runs `probe` in a child, so that what it does to itself ends with it.
fn in_child(probe: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let code = spawn_child(|| match probe() {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(1),
    })?
    .wait()?;
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

fn not_tried(what: &'static str) -> Finding {
    Finding::note(what, "not tried", "only root can try it", "sudo bailiwick doctor")
}

pub fn namespaces() -> Finding {
    const WHAT: &str = "namespaces";
    if !is_root() {
        return not_tried(WHAT);
    }
    let kinds = [
        ("user", UnshareFlags::NEWUSER),
        ("mount", UnshareFlags::NEWNS),
        ("pid", UnshareFlags::NEWPID),
        ("network", UnshareFlags::NEWNET),
        ("uts", UnshareFlags::NEWUTS),
        ("ipc", UnshareFlags::NEWIPC),
        ("cgroup", UnshareFlags::NEWCGROUP),
    ];
    let refused = kinds.iter().filter_map(|(name, kind)| {
        let error = in_child(|| unshare(*kind)).err()?;
        Some(format!("no {name} namespace: {error}"))
    });
    let refused: Vec<_> = refused.collect();
    if refused.is_empty() {
        return Finding::ok(WHAT, kinds.map(|(name, _)| name).join(", "));
    }
    let next = "look at the sysctls user.max_*_namespaces and kernel.unprivileged_userns_clone, and at the container \
                this machine may be in";
    Finding::missing(WHAT, refused.join("; "), "each VPS has one of each kind", next)
}

pub fn overlay() -> Finding {
    const WHAT: &str = "overlay";
    if !is_root() {
        return not_tried(WHAT);
    }
    match in_child(mount_overlay) {
        Ok(()) => Finding::ok(WHAT, "mounts inside a user namespace"),
        Err(error) => Finding::missing(
            WHAT,
            format!("does not mount inside a user namespace: {error}"),
            "a VPS's root filesystem is an overlay of its own",
            "load the kernel module: modprobe overlay",
        ),
    }
}

/// An overlay as a VPS has it: its superblock belongs to a user namespace.
fn mount_overlay() -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount("tmpfs", "/tmp", "tmpfs", MountFlags::empty(), None)?;
    for directory in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(Path::new("/tmp").join(directory))?;
    }
    let options = CString::new("userxattr,lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work")?;
    Ok(mount("overlay", "/tmp/merged", "overlay", MountFlags::empty(), Some(options.as_c_str()))?)
}

pub fn links() -> Finding {
    const WHAT: &str = "links";
    if !is_root() {
        return not_tried(WHAT);
    }
    match in_child(make_link) {
        Ok(()) => Finding::ok(WHAT, "a veth pair in a network namespace"),
        Err(error) => Finding::missing(
            WHAT,
            format!("no veth pair: {error}"),
            "each VPS is reached through one",
            "load the kernel module: modprobe veth",
        ),
    }
}

/// A veth pair; it ends with its network namespace.
fn make_link() -> io::Result<()> {
    unshare(UnshareFlags::NEWNET)?;
    let mut message = LinkMessage::default();
    message.attributes =
        vec![LinkAttribute::IfName("probe".to_owned()), LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)])];
    Netlink::open()?.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL).map(drop)
}

/// Tried on the filesystem that VPSs would be on; the mount is attached nowhere and ends with its descriptor.
pub fn idmapped(state: &Path) -> Finding {
    const WHAT: &str = "id-mapped mounts";
    if !is_root() {
        return not_tried(WHAT);
    }
    let place: PathBuf = state.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned();
    let tried = (|| -> io::Result<()> {
        let map = IdMap { inside: 0, outside: 1_048_576, count: 65_536 };
        let (user, _) = create_user(65_534, map, false)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, place.as_path(), flags)?;
        set_attributes(tree.as_fd(), Attributes::RDONLY, Some(user.as_fd()), false)
    })();
    match tried {
        Ok(()) => Finding::ok(WHAT, format!("at {}", place.display())),
        Err(error) => Finding::missing(
            WHAT,
            format!("not at {}: {error}", place.display()),
            "image layers on disk are shared by VPSs whose ids differ",
            "put the host's state on ext4, xfs, btrfs or tmpfs (--root DIR)",
        ),
    }
}

/// Whether sizes of volumes and `limits.disk` are enforced.
pub fn sizes(state: &Path) -> Finding {
    const WHAT: &str = "sizes on disk";
    if !is_root() {
        return not_tried(WHAT);
    }
    let place = state.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    match sys::quota::counting(place) {
        Ok(Counting::Subvolume) => Finding::ok(WHAT, format!("btrfs quota groups at {}", place.display())),
        Ok(Counting::Project) => Finding::ok(WHAT, format!("project quotas at {}", place.display())),
        Err(why) => Finding::note(
            WHAT,
            format!("not enforced at {}: {why}", place.display()),
            "`size` of a volume and `limits.disk` bound nothing; the reserve of the disk is kept all the same",
            "put the host's state on btrfs with quotas, or on ext4 or xfs with project quotas",
        ),
    }
}

/// Whether what is exported stands still for a moment only.
pub fn copies(state: &Path) -> Finding {
    const WHAT: &str = "copies of volumes";
    if !is_root() {
        return not_tried(WHAT);
    }
    let place = state.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    match sys::share::possible(place) {
        Ok(()) => Finding::ok(WHAT, format!("they share blocks at {}", place.display())),
        Err(error) => Finding::note(
            WHAT,
            format!("they can't share blocks at {}: {error}", place.display()),
            "a vps with more than 256 MiB in volumes stands still for as long as it takes to export it",
            "put the host's state on xfs or btrfs",
        ),
    }
}

pub fn seccomp() -> Finding {
    const WHAT: &str = "seccomp notification";
    if !is_root() {
        return not_tried(WHAT);
    }
    // A filter that lets everything pass, with a listener beside it.
    let tried = in_child(|| {
        let filter = Filter::new(&[], &[], Action::Allow).ok_or(io::ErrorKind::InvalidInput)?;
        filter.load(true).map(drop)
    });
    let Err(error) = tried else { return Finding::ok(WHAT, "a filter with a listener loads") };
    let means = "that a server listens is seen by it, and so when it is ready";
    let next = "use a kernel with CONFIG_SECCOMP_FILTER=y, outside of containers that refuse seccomp(2)";
    Finding::missing(WHAT, format!("a filter with a listener does not load: {error}"), means, next)
}
