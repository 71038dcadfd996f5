//! Address translation: to the outside every VPS is the network VPS's one address, so that the host sees and forwards no
//! other. nft(8), because the kernel's interface below it is not one to write by hand.

use std::{io, process::Stdio, time::Duration};

use model::run::Link;
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::policy::Layout;

/// How long nft may take.
const NFT: Duration = Duration::from_secs(10);
/// Where Debian has it.
const PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Why addresses are not translated.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    /// nft is not there.
    #[error(
        "nft is not in this VPS; in host.toml its table needs programs = [\"nft\"], and the host the package nftables"
    )]
    NoNft,
    /// It can't be run.
    #[error("running nft: {0}")]
    Run(#[source] io::Error),
    /// It said no.
    #[error("nft: {0}")]
    Refused(String),
}

/// Translates what leaves through the uplink. In one transaction; the chain itself stays, and connections with it.
pub async fn install(layout: &Layout) -> Result<(), NatError> {
    nft(&ruleset(layout)).await
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

async fn nft(input: &str) -> Result<(), NatError> {
    let mut command = Command::new("nft");
    command.args(["-f", "/dev/stdin"]).env_clear().env("PATH", PATH).kill_on_drop(true);
    let mut child =
        command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => NatError::NoNft,
            _ => NatError::Run(error),
        })?;
    let stdin = child.stdin.take();
    let run = async {
        if let Some(mut stdin) = stdin {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(NFT, run).await.map_err(|_| NatError::Run(io::ErrorKind::TimedOut.into()))?;
    let output = output.map_err(NatError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(NatError::Refused(said.lines().next().unwrap_or("it failed and said nothing").to_owned()))
}
