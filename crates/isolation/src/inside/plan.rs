//! The steps that make the inside of a VPS, from what is to be run. Pure: read it, print it, test it.

use std::fmt;

use model::{
    SecretName,
    run::{Link, Ready, Root, RunSpec},
};
use rustix::{mount::MountAttrFlags, thread::CapabilitySet};

use super::masks;

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Sets the host name of the uts namespace.
    Hostname(String),
    /// Mounts stop spreading to and from the namespace this one was copied from.
    PrivateMounts,
    /// The root: an overlay of `/layers/0` (the lowest) to `/layers/N-1` with `/state/{upper,work}`.
    Overlay {
        /// N.
        layers: usize,
    },
    /// The root: an empty tmpfs.
    BareRoot,
    /// A new file system inside the root.
    Mount {
        /// Its type.
        kind: &'static str,
        /// Absolute path; made where missing.
        target: &'static str,
        /// Its options.
        options: &'static [(&'static str, &'static str)],
        /// Of the mount.
        flags: MountAttrFlags,
    },
    /// `/sys` of the network namespace the shim was started in, read-only: a sysfs of one's own is for who owns its
    /// network namespace.
    BindSysfs,
    /// Nodes and links in `/dev`.
    Devices,
    /// `/binds/INDEX` of the shim's root at `target`.
    Bind {
        /// Which.
        index: usize,
        /// Absolute path inside; made where missing.
        target: String,
        /// Whether it is a directory.
        directory: bool,
    },
    /// The volume that is prepared at `/binds/INDEX`, at `target`.
    Volume {
        /// Which.
        index: usize,
        /// Absolute path inside; made where missing.
        target: String,
    },
    /// A small file.
    File {
        /// Absolute path inside.
        path: String,
        /// What it holds.
        content: String,
        /// Whether it may stay as it is where the file system is read-only.
        optional: bool,
    },
    /// Files of a tmpfs that only `user` can read.
    Secrets {
        /// As `RunSpec::user`.
        user: String,
        /// Each.
        secrets: Vec<Secret>,
    },
    /// The root's own mount becomes read-only; what is mounted in it stays.
    ReadOnlyRoot,
    /// The root becomes `/`, and the shim's root is gone.
    EnterRoot,
    /// A file of the kernel reads as empty.
    MaskFile(&'static str),
    /// A directory of the kernel looks empty.
    MaskDirectory(&'static str),
    /// A part of proc becomes read-only, but for some paths below it.
    ReadOnly {
        /// Which.
        path: &'static str,
        /// What stays.
        except: &'static [&'static str],
    },
    /// `lo` up.
    Loopback,
    /// `eth0` up, with addresses, gateway and routes.
    Link(Link),
    /// A datagram socket at `/run/notify` (sd_notify(3)).
    NotifySocket,
    /// A datagram socket at `/dev/log` (syslog(3)).
    LogSocket,
    /// Takes everything else from the bounding set.
    Bound(CapabilitySet),
    /// `no_new_privs`.
    NoNewPrivileges,
    /// Loads the filter; with `listen`, `listen` calls wait for the shim.
    Seccomp {
        /// Whether.
        listen: bool,
    },
}

/// What besides the `RunSpec` decides on the steps.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// Whether the VPS has a network namespace of its own.
    pub network: bool,
    /// `/binds/0`, `/binds/1`…
    pub binds: &'a [Prepared],
}

/// A secret to be put in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// What it is called.
    pub name: SecretName,
    /// Absolute path inside.
    pub path: String,
    /// Where its first byte is in the file of all.
    pub start: u64,
    /// How many there are.
    pub length: u64,
}

/// A mount that the host prepared.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Absolute path inside.
    pub target: String,
    /// Whether it is a directory.
    pub directory: bool,
    /// Whether it is a volume.
    pub volume: bool,
}

const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
const RDONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;

const fn mount(
    kind: &'static str,
    target: &'static str,
    options: &'static [(&'static str, &'static str)],
    flags: MountAttrFlags,
) -> Step {
    Step::Mount { kind, target, options, flags }
}

/// The steps that depend on no more than where the root comes from, the mounts and the link: what can be done before it is
/// known which program will run. `finish` follows.
pub fn frame(run: &RunSpec, setting: Setting<'_>) -> Vec<Step> {
    let mut steps = vec![Step::PrivateMounts];
    let bare = run.root == Root::Bare;
    steps.push(match &run.root {
        Root::Layers(layers) => Step::Overlay { layers: layers.len() },
        Root::Bare => Step::BareRoot,
    });
    mounts(&mut steps, bare, run.nesting, setting.network);
    steps.extend(setting.binds.iter().enumerate().map(|(index, bind)| match bind.volume {
        true => Step::Volume { index, target: bind.target.clone() },
        false => Step::Bind { index, target: bind.target.clone(), directory: bind.directory },
    }));
    if bare {
        files(&mut steps, run, setting.binds);
        steps.push(Step::ReadOnlyRoot);
    }
    // All mounts of proc and sysfs come before: they need the shim's own to be seen.
    steps.push(Step::EnterRoot);
    if !run.nesting {
        steps.extend(masks::FILES.iter().map(|path| Step::MaskFile(path)));
        steps.extend(masks::DIRECTORIES.iter().map(|path| Step::MaskDirectory(path)));
        steps.extend(masks::READ_ONLY.iter().map(|(path, except)| Step::ReadOnly { path, except }));
    }
    if setting.network {
        steps.push(Step::Loopback);
        steps.extend(run.link.clone().map(Step::Link));
    }
    steps
}

/// The steps after `frame`: what is this program's own. `secrets` is where each secret is in what the host sent.
pub fn finish(run: &RunSpec, setting: Setting<'_>, secrets: &[Secret]) -> Vec<Step> {
    let mut steps = vec![Step::Hostname(run.hostname.as_ref().unwrap_or(&run.name).to_string())];
    let bare = run.root == Root::Bare;
    if !bare {
        files(&mut steps, run, setting.binds);
        steps.push(Step::LogSocket);
    }
    if !secrets.is_empty() {
        steps.push(Step::Secrets { user: run.user.clone(), secrets: secrets.to_vec() });
    }
    if run.ready == Ready::Notify {
        steps.push(Step::NotifySocket);
    }
    steps.push(Step::Bound(capabilities(bare, run.nesting)));
    if !run.setuid {
        steps.push(Step::NoNewPrivileges);
    }
    // Last: what came before may use calls that the filter refuses.
    steps.push(Step::Seccomp { listen: matches!(run.ready, Ready::Listen(_)) });
    steps
}

fn mounts(steps: &mut Vec<Step>, bare: bool, nesting: bool, network: bool) {
    let kernel = NOSUID | NODEV | NOEXEC;
    steps.push(mount("proc", "/proc", &[], kernel));
    steps.push(match (network, nesting) {
        (false, _) => Step::BindSysfs,
        (true, false) => mount("sysfs", "/sys", &[], kernel | RDONLY),
        (true, true) => mount("sysfs", "/sys", &[], kernel),
    });
    // An empty place instead of the cgroup hierarchies: limits are the host's business.
    steps.push(mount("tmpfs", "/sys/fs/cgroup", &[("mode", "555"), ("nr_inodes", "1")], kernel | RDONLY));
    steps.push(mount("tmpfs", "/dev", &[("mode", "755"), ("size", "64k"), ("nr_inodes", "128")], NOSUID | NOEXEC));
    steps.push(Step::Devices);
    let devpts = &[("ptmxmode", "0666"), ("mode", "620"), ("gid", "5")];
    steps.push(mount("devpts", "/dev/pts", devpts, NOSUID | NOEXEC));
    steps.push(mount("tmpfs", "/dev/shm", &[("mode", "1777")], NOSUID | NODEV));
    steps.push(mount("mqueue", "/dev/mqueue", &[], kernel));
    steps.push(mount("tmpfs", "/run", &[("mode", "755")], NOSUID | NODEV));
    if bare {
        steps.push(mount("tmpfs", "/tmp", &[("mode", "1777")], NOSUID | NODEV));
    }
}

fn files(steps: &mut Vec<Step>, run: &RunSpec, binds: &[Prepared]) {
    let name = run.hostname.as_ref().unwrap_or(&run.name);
    let mut hosts = format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 {name}\n");
    if let Some(link) = &run.link {
        hosts = hosts.replace("127.0.1.1", &link.address.to_string());
    }
    let mut system = vec![("/etc/hostname", format!("{name}\n")), ("/etc/hosts", hosts)];
    if !run.resolvers.is_empty() {
        let search = run.search.iter().map(|domain| format!("search {domain}\n"));
        let servers = run.resolvers.iter().map(|address| format!("nameserver {address}\n"));
        // The server is near: what it does not answer at once was lost, or falls into a restart of it.
        let near = run.search.iter().map(|_| "options timeout:1 attempts:4\n".to_owned());
        system.push(("/etc/resolv.conf", search.chain(servers).chain(near).collect()));
    }
    for (path, content) in system {
        if !run.files.contains_key(path) && !binds.iter().any(|bind| bind.target == path) {
            // A designated VPS may have the host's /etc bound in, read-only.
            steps.push(Step::File { path: path.to_owned(), content, optional: run.root == Root::Bare });
        }
    }
    for (path, content) in &run.files {
        steps.push(Step::File { path: path.clone(), content: content.clone(), optional: false });
    }
}

/// What root inside may do, beyond its own files and processes, to what belongs to its user namespace.
fn capabilities(bare: bool, nesting: bool) -> CapabilitySet {
    type C = CapabilitySet;
    // What the package managers' and init systems' programs, mail, SSH and FTP servers use.
    let server = C::CHOWN
        | C::DAC_OVERRIDE
        | C::DAC_READ_SEARCH
        | C::FOWNER
        | C::FSETID
        | C::KILL
        | C::SETGID
        | C::SETUID
        | C::SETPCAP
        | C::SETFCAP
        | C::NET_BIND_SERVICE
        | C::NET_RAW
        | C::SYS_CHROOT
        | C::MKNOD
        | C::AUDIT_WRITE
        | C::IPC_LOCK
        | C::SYS_NICE
        | C::LEASE;
    // Mounts and namespaces within its own, addresses and rules in its own network namespace.
    let administrator = C::SYS_ADMIN | C::NET_ADMIN | C::NET_BROADCAST | C::SYS_PTRACE | C::SYS_RESOURCE | C::IPC_OWNER;
    match (bare, nesting) {
        (_, true) => server | administrator,
        // A designated VPS: the network's, which is one, has links, addresses and rules to look after.
        (true, false) => server | C::NET_ADMIN | C::NET_BROADCAST,
        (false, false) => server,
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hostname(name) => write!(f, "setting the host name {name}"),
            Self::PrivateMounts => write!(f, "making mounts private"),
            Self::Overlay { layers } => write!(f, "mounting the overlay of {layers} layers"),
            Self::BareRoot => write!(f, "mounting an empty root"),
            Self::Mount { kind, target, .. } => write!(f, "mounting {kind} at {target}"),
            Self::BindSysfs => write!(f, "mounting the host's /sys"),
            Self::Devices => write!(f, "making /dev"),
            Self::Bind { index, target, .. } => write!(f, "mounting prepared mount {index} at {target}"),
            Self::Volume { target, .. } => write!(f, "mounting the volume at {target}"),
            Self::File { path, .. } => write!(f, "writing {path}"),
            Self::Secrets { .. } => write!(f, "putting secrets in place"),
            Self::ReadOnlyRoot => write!(f, "making the root read-only"),
            Self::EnterRoot => write!(f, "entering the new root"),
            Self::MaskFile(path) | Self::MaskDirectory(path) => write!(f, "masking {path}"),
            Self::ReadOnly { path, .. } => write!(f, "making {path} read-only"),
            Self::Loopback => write!(f, "setting up the loopback interface"),
            Self::Link(link) => write!(f, "setting up eth0 as {}", link.address),
            Self::LogSocket => write!(f, "making /dev/log"),
            Self::NotifySocket => write!(f, "making /run/notify"),
            Self::Bound(_) => write!(f, "bounding capabilities"),
            Self::NoNewPrivileges => write!(f, "setting no_new_privs"),
            Self::Seccomp { .. } => write!(f, "loading the seccomp filter"),
        }
    }
}

#[cfg(test)]
mod tests;
