//! Bytes of a disk, wherever they are.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use rustix::fs::{SeekFrom, seek};

use crate::fault::{Fault, OrFault, Result};
use crate::image::refusal::unacceptable;

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
pub(super) struct FileBytes {
    file: File,
    size: u64,
}

impl FileBytes {
    pub(super) fn new(file: File) -> Result<FileBytes> {
        let size = file.metadata().or_fault("looking at the disk image")?.len();
        Ok(FileBytes { file, size })
    }
}

impl Blocks for FileBytes {
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

pub(super) fn check_range(blocks: &impl Blocks, offset: u64, length: usize) -> Result<()> {
    match offset.checked_add(length as u64) {
        Some(end) if end <= blocks.size() => Ok(()),
        _ => Err(beyond()),
    }
}

fn beyond() -> Fault {
    unacceptable("the disk image names bytes beyond its end; it is cut off or corrupt")
}

/// A little-endian number; zero where the bytes end before it.
pub(super) fn le16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_le_bytes(*b))
}

/// A little-endian number; zero where the bytes end before it.
pub(super) fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b))
}

/// A little-endian number; zero where the bytes end before it.
pub(super) fn le64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}
