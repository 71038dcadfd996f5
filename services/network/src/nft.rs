//! nft(8), because the kernel's interface below it is not one to write by hand.

use std::{io, process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt as _, process::Command};

/// How long it may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Where Debian has it.
const PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Why rules are not in force.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// nft is not there.
    #[error(
        "nft is not in this VPS; in host.toml its table needs programs = [\"nft\"], and the host the package nftables"
    )]
    Missing,
    /// It can't be run.
    #[error("running nft: {0}")]
    Run(#[source] io::Error),
    /// It said no.
    #[error("nft: {0}")]
    Refused(String),
}

/// Has one transaction be carried out.
pub async fn apply(commands: &str) -> Result<(), NftError> {
    run(&["-f", "/dev/stdin"], commands).await.map(drop)
}

/// Runs nft; what it wrote.
pub async fn run(arguments: &[&str], input: &str) -> Result<Vec<u8>, NftError> {
    let mut command = Command::new("nft");
    command.args(arguments).env_clear().env("PATH", PATH).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => NftError::Missing,
        _ => NftError::Run(error),
    })?;
    let stdin = child.stdin.take();
    let run = async {
        if let Some(mut stdin) = stdin {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(LIMIT, run).await.map_err(|_| NftError::Run(io::ErrorKind::TimedOut.into()))?;
    let output = output.map_err(NftError::Run)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(NftError::Refused(said.lines().next().unwrap_or("it failed and said nothing").to_owned()))
}
