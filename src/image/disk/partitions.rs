//! Reads partition tables: GUID tables and master boot records with their
//! chains of logical partitions.
//!
//! Every partition must lie inside the disk and beside the others. A disk on
//! which they overlap means different things to different readers.

use std::collections::HashSet;
use std::fmt;

use uuid::{Uuid, uuid};

use super::blocks::{Blocks, le16, le32, le64};
use crate::fault::{Fault, Result};
use crate::image::refusal::unacceptable;

/// Most partitions that a table may have room for (128 is usual).
const MAX_ENTRIES: u32 = 1024;
/// Most logical partitions.
const MAX_LOGICAL: usize = 128;

/// What a table says a partition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionType {
    /// Type in a GUID table.
    Guid(Uuid),
    /// Type in a master boot record.
    Byte(u8),
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, as Linux counts.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What it is for.
    pub kind: PartitionType,
    /// Name in a GUID table; empty without one.
    pub name: String,
    /// `PARTUUID`, as in fstab.
    pub uuid: String,
}

/// Types in a GUID table that hold no file system themselves.
pub const LVM: Uuid = uuid!("e6d6d379-f507-44c2-a23c-238f2a3df928");
/// [`LVM`]'s like.
pub const RAID: Uuid = uuid!("a19d880f-05fc-4d3b-a006-743f0f84911e");
/// [`LVM`]'s like.
pub const LUKS: Uuid = uuid!("ca7d7ccb-63ed-4c53-861c-1742536059cc");

/// Types that people know by other names.
const PURPOSES: [(Uuid, &str); 8] = [
    (uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b"), "EFI system"),
    (uuid!("21686148-6449-6e6f-744e-656564454649"), "BIOS boot"),
    (uuid!("bc13c2ff-59e6-4262-a352-b275fd6f7172"), "extended boot loader"),
    (uuid!("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"), "swap"),
    (uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4"), "Linux"),
    (LVM, "LVM"),
    (RAID, "RAID"),
    (LUKS, "LUKS"),
];

impl PartitionType {
    /// The type, as tables and programs write it.
    pub fn value(self) -> String {
        match self {
            PartitionType::Guid(guid) => guid.to_string(),
            PartitionType::Byte(byte) => format!("{byte:02x}"),
        }
    }

    /// What it is for, of one that is well known. Those of systems' directories are
    /// [`root`](super::root)'s.
    pub fn purpose(self) -> Option<&'static str> {
        match self {
            PartitionType::Guid(guid) => {
                PURPOSES.iter().find(|(known, _)| *known == guid).map(|(_, name)| *name)
            }
            PartitionType::Byte(byte) => match byte {
                0x82 => Some("swap"),
                0x83 => Some("Linux"),
                0x8e => Some("LVM"),
                0xef => Some("EFI system"),
                0xfd => Some("RAID"),
                _ => None,
            },
        }
    }
}

impl fmt::Display for PartitionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "type {}", self.value())
    }
}

/// The partitions of a disk; `None` when it has no table.
pub fn read(disk: &dyn Blocks) -> Result<Option<Vec<Partition>>> {
    if let Some(sector) = find_gpt(disk)? {
        return gpt(disk, sector).and_then(|found| checked(disk, found)).map(Some);
    }
    match at(disk, 0, 512)? {
        Some(record) if has_mbr(&record) => {
            mbr(disk, &record).and_then(|found| checked(disk, found)).map(Some)
        }
        _ => Ok(None),
    }
}

/// Bytes of a sector, on a disk with a GUID table.
pub fn gpt_sector(disk: &dyn Blocks) -> Result<u64> {
    find_gpt(disk)?.ok_or_else(|| corrupt("it has no GUID table"))
}

fn find_gpt(disk: &dyn Blocks) -> Result<Option<u64>> {
    for sector in [512, 4096] {
        if at(disk, sector, 8)?.as_deref() == Some(b"EFI PART") {
            return Ok(Some(sector));
        }
    }
    Ok(None)
}

fn at(disk: &dyn Blocks, offset: u64, length: usize) -> Result<Option<Vec<u8>>> {
    if offset.checked_add(length as u64).is_none_or(|end| end > disk.size()) {
        return Ok(None);
    }
    let mut bytes = vec![0; length];
    disk.read_at(offset, &mut bytes)?;
    Ok(Some(bytes))
}

/// Refuses partitions outside the disk or across each other.
fn checked(disk: &dyn Blocks, mut found: Vec<Partition>) -> Result<Vec<Partition>> {
    found.sort_by_key(|partition| partition.start);
    let mut end = 0;
    for partition in &found {
        if partition.start < end {
            return Err(corrupt(format!("partition {} lies across another", partition.number)));
        }
        end = match partition.start.checked_add(partition.size) {
            Some(end) if end <= disk.size() => end,
            _ => {
                return Err(corrupt(format!(
                    "partition {} ends beyond the disk's {} bytes; the image is cut off",
                    partition.number,
                    disk.size()
                )));
            }
        };
    }
    found.sort_by_key(|partition| partition.number);
    Ok(found)
}

fn gpt(disk: &dyn Blocks, sector: u64) -> Result<Vec<Partition>> {
    let cut = || corrupt("its GUID table is cut off");
    let mut header = at(disk, sector, sector as usize)?.ok_or_else(cut)?;
    let length = le32(&header, 12) as usize;
    let sum = le32(&header, 16);
    header[16..20].fill(0);
    if !(92..=header.len()).contains(&length) || crc32(&header[..length]) != sum {
        return Err(corrupt("the check sum of its GUID table's header is wrong"));
    }
    let (entries, size) = (le32(&header, 80), le32(&header, 84));
    if entries > MAX_ENTRIES || !(128..=4096).contains(&size) || !size.is_power_of_two() {
        return Err(corrupt(format!(
            "its GUID table says it has {entries} entries of {size} bytes"
        )));
    }
    let offset = le64(&header, 72).checked_mul(sector).ok_or_else(cut)?;
    let table = at(disk, offset, entries as usize * size as usize)?.ok_or_else(cut)?;
    if crc32(&table) != le32(&header, 88) {
        return Err(corrupt("the check sum of its GUID table is wrong"));
    }
    let entries = table.chunks_exact(size as usize).zip(1..);
    entries
        .filter(|(entry, _)| entry[..16].iter().any(|byte| *byte != 0))
        .map(|(entry, number)| gpt_entry(entry, number, sector))
        .collect()
}

fn gpt_entry(entry: &[u8], number: u32, sector: u64) -> Result<Partition> {
    let guid = |at: usize| {
        let bytes = entry.get(at..).and_then(|bytes| bytes.first_chunk()).copied();
        Uuid::from_bytes_le(bytes.unwrap_or_default())
    };
    let (first, last) = (le64(entry, 32), le64(entry, 40));
    let sectors = last.checked_sub(first).and_then(|length| length.checked_add(1));
    let size = sectors.and_then(|sectors| sectors.checked_mul(sector));
    let (Some(start), Some(size)) = (first.checked_mul(sector), size) else {
        return Err(corrupt(format!("partition {number} ends before it begins")));
    };
    let units = (56..128).step_by(2).map(|at| le16(entry, at)).take_while(|unit| *unit != 0);
    let name = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER));
    Ok(Partition {
        number,
        start,
        size,
        kind: PartitionType::Guid(guid(0)),
        name: name.collect(),
        uuid: guid(16).to_string(),
    })
}

/// Whether a first sector is a master boot record and not that of a file
/// system, which ends with the same two bytes.
fn has_mbr(record: &[u8]) -> bool {
    let entries = || record[446..510].chunks_exact(16);
    record[510..] == [0x55, 0xaa]
        && entries().all(|entry| matches!(entry[0], 0 | 0x80))
        && entries().any(|entry| entry[4] != 0)
}

fn mbr(disk: &dyn Blocks, record: &[u8]) -> Result<Vec<Partition>> {
    let signature = le32(record, 440);
    let mut found = Vec::new();
    let mut extended = None;
    for (entry, number) in record[446..510].chunks_exact(16).zip(1..) {
        match entry[4] {
            0 => {}
            0x05 | 0x0f | 0x85 if extended.is_none() => extended = Some(u64::from(le32(entry, 8))),
            0x05 | 0x0f | 0x85 => return Err(corrupt("it has two extended partitions")),
            _ => found.push(mbr_entry(entry, number, 0, signature)),
        }
    }
    if let Some(start) = extended {
        logical(disk, start, signature, &mut found)?;
    }
    Ok(found)
}

fn mbr_entry(entry: &[u8], number: u32, base: u64, signature: u32) -> Partition {
    Partition {
        number,
        start: (base + u64::from(le32(entry, 8))) * 512,
        size: u64::from(le32(entry, 12)) * 512,
        kind: PartitionType::Byte(entry[4]),
        name: String::new(),
        uuid: format!("{signature:08x}-{number:02x}"),
    }
}

/// Follows the chain of logical partitions: each record names one, and the next record.
fn logical(
    disk: &dyn Blocks,
    extended: u64,
    signature: u32,
    found: &mut Vec<Partition>,
) -> Result<()> {
    let mut seen = HashSet::new();
    let (mut here, mut number) = (extended, 5);
    loop {
        if !seen.insert(here) || seen.len() > MAX_LOGICAL {
            return Err(corrupt("its logical partitions lead in a circle or do not end"));
        }
        let record = at(disk, here * 512, 512)?
            .filter(|record| record[510..] == [0x55, 0xaa])
            .ok_or_else(|| corrupt("its chain of logical partitions is broken"))?;
        let (entry, next) = (&record[446..462], &record[462..478]);
        if entry[4] != 0 {
            found.push(mbr_entry(entry, number, here, signature));
            number += 1;
        }
        if next[4] == 0 {
            return Ok(());
        }
        here = extended + u64::from(le32(next, 8));
    }
}

/// The check sum that a GUID table has.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn corrupt(why: impl fmt::Display) -> Fault {
    unacceptable(format!("the disk's partition table cannot be used: {why}"))
}
