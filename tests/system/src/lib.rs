//! A whole host for tests and the demo: started under a root of its own, driven by the real CLI and real clients,
//! stopped and looked after for leftovers.
#![forbid(unsafe_code)]

pub mod census;
pub mod disk;
pub mod fuzz;
pub mod host;
pub mod load;
pub mod netns;
pub mod site;
pub mod spec;
pub mod torture;
pub mod versions;

pub use host::{Answer, Host, HostOptions};
