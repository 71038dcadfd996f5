//! The host's nft table, and the settings it remembers.

use std::{fs, path::PathBuf};

use model::host::NetworkConfig;

use super::{Names, UplinkError};

/// What begins the table's comment.
const COMMENT: &str = "forwarding was off:";

/// Which families an interface did not forward before any host used it as its uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Off {
    /// The interface.
    pub interface: String,
    /// IPv4.
    pub ipv4: bool,
    /// IPv6.
    pub ipv6: bool,
}

impl Off {
    /// As it is now.
    pub fn now(interface: &str) -> Self {
        let off = |path: PathBuf| fs::read_to_string(path).is_ok_and(|value| value.trim() == "0");
        // A host that forwards IPv6 has no need of it.
        let router = !off("/proc/sys/net/ipv6/conf/all/forwarding".into());
        Self {
            interface: interface.to_owned(),
            ipv4: off(setting4(interface)),
            ipv6: !router && off(setting6(interface)),
        }
    }

    /// Turns on, or off again, what was off.
    pub fn set(&self, on: bool) -> Result<(), UplinkError> {
        let settings = [(self.ipv4, setting4(&self.interface)), (self.ipv6, setting6(&self.interface))];
        for (_, path) in settings.into_iter().filter(|(was_off, _)| *was_off) {
            match fs::write(&path, if on { "1" } else { "0" }) {
                // The interface is gone, and its settings with it.
                Err(error) if !on && error.kind() == std::io::ErrorKind::NotFound => {}
                written => written.map_err(|source| UplinkError::Setting { path, source })?,
            }
        }
        Ok(())
    }

    /// The table's comment.
    pub fn comment(&self) -> String {
        let word = |off: bool| if off { "off" } else { "on" };
        format!("{COMMENT} {} ipv4 {} ipv6 {}", self.interface, word(self.ipv4), word(self.ipv6))
    }

    /// What a listed table says.
    pub fn parse(listing: &str) -> Option<Self> {
        let (_, rest) = listing.split_once(&format!("comment \"{COMMENT} "))?;
        let words: Vec<_> = rest.split_once('"')?.0.split(' ').collect();
        let [interface, "ipv4", ipv4, "ipv6", ipv6] = words[..] else { return None };
        Some(Self { interface: interface.to_owned(), ipv4: ipv4 == "off", ipv6: ipv6 == "off" })
    }
}

fn setting4(interface: &str) -> PathBuf {
    format!("/proc/sys/net/ipv4/conf/{interface}/forwarding").into()
}

/// Since Linux 6.17; unlike `forwarding` it leaves the host hearing router advertisements. Without it only a host that
/// forwards IPv6 already does so for VPSs.
fn setting6(interface: &str) -> PathBuf {
    format!("/proc/sys/net/ipv6/conf/{interface}/force_forwarding").into()
}

/// Has the host forward what comes from the network VPS.
pub fn forward_link(link: &str) {
    for path in [setting4(link), setting6(link)] {
        if path.exists()
            && let Err(error) = fs::write(&path, "1")
        {
            tracing::warn!(path = %path.display(), %error, "the uplink can't forward");
        }
    }
}

/// The table's name in a line of `nft list tables`, if it is a host's.
pub fn name(line: &str) -> Option<&str> {
    line.strip_prefix("table inet ").filter(|name| name.starts_with("bailiwick_"))
}

/// The table, in place of the one before, as one transaction. To the outside goes only what the network VPS has translated to
/// its one address, which is masqueraded, or what comes from an address that it owns; what comes back belongs to such a
/// connection, or goes to such an address. VPSs' own addresses are for connections of the host's own.
pub fn ruleset(names: &Names, network: &NetworkConfig, uplink: &str, off: &Off) -> String {
    let Names { table, link, .. } = names;
    let NetworkConfig { subnet, subnet6, .. } = network;
    let ([more, more6], owned) = owned_rules(network, link, uplink);
    let comment = off.comment();
    let (translated, translated6) = network.translated();
    format!(
        r#"table inet {table}
delete table inet {table}
table inet {table} {{
    comment "{comment}"
    chain sources {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{link}" ip saddr != {{ {subnet}{more} }} drop
        iifname "{link}" ip6 saddr != {{ {subnet6}{more6} }} drop
        iifname != {{ "{link}", "lo" }} ip saddr {{ {subnet}{more} }} drop
        iifname != {{ "{link}", "lo" }} ip6 saddr {{ {subnet6}{more6} }} drop
    }}
    chain to_host {{
        type filter hook input priority filter; policy accept;
        iifname "{link}" ct state established,related accept
        iifname "{link}" reject with icmpx admin-prohibited
    }}
    chain through_host {{
        type filter hook forward priority filter; policy accept;
        iifname "{link}" ip daddr 169.254.0.0/16 reject with icmpx admin-prohibited
        iifname "{link}" oifname "{uplink}" ip saddr {translated} accept
        iifname "{link}" oifname "{uplink}" ip6 saddr {translated6} accept
{owned}        iifname "{link}" reject with icmpx admin-prohibited
        iifname "{uplink}" oifname "{link}" ct state established,related accept
        oifname "{link}" drop
    }}
    chain to_outside {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "{uplink}" ip saddr {translated} masquerade
        oifname "{uplink}" ip6 saddr {translated6} masquerade
    }}
}}
"#
    )
}

/// What else the network VPS sends from, per family, as more elements of a set; and the rules by which that is forwarded.
fn owned_rules(network: &NetworkConfig, link: &str, uplink: &str) -> ([String; 2], String) {
    let (mut more, mut rules) = ([String::new(), String::new()], String::new());
    for net in &network.addresses {
        let (family, at) = if net.addr().is_ipv4() { ("ip", 0) } else { ("ip6", 1) };
        more[at].push_str(&format!(", {net}"));
        rules.push_str(&format!("        iifname \"{link}\" oifname \"{uplink}\" {family} saddr {net} accept\n"));
        rules.push_str(&format!("        iifname \"{uplink}\" oifname \"{link}\" {family} daddr {net} accept\n"));
    }
    (more, rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_off_is_read_from_the_listed_table() {
        for (ipv4, ipv6) in [(true, false), (false, true), (true, true), (false, false)] {
            let off = Off { interface: "eth0".to_owned(), ipv4, ipv6 };
            let listed =
                format!("table inet bailiwick_1 {{\n\tcomment \"{}\"\n\tchain a {{\n\t}}\n}}\n", off.comment());
            assert_eq!(Off::parse(&listed), Some(off));
        }
        assert_eq!(Off::parse("table inet bailiwick_1 {\n}\n"), None);
        assert_eq!(name("table inet bailiwick_1"), Some("bailiwick_1"));
        assert_eq!(name("table inet filter"), None);
    }
}
