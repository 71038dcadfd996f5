//! `host.toml`: designated VPSs, grants, networks. Static, read at the start of a host.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::{
    DirectoryName, Egress, Grant, Limits, ServiceName, TenantName, VpsName,
    limits::{QuantityError, parse_bytes},
};

mod fields;
mod parse;
mod target;

pub use fields::SERVICES;
pub use parse::parse;
pub use target::{Form, LogTarget, LogTargetError, Place};

/// The configuration of a host that has no host.toml, or an empty one. `packaging/host.toml` says the same in words.
pub fn default_config() -> HostConfig {
    let word = "a word of the default configuration";
    let designated =
        |services: &str, grants: &[&str], memory: Option<u64>, network, userland, programs: &[&str]| Designated {
            services: vec![services.parse().expect(word)],
            grants: grants.iter().map(|grant| grant.parse().expect(word)).collect(),
            limits: Limits { memory, ..Limits::default() },
            network,
            userland,
            programs: programs.iter().map(|program| (*program).to_owned()).collect(),
        };
    let mib = |count: u64| Some(count << 20);
    let control = ["create,start,stop,freeze,delete,watch,logs,exec : *", "connect : apps,network,gateway,logs"];
    let gateway = ["wake : *", "listen : *", "connect : control"];
    let all = [
        designated("control", &control, mib(128), DesignatedNetwork::Link, false, &[]),
        designated("gateway", &gateway, mib(256), DesignatedNetwork::Link, false, &[]),
        designated("network", &[], mib(64), DesignatedNetwork::None, false, &["nft"]),
        designated("apps", &["layer : *"], None, DesignatedNetwork::Host, true, &[]),
    ];
    let name = |vps: &Designated| vps.services[0].as_str().parse().expect(word);
    HostConfig {
        reserve: Reserve { memory: 256 << 20, disk_percent: 5 },
        network: NetworkConfig {
            uplink: None,
            addresses: Vec::new(),
            subnet: "10.80.0.0/16".parse().expect(word),
            subnet6: "fd80:ba11::/96".parse().expect(word),
            resolvers: Vec::new(),
            egress: None,
        },
        pool: Pool { memory: Share::PerCent(1) },
        ids: Ids { first: 1_048_576, blocks: 30_000, shims: 600_000 },
        cgroup: None,
        layers: None,
        faults: Vec::new(),
        images: ImageLimits::default(),
        logs: LogsConfig::default(),
        directories: BTreeMap::new(),
        tenants: BTreeMap::new(),
        designated: all.into_iter().map(|vps| (name(&vps), vps)).collect(),
    }
}

/// The JSON schema of host.toml.
pub fn json_schema() -> String {
    crate::document::schema("Bailiwick host.toml", "One host's configuration.", &fields::FILE)
}

/// `5%`, from 0% to 99%.
fn per_cent(text: &str) -> Option<u8> {
    let digits = text.strip_suffix('%')?;
    digits.parse().ok().filter(|percent| *percent < 100 && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// One host's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostConfig {
    /// What tenants never get.
    pub reserve: Reserve,
    /// VPSs that are prepared for their next start.
    #[serde(default)]
    pub pool: Pool,
    /// Addresses of VPSs.
    pub network: NetworkConfig,
    /// Ids of VPSs: the first, and how many blocks of 65,536.
    pub ids: Ids,
    /// Name of this host's cgroup under each hierarchy's root; begins with `bailiwick`. None: `bailiwick` for the
    /// default root, `bailiwick-` and a hash of the root's path otherwise.
    pub cgroup: Option<String>,
    /// Where image layers are; none: `layers` under the root. Hosts may share one.
    pub layers: Option<PathBuf>,
    /// What an archive that is sent as an image may hold.
    #[serde(default)]
    pub images: ImageLimits,
    /// Directories of this host's that VPSs may see.
    #[serde(default)]
    pub directories: BTreeMap<DirectoryName, AllowedDirectory>,
    /// What holds for a tenant alone.
    #[serde(default)]
    pub tenants: BTreeMap<TenantName, TenantConfig>,
    /// What becomes of VPSs' logs besides.
    #[serde(default)]
    pub logs: LogsConfig,
    /// The designated VPSs.
    pub designated: BTreeMap<VpsName, Designated>,
    /// What of host.toml is not in force, and why; for persons.
    #[serde(default)]
    pub faults: Vec<String>,
}

/// What becomes of VPSs' logs besides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsConfig {
    /// Where all lines are sent.
    pub ship: Vec<LogTarget>,
}

impl LogsConfig {
    /// The designated VPS that ships where host.toml names none: it may read logs, know which VPSs there are, and write to these
    /// targets.
    pub fn shipper(&self) -> Designated {
        let network = self.ship.iter().map(LogTarget::network);
        Designated {
            services: vec!["logs".parse().expect("a service")],
            grants: vec!["logs,watch,ship : *".parse().expect("a grant")],
            limits: Limits { memory: Some(64 << 20), ..Limits::default() },
            network: network
                .max_by_key(|network| *network == DesignatedNetwork::Host)
                .unwrap_or(DesignatedNetwork::None),
            userland: false,
            programs: Vec::new(),
        }
    }
}

/// What holds for a tenant alone: `[tenant.NAME]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantConfig {
    /// What of the outside its VPSs may connect to at most; none: what `network.egress` says.
    pub egress: Option<Vec<Egress>>,
}

impl HostConfig {
    /// What of the outside a tenant's VPSs may connect to at most; none: everybody.
    pub fn egress_of(&self, tenant: &TenantName) -> Option<&[Egress]> {
        let own = self.tenants.get(tenant).and_then(|tenant| tenant.egress.as_deref());
        own.or(self.network.egress.as_deref())
    }
}

/// What an archive that is sent as an image may hold at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLimits {
    /// Bytes, unpacked.
    pub size: u64,
    /// Files, directories and links.
    pub files: u64,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self { size: 16 << 30, files: 1_000_000 }
    }
}

/// A directory of the host's that VPSs may see: `[directory.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowedDirectory {
    /// Where it is, absolute. No part of it may be a symbolic link.
    pub path: PathBuf,
    /// Whose VPSs may see it.
    pub tenants: AllowedTenants,
    /// Whether they may write there.
    pub write: bool,
    /// Whether programs may be run from there.
    pub programs: bool,
    /// Whether it may be written although it belongs to the host's root: who writes there makes files of root's.
    pub root: bool,
}

/// Whose VPSs may see a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AllowedTenants {
    /// Everybody's: `["*"]`.
    All,
    /// Theirs.
    Some(BTreeSet<TenantName>),
}

impl AllowedDirectory {
    /// Why a VPS of `tenant` may not see it, or not write there if it is to `write`: what is so, and what of host.toml to
    /// change.
    pub fn refuses(&self, name: &DirectoryName, tenant: &TenantName, write: bool) -> Option<(String, String)> {
        let allowed = match &self.tenants {
            AllowedTenants::All => true,
            AllowedTenants::Some(tenants) => tenants.contains(tenant),
        };
        if !allowed {
            let what = format!("tenant {tenant} may not see the host's directory `{name}`");
            return Some((what, format!("add \"{tenant}\" to `tenants` of [directory.{name}] in host.toml")));
        }
        (write && !self.write).then(|| {
            let what = format!("VPSs may only read the host's directory `{name}`");
            (what, format!("leave `write` out, or put write = true into [directory.{name}] in host.toml"))
        })
    }

    /// What is said where host.toml has no directory of that name.
    pub fn unknown(name: &DirectoryName) -> (String, String) {
        let what = format!("this host shows VPSs no directory `{name}`");
        (what, format!("add [directory.{name}] with `path` and `tenants` to host.toml, then restart the host"))
    }
}

/// What tenants never get.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reserve {
    /// Bytes of memory.
    pub memory: u64,
    /// Per cent of the disk.
    pub disk_percent: u8,
}

/// VPSs that are prepared for their next start: all but their programs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Memory that they may take together; nothing: none is prepared.
    pub memory: Share,
}

/// How much of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    /// So many bytes.
    Bytes(u64),
    /// A part of all there is, in per cent.
    PerCent(u8),
}

impl Default for Share {
    fn default() -> Self {
        Self::Bytes(0)
    }
}

impl Share {
    /// `64MiB` or `5%`.
    fn parse(text: &str) -> Result<Self, QuantityError> {
        per_cent(text).map_or_else(|| parse_bytes(text).map(Self::Bytes), |part| Ok(Self::PerCent(part)))
    }

    /// Bytes, of `all` there are.
    pub fn of(self, all: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::PerCent(part) => all / 100 * u64::from(part),
        }
    }
}

/// Addresses of VPSs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// The host's interface that VPSs reach the outside through (masqueraded); none: they don't.
    pub uplink: Option<String>,
    /// Networks that are routed to this host for VPSs alone.
    #[serde(default)]
    pub addresses: Vec<ipnet::IpNet>,
    /// VPSs' IPv4 addresses. The first 16 are the designated VPSs'.
    pub subnet: ipnet::Ipv4Net,
    /// VPSs' IPv6 addresses, a prefix of at most /96.
    pub subnet6: ipnet::Ipv6Net,
    /// Name servers of VPSs.
    pub resolvers: Vec<std::net::IpAddr>,
    /// What of the outside a tenant's VPSs may connect to at most, where the tenant has no list of its own; none: everybody.
    #[serde(default)]
    pub egress: Option<Vec<Egress>>,
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
    /// Names of single programs of the host's that it sees read-only, with their libraries, where the host has them.
    pub programs: Vec<String>,
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

impl NetworkConfig {
    /// What VPSs' own addresses are translated to on their way out of the network VPS: the subnet's .1.
    pub fn translated(&self) -> (std::net::Ipv4Addr, std::net::Ipv6Addr) {
        let address = std::net::Ipv4Addr::from(u32::from(self.subnet.network()) + 1);
        (address, crate::run::Link::address6_for(self.subnet6.addr(), address))
    }

    /// Whether an address belongs to the network VPS, and not to the host.
    pub fn owns(&self, address: std::net::IpAddr) -> bool {
        self.addresses.iter().any(|net| net.contains(&address))
    }
}

/// A network, or one address as a network of its own.
fn owned(text: &str) -> Option<ipnet::IpNet> {
    text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(ipnet::IpNet::from))
}

/// Whether a network has addresses that are routed nowhere: loopback, link-local, multicast, unspecified.
fn is_special(net: ipnet::IpNet) -> bool {
    let special: [ipnet::IpNet; 8] = [
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/3",
        "::/127",
        "fe80::/10",
        "ff00::/8",
        "::ffff:0:0/96",
    ]
    .map(|net| net.parse().expect("a network"));
    special.iter().any(|other| other.contains(&net) || net.contains(other))
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

    /// The socket of the host's own root, under `run`.
    pub fn admin_file(&self) -> &'static str {
        "admin.sock"
    }

    /// What one VPS has on disk: `ids`, `state/{upper,work}`, `log/`.
    pub fn vps(&self, name: &VpsName) -> PathBuf {
        self.state.join("vps").join(name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn problems(text: &str) -> String {
        let problems = parse("host.toml", text).expect_err("must be refused");
        problems.iter().map(|problem| format!("{problem}\n")).collect()
    }

    #[test]
    fn the_packaged_file_is_the_default() {
        let text = include_str!("../../../packaging/host.toml");
        assert_eq!(parse("host.toml", text), Ok(default_config()));
        assert_eq!(parse("host.toml", ""), Ok(default_config()));
    }

    #[test]
    fn a_service_runs_once_and_none_is_missing() {
        let told = problems(
            "[designated.a]\nservices = [\"control\", \"gateway\", \"mail\"]\n[designated.b]\nservices = [\"control\", \"network\"]\nnetwork = \"host\"\nclass = \"microvm\"\n",
        );
        assert!(told.contains("host.toml:2:35  `mail` is not a service; there are apps, control"), "{told}");
        assert!(told.contains("host.toml:4:13  service `control` runs in vps \"a\" already"), "{told}");
        assert!(told.contains("no designated VPS runs `apps`"), "{told}");
        assert!(told.contains("host.toml:5:11  the VPS that runs `network` can have no other network"), "{told}");
        assert!(told.contains("host.toml:6:9  `class` cannot be \"microvm\""), "{told}");
    }

    #[test]
    fn the_name_of_the_vps_that_ships_is_no_other_ones() {
        let rest = "[designated.logs]\nservices = [\"apps\"]\n[designated.a]\nservices = [\"control\", \"gateway\"]\n[designated.b]\nservices = [\"network\"]\n";
        assert!(parse("host.toml", rest).is_ok());
        let told = problems(&format!("[logs]\nship = [\"journald\"]\n{rest}"));
        assert!(
            told.contains("host.toml:3:13  with `ship` in [logs] this is the name of the VPS that ships"),
            "{told}"
        );
    }

    #[test]
    fn a_grant_is_checked_in_whole() {
        let told = problems(
            "[designated.a]\nservices = [\"control\", \"gateway\", \"network\", \"apps\"]\ngrants = [\"fly : *\", \"connect : control,mail\"]\n",
        );
        assert!(told.contains("host.toml:3:11  grant verb `fly` is not known"), "{told}");
        assert!(told.contains("host.toml:3:22  `mail` is not a service"), "{told}");
        assert!(told.contains("host.toml:2:24  `gateway` can't run in the VPS of `network`"), "{told}");
    }

    #[test]
    fn directories_are_for_whom_they_name() {
        let text = "[directory.photos]\npath = \"/srv/photos\"\ntenants = [\"acme\"]\n[directory.all]\npath = \"/srv/all\"\ntenants = [\"*\"]\nwrite = true\nprograms = false\n";
        let config = parse("host.toml", text).expect("a good file");
        let (acme, beta): (TenantName, TenantName) = ("acme".parse().unwrap(), "beta".parse().unwrap());
        let refused =
            |name: &str, tenant, write| config.directories[name].refuses(&name.parse().unwrap(), tenant, write);
        assert_eq!((refused("photos", &acme, false), refused("all", &beta, true)), (None, None));
        let (what, next) = refused("photos", &beta, false).expect("another tenant");
        assert!(
            what.contains("beta may not") && next.contains("`tenants` of [directory.photos] in host.toml"),
            "{next}"
        );
        let (what, next) = refused("photos", &acme, true).expect("read-only");
        assert!(what.contains("only read") && next.contains("write = true into [directory.photos]"), "{next}");
        let told =
            problems("[directory.a]\npath = \"srv\"\nnoexec = true\n[directory.b]\npath = \"/\"\ntenants = [\"A\"]\n");
        for message in
            ["not an absolute path", "programs = false", "missing", "`/` cannot be shown", "`A` is not a name"]
        {
            assert!(told.contains(message), "{message} in {told}");
        }
    }

    #[test]
    fn ranges_of_ids_do_not_overlap() {
        assert!(problems("ids = { first = 655360 }").contains("would belong to VPSs and to image layers"));
        assert!(
            problems("ids = { shims = 690000 }")
                .contains("ids 700000 to 719999 would belong to shims and to image layers")
        );
        assert!(problems("ids = { first = 4000000000, blocks = 10000 }").contains("past the last there is"));
    }

    #[test]
    fn illegal_values_are_told_with_what_is_expected() {
        let told = problems(
            "reserve = { memory = \"1GB\", disk = \"105%\" }\n[network]\nsubnet = \"10.80.0.1/16\"\nsubnet6 = \"fd80::/112\"\nuplink = \"\"\n",
        );
        assert!(told.contains("`1GB` is not a size such as \"512MiB\""), "{told}");
        assert!(told.contains("`105%` is not a part such as \"5%\""), "{told}");
        assert!(told.contains("write \"10.80.0.0/16\""), "{told}");
        assert!(told.contains("a prefix of at most /96"), "{told}");
        assert!(told.contains("network interface"), "{told}");
    }

    #[test]
    fn owned_addresses_come_by_an_uplink_and_are_nobody_elses() {
        let good =
            "[network]\nuplink = \"eth0\"\naddresses = [\"192.0.2.16/28\", \"198.51.100.7\", \"2001:db8::/64\"]\n";
        let network = parse("host.toml", good).unwrap().network;
        for (address, owned) in
            [("192.0.2.31", true), ("192.0.2.32", false), ("198.51.100.7", true), ("2001:db8::1", true)]
        {
            assert_eq!(network.owns(address.parse().unwrap()), owned, "{address}");
        }
        assert!(problems("[network]\naddresses = [\"192.0.2.16/28\"]\n").contains("reached through an uplink"));
        for (list, message) in [
            ("\"192.0.2.17/28\"", "write \"192.0.2.16/28\""),
            ("\"10.80.1.0/24\"", "10.80.1.0/24 overlaps 10.80.0.0/16"),
            ("\"192.0.2.0/24\", \"192.0.2.7\"", "192.0.2.7/32 overlaps 192.0.2.0/24"),
            ("\"127.0.0.1\"", "clients could be at the other end"),
            ("\"0.0.0.0/0\"", "clients could be at the other end"),
            ("\"fe80::1\"", "clients could be at the other end"),
            ("\"web\"", "is not a network or an address"),
        ] {
            let told = problems(&format!("[network]\nuplink = \"eth0\"\naddresses = [{list}]\n"));
            assert!(told.contains(message), "{told}");
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_the_parser_panic(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), "([\\[\\]{}=\".,\n #-]|[a-z]{1,8}|-?[0-9]{1,25}|1e999|MiB|ä|😀|\u{0}){0,6}", 0usize..30), 0..6),
        ) {
            let mut text: Vec<char> = include_str!("../../../packaging/host.toml").chars().collect();
            for (at, put, gone) in changes {
                let at = at.index(text.len());
                let end = (at + gone).min(text.len());
                text.splice(at..end, put.chars());
            }
            let text: String = text.into_iter().collect();
            match parse("host.toml", &text) {
                // What was understood is one that a host can be.
                Ok(config) => prop_assert!(!config.designated.is_empty() && config.ids.blocks >= 16),
                Err(problems) => {
                    prop_assert!(!problems.is_empty());
                    problems.iter().for_each(|problem| drop(problem.to_string()));
                }
            }
        }
    }
}
