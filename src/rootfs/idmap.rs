//! Which block of host ids a new instance gets.

use std::collections::BTreeSet;

use crate::config;
use crate::fault::{Fault, FaultKind, Result};
use crate::sys::ids::IdBlock;

/// The fewest ids of a block: as many as 16-bit ids, which `nobody` and systemd's own
/// services expect to have. The host's abilities are tried with these.
pub const BLOCK_SIZE: u32 = 65_536;

/// The block with which the host's abilities are tried.
pub fn trial(config: &config::Instances) -> IdBlock {
    IdBlock { first: config.id_map_first, size: BLOCK_SIZE }
}

/// The lowest block that overlaps with none in `used`. Those may be of another size, from before the
/// configuration was changed.
pub fn allocate(config: &config::Instances, used: &BTreeSet<IdBlock>) -> Result<IdBlock> {
    let size = config.id_map_size;
    let is_free = |block: &IdBlock| !used.iter().any(|other| other.meets(block));
    (0..config.id_map_blocks)
        .map(|n| IdBlock { first: config.id_map_first + n * size, size })
        .find(is_free)
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
            used.insert(block);
        }
        assert_eq!(allocate(&config, &used).unwrap_err().kind, FaultKind::ResourcesExhausted);
        used.remove(&IdBlock { first: first + 65_536, size: 65_536 });
        assert_eq!(allocate(&config, &used).unwrap().first, first + 65_536);
    }

    #[test]
    fn the_default_range_does_not_overflow() {
        let config = config::Instances::default();
        let last = config.id_map_first + (config.id_map_blocks - 1) * BLOCK_SIZE;
        let used = (config.id_map_first..last).step_by(BLOCK_SIZE as usize);
        let used = used.map(|first| IdBlock { first, size: BLOCK_SIZE }).collect();
        assert_eq!(allocate(&config, &used).unwrap().first, last);
    }

    #[test]
    fn larger_blocks_lie_between_smaller_ones() {
        let first = 65_536 * 16;
        let config = config::Instances {
            id_map_first: first,
            id_map_blocks: 4,
            id_map_size: 4 * 65_536,
            ..Default::default()
        };
        // One in the first place, one that fills the last's end.
        let old = |n: u32| IdBlock { first: first + n * 65_536, size: 65_536 };
        let mut used = BTreeSet::from([old(2), old(15)]);
        for n in [1, 2] {
            let block = allocate(&config, &used).unwrap();
            assert_eq!((block.first, block.size), (first + n * 4 * 65_536, 4 * 65_536));
            used.insert(block);
        }
        assert_eq!(allocate(&config, &used).unwrap_err().kind, FaultKind::ResourcesExhausted);
        // And the other way round: the operator goes back.
        let small = config::Instances { id_map_size: 65_536, ..config };
        let free: Vec<u32> = (0..3)
            .map(|_| {
                let block = allocate(&small, &used).unwrap();
                used.insert(block);
                (block.first - first) / 65_536
            })
            .collect();
        assert_eq!(free, [0, 1, 3]);
    }
}
