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
//! [`super::layer`] like every other archive, so that owners, names and limits
//! are checked in one place.
//!
//! Libraries that were weighed: `imago` reads no zstd clusters, `gpt` panics
//! on the sizes that a header may name, `mbrman` follows a chain of extended
//! partitions without end, and `ext4-view` knows neither extended attributes
//! nor which names are one file.

pub mod ext;
pub mod foreign;
pub mod frame;
pub mod mounted;
mod pack;
pub mod part;
pub mod partitions;
pub mod qcow2;
mod root;
pub mod sums;
mod vhdx;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use rustix::fs::{SeekFrom, seek};
use serde::{Deserialize, Serialize};

use super::layer::Limits;
use super::recognise::{self, Content, Disk, FileSystem};
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::types::ImageFormat;

/// Bytes that can be read at any place. Nothing about them is trusted.
pub trait Blocks {
    /// How many there are.
    fn size(&self) -> u64;

    /// Fills the buffer from `offset`; a fault when the bytes end before that.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// How many bytes from `offset` on are known to be zeros without a look at
    /// them; may be less than there are.
    fn hole(&self, _offset: u64) -> u64 {
        0
    }
}

/// A file's bytes.
struct Raw {
    file: File,
    size: u64,
}

impl Blocks for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        check_range(self, offset, buffer.len())?;
        self.file.read_exact_at(buffer, offset).or_fault("reading the disk image")
    }

    fn hole(&self, offset: u64) -> u64 {
        match seek(self.file.as_fd(), SeekFrom::Data(offset)) {
            Ok(data) => data.saturating_sub(offset),
            Err(_) => 0,
        }
    }
}

impl Blocks for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        check_range(self, offset, buffer.len())?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        buffer.copy_from_slice(&self[start..start + buffer.len()]);
        Ok(())
    }
}

/// A part of other bytes.
pub struct Part {
    disk: Rc<dyn Blocks>,
    start: u64,
    size: u64,
}

impl Part {
    /// The `size` bytes from `start`, which must be there.
    pub fn new(disk: Rc<dyn Blocks>, start: u64, size: u64) -> Result<Part> {
        match start.checked_add(size) {
            Some(end) if end <= disk.size() => Ok(Part { disk, start, size }),
            _ => Err(beyond()),
        }
    }
}

impl Blocks for Part {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        check_range(self, offset, buffer.len())?;
        self.disk.read_at(self.start + offset, buffer)
    }

    fn hole(&self, offset: u64) -> u64 {
        self.disk.hole(self.start + offset).min(self.size.saturating_sub(offset))
    }
}

fn check_range(blocks: &impl Blocks, offset: u64, length: usize) -> Result<()> {
    match offset.checked_add(length as u64) {
        Some(end) if end <= blocks.size() => Ok(()),
        _ => Err(beyond()),
    }
}

fn beyond() -> Fault {
    unacceptable("the disk image names bytes beyond its end; it is cut off or corrupt")
}

/// Whether content of this kind is read here.
pub fn reads(content: Content) -> bool {
    matches!(
        content,
        Content::Disk(
            Disk::Qcow2
                | Disk::RawGpt
                | Disk::RawMbr
                | Disk::Vmdk
                | Disk::Vhd
                | Disk::Vhdx
                | Disk::Vdi
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

/// Finds the root file system in a disk image.
pub fn find_root(file: File) -> Result<RootPlace> {
    let image: Rc<dyn Blocks> = raw(file)?;
    let plain = content(&*image)? != Content::Disk(Disk::Qcow2);
    let root = root::find(&open(image)?)?;
    if root.file_system == FileSystem::Btrfs {
        part::check_btrfs(&*root.blocks)?;
    }
    let size = root.blocks.size();
    Ok(RootPlace { file_system: root.file_system, start: root.start, size, plain })
}

/// Refuses an image in another program's format that names other files, or
/// whose disk has more than `most` bytes.
pub fn check_foreign(file: File, disk: Disk, most: u64) -> Result<()> {
    foreign::check(&*raw(file)?, disk, most)
}

/// Writes the file system that is mounted at a directory as a tar archive.
pub fn write_mounted(top: OwnedFd, sink: impl Write, limits: Limits) -> Result<()> {
    pack::write(&mounted::Mounted::new(top)?, sink, limits)
}

/// What an image of content that is read here is called.
pub fn format(content: Content) -> ImageFormat {
    match content {
        Content::Disk(Disk::Qcow2) => ImageFormat::Qcow2,
        Content::Disk(Disk::Vmdk) => ImageFormat::Vmdk,
        Content::Disk(Disk::Vhd) => ImageFormat::Vhd,
        Content::Disk(Disk::Vhdx) => ImageFormat::Vhdx,
        Content::Disk(Disk::Vdi) => ImageFormat::Vdi,
        _ => ImageFormat::Raw,
    }
}

/// Writes the root file system in a disk image as a tar archive.
pub fn write_tar(file: File, sink: impl Write, limits: Limits) -> Result<()> {
    write_tar_of(raw(file)?, sink, limits)
}

fn raw(file: File) -> Result<Rc<dyn Blocks>> {
    let size = file.metadata().or_fault("looking at the disk image")?.len();
    Ok(Rc::new(Raw { file, size }))
}

/// [`write_tar`] of an image wherever its bytes are.
pub fn write_tar_of(image: Rc<dyn Blocks>, sink: impl Write, limits: Limits) -> Result<()> {
    let disk = open(image)?;
    let root = root::find(&disk)?;
    match root.file_system {
        FileSystem::Ext => pack::write(&ext::Ext::open(root.blocks)?, sink, limits),
        other => Err(recognise::refusal(Content::FileSystem(other))),
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

/// The bytes of the disk that an image's bytes describe.
pub fn open(image: Rc<dyn Blocks>) -> Result<Rc<dyn Blocks>> {
    match content(&*image)? {
        Content::Disk(Disk::Qcow2) => Ok(Rc::new(qcow2::Qcow2::open(image)?)),
        _ => Ok(image),
    }
}

/// What the first bytes say.
fn content(blocks: &dyn Blocks) -> Result<Content> {
    let mut head =
        vec![0; recognise::HEAD.min(usize::try_from(blocks.size()).unwrap_or(usize::MAX))];
    blocks.read_at(0, &mut head)?;
    Ok(recognise::content(&head))
}

/// A little-endian number; zero where the bytes end before it.
fn le16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b))
}

/// A little-endian number; zero where the bytes end before it.
fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

/// A little-endian number; zero where the bytes end before it.
fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

fn unacceptable(why: impl Into<String>) -> Fault {
    Fault::new(FaultKind::ImageUnacceptable, why)
}
