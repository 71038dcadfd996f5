//! The only unsafe code: system calls that rustix lacks or can't offer as safe, behind safe functions.
//!
//! Each file is one part of the kernel's interface. May touch: the kernel, by what it is given. Must never: decide
//! anything, keep state, or know what a VPS is.

pub mod handover;
pub mod listen_fds;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod process;
pub mod quota;
pub mod remove;
pub mod seccomp;
pub mod share;
pub mod signal;
pub mod socket;
