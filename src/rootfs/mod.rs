//! An instance's root file system: image layers that all instances share, and
//! one disk of its own whose size is the flavor's.
//!
//! [`Disks`] hold the size, [`overlay`] puts layers and disk together so that
//! the ids inside are the instance's own block, [`seed`] writes what makes one
//! instance differ from the next, and [`idmap`] chooses the block.

mod backup;
mod disk;
mod disks;
pub mod idmap;
mod mounting;
pub mod overlay;
pub mod reserve;
pub mod rest;
pub mod seed;
mod still;
mod template;
mod trial;
mod written;

pub use disk::{BlockDevice, DiskBackup, DiskCopy, DiskUsage};
pub use disks::Disks;
pub use overlay::Rootfs;
pub use seed::Seed;
pub use still::Still;
pub use trial::trial;
pub use written::{SealKey, WrittenFile};

#[cfg(test)]
mod tests;
