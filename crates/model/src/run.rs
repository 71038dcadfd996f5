//! What one start of a VPS needs: the spec after all names have become layers, addresses and numbers.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use crate::{DirectoryName, LayerId, Limits, SecretName, VolumeName, VpsName};

/// One start of a VPS, said by `control` (a server VPS) or by the host daemon (a designated one).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// Its name; also its cgroup.
    pub name: VpsName,
    /// Host name inside; none: its name.
    #[serde(default)]
    pub hostname: Option<VpsName>,
    /// The root filesystem.
    pub root: Root,
    /// Program and arguments; looked up in `PATH` inside the VPS.
    pub command: Vec<String>,
    /// Environment of the program; `PATH`, `HOME` and `container=bailiwick` are added where missing.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory.
    #[serde(default = "root_directory")]
    pub cwd: String,
    /// `name`, `name:group`, `uid` or `uid:gid`, looked up in the VPS's own `/etc/passwd` and `/etc/group`.
    #[serde(default = "root_user")]
    pub user: String,
    /// Small files that are written into the root before the program starts; absolute path to content.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Files inside whose lines are part of its log (as `VpsSpec::logs`).
    #[serde(default)]
    pub logs: Vec<String>,
    /// Volumes of its tenant's.
    #[serde(default)]
    pub volumes: BTreeMap<VolumeName, Volume>,
    /// Directories of the host's, as far as host.toml allows them.
    #[serde(default)]
    pub directories: BTreeMap<DirectoryName, Directory>,
    /// Secrets: where the program reads each, absolute. What they say goes beside this, by descriptor
    /// (`Host.Start`), so that no message, record or log can hold it.
    #[serde(default)]
    pub secrets: BTreeMap<SecretName, String>,
    /// cgroup limits.
    #[serde(default)]
    pub limits: Limits,
    /// Its link to the network VPS; none: loopback only.
    #[serde(default)]
    pub link: Option<Link>,
    /// Name servers for `/etc/resolv.conf`.
    #[serde(default)]
    pub resolvers: Vec<std::net::IpAddr>,
    /// The domain that short names are looked up in.
    #[serde(default)]
    pub search: Option<String>,
    /// Whether programs may gain rights by setuid bits and file capabilities (`no_new_privs` when not).
    #[serde(default = "yes")]
    pub setuid: bool,
    /// One unmasked proc, so that a VPS may run inside.
    #[serde(default)]
    pub nesting: bool,
    /// When it counts as ready.
    pub ready: Ready,
    /// What is run inside then, until it succeeds, before it does count as ready.
    #[serde(default)]
    pub ready_check: Option<ReadyCheck>,
    /// The signal that asks it to end, a number (SIGTERM = 15), and how long it has, in milliseconds.
    pub stop: Stop,
}

impl RunSpec {
    /// One with no command, which is ready at once, and nothing beyond the defaults.
    pub fn empty(name: VpsName, root: Root) -> Self {
        Self {
            name,
            hostname: None,
            root,
            command: Vec::new(),
            env: BTreeMap::new(),
            cwd: root_directory(),
            user: root_user(),
            files: BTreeMap::new(),
            logs: Vec::new(),
            volumes: BTreeMap::new(),
            directories: BTreeMap::new(),
            secrets: BTreeMap::new(),
            limits: Limits::default(),
            link: None,
            resolvers: Vec::new(),
            search: None,
            setuid: true,
            nesting: false,
            ready: Ready::Started,
            ready_check: None,
            stop: Stop::default(),
        }
    }
}

fn root_directory() -> String {
    "/".to_owned()
}
fn root_user() -> String {
    "root".to_owned()
}
fn yes() -> bool {
    true
}

/// A directory that outlives the VPSs that see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Where a VPS sees it, absolute. On its first use it gets what the image has there.
    pub path: String,
    /// Bytes at most, where the file system can count them.
    #[serde(default)]
    pub size: Option<u64>,
}

/// How a VPS sees a directory of the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Where, absolute.
    pub path: String,
    /// Whether it may write there.
    #[serde(default)]
    pub write: bool,
    /// Who its owner and group on the host are inside; root where nothing is written.
    #[serde(default)]
    pub owner: (u32, u32),
}

/// Where a root filesystem comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Root {
    /// Read-only layers, the lowest first, under the VPS's own writable overlay.
    Layers(Vec<LayerId>),
    /// An empty read-only tmpfs with mount points: a designated VPS whose programs are bound in by the host.
    Bare,
}

/// A routed point-to-point link: `eth0` inside, `name` in the network VPS's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The outer end: `v` and the address in hexadecimal (`v0a500011`), so that who sees the link knows the route.
    pub name: String,
    /// The VPS's address, a /32.
    pub address: Ipv4Addr,
    /// The VPS's address, a /128.
    pub address6: Ipv6Addr,
}

impl Link {
    /// The gateway every VPS sees: link-local, the same on each link, at a fixed MAC.
    pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
    /// The same for IPv6.
    pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    /// MAC of the network VPS's end of each link.
    pub const OUTER_MAC: [u8; 6] = [0x02, 0xba, 0x11, 0, 0, 0x01];
    /// MAC of the VPS's end of each link.
    pub const INNER_MAC: [u8; 6] = [0x02, 0xba, 0x11, 0, 0, 0x02];

    /// Name of the network VPS's end of the link to the host, when there is an uplink. It has `OUTER_MAC`, the host's end
    /// `INNER_MAC`; the host routes the VPSs' subnets to `GATEWAY` and `GATEWAY6`, and masquerades.
    pub const UPLINK: &str = "uplink";
    /// The host, as seen from the uplink.
    pub const HOST: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);
    /// The same for IPv6.
    pub const HOST6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

    /// The link of an address pair.
    pub fn new(address: Ipv4Addr, address6: Ipv6Addr) -> Self {
        let name = format!("v{:08x}", u32::from(address));
        Self { name, address, address6 }
    }

    /// The address that a link's name says.
    pub fn address_of(name: &str) -> Option<Ipv4Addr> {
        let hex = name.strip_prefix('v').filter(|h| h.len() == 8)?;
        u32::from_str_radix(hex, 16).ok().map(Ipv4Addr::from)
    }

    /// The IPv6 address that goes with `address`: `fd` prefix of the host, then the IPv4 address in the low 32 bits.
    pub fn address6_for(prefix: Ipv6Addr, address: Ipv4Addr) -> Ipv6Addr {
        let high = u128::from(prefix) & !0xffff_ffff;
        Ipv6Addr::from(high | u128::from(u32::from(address)))
    }
}

/// When a VPS counts as ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ready {
    /// Its program listens on this TCP port (seen by seccomp notification).
    Listen(u16),
    /// It says `READY=1` on the notify socket (sd_notify(3)); `NOTIFY_SOCKET` is set.
    Notify,
    /// As soon as its program has been executed.
    Started,
}

/// A program inside whose exit status 0 says that a VPS is ready: a port may listen before its server has loaded its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyCheck {
    /// Program and arguments; run with the environment, user and working directory of the VPS's own.
    pub command: Vec<String>,
    /// Milliseconds before it is run again, at least; a tenth of the time waited so far where that is more, up to a second.
    pub interval_ms: u64,
    /// Milliseconds one run of it may take; it is killed then.
    pub timeout_ms: u64,
}

impl ReadyCheck {
    /// `interval_ms` where the spec does not say.
    pub const INTERVAL_MS: u64 = 20;
    /// `timeout_ms` where the spec does not say.
    pub const TIMEOUT_MS: u64 = 5_000;
}

/// Size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// How a VPS is asked to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Signal number.
    pub signal: i32,
    /// Milliseconds before SIGKILL.
    pub grace_ms: u64,
}

impl Default for Stop {
    fn default() -> Self {
        Self { signal: 15, grace_ms: 10_000 }
    }
}

/// The signals a VPS may be asked to end with (signal(7); SIGRTMIN as glibc counts it, from 34).
pub const SIGNALS: [(&str, i32); 10] = [
    ("SIGHUP", 1),
    ("SIGINT", 2),
    ("SIGQUIT", 3),
    ("SIGKILL", 9),
    ("SIGUSR1", 10),
    ("SIGUSR2", 12),
    ("SIGTERM", 15),
    ("SIGWINCH", 28),
    ("SIGPWR", 30),
    ("SIGRTMIN+3", 37),
];

/// The number of one of `SIGNALS`.
pub fn signal_number(name: &str) -> Option<i32> {
    SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// The name of one of `SIGNALS`.
pub fn signal_name(number: i32) -> Option<&'static str> {
    SIGNALS.iter().find(|(_, known)| *known == number).map(|(name, _)| *name)
}
