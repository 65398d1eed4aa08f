//! Reads ext2, ext3 and ext4 file systems as hostile input.
//!
//! Everything that a root file system is made of is read: block maps and
//! extents, inline data, directories (hashed ones as the lists that they also
//! are), extended attributes in the inode, in a block and in inodes of their
//! own, and a journal that must be replayed first. Check sums are not verified
//! outside of that: the image's own hash was, and a reader
//! that believes nothing does not need them.

mod attributes;
mod directory;
mod file_system;
mod journal;
mod layout;
mod map;
mod tree;

use std::rc::Rc;

pub use file_system::Ext;
use file_system::incompatible;
pub use layout::Layout;

use super::blocks::{Blocks, le32};
use crate::fault::Result;

/// Reads the superblock, and replays the journal if there is need.
pub fn open(disk: Rc<dyn Blocks>) -> Result<Ext> {
    let mut sb = [0; 1024];
    disk.read_at(1024, &mut sb)?;
    let ext = Ext::new(disk, sb)?;
    if ext.incompatible & incompatible::RECOVER == 0 {
        return Ok(ext);
    }
    let disk = journal::replayed(&ext, le32(&sb, 224))?;
    // The superblock may be in the journal as well.
    disk.read_at(1024, &mut sb)?;
    Ext::new(disk, sb)
}
