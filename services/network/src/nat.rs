//! Address translation: to the outside every VPS is the network VPS's one address, so that the host sees and forwards no
//! other.

use model::run::Link;

use crate::{
    nft::{self, NftError},
    policy::Layout,
};

/// Translates what leaves through the uplink. In one transaction; the chain itself stays, and connections with it.
pub async fn install(layout: &Layout) -> Result<(), NftError> {
    nft::apply(&ruleset(layout)).await
}

fn ruleset(layout: &Layout) -> String {
    let Layout { subnet, subnet6, translated: (address, address6), .. } = layout;
    let uplink = Link::UPLINK;
    format!(
        r#"table inet bailiwick {{
    chain to_outside {{
        type nat hook postrouting priority srcnat; policy accept;
    }}
}}
flush chain inet bailiwick to_outside
table inet bailiwick {{
    chain to_outside {{
        oifname "{uplink}" ip saddr {subnet} snat ip to {address}
        oifname "{uplink}" ip6 saddr {subnet6} snat ip6 to {address6}
    }}
}}
"#
    )
}
