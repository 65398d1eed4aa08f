//! Blocks of user and group ids: what an instance's ids are outside.

use serde::{Deserialize, Serialize};

/// A block of host ids that an instance's ids 0… are mapped to, for users and groups alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IdBlock {
    /// Host id of the instance's root.
    pub first: u32,
    /// Number of ids.
    pub size: u32,
}

impl IdBlock {
    /// Whether a host id is in it.
    pub fn contains(&self, id: u32) -> bool {
        id.checked_sub(self.first).is_some_and(|offset| offset < self.size)
    }

    /// Whether any id is in both.
    pub fn meets(&self, other: &IdBlock) -> bool {
        let end = |block: &IdBlock| u64::from(block.first) + u64::from(block.size);
        u64::from(self.first) < end(other) && u64::from(other.first) < end(self)
    }
}
