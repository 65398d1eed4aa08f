//! Snapshots: an instance's root file system as an image that boots again.
//!
//! ```text
//! base layers, upper directory ─ tree ─► layer (tar) ─► archive (docker) ─ zstd ─► sink
//! ```
//!
//! The archive is what `docker save` writes: the base image's layers and, last,
//! what the instance changed. Or it is the root file system as the instance
//! sees it, in one tarball ([`walk`] lays the trees on each other). Everything
//! is read from trees that no longer change, so a first walk tells how large each
//! layer will be, and the second streams it. What a walk must keep on its way,
//! names of files with several and of full directories, it keeps in a file, as
//! the tree's owner decides how much that is. Or the snapshot is a disk of the
//! base image's layout ([`disk`]), which is made in a file first.

pub mod disk;
mod image_archive;
mod links;
mod names;
mod scratch;
mod tree;
mod tree_tar;
mod walk;

pub use image_archive::{Contents, write};
pub use scratch::Scratches;
pub use tree::Tree;

/// Writes a layer as an archive of its own, with its marks for what it hides.
pub fn write_layer(layer: &Tree, sink: impl std::io::Write) -> crate::fault::Result<u64> {
    tree_tar::write(tree_tar::Files::Layer(std::slice::from_ref(layer)), sink)
}

#[cfg(test)]
mod renamed_tests;
#[cfg(test)]
mod tests;
