//! Lays a file system into a disk that is arbitrary before it.
//!
//! The first two bytes are the sector at which the file system begins, the
//! others are the disk before it; the sums of a GUID table are righted.

use super::gpt;

const SECTOR: usize = 512;
/// Keeps disks small.
const MOST_SECTORS: usize = 256;
/// What of the disk is behind the file system: room for a copy of a table.
const BEHIND: usize = 64 << 10;
const FILE_SYSTEM: &[u8] = include_bytes!("../seeds/ext4/ext4");

/// The disk.
pub fn disk(bytes: &[u8]) -> Vec<u8> {
    let (sector, rest) = bytes.split_first_chunk().unwrap_or((&[0; 2], &[]));
    let start = usize::from(u16::from_le_bytes(*sector)) % MOST_SECTORS * SECTOR;
    let end = start + FILE_SYSTEM.len();
    let mut disk = vec![0; end + BEHIND];
    let length = rest.len().min(disk.len());
    disk[..length].copy_from_slice(&rest[..length]);
    disk[start..end].copy_from_slice(FILE_SYSTEM);
    gpt::mend(&disk)
}
