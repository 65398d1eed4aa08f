//! Which block of host ids a new instance gets.

use std::collections::BTreeSet;

use crate::config;
use crate::fault::{Fault, FaultKind, Result};
use crate::sys::ids::IdBlock;

/// Ids in a block: as many as 16-bit ids, which `nobody` and systemd's own
/// services expect to have.
pub const BLOCK_SIZE: u32 = 65_536;

/// The block with which the host's abilities are tried.
pub fn trial(config: &config::Instances) -> IdBlock {
    IdBlock { first: config.id_map_first, size: BLOCK_SIZE }
}

/// The lowest block that no first id in `used` has.
pub fn allocate(config: &config::Instances, used: &BTreeSet<u32>) -> Result<IdBlock> {
    (0..config.id_map_blocks)
        .map(|n| config.id_map_first + n * BLOCK_SIZE)
        .find(|first| !used.contains(first))
        .map(|first| IdBlock { first, size: BLOCK_SIZE })
        .ok_or_else(|| {
            Fault::new(
                FaultKind::ResourcesExhausted,
                format!(
                    "all {} blocks of ids are in use; raise instances.id_map_blocks",
                    config.id_map_blocks
                ),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_block_until_none_is_left() {
        let config =
            config::Instances { id_map_first: 65_536 * 4, id_map_blocks: 3, ..Default::default() };
        let first = config.id_map_first;
        let mut used = BTreeSet::new();
        for n in 0..3 {
            let block = allocate(&config, &used).unwrap();
            assert_eq!((block.first, block.size), (first + n * 65_536, 65_536));
            used.insert(block.first);
        }
        assert_eq!(allocate(&config, &used).unwrap_err().kind, FaultKind::ResourcesExhausted);
        used.remove(&(first + 65_536));
        assert_eq!(allocate(&config, &used).unwrap().first, first + 65_536);
    }

    #[test]
    fn the_default_range_does_not_overflow() {
        let config = config::Instances::default();
        let last = config.id_map_first + (config.id_map_blocks - 1) * BLOCK_SIZE;
        let used = (config.id_map_first..last).step_by(BLOCK_SIZE as usize).collect();
        assert_eq!(allocate(&config, &used).unwrap().first, last);
    }
}
