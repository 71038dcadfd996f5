//! The table as nft(8) reads it: the sets, and per chain what is fixed.

use std::fmt::Write as _;

use model::run::Link;

use super::{Set, TABLE};
use crate::{
    egress, nat,
    policy::{ANSWER_MARK, LED_MARK, Layout, PAIR_MARK},
    ways,
};

/// Who has opened connections to the outside of late.
const OPENING: &str = "\
set opening4 { type ipv4_addr; flags dynamic, timeout; size 65535; timeout 2m; }
set opening6 { type ipv6_addr; flags dynamic, timeout; size 65535; timeout 2m; }
";

/// How many connections to the outside one VPS may open: all share the kernel's table of them, and one that fills it would keep the
/// others from theirs.
#[derive(Debug, Clone, Copy)]
struct Crowd {
    /// In a second.
    rate: u64,
    /// At once, after a rest.
    burst: u64,
}

impl Crowd {
    /// By the size of the table (`nf_conntrack_max`). One that nobody answers stays in it for two minutes at most, so that a VPS takes
    /// a quarter of it.
    fn read() -> Self {
        let size = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max");
        let size: u64 = size.ok().and_then(|size| size.trim().parse().ok()).unwrap_or(65_536);
        Self { rate: (size / 512).max(32), burst: (size / 64).max(512) }
    }
}

/// For what one VPS opens too fast: its sender is told.
fn crowded() -> Chain {
    let rules = "counter\nmeta l4proto 6 reject with tcp reset\nreject with icmpx admin-prohibited\n".to_owned();
    Chain { name: "crowded", hook: "", rules }
}

/// A chain, and its rules.
pub struct Chain {
    pub name: &'static str,
    /// Where packets come into it; empty: from other chains.
    pub hook: &'static str,
    pub rules: String,
}

/// One transaction that makes what is not there, and exchanges all rules.
pub fn ruleset(layout: &Layout) -> String {
    let mut sets = String::new();
    for set in Set::ALL {
        sets += &set.declared(false);
        sets += &set.declared(true);
    }
    let mut chains = vec![sort(layout), from_gateway(layout), forward(layout)];
    if layout.uplink {
        sets += egress::MAPS;
        sets += OPENING;
        chains.push(crowded());
        chains.push(egress::refuse());
        chains.push(nat::chain(layout));
    }
    if !layout.owned.is_empty() {
        sets += ways::MAPS;
        chains.push(ways::chain());
    }
    let (mut made, mut flushed, mut filled) = (String::new(), String::new(), String::new());
    for Chain { name, hook, rules } in chains {
        let _ = writeln!(made, "chain {name} {{ {hook} }}");
        let _ = writeln!(flushed, "flush chain inet {TABLE} {name}");
        let _ = writeln!(filled, "chain {name} {{\n{rules}}}");
    }
    format!("table inet {TABLE} {{\n{sets}{made}}}\n{flushed}table inet {TABLE} {{\n{filled}}}\n")
}

/// Marks what comes in; connections' destinations are translated by then.
fn sort(layout: &Layout) -> Chain {
    let mut rules = String::new();
    let led = if layout.owned.is_empty() { "" } else { "ct status dnat " };
    if layout.uplink {
        let uplink = Link::UPLINK;
        if !led.is_empty() {
            let _ = writeln!(rules, "iifname {uplink} {led}meta mark set {LED_MARK} accept");
        }
        let _ = writeln!(rules, "iifname {uplink} accept");
    }
    let _ = writeln!(rules, "iifname lo accept");
    if let Some(gateway) = layout.gateway.map(|address| layout.link(address)) {
        let _ = writeln!(rules, "iifname {} goto from_gateway", gateway.name);
    }
    let _ = writeln!(rules, "meta nfproto ipv6 fib saddr . iif oif missing drop");
    if !led.is_empty() {
        let _ = writeln!(rules, "{led}meta mark set {LED_MARK} accept");
    }
    for (ip, six) in [("ip", "4"), ("ip6", "6")] {
        let _ = writeln!(rules, "{ip} saddr . {ip} daddr @pairs{six} meta mark set {PAIR_MARK} accept");
        let _ = writeln!(rules, "{ip} saddr . meta l4proto . th sport @shown{six} meta mark set {ANSWER_MARK} accept");
    }
    Chain { name: "sort", hook: "type filter hook prerouting priority dstnat + 1; policy accept;", rules }
}

/// The gateway sends as itself; to who may be shown clients' addresses, as anyone of the outside; to a VPS that asked another one, in
/// that one's name.
fn from_gateway(layout: &Layout) -> Chain {
    let mut rules = String::new();
    if let Some(gateway) = layout.gateway.map(|address| layout.link(address)) {
        let families = [
            ("ip", "4", gateway.address.to_string(), layout.subnet.trunc().to_string()),
            ("ip6", "6", gateway.address6.to_string(), layout.subnet6.trunc().to_string()),
        ];
        for (ip, six, own, subnet) in families {
            let _ = writeln!(rules, "{ip} saddr {own} accept");
            let _ = writeln!(rules, "{ip} daddr . {ip} saddr @pairs{six} meta mark set {PAIR_MARK} accept");
            let shown = format!("{ip} daddr . meta l4proto . th dport @shown{six}");
            let _ = writeln!(rules, "{ip} saddr != {subnet} {shown} meta mark set {ANSWER_MARK} accept");
        }
        rules += "drop\n";
    }
    Chain { name: "from_gateway", hook: "", rules }
}

/// Counts what rules between VPSs let through, and leads what leaves for the outside to what its VPS may.
fn forward(layout: &Layout) -> Chain {
    let mut rules = String::new();
    let families = [("ip", "4"), ("ip6", "6")];
    for (ip, six) in families {
        let _ = writeln!(rules, "{ip} saddr . {ip} daddr . tcp dport @allowed{six} accept");
    }
    if layout.uplink {
        let _ = writeln!(rules, "oifname != {} accept", Link::UPLINK);
        let crowd = Crowd::read();
        for (ip, six) in families {
            let Crowd { rate, burst } = crowd;
            let opening =
                format!("update @opening{six} {{ {ip} saddr limit rate over {rate}/second burst {burst} packets }}");
            let _ = writeln!(rules, "ct state new {opening} goto crowded");
        }
        for (ip, six) in families {
            let _ = writeln!(rules, "{ip} saddr vmap @bounded{six}");
        }
    }
    Chain { name: "forward", hook: "type filter hook forward priority filter; policy accept;", rules }
}
