//! Ways past the gateway: what comes by the uplink for an address that this VPS owns, and a port whose VPS is up, is led
//! straight there. A connection stays where it began, whatever becomes of its way: the kernel remembers it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use model::{ListenAddress, Transport, run::Link};
use rtnetlink::Handle;
use serde_json::Value;
use tokio::sync::Mutex;
use wire::network::{Use, Way};

use crate::{
    conntrack::{self, Flow},
    firewall::Chain,
    links::LinkError,
    netlink::{self, NetlinkError},
    nft::{self, NftError},
    policy::{Layout, low_of},
};

/// Between two looks at connections; the kernel remembers those that have ended longer.
const LOOK: Duration = Duration::from_secs(25);

/// The ways in force.
#[derive(Debug)]
pub struct Ways {
    handle: Handle,
    layout: Layout,
    /// Held while the kernel is being told.
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    there: BTreeMap<ListenAddress, To>,
    said: HashMap<String, Said>,
}

/// What is known of the VPS at the end of a link.
#[derive(Debug, Default)]
struct Said {
    /// The number of what was said last.
    number: u64,
    /// When it was last seen in use, once something was led there since its link appeared.
    used: Option<Instant>,
}

/// Where a way leads.
#[derive(Debug, Clone, PartialEq, Eq)]
struct To {
    link: String,
    port: u16,
}

/// Why there is no way.
#[derive(Debug, thiserror::Error)]
pub enum WayError {
    /// The kernel was not told.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Nor are the links known.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Nobody owns that address.
    #[error("{0} is none of this VPS's addresses")]
    Foreign(ListenAddress),
    /// No VPS has it.
    #[error("`{0}` is no link of a VPS")]
    NoLink(String),
    /// The kernel does not tell.
    #[error("reading the kernel's connections: {0}")]
    Connections(#[source] std::io::Error),
}

impl Ways {
    /// Those that an earlier process of this service made, as far as their links are there.
    pub async fn prepare(handle: Handle, layout: Layout) -> Result<Self, LinkError> {
        let mut held = Held::default();
        if !layout.owned.is_empty() {
            for map in ["ways4", "ways6"] {
                let listed = nft::run(&["-j", "list", "map", "inet", "bailiwick", map], "").await?;
                held.there.extend(read(&serde_json::from_slice(&listed).unwrap_or_default()));
            }
            let used = Some(Instant::now());
            held.said = held.there.values().map(|to| (to.link.clone(), Said { number: 0, used })).collect();
        }
        Ok(Self { handle, layout, held: Mutex::new(held) })
    }

    /// Leads these to the VPS at the end of a link, and no others any more. What was said under a lower `number` comes too
    /// late, and nothing leads to a link that is not there.
    pub async fn lead(&self, link: &str, number: u64, ways: &BTreeSet<Way>) -> Result<(), WayError> {
        if Link::address_of(link).is_none_or(|address| !self.layout.subnet.contains(&address)) {
            return Err(WayError::NoLink(link.to_owned()));
        }
        let foreign = |way: &&Way| !self.layout.owned.iter().any(|net| net.contains(&way.address.0.ip()));
        if let Some(way) = ways.iter().find(foreign) {
            return Err(WayError::Foreign(way.address));
        }
        let mut held = self.held.lock().await;
        let said = held.said.entry(link.to_owned()).or_default();
        if said.number > number {
            return Ok(());
        }
        said.number = number;
        // Looked at while nothing else is said: that it is gone will be heard after this.
        let ways = if netlink::index_of(&self.handle, link).await?.is_some() { ways } else { &BTreeSet::new() };
        if !ways.is_empty() {
            said.used.get_or_insert_with(Instant::now);
        }
        let wanted = ways.iter().map(|way| (way.address, To { link: link.to_owned(), port: way.port })).collect();
        Ok(self.change(&mut held, link, wanted).await?)
    }

    /// All but these links are gone.
    pub async fn sweep(&self, keep: impl Fn(&str) -> bool) {
        let led = |(link, said): (&String, &Said)| said.used.map(|_| link.clone());
        let led: Vec<_> = self.held.lock().await.said.iter().filter_map(led).collect();
        for link in led.iter().filter(|link| !keep(link)) {
            self.gone(link).await;
        }
    }

    /// A link is gone: its VPS has ended, and with it all its connections.
    pub async fn gone(&self, link: &str) {
        let mut held = self.held.lock().await;
        if held.said.get_mut(link).and_then(|said| said.used.take()).is_none() {
            return;
        }
        if let Err(error) = self.change(&mut held, link, BTreeMap::new()).await {
            tracing::error!(link, %error, "the ways to a VPS that has ended stay");
        }
        let of_link =
            |flows: Vec<Flow>| flows.into_iter().filter(|flow| link_of(flow.server) == link).collect::<Vec<_>>();
        let flows = flows().await.map(of_link);
        if let Err(error) = flows.and_then(|flows| conntrack::forget(&flows).map_err(WayError::Connections)) {
            tracing::error!(link, %error, "the connections to a VPS that has ended are not forgotten");
        }
    }

    async fn change(&self, held: &mut Held, link: &str, wanted: BTreeMap<ListenAddress, To>) -> Result<(), NftError> {
        let mut commands = String::new();
        let mut there = held.there.clone();
        // Another VPS's too, whose route it was.
        there.retain(|address, to| {
            let stays = match wanted.get(address) {
                Some(now) => now == to,
                None => to.link != link,
            };
            if !stays {
                let _ = writeln!(commands, "delete element inet bailiwick {} {{ {} }}", map(*address), key(*address));
            }
            stays
        });
        for (address, to) in wanted {
            if there.contains_key(&address) {
                continue;
            }
            let Some(server) = Link::address_of(&to.link).map(|ip| self.layout.link(ip)) else { continue };
            let server = if address.0.is_ipv4() { IpAddr::V4(server.address) } else { server.address6.into() };
            let (map, key, port) = (map(address), key(address), to.port);
            let _ = writeln!(commands, "add element inet bailiwick {map} {{ {key} : {server} . {port} }}");
            there.insert(address, to);
        }
        if !commands.is_empty() {
            nft::apply(&commands).await?;
            held.there = there;
        }
        Ok(())
    }

    /// Looks now and then which VPSs are used: the kernel forgets connections soon after their end.
    pub async fn watch(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if !self.held.lock().await.there.is_empty()
                && let Err(error) = self.look().await
            {
                tracing::error!(%error, "who is used past the gateway can't be seen");
            }
        }
    }

    async fn look(&self) -> Result<Vec<Flow>, WayError> {
        let flows = flows().await?;
        let now = Instant::now();
        let mut held = self.held.lock().await;
        for flow in &flows {
            let Some(said) = held.said.get_mut(&link_of(flow.server)) else { continue };
            let seen = now.checked_sub(flow.ended.unwrap_or_default());
            said.used = said.used.map(|used| seen.map_or(used, |seen| used.max(seen)));
        }
        Ok(flows)
    }

    /// How the VPS at the end of a link is used past the gateway.
    pub async fn used(&self, link: &str) -> Result<Use, WayError> {
        let flows = self.look().await?;
        let open = flows.iter().filter(|flow| flow.ended.is_none() && link_of(flow.server) == link).count() as u64;
        let used = self.held.lock().await.said.get(link).and_then(|said| said.used);
        let ms = |used: Instant| used.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
        Ok(Use { open, last_ms: used.map(ms) })
    }
}

async fn flows() -> Result<Vec<Flow>, WayError> {
    let flows = tokio::task::spawn_blocking(conntrack::flows).await;
    flows.unwrap_or_else(|error| Err(error.into())).map_err(WayError::Connections)
}

/// The name of the link that leads to a VPS's address.
fn link_of(server: IpAddr) -> String {
    Link::new(low_of(server), Ipv6Addr::UNSPECIFIED).name
}

/// Where the chain looks: what is in them stays.
pub const MAPS: &str = "\
map ways4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
map ways6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }
";

/// Leads new connections; `firewall` marks their packets.
pub fn chain() -> Chain {
    let uplink = Link::UPLINK;
    let rules = format!(
        "iifname {uplink} dnat ip to ip daddr . meta l4proto . th dport map @ways4\n\
         iifname {uplink} dnat ip6 to ip6 daddr . meta l4proto . th dport map @ways6\n"
    );
    Chain { name: "from_outside", hook: "type nat hook prerouting priority dstnat; policy accept;", rules }
}

fn map(address: ListenAddress) -> &'static str {
    if address.0.is_ipv4() { "ways4" } else { "ways6" }
}

/// Protocols by their numbers: nft knows names only where there is /etc/protocols.
fn key(ListenAddress(address, transport): ListenAddress) -> String {
    let protocol = match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
    };
    format!("{} . {protocol} . {}", address.ip(), address.port())
}

/// The ways in a map, as nft lists it in JSON (libnftables-json(5)).
fn read(listed: &Value) -> Vec<(ListenAddress, To)> {
    let maps =
        listed["nftables"].as_array().into_iter().flatten().filter_map(|object| object["map"]["elem"].as_array());
    let way = |element: &Value| {
        let ip: IpAddr = element[0]["concat"][0].as_str()?.parse().ok()?;
        let port = u16::try_from(element[0]["concat"][2].as_u64()?).ok()?;
        let server: IpAddr = element[1]["concat"][0].as_str()?.parse().ok()?;
        let inside = u16::try_from(element[1]["concat"][1].as_u64()?).ok()?;
        let transport = match &element[0]["concat"][1] {
            Value::Number(number) => number.as_u64().filter(|number| *number == 17).map(|_| Transport::Udp),
            name => name.as_str().filter(|name| ["udp", "17"].contains(name)).map(|_| Transport::Udp),
        };
        let address = ListenAddress((ip, port).into(), transport.unwrap_or(Transport::Tcp));
        Some((address, To { link: link_of(server), port: inside }))
    };
    maps.flatten().filter_map(way).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_read_back_as_they_were_written() {
        let listed = serde_json::json!({"nftables": [{"metainfo": {}}, {"map": {"name": "ways4", "elem": [
            [{"concat": ["192.0.2.1", "tcp", 80]}, {"concat": ["10.80.0.20", 8080]}]]}}, {"map": {"name": "ways6", "elem": [
            [{"concat": ["2001:db8::1", 6, 25]}, {"concat": ["fd80:ba11::a50:14", 2525]}], "odd",
            [{"concat": ["192.0.2.1", 17, 53]}, {"concat": ["10.80.0.20", 53]}]]}}, {"map": {"name": "none"}}]});
        let to = |port| To { link: "v0a500014".to_owned(), port };
        let address = |text: &str| text.parse().unwrap();
        let expected = vec![
            (address("192.0.2.1:80"), to(8080)),
            (address("[2001:db8::1]:25"), to(2525)),
            (address("udp://192.0.2.1:53"), to(53)),
        ];
        assert_eq!(read(&listed), expected);
        assert_eq!(read(&Value::Null), []);
    }
}
