//! What of the outside a VPS may connect to: a chain of its own, which its packets to the uplink are led to. A VPS without one may
//! connect to all.
//!
//! Addresses of names are opened when the VPS asks for the name, before it gets the answer, for as long as the answer says; with them
//! the kernel keeps the name. What is used when that time is nearly over is asked for again ([`Rules::due`]): it stays while the name
//! is there. When the name has gone, so has what it opened, and connections to it are reset.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use model::{
    Egress, ListenAddress, Transport,
    egress::{Outside, Ports, is_outside},
};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::{
    firewall::{About, Chain, Count, Element, Firewall, FirewallError, Set, TABLE},
    nft::{self, NftError},
    policy::{Layout, low_of},
};

/// Where a VPS's packets are led.
pub const MAPS: &str = "\
map bounded4 { type ipv4_addr : verdict; }
map bounded6 { type ipv6_addr : verdict; }
";

/// What chains of VPSs begin with, and of which form their rules are: another one is written anew.
const CHAIN: &str = "only_";
const FORM: &str = "form 1";

/// Shortest and longest time for which an answer opens its addresses, whatever it says: a program may use what it has asked for a
/// moment later.
const SHORTEST: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(3600);
/// What has less left is asked for again.
pub const SOON: Duration = Duration::from_secs(12);
/// For so long it stays when nobody can be asked.
const MEANWHILE: Duration = Duration::from_secs(30);
/// Addresses that names open for one VPS at once.
const OF_ONE: usize = 4096;
/// Addresses of one answer that are opened.
const OF_ANSWER: usize = 64;

/// All chains, and what names have opened.
#[derive(Debug)]
pub struct Rules {
    layout: Layout,
    firewall: Firewall,
    /// Held while the kernel is being told.
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    chains: BTreeMap<Ipv4Addr, Vec<Egress>>,
    /// Whether these are all chains there are.
    known: bool,
    named: BTreeMap<Element, Opened>,
}

#[derive(Debug, Clone)]
struct Opened {
    until: Instant,
    name: String,
}

/// What is used, and nearly over.
#[derive(Debug)]
pub struct Due {
    /// Whose.
    pub vps: Ipv4Addr,
    /// The name.
    pub name: String,
    /// Whether IPv6 addresses are meant.
    pub ipv6: bool,
    elements: Vec<Element>,
}

/// A rule, or what it has opened.
#[derive(Debug)]
pub struct Counted {
    /// Whose.
    pub vps: Ipv4Addr,
    /// Where it leads.
    pub to: String,
    /// What was counted, where there is something to count.
    pub count: Option<Count>,
    /// For how long, and for which name; none: it is a rule.
    pub about: Option<About>,
}

/// What became of asking again.
#[derive(Debug)]
pub enum Again {
    /// These are the name's addresses.
    Has(Vec<(IpAddr, Duration)>),
    /// It has none.
    Gone,
    /// Nobody answered.
    Unknown,
}

impl Rules {
    /// Nothing is known yet of what an earlier process made but what names have opened. It stays until [`Rules::set`].
    pub async fn prepare(layout: Layout, firewall: Firewall) -> Result<Self, FirewallError> {
        let now = Instant::now();
        let named = firewall.list(Set::Named).await?.into_iter().map(|(element, about)| {
            (element, Opened { until: now + about.left.unwrap_or_default(), name: about.name.unwrap_or_default() })
        });
        let held = Mutex::new(Held { named: named.collect(), ..Held::default() });
        Ok(Self { layout, firewall, held })
    }

    /// Bounds these VPSs, and no others any more; what their names had opened and may not stays closed. In one transaction of nft.
    pub async fn set(&self, wanted: BTreeMap<Ipv4Addr, Vec<Egress>>) -> Result<(), FirewallError> {
        if !self.layout.uplink {
            return Ok(());
        }
        let mut held = self.held.lock().await;
        let anew = !held.known;
        if held.chains == wanted && !anew {
            return Ok(());
        }
        let mut commands = String::new();
        let mut there = BTreeMap::new();
        let mut gone: Vec<_> =
            held.chains.keys().filter(|vps| !wanted.contains_key(vps)).map(|vps| chain_of(*vps)).collect();
        if anew {
            for map in ["bounded4", "bounded6"] {
                let _ = writeln!(commands, "flush map inet {TABLE} {map}");
            }
            there = chains(&listed().await?);
            let keep: BTreeSet<_> = wanted.keys().map(|vps| chain_of(*vps)).collect();
            gone = there.keys().filter(|chain| !keep.contains(*chain)).cloned().collect();
        } else {
            for vps in held.chains.keys().filter(|vps| !wanted.contains_key(vps)) {
                let link = self.layout.link(*vps);
                let _ = writeln!(commands, "delete element inet {TABLE} bounded4 {{ {} }}", link.address);
                let _ = writeln!(commands, "delete element inet {TABLE} bounded6 {{ {} }}", link.address6);
            }
        }
        for (vps, only) in wanted.iter().filter(|(vps, only)| anew || held.chains.get(vps) != Some(only)) {
            let (link, chain) = (self.layout.link(*vps), chain_of(*vps));
            // What is as it should be keeps what it counted.
            if there.get(&chain) != Some(&comments(only).collect()) {
                let _ = writeln!(commands, "add chain inet {TABLE} {chain}\nflush chain inet {TABLE} {chain}");
                let _ = writeln!(commands, "table inet {TABLE} {{\nchain {chain} {{\n{}}}\n}}", rules(only));
            }
            let _ = writeln!(commands, "add element inet {TABLE} bounded4 {{ {} : goto {chain} }}", link.address);
            let _ = writeln!(commands, "add element inet {TABLE} bounded6 {{ {} : goto {chain} }}", link.address6);
        }
        for chain in gone {
            let _ = writeln!(commands, "flush chain inet {TABLE} {chain}\ndelete chain inet {TABLE} {chain}");
        }
        nft::apply(&commands).await?;
        (held.chains, held.known) = (wanted, true);
        // What no name of the VPS's opens any more.
        let may = |element: &Element, opened: &Opened| match element {
            Element::Named(vps, _, transport, port) => held
                .chains
                .get(&low_of(*vps))
                .is_some_and(|only| opens(only, &opened.name).any(|at| at == (*transport, *port))),
            _ => false,
        };
        let closed: Vec<_> =
            held.named.iter().filter(|(element, opened)| !may(element, opened)).map(|(e, _)| *e).collect();
        self.close(&mut held, closed).await
    }

    /// Opens the addresses that a name has for a VPS that asked for it.
    pub async fn open(&self, vps: Ipv4Addr, name: &str, addresses: &[(IpAddr, Duration)]) -> Result<(), FirewallError> {
        let mut held = self.held.lock().await;
        let Some(only) = held.chains.get(&vps) else { return Ok(()) };
        let ports: Vec<_> = opens(only, name).collect();
        let link = self.layout.link(vps);
        let mut wanted = Vec::new();
        for (address, time) in addresses.iter().filter(|(address, _)| is_outside(*address)).take(OF_ANSWER) {
            let from = if address.is_ipv4() { IpAddr::V4(link.address) } else { link.address6.into() };
            wanted.extend(
                ports.iter().map(|(transport, port)| (Element::Named(from, *address, *transport, *port), *time)),
            );
        }
        self.extend(&mut held, name, wanted).await
    }

    /// What is used, and has to be asked for again.
    pub async fn due(&self) -> Result<Vec<Due>, FirewallError> {
        let mut held = self.held.lock().await;
        if held.named.is_empty() {
            return Ok(Vec::new());
        }
        let now = Instant::now();
        held.named.retain(|_, opened| opened.until > now);
        if !held.named.values().any(|opened| opened.until < now + SOON) {
            return Ok(Vec::new());
        }
        let mut due = BTreeMap::<_, Vec<Element>>::new();
        for (element, about) in self.firewall.list(Set::Named).await? {
            let (Element::Named(vps, ..), Some(left), Some(name)) = (element, about.left, about.name) else { continue };
            if left < SOON && about.count.packets > 0 {
                due.entry((low_of(vps), name, vps.is_ipv6())).or_default().push(element);
            }
        }
        Ok(due.into_iter().map(|((vps, name, ipv6), elements)| Due { vps, name, ipv6, elements }).collect())
    }

    /// What was due was asked for again.
    pub async fn asked_again(&self, Due { vps, name, elements, .. }: Due, again: Again) -> Result<(), FirewallError> {
        match again {
            Again::Has(addresses) => {
                let time = addresses.iter().map(|(_, time)| *time).min().unwrap_or_default();
                self.open(vps, &name, &addresses).await?;
                // Those that it does not have any more too: who is connected there may stay as long as the name is there.
                let mut held = self.held.lock().await;
                self.extend(&mut held, &name, elements.into_iter().map(|element| (element, time)).collect()).await
            }
            Again::Gone => {
                let mut held = self.held.lock().await;
                self.close(&mut held, elements).await
            }
            Again::Unknown => {
                let mut held = self.held.lock().await;
                self.extend(&mut held, &name, elements.into_iter().map(|element| (element, MEANWHILE)).collect()).await
            }
        }
    }

    /// The rules about the outside of each VPS, with what was counted of them, and what names have opened.
    pub async fn rows(&self) -> Result<Vec<Counted>, FirewallError> {
        let chains: Vec<_> = self.held.lock().await.chains.iter().map(|(vps, only)| (*vps, only.clone())).collect();
        let counts = counted(&listed().await?);
        let of = |(vps, only): &(Ipv4Addr, Vec<Egress>)| {
            let chain = chain_of(*vps);
            let one = |one: &Egress| {
                let text = one.to_string();
                let count = counts.get(&(chain.clone(), text.clone())).copied();
                Counted { vps: *vps, to: text, count, about: None }
            };
            only.iter().map(one).collect::<Vec<_>>()
        };
        let mut rows: Vec<_> = chains.iter().flat_map(of).collect();
        for (element, about) in self.firewall.list(Set::Named).await? {
            if let Element::Named(vps, to, transport, port) = element {
                let count = Some(about.count);
                let to = ListenAddress((to, port).into(), transport).to_string();
                rows.push(Counted { vps: low_of(vps), to, count, about: Some(about) });
            }
        }
        Ok(rows)
    }

    async fn extend(&self, held: &mut Held, name: &str, wanted: Vec<(Element, Duration)>) -> Result<(), FirewallError> {
        let now = Instant::now();
        let (mut less, mut more) = (Vec::new(), Vec::new());
        for (element, time) in wanted {
            let time = time.clamp(SHORTEST, LONGEST);
            match held.named.get(&element).map(|opened| opened.until).filter(|until| *until > now) {
                Some(until) if until > now + time / 2 => continue,
                // The time of what is there can't be changed.
                Some(_) => less.push(element),
                None => {
                    let Element::Named(vps, ..) = element else { continue };
                    let (first, last) = Element::named_of(vps);
                    if held.named.len() >= OF_ONE && held.named.range(first..=last).count() >= OF_ONE {
                        tracing::warn!(
                            name,
                            "names have opened {OF_ONE} addresses for one VPS; no more are opened for it"
                        );
                        continue;
                    }
                }
            }
            more.push((element, time, name.to_owned()));
        }
        if more.is_empty() {
            return Ok(());
        }
        match self.firewall.for_a_time(less, more.clone()).await {
            // Its time was over just now.
            Err(error) if error.is_not_there() => self.firewall.for_a_time(Vec::new(), more.clone()).await?,
            done => done?,
        }
        let opened = |(element, time, name)| (element, Opened { until: now + time, name });
        held.named.extend(more.into_iter().map(opened));
        Ok(())
    }

    async fn close(&self, held: &mut Held, closed: Vec<Element>) -> Result<(), FirewallError> {
        for element in closed {
            match self.firewall.for_a_time(vec![element], Vec::new()).await {
                Err(error) if !error.is_not_there() => return Err(error),
                _ => drop(held.named.remove(&element)),
            }
        }
        Ok(())
    }
}

/// At which ports a name, in lower case, is opened.
fn opens<'a>(only: &'a [Egress], name: &'a str) -> impl Iterator<Item = (Transport, u16)> + 'a {
    let named = |one: &&Egress| matches!(one.to, Outside::Name(_) | Outside::Under(_)) && one.to.has_name(name);
    only.iter().filter(named).filter_map(|one| one.at.map(|at| (at.transport, at.first)))
}

/// Whether a VPS may ask outside for a name, in lower case: another one would lead it nowhere, and could carry words out.
pub fn may_ask(only: &[Egress], name: &str) -> bool {
    only.iter().any(|one| one.to.has_name(name))
}

/// The chain for what a VPS may not: it is noted, and its sender told.
pub fn refuse() -> Chain {
    let mut rules = String::new();
    for (ip, six) in [("ip", "4"), ("ip6", "6")] {
        let _ = writeln!(
            rules,
            "meta l4proto {{ 6, 17 }} update @refused{six} {{ {ip} saddr . {ip} daddr . meta l4proto . th dport }}"
        );
    }
    rules += "meta l4proto 6 reject with tcp reset\nreject with icmpx admin-prohibited\n";
    Chain { name: "refuse", hook: "", rules }
}

fn chain_of(vps: Ipv4Addr) -> String {
    format!("{CHAIN}{:08x}", u32::from(vps))
}

/// All chains as nft lists them in JSON, without what is in sets (libnftables-json(5)).
async fn listed() -> Result<Value, NftError> {
    let listed = nft::run(&["-j", "-t", "list", "table", "inet", TABLE], "").await?;
    Ok(serde_json::from_slice(&listed).unwrap_or_default())
}

/// The comments of a VPS's chain, by which it is known again.
fn comments(only: &[Egress]) -> impl Iterator<Item = String> {
    let addresses = only.iter().filter(|one| matches!(one.to, Outside::All | Outside::Net(_)));
    std::iter::once(FORM.to_owned()).chain(addresses.map(ToString::to_string))
}

fn rules(only: &[Egress]) -> String {
    // Answers to who may connect to it, and what belongs to those.
    let mut rules = format!("ct direction reply accept comment \"{FORM}\"\nct state related accept\n");
    for one in only {
        let ports = match one.at {
            None => String::new(),
            Some(Ports { transport, first, last }) => {
                let protocol = if transport == Transport::Tcp { "tcp" } else { "udp" };
                if first == last {
                    format!("{protocol} dport {first} ")
                } else {
                    format!("{protocol} dport {first}-{last} ")
                }
            }
        };
        let to = match &one.to {
            Outside::All => String::new(),
            Outside::Net(net) => format!("{} daddr {net} ", if net.addr().is_ipv4() { "ip" } else { "ip6" }),
            Outside::Name(_) | Outside::Under(_) => continue,
        };
        let _ = writeln!(rules, "{to}{ports}counter accept comment \"{one}\"");
    }
    for (ip, six) in [("ip", "4"), ("ip6", "6")] {
        let _ = writeln!(rules, "{ip} saddr . {ip} daddr . meta l4proto . th dport @named{six} accept");
    }
    rules += "goto refuse\n";
    rules
}

/// What was counted of rules that nft lists in JSON, by chain and comment.
fn counted(listed: &Value) -> BTreeMap<(String, String), Count> {
    let rule = |object: &Value| {
        let rule = object["rule"].as_object()?;
        let expressions = rule.get("expr")?.as_array()?;
        let counter = expressions.iter().find_map(|one| one["counter"].as_object())?;
        let number = |name: &str| counter.get(name).and_then(Value::as_u64);
        let text = |name: &str| rule.get(name).and_then(Value::as_str).map(str::to_owned);
        Some(((text("chain")?, text("comment")?), Count { packets: number("packets")?, bytes: number("bytes")? }))
    };
    listed["nftables"].as_array().into_iter().flatten().filter_map(rule).collect()
}

/// The chains of VPSs among what nft lists in JSON, and the comments of their rules.
fn chains(listed: &Value) -> BTreeMap<String, Vec<String>> {
    let mut chains = BTreeMap::<_, Vec<_>>::new();
    for object in listed["nftables"].as_array().into_iter().flatten() {
        if let Some(name) = object["chain"]["name"].as_str().filter(|name| name.starts_with(CHAIN)) {
            chains.entry(name.to_owned()).or_default();
        }
        if let (Some(chain), Some(comment)) = (object["rule"]["chain"].as_str(), object["rule"]["comment"].as_str())
            && chain.starts_with(CHAIN)
        {
            chains.entry(chain.to_owned()).or_default().push(comment.to_owned());
        }
    }
    chains
}
