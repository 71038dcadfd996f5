//! Where root filesystems come from: a store of content-addressed layers, and the images that name them.
//!
//! A layer is a directory tree whose name is the SHA-256 of everything in it; it never changes. May touch: the store's
//! directory and the trees it is given. Must never: follow a symbolic link in a tree, make a device node, or let a layer appear
//! under its name before all of it is on the disk.
#![forbid(unsafe_code)]

mod compression;
mod error;
mod meta;
mod room;
mod store;
mod stream;
mod tree;
mod unpack;

pub use error::StoreError;
pub use store::{BuildLock, Pruned, Store};
pub use tree::remove_tree;
pub use unpack::{Limits, unpack};
