//! Disk images: the root file system in them, as the tar archive of a layer.
//!
//! ```text
//! content ─► qcow2 | raw (by [`foreign`]) ─► partitions ─► the root one ─► ext2/3/4 ─► tar
//!                                                  └─► [`mounted`] ─► tar
//! ```
//!
//! All of it is read in user space, inside the jail. Only a file system that
//! is not read here is mounted by the kernel, and only where the operator
//! allows that (`images.kernel_mounts`). What comes out goes through
//! [`super::unpack`] like every other archive, so that owners, names and limits
//! are checked in one place.
//!
//! Libraries that were weighed: `imago` reads no zstd clusters, `gpt` panics
//! on the sizes that a header may name, `mbrman` follows a chain of extended
//! partitions without end, and `ext4-view` knows neither extended attributes
//! nor which names are one file.

mod blocks;
pub mod ext;
mod file_tree;
pub mod foreign;
pub mod frame;
mod fstab;
mod joined;
pub mod mounted;
mod open;
mod pack;
pub mod part;
pub mod partitions;
pub mod qcow2;
mod root;
pub mod sums;
mod vhdx;

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::rc::Rc;

pub use blocks::{Blocks, Part};
pub use open::open;
use open::{content, raw};
use serde::{Deserialize, Serialize};

use super::recognise::{Content, DiskFormat, FileSystem};
use super::refusal;
use super::unpack::UnpackLimits;
use crate::fault::{Fault, FaultKind, Result};
use crate::types::{DiskInspection, DiskMount, ImageFormat};

/// Whether content of this kind has each of a disk's bytes at its place.
pub fn is_raw(content: Content) -> bool {
    matches!(
        content,
        Content::Disk(DiskFormat::RawGpt | DiskFormat::RawMbr) | Content::FileSystem(_)
    )
}

/// Whether content of this kind is read here.
pub fn reads(content: Content) -> bool {
    matches!(
        content,
        Content::Disk(
            DiskFormat::Qcow2
                | DiskFormat::RawGpt
                | DiskFormat::RawMbr
                | DiskFormat::Vmdk
                | DiskFormat::Vhd
                | DiskFormat::Vhdx
                | DiskFormat::Vdi
        ) | Content::FileSystem(
            FileSystem::Ext
                | FileSystem::Xfs
                | FileSystem::Btrfs
                | FileSystem::Squashfs
                | FileSystem::Erofs
        )
    )
}

/// A root file system and its place on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootPlace {
    /// What it is.
    pub file_system: FileSystem,
    /// Where it begins on the disk.
    pub start: u64,
    /// Its bytes.
    pub size: u64,
    /// The disk's bytes are the file's own.
    pub plain: bool,
}

/// What was found on a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// What is on it.
    pub seen: DiskInspection,
    /// Its root, or the kind and the words of the fault for a disk without one.
    pub root: Result<RootPlace, (FaultKind, String)>,
}

/// Finds the root file system in a disk image.
pub fn find_root(file: File) -> Found {
    let mut seen = DiskInspection::default();
    let root = look_for_root(file, &mut seen);
    // As long as a fault that ends the work may be.
    let root =
        root.map_err(|Fault { kind, detail, .. }| (kind, detail.chars().take(1000).collect()));
    Found { seen, root }
}

fn look_for_root(file: File, seen: &mut DiskInspection) -> Result<RootPlace> {
    let image: Rc<dyn Blocks> = raw(file)?;
    let plain = content(&*image)? != Content::Disk(DiskFormat::Qcow2);
    let root = root::survey(&open(image)?, seen)?;
    if root.file_system == FileSystem::Btrfs {
        part::check_btrfs(&*root.blocks)?;
    }
    if root.file_system == FileSystem::Ext {
        joined::check_system(&root.files()?, &root.what)?;
    }
    let size = root.blocks.size();
    Ok(RootPlace { file_system: root.file_system, start: root.start, size, plain })
}

/// Refuses an image in another program's format that names other files, or
/// whose disk has more than `most` bytes.
pub fn check_foreign(file: File, disk: DiskFormat, most: u64) -> Result<()> {
    foreign::check(&*raw(file)?, disk, most)
}

/// Writes the file system that is mounted at a directory as a tar archive. `all`: the directory
/// with all subvolumes of a Btrfs. What of them its fstab mounts.
pub fn write_mounted(
    top: OwnedFd,
    all: Option<OwnedFd>,
    sink: impl Write,
    limits: UnpackLimits,
) -> Result<Vec<DiskMount>> {
    let (files, mounts) = mounted::system(top, all)?;
    joined::check_system(&files, "the root file system")?;
    pack::write(&files, sink, limits)?;
    Ok(mounts)
}

/// What an image of content that is read here is called.
pub fn format(content: Content) -> ImageFormat {
    match content {
        Content::Disk(DiskFormat::Qcow2) => ImageFormat::Qcow2,
        Content::Disk(DiskFormat::Vmdk) => ImageFormat::Vmdk,
        Content::Disk(DiskFormat::Vhd) => ImageFormat::Vhd,
        Content::Disk(DiskFormat::Vhdx) => ImageFormat::Vhdx,
        Content::Disk(DiskFormat::Vdi) => ImageFormat::Vdi,
        _ => ImageFormat::Raw,
    }
}

/// Writes the root file system in a disk image as a tar archive.
pub fn write_tar(file: File, sink: impl Write, limits: UnpackLimits) -> Result<()> {
    write_tar_of(raw(file)?, sink, limits)
}

/// [`write_tar`] of an image wherever its bytes are.
pub fn write_tar_of(image: Rc<dyn Blocks>, sink: impl Write, limits: UnpackLimits) -> Result<()> {
    let disk = open(image)?;
    let root = root::find(&disk)?;
    match root.file_system {
        FileSystem::Ext => pack::write(&root.files()?, sink, limits),
        other => Err(refusal::of_content(Content::FileSystem(other))),
    }
}

/// Writes what [`frame`] keeps of a disk image.
pub fn write_frame(file: File, mut sink: impl Write) -> Result<frame::Frame> {
    frame::write(raw(file)?, &mut sink)
}

/// What changes on the disk that a file is when its root partition grows.
pub fn grow(file: File, start: u64, by: u64) -> Result<Vec<frame::Patch>> {
    frame::grow(&*raw(file)?, start, by)
}
