//! The gateway against a fake host and control (real wire, in this process), real sockets on loopback, raw clients and
//! servers.

mod doors;
mod http;
mod ignored;
mod parse;
mod quiet;
mod relay;
mod rig;
mod state;
