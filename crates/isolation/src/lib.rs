//! How a VPS is isolated: the steps of a start, in the two places where they are done.
//!
//! `host` is the privileged half, done by the host daemon; `inside` the other one, done by the shim's children with the
//! rights of the VPS's own user namespace. May touch: the kernel, through `sys` and rustix. Must never: decide who may
//! run what, or follow a path that a tenant made.
#![forbid(unsafe_code)]

pub mod host;
pub mod inside;
pub mod lack;

pub use sys::remove::remove_tree;
