//! A disk without its root file system: all that is needed, besides that
//! file system's files, to make a disk of the same layout again.
//!
//! Partition tables, boot code, and whatever lies in other partitions and
//! between them are one thing here: bytes outside the root, of which those
//! that are not zero are kept, at their places. Nothing of them is understood
//! but the table's row of the root partition, and that only to make it larger.

use std::io::Write;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::blocks::{Blocks, le32, le64};
use super::ext::{self, Layout};
use super::open::open;
use super::partitions::{self, Partition, PartitionType};
use super::root::{self, Root};
use crate::fault::{Fault, OrFault, Result};
use crate::image::recognise::FileSystem;
use crate::image::refusal::unacceptable;

/// Bytes that are looked at, kept and hashed at once.
pub const PIECE: usize = 1 << 16;
/// Most bytes outside the root that are kept.
pub const MOST_KEPT: u64 = 1 << 30;
/// Most bytes outside the root that are looked at.
pub const MOST_OUTSIDE: u64 = 16 << 30;
/// Bytes before the superblock, where boot code may lie.
pub const BOOT_BLOCK: u64 = 1024;
/// What a root partition grows by is a multiple of this.
pub const GROWTH: u64 = 1 << 20;

/// What is known about a disk whose bytes outside the root are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Bytes of the disk.
    pub size: u64,
    /// First byte of the root file system.
    pub root_start: u64,
    /// Bytes that the root file system may have.
    pub root_size: u64,
    /// How that file system is made.
    pub layout: Layout,
}

/// Bytes that belong at a place of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// The place.
    pub offset: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// Refuses what cannot be: whoever says it has read a stranger's disk.
    pub fn check(&self) -> Result<()> {
        let end = self.root_start.checked_add(self.root_size);
        let inside = end.is_some_and(|end| end <= self.size) && self.size <= i64::MAX as u64;
        if inside && self.root_start.is_multiple_of(512) && self.layout.is_sound() {
            return Ok(());
        }
        Err(Fault::internal("keeping a disk's layout", "it names sizes that no disk has"))
    }

    /// First byte behind the root file system.
    pub fn root_end(&self) -> u64 {
        self.root_start + self.root_size
    }
}

/// Gives each piece outside the root that is not all zeros, as [`put`] writes it.
pub fn write(image: Rc<dyn Blocks>, sink: &mut impl Write) -> Result<Frame> {
    let disk = open(image)?;
    let Root { file_system, blocks, start, parts, .. } = root::find(&disk)?;
    if file_system != FileSystem::Ext {
        return Err(unacceptable("only ext2, ext3 and ext4 can be made again"));
    }
    if let Some((place, _)) = parts.first() {
        // Its files would be in the new root, below a mount of the old ones.
        return Err(unacceptable(format!("/{place} is on a partition of its own")));
    }
    let layout = ext::open(Rc::clone(&blocks))?.layout()?;
    let frame = Frame { size: disk.size(), root_start: start, root_size: blocks.size(), layout };
    if frame.size - frame.root_size > MOST_OUTSIDE {
        return Err(unacceptable(format!(
            "it has more than {} GiB outside its root partition",
            MOST_OUTSIDE >> 30
        )));
    }
    let mut kept = 0;
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while at < frame.size {
        let inside = frame.root_start + BOOT_BLOCK..frame.root_end();
        let length = piece.len().min(usize::try_from(frame.size - at).unwrap_or(usize::MAX));
        let end = at + length as u64;
        if inside.contains(&at) && end <= inside.end {
            // Straight to the piece in which the root ends.
            at = (inside.end / PIECE as u64 * PIECE as u64).max(end);
            continue;
        }
        let bytes = &mut piece[..length];
        disk.read_at(at, bytes)?;
        let hidden = inside.start.clamp(at, end)..inside.end.clamp(at, end);
        bytes[(hidden.start - at) as usize..(hidden.end - at) as usize].fill(0);
        if bytes.iter().any(|byte| *byte != 0) {
            kept += length as u64;
            if kept > MOST_KEPT {
                return Err(unacceptable(format!(
                    "it has more than {} MiB of data outside its root partition",
                    MOST_KEPT >> 20
                )));
            }
            put(sink, at, bytes)?;
        }
        at = end;
    }
    sink.flush().or_fault("giving a disk's layout away")?;
    Ok(frame)
}

/// Writes a piece: its place, its length, itself.
fn put(sink: &mut impl Write, at: u64, bytes: &[u8]) -> Result<()> {
    let head = [&at.to_le_bytes()[..], &(bytes.len() as u32).to_le_bytes()].concat();
    sink.write_all(&head)
        .and_then(|()| sink.write_all(bytes))
        .or_fault("giving a disk's layout away")
}

/// What changes on a disk, which may lack its root's content, when its last
/// partition, which begins at `start`, and with it the disk itself grow by `by` bytes.
pub fn grow(disk: &dyn Blocks, start: u64, by: u64) -> Result<Vec<Patch>> {
    let Some(table) = partitions::read(disk)? else { return Ok(Vec::new()) };
    let Some(root) = table.iter().find(|partition| partition.start == start) else {
        return Err(unacceptable("its table has no partition where the root is"));
    };
    if table.iter().any(|partition| partition.start > start) {
        return Err(cannot_grow("it is not the last one on its disk"));
    }
    match root.kind {
        PartitionType::Guid(_) => grow_gpt(disk, root, by),
        PartitionType::Byte(_) => grow_mbr(disk, root, by),
    }
}

fn cannot_grow(why: &str) -> Fault {
    unacceptable(format!("the root partition cannot grow: {why}"))
}

fn grow_mbr(disk: &dyn Blocks, root: &Partition, by: u64) -> Result<Vec<Patch>> {
    let mut record = vec![0; 512];
    disk.read_at(0, &mut record)?;
    let Some(row) = (1..=4).contains(&root.number).then(|| 446 + (root.number as usize - 1) * 16)
    else {
        return Err(cannot_grow("it is a logical one"));
    };
    let rows = record[446..510].chunks_exact(16);
    if rows.filter(|row| row[4] != 0).any(|row| u64::from(le32(row, 8)) * 512 > root.start) {
        return Err(cannot_grow("it is not the last one on its disk"));
    }
    let sectors = u32::try_from((root.size + by) / 512)
        .map_err(|_| cannot_grow("a master boot record has no larger ones"))?;
    record[row + 12..row + 16].copy_from_slice(&sectors.to_le_bytes());
    Ok(vec![Patch { offset: 0, bytes: record }])
}

/// Both copies of a GUID table, the second at the new end, and the master boot
/// record that protects them.
fn grow_gpt(disk: &dyn Blocks, root: &Partition, by: u64) -> Result<Vec<Patch>> {
    let sector = partitions::gpt_sector(disk)?;
    let read = |offset, length| {
        let mut bytes = vec![0; length];
        disk.read_at(offset, &mut bytes).map(|()| bytes)
    };
    let mut first = read(sector, sector as usize)?;
    let row_size = le32(&first, 84) as usize;
    let mut rows = read(le64(&first, 72) * sector, le32(&first, 80) as usize * row_size)?;
    let row = (root.number as usize - 1) * row_size;
    let last = le64(&rows, row + 40) + by / sector;
    rows[row + 40..row + 48].copy_from_slice(&last.to_le_bytes());

    let end = (disk.size() + by) / sector - 1;
    let rows_sectors = (rows.len() as u64).div_ceil(sector);
    let usable = end - rows_sectors - 1;
    if last > usable {
        return Err(cannot_grow("it lies across the second copy of its table"));
    }
    let header = |bytes: &mut Vec<u8>, here: u64, there: u64, rows_at: u64| {
        for (at, value) in [(24, here), (32, there), (48, usable), (72, rows_at)] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes[88..92].copy_from_slice(&partitions::crc32(&rows).to_le_bytes());
        bytes[16..20].fill(0);
        let length = le32(bytes, 12) as usize;
        let sum = partitions::crc32(&bytes[..length]);
        bytes[16..20].copy_from_slice(&sum.to_le_bytes());
    };
    let rows_at = le64(&first, 72);
    let mut second = first.clone();
    header(&mut first, 1, end, rows_at);
    header(&mut second, end, 1, end - rows_sectors);
    let mut record = read(0, 512)?;
    for row in record[446..510].chunks_exact_mut(16).filter(|row| row[4] == 0xee) {
        let sectors = u32::try_from(end).unwrap_or(u32::MAX);
        row[12..16].copy_from_slice(&sectors.to_le_bytes());
    }
    Ok([
        (0, record),
        (sector, first),
        (rows_at * sector, rows.clone()),
        ((end - rows_sectors) * sector, rows),
        (end * sector, second),
    ]
    .map(|(offset, bytes)| Patch { offset, bytes })
    .into())
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
