//! Step 2: namespaces as descriptors, and the id-mapping of layers.

use std::os::fd::OwnedFd;

use sys::namespace::{IdMap, PendingUser, begin_user, create_user};

use super::HostError;

/// Ids in a block; what a VPS has is one block or several in a row.
pub const BLOCK: u32 = 65_536;
/// First id that owns layers on disk.
pub const LAYER_IDS: u32 = 700_000;

/// A VPS's ids on the host: `first` is its root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id.
    pub first: u32,
    /// How many, a multiple of `BLOCK`.
    pub count: u32,
}

/// The namespaces a VPS is built in.
#[derive(Debug)]
pub struct Namespaces {
    /// User namespace, maps written.
    pub user: OwnedFd,
    /// Network namespace that belongs to it.
    pub network: Option<OwnedFd>,
}

/// Namespaces that a child is making; other steps can be done meanwhile.
#[derive(Debug)]
pub struct PendingNamespaces {
    pending: PendingUser,
    first: u32,
}

/// Begins a user namespace owned by the uid `shim`, with `ids` from 0 on, and with `network` a network namespace.
pub fn begin_namespaces(shim: u32, ids: IdRange, network: bool) -> Result<PendingNamespaces, HostError> {
    let map = IdMap { inside: 0, outside: ids.first, count: ids.count };
    let pending = begin_user(shim, map, network);
    let pending = pending.map_err(|source| HostError::Namespaces { first: ids.first, source })?;
    Ok(PendingNamespaces { pending, first: ids.first })
}

impl PendingNamespaces {
    /// The namespaces, once they are there.
    pub fn finish(self) -> Result<Namespaces, HostError> {
        let first = self.first;
        let made = self.pending.finish();
        let (user, network) = made.map_err(|source| HostError::Namespaces { first, source })?;
        Ok(Namespaces { user, network })
    }
}

/// `begin_namespaces` and `finish` in one.
pub fn make_namespaces(shim: u32, ids: IdRange, network: bool) -> Result<Namespaces, HostError> {
    begin_namespaces(shim, ids, network)?.finish()
}

/// A user namespace that serves as the id-mapping of mounts: layers on disk (`LAYER_IDS`…) are seen as owned by the VPS
/// whose first id is `first`.
pub fn layer_map(first: u32) -> Result<OwnedFd, HostError> {
    let map = IdMap { inside: LAYER_IDS, outside: first, count: BLOCK };
    Ok(create_user(0, map, false).map_err(|source| HostError::Namespaces { first, source })?.0)
}
