//! Interfaces between the host daemon, shims and services, and the transports under them.
//!
//! Services speak varlink (`varlink`), one file per interface; shims speak a compact binary message (`shim`), the
//! keeper a fixed one (`keeper`). May touch: sockets it is given. Must never: decide anything, or trust a length.
#![forbid(unsafe_code)]

pub mod admin;
pub mod apps;
pub mod control;
pub mod gateway;
pub mod host;
pub mod keeper;
pub mod logs;
pub mod network;
pub mod secrets;
pub mod seqpacket;
pub mod shim;
pub mod varlink;

pub use varlink::{Client, Connection, Fault, Method, Peer, Replier, Request};
