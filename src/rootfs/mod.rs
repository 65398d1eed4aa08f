//! An instance's root file system: image layers that all instances share, and
//! one disk of its own whose size is the flavor's.
//!
//! [`disk`] holds the size (behind the trait [`DiskBackend`]), [`overlay`] puts
//! layers and disk together so that the ids inside are the instance's own
//! block, [`seed`] writes what makes one instance differ from the next, and
//! [`idmap`] chooses the block.

pub mod disk;
pub mod idmap;
mod keep;
mod loop_disk;
pub mod overlay;
pub mod seed;
mod template;
mod trial;

pub use disk::{BlockDevice, DiskBackend, DiskUsage, Disks, Kept};
pub use overlay::Rootfs;
pub use seed::Seed;
pub use trial::trial;

#[cfg(test)]
mod tests;
