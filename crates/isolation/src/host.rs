//! What the host daemon does as root before any tenant code can run: steps 1 to 4 of a start (docs/ARCHITECTURE.md).
//!
//! Each step is one function; none keeps state, the daemon does. All block only for as long as the kernel takes.

pub mod cgroup;
pub mod confine;
pub mod link;
pub mod namespaces;
pub mod show;
pub mod stage;
pub mod uplink;

use std::{io, path::PathBuf};

pub use cgroup::{Cgroup, Hierarchies, Usage};
pub use confine::{Confine, spawn_confined};
pub use link::{Linker, within};
pub use namespaces::{
    BLOCK, IdRange, LAYER_IDS, Namespaces, PendingNamespaces, begin_namespaces, layer_map, make_namespaces,
};
pub use show::{Found, Shown, find, show};
pub use stage::{HostBind, ShimStart, detached, spawn_shim};
pub use uplink::HostNetwork;

/// Which step failed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Step 1.
    #[error("cgroup {}: {action}", path.display())]
    Cgroup {
        /// What was being done.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another host has it.
    #[error("cgroup {} belongs to a host that is running; give this one another `cgroup` in host.toml", .0.display())]
    CgroupTaken(PathBuf),
    /// No cgroup hierarchy is mounted where one is needed.
    #[error("{0} is not mounted; bailiwick needs cgroup v2, alone or beside v1 `memory`, `cpu` and `pids`")]
    NoHierarchy(&'static str),
    /// Step 2.
    #[error("making namespaces for ids {first} and following")]
    Namespaces {
        /// First id.
        first: u32,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Step 3.
    #[error("network link {name}")]
    Link {
        /// The outer end's name.
        name: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// What host.toml names is none, or is another by now.
    #[error("{} {what}", path.display())]
    NotShown {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Step 4.
    #[error("{action} {}", path.display())]
    Stage {
        /// What was being done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl HostError {
    /// The error and its cause in one line, for a person.
    pub fn explain(&self) -> String {
        let cause = std::error::Error::source(self);
        let cause = cause.map(|cause| match cause.downcast_ref() {
            Some(error) => crate::lack::cause(error),
            None => cause.to_string(),
        });
        cause.map_or_else(|| self.to_string(), |cause| format!("{self}: {cause}"))
    }
}
