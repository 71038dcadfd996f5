//! Ranges of ids: blocks of 65,536, the lowest free ones, each VPS's own as long as it exists.

use isolation::host::{BLOCK, IdRange};
use model::{TenantName, host::Ids};
use serde::{Deserialize, Serialize};

/// What the file `ids` of a VPS says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// First block, from 0.
    pub first: u32,
    /// How many blocks.
    pub blocks: u32,
    /// Whose it is; designated VPSs are nobody's.
    pub tenant: Option<TenantName>,
}

impl Allocation {
    /// The ids on the host.
    pub fn range(&self, ids: &Ids) -> IdRange {
        IdRange { first: ids.first + self.first * BLOCK, count: self.blocks * BLOCK }
    }

    /// The uid (and gid) of its shims.
    pub fn shim(&self, ids: &Ids) -> u32 {
        ids.shims + self.first
    }
}

/// The first of `wanted` free blocks in a row, the lowest; `taken` are the others' (first, count), in any order.
pub fn lowest_free(taken: impl Iterator<Item = (u32, u32)>, wanted: u32, blocks: u32) -> Option<u32> {
    let mut taken: Vec<_> = taken.collect();
    taken.sort_unstable();
    let mut first = 0u32;
    for (start, count) in taken {
        if start >= first.checked_add(wanted)? {
            break;
        }
        first = first.max(start.checked_add(count)?);
    }
    (first.checked_add(wanted)? <= blocks).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(taken: &[(u32, u32)], wanted: u32, blocks: u32) -> Option<u32> {
        lowest_free(taken.iter().copied(), wanted, blocks)
    }

    #[test]
    fn the_lowest_gap_that_is_wide_enough_is_taken() {
        assert_eq!(free(&[], 1, 10), Some(0));
        assert_eq!(free(&[(0, 1), (1, 2)], 1, 10), Some(3));
        assert_eq!(free(&[(5, 1), (0, 2), (3, 1)], 1, 10), Some(2));
        assert_eq!(free(&[(5, 1), (0, 2), (3, 1)], 2, 10), Some(6));
        assert_eq!(free(&[(2, 8)], 2, 10), Some(0));
    }

    #[test]
    fn there_is_an_end() {
        assert_eq!(free(&[(0, 10)], 1, 10), None);
        assert_eq!(free(&[(0, 9)], 2, 10), None);
        assert_eq!(free(&[], u32::MAX, 10), None);
        assert_eq!(free(&[(u32::MAX, 2)], 20, 10), None);
    }
}
