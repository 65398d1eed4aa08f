//! Which blocks hold a file: extents, and the block maps before them.

use super::file_system::{Ext, Inode, corrupt, flag};
use crate::fault::Result;
use crate::image::disk::blocks::{le16, le32};
use crate::image::disk::file_tree::{Extent, MAX_PIECES};

/// Most blocks of one file's block map: enough for 1 TiB in blocks of 4 KiB.
const MAX_MAPS: u32 = 1 << 18;
/// Deepest tree of extents, as in the kernel.
const MAX_DEPTH: u16 = 5;
/// Longest extent; what is longer was reserved and never written.
const WRITTEN: u16 = 32_768;

/// Pieces in the making, ascending.
struct Pieces<'a> {
    ext: &'a Ext,
    inode: &'a Inode,
    found: Vec<Extent>,
    /// First block of the file that may come next.
    next: u64,
    /// Blocks of a block map that were read.
    maps: u32,
}

impl Pieces<'_> {
    fn add(&mut self, logical: u64, physical: u64, blocks: u64) -> Result<()> {
        let Pieces { ext, inode, found, next, .. } = self;
        if logical < *next || blocks == 0 {
            return Err(corrupt(format!("inode {} has a map that turns back", inode.number)));
        }
        *next = logical + blocks;
        let place = ext.block_offset(physical)?;
        ext.block_offset(physical.saturating_add(blocks - 1))?;
        let offset = logical * ext.block;
        // Blocks beyond the end are reserved for later.
        let length = (blocks * ext.block).min(inode.size.saturating_sub(offset));
        if length == 0 {
            return Ok(());
        }
        if let Some(last) = found.last_mut()
            && last.offset + last.length == offset
            && last.place + last.length == place
        {
            last.length += length;
            return Ok(());
        }
        if found.len() >= MAX_PIECES {
            return Err(corrupt(format!("inode {} is in over a million pieces", inode.number)));
        }
        found.push(Extent { offset, place, length });
        Ok(())
    }
}

impl Ext {
    /// The pieces of a file that are stored; the rest of it is zeros.
    pub fn extents(&self, inode: &Inode) -> Result<Vec<Extent>> {
        let mut pieces = Pieces { ext: self, inode, found: Vec::new(), next: 0, maps: 0 };
        if inode.flags & flag::EXTENTS == 0 {
            self.block_map(inode, &mut pieces)?;
        } else {
            let depth = le16(&inode.map, 6);
            if depth > MAX_DEPTH {
                return Err(corrupt(format!("inode {} has too deep a tree", inode.number)));
            }
            self.extent_node(&inode.map, depth, &mut 0, &mut pieces)?;
        }
        Ok(pieces.found)
    }

    /// One node of the tree. Its keys must ascend over the whole of the tree
    /// and no node but the root may be empty, so a tree that shares nodes ends.
    fn extent_node(
        &self,
        node: &[u8],
        depth: u16,
        key: &mut u64,
        pieces: &mut Pieces<'_>,
    ) -> Result<()> {
        let bad = || corrupt(format!("inode {} has a broken tree of extents", pieces.inode.number));
        let entries = usize::from(le16(node, 2));
        let is_root = node.len() == pieces.inode.map.len();
        let good = le16(node, 0) == 0xf30a
            && le16(node, 6) == depth
            && entries < node.len() / 12
            && (entries > 0 || is_root && depth == 0);
        if !good {
            return Err(bad());
        }
        for entry in node[12..].chunks_exact(12).take(entries) {
            let logical = u64::from(le32(entry, 0));
            if logical < *key {
                return Err(bad());
            }
            if depth > 0 {
                let child = u64::from(le32(entry, 4)) | u64::from(le16(entry, 8)) << 32;
                let child = self.read_block(child)?;
                self.extent_node(&child, depth - 1, key, pieces)?;
                // A node of which nothing is after the one before it leads nowhere.
                if *key <= logical {
                    return Err(corrupt("a tree of extents does not ascend"));
                }
                continue;
            }
            let length = le16(entry, 4);
            let blocks = if length > WRITTEN { length - WRITTEN } else { length };
            *key = logical + u64::from(blocks).max(1);
            if length <= WRITTEN {
                let physical = u64::from(le32(entry, 8)) | u64::from(le16(entry, 6)) << 32;
                pieces.add(logical, physical, blocks.into())?;
            }
        }
        Ok(())
    }

    fn block_map(&self, inode: &Inode, pieces: &mut Pieces<'_>) -> Result<()> {
        let mut logical = 0;
        let end = inode.size.div_ceil(self.block);
        for (slot, entry) in inode.map.chunks_exact(4).enumerate() {
            let level = slot.saturating_sub(11);
            self.map_entry(le32(entry, 0).into(), level as u32, end, &mut logical, pieces)?;
        }
        if logical < end {
            return Err(corrupt(format!("inode {} is larger than its map", inode.number)));
        }
        Ok(())
    }

    /// A block, or `level` levels of blocks that name blocks.
    fn map_entry(
        &self,
        block: u64,
        level: u32,
        end: u64,
        logical: &mut u64,
        pieces: &mut Pieces<'_>,
    ) -> Result<()> {
        let span = (self.block / 4).saturating_pow(level);
        if block == 0 || *logical >= end {
            *logical = logical.saturating_add(span);
            return Ok(());
        }
        if level == 0 {
            pieces.add(*logical, block, 1)?;
            *logical += 1;
            return Ok(());
        }
        pieces.maps += 1;
        if pieces.maps > MAX_MAPS {
            return Err(corrupt(format!("inode {} has a map without end", pieces.inode.number)));
        }
        let names = self.read_block(block)?;
        for entry in names.chunks_exact(4) {
            if *logical >= end {
                break;
            }
            self.map_entry(le32(entry, 0).into(), level - 1, end, logical, pieces)?;
        }
        Ok(())
    }
}
