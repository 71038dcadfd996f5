//! Address translation: to the outside every VPS is the network VPS's one address, so that the host sees and forwards no
//! other.

use model::run::Link;

use crate::{firewall::Chain, policy::Layout};

/// Translates what leaves through the uplink.
pub fn chain(layout: &Layout) -> Chain {
    let Layout { subnet, subnet6, translated: (address, address6), .. } = layout;
    let uplink = Link::UPLINK;
    let rules = format!(
        "oifname {uplink} ip saddr {subnet} snat ip to {address}\n\
         oifname {uplink} ip6 saddr {subnet6} snat ip6 to {address6}\n"
    );
    Chain { name: "to_outside", hook: "type nat hook postrouting priority srcnat; policy accept;", rules }
}
