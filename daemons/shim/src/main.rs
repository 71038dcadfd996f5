//! `bailiwick-shim`: builds one VPS, supervises it, and ends with it.
//!
//! One per run of a VPS, one thread, as a uid of its own without capabilities; descriptor 3 is the daemon's socket. May
//! touch: what came with `Start`, and its VPS. Must never: decide; wait for anything its tenant can hold back; outlive
//! its VPS or be outlived by it.
#![forbid(unsafe_code)]

mod channel;
mod check;
mod files;
mod follow;
mod init;
mod listen;
mod log;
mod start;
mod supervise;
mod syslog;

use std::os::fd::AsFd;

use anyhow::Context;
use wire::shim::{FromShim, ToShim, recv, send};

/// The descriptor that the daemon's socket is inherited as.
const DAEMON: i32 = 3;

fn main() -> anyhow::Result<()> {
    let daemon = sys::process::inherited_socket(DAEMON)
        .context("descriptor 3 is not a socket: bailiwickd starts this program, not a person")?;
    let Some((message, fds)) = recv::<ToShim>(daemon.as_fd()).context("receiving the start message")? else {
        return Ok(());
    };
    match start::start(start::Request::new(message, fds)?) {
        Ok(vps) => supervise::Supervisor::new(daemon, vps).run(),
        Err(reason) => Ok(send(daemon.as_fd(), &FromShim::NotStarted { reason }, &[])?),
    }
}
