//! `host.toml`: designated VPSs, grants, networks. Static, read at the start of a host.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Grant, Limits, ServiceName, VpsName};

/// One host's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostConfig {
    /// What tenants never get.
    pub reserve: Reserve,
    /// Addresses of VPSs.
    pub network: NetworkConfig,
    /// Ids of VPSs: the first, and how many blocks of 65,536.
    pub ids: Ids,
    /// Name of this host's cgroup under each hierarchy's root; begins with `bailiwick`. None: `bailiwick` for the
    /// default root, `bailiwick-` and a hash of the root's path otherwise.
    pub cgroup: Option<String>,
    /// Where image layers are; none: `layers` under the root. Hosts may share one.
    pub layers: Option<PathBuf>,
    /// The designated VPSs.
    pub designated: BTreeMap<VpsName, Designated>,
}

/// What tenants never get.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reserve {
    /// Bytes of memory.
    pub memory: u64,
    /// Per cent of the disk.
    pub disk_percent: u8,
}

/// Addresses of VPSs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// The host's interface that VPSs reach the outside through (masqueraded); none: they don't.
    pub uplink: Option<String>,
    /// VPSs' IPv4 addresses. The first 16 are the designated VPSs'.
    pub subnet: ipnet::Ipv4Net,
    /// VPSs' IPv6 addresses, a prefix of at most /96.
    pub subnet6: ipnet::Ipv6Net,
    /// Name servers of VPSs.
    pub resolvers: Vec<std::net::IpAddr>,
}

/// Ids of VPSs on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// First id of the first block.
    pub first: u32,
    /// Blocks of 65,536 ids.
    pub blocks: u32,
    /// First of the uids that shims run as; one per block.
    pub shims: u32,
}

/// One designated VPS.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Designated {
    /// The services it runs.
    pub services: Vec<ServiceName>,
    /// What it may ask of the host.
    pub grants: Vec<Grant>,
    /// cgroup limits.
    pub limits: Limits,
    /// Which network it has.
    pub network: DesignatedNetwork,
    /// Whether it sees the host's programs (`/usr`, `/etc/apt` and the like) read-only.
    pub userland: bool,
}

/// Which network a designated VPS has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DesignatedNetwork {
    /// A link to the network VPS, like every VPS.
    Link,
    /// The host's own namespace.
    Host,
    /// Loopback only. Also what the network VPS itself has: its namespace is where the others' links end.
    None,
}

/// Where tenants' addresses begin, counted from the subnet's base.
pub const FIRST_TENANT: u32 = 16;

impl HostConfig {
    /// The designated VPS that runs `service`.
    pub fn vps_of(&self, service: &str) -> Option<&VpsName> {
        let runs = |d: &Designated| d.services.iter().any(|s| s.as_str() == service);
        self.designated.iter().find(|(_, d)| runs(d)).map(|(name, _)| name)
    }

    /// The address of a designated VPS: the subnet's .2 and up, in the order of names. None: not there, or no address is
    /// left below the tenants', which begin at .16.
    pub fn designated_address(&self, vps: &VpsName) -> Option<std::net::Ipv4Addr> {
        let index = self.designated.keys().position(|name| name == vps)?;
        let offset = u32::try_from(index).ok()? + 2;
        (offset < FIRST_TENANT).then(|| (u32::from(self.network.subnet.network()) + offset).into())
    }
}

/// Where a host's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// `host.toml`.
    pub config: PathBuf,
    /// What outlives a reboot: `vps/NAME/…`, `designated/NAME`, `layers`.
    pub state: PathBuf,
    /// What does not: `api.sock`, `lock`, `designated/NAME/host.sock`.
    pub run: PathBuf,
}

impl Paths {
    /// The system's places, or all three under `root`.
    pub fn new(root: Option<&std::path::Path>) -> Self {
        match root {
            None => Self {
                config: "/etc/bailiwick/host.toml".into(),
                state: "/var/lib/bailiwick".into(),
                run: "/run/bailiwick".into(),
            },
            Some(root) => Self { config: root.join("host.toml"), state: root.join("lib"), run: root.join("run") },
        }
    }

    /// The socket of the HTTP API.
    pub fn api(&self) -> PathBuf {
        self.run.join("api.sock")
    }

    /// What one VPS has on disk: `ids`, `state/{upper,work}`, `log/`.
    pub fn vps(&self, name: &VpsName) -> PathBuf {
        self.state.join("vps").join(name.as_str())
    }
}
