//! The uplink: VPSs reach the outside through an interface of the host's, masqueraded.
//!
//! What it changes on the host: a link to the network VPS with the routes of VPSs' subnets, one nft table, answers for owned
//! addresses of the uplink's own network, and `forwarding` of the uplink's interface (not of the host, which would make it a router
//! between all its interfaces). The table says which of those settings were off, so that whoever stops last puts them back: another
//! host on the same interface, or the next start after a crash.

use std::{collections::BTreeSet, fs, io, net::Ipv4Addr, path::PathBuf, process::Stdio, time::Duration};

use ipnet::IpNet;
use isolation::host::{HostError, HostNetwork, Linker};
use model::{
    HostConfig,
    host::{NetworkConfig, Paths},
};
use tokio::{io::AsyncWriteExt as _, process::Command, sync::Mutex};
use tracing::warn;

use crate::{
    config::{Refused, root_hash},
    programs::SYSTEM_PATH,
};

mod table;

use table::{Off, ruleset};

/// The largest part of the uplink's own network that the host answers for, as a prefix: 256 addresses.
const MOST: u8 = 24;
/// How long nft may take.
const NFT: Duration = Duration::from_secs(10);

/// Held while a child is waited for by itself: `daemon::reap` takes the end of any child.
pub static CHILD: Mutex<()> = Mutex::const_new(());

/// Why there is no uplink.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// nft is not there.
    #[error(
        "VPSs are kept apart by nftables, and the program `nft` is not there; install it: apt-get install nftables"
    )]
    NoNft,
    /// It said no.
    #[error("nft: {0}")]
    Nft(String),
    /// It can't be run.
    #[error("running nft")]
    Run(#[source] io::Error),
    /// A kernel setting was not taken.
    #[error("writing {}", path.display())]
    Setting {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Links or routes.
    #[error("{}", .0.explain())]
    Link(HostError),
    /// The note that there is one.
    #[error("writing {}", path.display())]
    Note {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl From<HostError> for UplinkError {
    fn from(error: HostError) -> Self {
        Self::Link(error)
    }
}

/// One host's uplink.
#[derive(Debug)]
pub struct Uplink {
    /// Its end of the link to the network VPS.
    link: String,
    networks: Vec<IpNet>,
}

impl Uplink {
    /// The one that `config` asks for, if any.
    pub fn of(config: &HostConfig, paths: &Paths) -> Option<Self> {
        let NetworkConfig { uplink, subnet, subnet6, addresses, .. } = &config.network;
        let link = Names::of(paths).link;
        let networks = [IpNet::from(*subnet), (*subnet6).into()].into_iter().chain(addresses.iter().copied());
        uplink.as_ref().map(|_| Self { link, networks: networks.collect() })
    }

    /// Connects the host with the network VPS, unless it is.
    pub fn connect(&self, linker: &mut Linker) -> Result<(), HostError> {
        HostNetwork::open()?.connect(linker, &self.link, &self.networks)?;
        table::forward_link(&self.link);
        Ok(())
    }

    /// Takes the link away.
    pub fn disconnect(&self) -> Result<(), HostError> {
        HostNetwork::open()?.disconnect(&self.link)
    }
}

/// Prepares the uplink that `config` asks for, if any, and removes what a host that crashed left of another. Nothing goes
/// through before `Uplink::connect`.
pub async fn prepare(config: &HostConfig, paths: &Paths) -> Result<(), UplinkError> {
    let Some(interface) = &config.network.uplink else { return remove(paths).await };
    let names = Names::of(paths);
    let mut before = all_tables().await?;
    before.extend(names.noted().map(|off| (names.table.clone(), off)));
    if before.iter().any(|(name, off)| *name == names.table && off.interface != *interface) {
        remove(paths).await?;
    }
    // What was off stays so in memory as long as any host's table says it.
    let mut off = Off::now(interface);
    for (_, other) in before.iter().filter(|(_, other)| other.interface == *interface) {
        off.ipv4 |= other.ipv4;
        off.ipv6 |= other.ipv6;
    }
    // Written first: who finds it looks for the rest.
    names.note_down(&off)?;
    // The rules before forwarding, so that nothing is ever forwarded without them.
    nft(&["-f", "-"], &ruleset(&names, &config.network, interface, &off)).await?;
    answer_for(&names, &beside(&config.network, interface)?)?;
    off.set(true)
}

/// Removes all that this host's uplink changed on the host, if it had one.
pub async fn remove(paths: &Paths) -> Result<(), UplinkError> {
    let names = Names::of(paths);
    if !names.note.exists() {
        return Ok(());
    }
    answer_for(&names, &BTreeSet::new())?;
    HostNetwork::open()?.disconnect(&names.link)?;
    let own = all_tables().await?.into_iter().find(|(name, _)| *name == names.table);
    if own.is_some() {
        nft(&["delete", "table", "inet", &names.table], "").await?;
    }
    // Whoever flushes all rules takes the table with them.
    if let Some(off) = own.map(|(_, off)| off).or_else(|| names.noted()) {
        // Looked at after ours is gone, so that of two that stop at once one sees none.
        let others = all_tables().await?;
        if !others.iter().any(|(_, other)| other.interface == off.interface)
            && let Err(error) = off.set(false)
        {
            warn!(error = %format!("{error:#}"), "a setting of the uplink stays");
        }
    }
    fs::remove_file(&names.note).map_err(|source| UplinkError::Note { path: names.note, source })
}

/// Who is answered for: the interface, and an address that others there may ask for.
type Answered = (String, Ipv4Addr);

/// The owned addresses that are of the uplink's own network.
fn beside(network: &NetworkConfig, interface: &str) -> Result<BTreeSet<Answered>, UplinkError> {
    let mut host = HostNetwork::open()?;
    let Some(index) = host.index(interface)? else { return Ok(BTreeSet::new()) };
    let mut all = BTreeSet::new();
    for net in &network.addresses {
        if let IpNet::V4(net) = net
            && host.is_beside((*net).into(), index)?
        {
            let every = u32::from(net.network())..=u32::from(net.broadcast());
            all.extend(every.map(|address| (interface.to_owned(), address.into())));
        }
    }
    Ok(all)
}

/// Has the host answer for these, and for no others that it answered for.
fn answer_for(names: &Names, wanted: &BTreeSet<Answered>) -> Result<(), UplinkError> {
    let before = names.answered();
    if before.is_empty() && wanted.is_empty() {
        return Ok(());
    }
    // Written before and after: who finds it takes away all that may be there.
    names.note_answered(&before.union(wanted).cloned().collect())?;
    let mut host = HostNetwork::open()?;
    let all = before.difference(wanted).map(|one| (one, false)).chain(wanted.iter().map(|one| (one, true)));
    for ((interface, address), answer) in all {
        // Where the interface is gone its answers are too.
        let Some(index) = host.index(interface)? else { continue };
        host.answer_for(index, *address, answer)
            .map_err(|source| HostError::Link { name: interface.clone(), source })?;
    }
    names.note_answered(wanted)
}

/// What is named after the host's root.
#[derive(Debug)]
struct Names {
    table: String,
    link: String,
    note: PathBuf,
    answered: PathBuf,
}

impl Names {
    fn of(paths: &Paths) -> Self {
        let hash = root_hash(paths);
        let [note, answered] = ["uplink", "uplink-answers"].map(|name| paths.run.join(name));
        Self { table: format!("bailiwick_{hash:08x}"), link: format!("bw-{hash:08x}"), note, answered }
    }

    /// Notes whom the host answers for.
    fn note_answered(&self, all: &BTreeSet<Answered>) -> Result<(), UplinkError> {
        let lines = all.iter().map(|(interface, address)| format!("{interface} {address}\n"));
        let written = match all.is_empty() {
            true => fs::remove_file(&self.answered),
            false => fs::write(&self.answered, lines.collect::<String>()),
        };
        written.map_err(|source| UplinkError::Note { path: self.answered.clone(), source })
    }

    /// What is noted of them.
    fn answered(&self) -> BTreeSet<Answered> {
        let text = fs::read_to_string(&self.answered).unwrap_or_default();
        let one =
            |line: &str| line.split_once(' ').and_then(|(to, address)| Some((to.to_owned(), address.parse().ok()?)));
        text.lines().filter_map(one).collect()
    }

    /// Notes that there is an uplink, and what was off.
    fn note_down(&self, off: &Off) -> Result<(), UplinkError> {
        let text = format!("{}comment \"{}\"\n", boot(), off.comment());
        fs::write(&self.note, text).map_err(|source| UplinkError::Note { path: self.note.clone(), source })
    }

    /// What is noted, since the machine was started.
    fn noted(&self) -> Option<Off> {
        Off::parse(fs::read_to_string(&self.note).ok()?.strip_prefix(&boot())?)
    }
}

/// The number of this start of the machine, which ends all settings of the one before.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Refuses a host that has no `nft`: the network VPS needs it too.
pub async fn check_nft() -> Result<(), UplinkError> {
    nft(&["--version"], "").await.map(drop)
}

/// Refuses an uplink that cannot work. Changes nothing.
pub async fn check(network: &NetworkConfig, paths: &Paths) -> anyhow::Result<()> {
    let Some(interface) = &network.uplink else { return Ok(()) };
    let mut host = HostNetwork::open().map_err(UplinkError::Link)?;
    if host.index(interface).map_err(UplinkError::Link)?.is_none() {
        return Err(Refused::new(format!(
            "host.toml: uplink = \"{interface}\": the host has no such network interface; `ip link` lists them"
        ))
        .into());
    }
    let own = host.index(&Names::of(paths).link).map_err(UplinkError::Link)?;
    if let Some(index) = host.index(interface).map_err(UplinkError::Link)? {
        for net in &network.addresses {
            if let Some(route) = host.in_the_way(*net, index, own).map_err(UplinkError::Link)? {
                return Err(Refused::new(format!(
                    "host.toml: addresses: {net} overlaps the host's own {route}: VPSs need addresses that the host does not use \
                     itself; IPv6 ones have to be routed to it"
                ))
                .into());
            }
            if host.is_beside(*net, index).map_err(UplinkError::Link)? && net.prefix_len() < MOST {
                return Err(Refused::new(format!(
                    "host.toml: addresses: {net} is a part of the network at {interface}, where the host answers for each address: \
                     write parts of /{MOST} or smaller, or have it routed to the host"
                ))
                .into());
            }
        }
    }
    for (key, subnet) in [("subnet", IpNet::from(network.subnet)), ("subnet6", network.subnet6.into())] {
        if let Some(route) = host.overlap(subnet, own).map_err(UplinkError::Link)? {
            return Err(Refused::new(format!(
                "host.toml: {key} = \"{subnet}\" overlaps the host's own route to {route}; with an uplink VPSs need \
                 networks that the host does not know yet: write another `{key}` in [network]"
            ))
            .into());
        }
    }
    Ok(())
}

/// The tables of all hosts in this network namespace, and what each says was off.
async fn all_tables() -> Result<Vec<(String, Off)>, UplinkError> {
    let mut found = Vec::new();
    for name in nft(&["list", "tables", "inet"], "").await?.lines().filter_map(table::name) {
        match nft(&["list", "table", "inet", name], "").await {
            Ok(text) => found.extend(Off::parse(&text).map(|off| (name.to_owned(), off))),
            // Its host stopped meanwhile.
            Err(UplinkError::Nft(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Runs nft(8); what it wrote.
async fn nft(arguments: &[&str], input: &str) -> Result<String, UplinkError> {
    let _child = CHILD.lock().await;
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:{SYSTEM_PATH}"));
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => UplinkError::NoNft,
        _ => UplinkError::Run(error),
    })?;
    let mut stdin = child.stdin.take();
    let run = async {
        if let Some(stdin) = &mut stdin {
            stdin.write_all(input.as_bytes()).await?;
        }
        drop(stdin);
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(NFT, run).await.map_err(|_| UplinkError::Run(io::ErrorKind::TimedOut.into()))?;
    let output = output.map_err(UplinkError::Run)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(UplinkError::Nft(said.lines().next().unwrap_or("it failed and said nothing").to_owned()))
}
