//! Looks at a VHDX image before `qemu-img` does: whether it holds all of its
//! content, and how large its disk is.
//!
//! The metadata says that, and the region table leads to it. A log that is not
//! empty could change both when it is replayed: QEMU refuses to do that to an
//! image that it may not write, and in the jail it may not.

use uuid::{Uuid, uuid};

use super::blocks::{Blocks, le16, le32, le64};
use super::sums::crc32c;
use crate::fault::{Fault, Result};
use crate::image::recognise::DiskFormat;
use crate::image::refusal;

/// What the file and each of its tables begin with, and the least place of what they lead to.
const AREA: u64 = 64 << 10;
/// The region table, and the copy of it.
const REGIONS: [u64; 2] = [3 * AREA, 4 * AREA];
/// Most rows of either table.
const MAX_ROWS: usize = 2047;
/// Bytes of a row.
const ROW: usize = 32;

/// The region that the metadata is in.
const METADATA: Uuid = uuid!("8b7ca206-4790-4b9a-b8fe-575f050f886e");
/// Items of the metadata: how large blocks are, and whether there is a parent.
const PARAMETERS: Uuid = uuid!("caa16737-fa36-4d43-b3b6-33f0aa44e76b");
const DISK_SIZE: Uuid = uuid!("2fa54224-cd1b-4876-b211-5dbed83bf4b8");
/// Where the parent is.
const PARENT: Uuid = uuid!("a8d35f2d-b30b-454d-abf7-d3d84834ab0c");
/// The bit in the parameters that announces a parent.
const HAS_PARENT: u64 = 2 << 32;

/// The size of the disk in an image that holds all of its content.
pub(super) fn size(image: &dyn Blocks) -> Result<u64> {
    let regions = region_table(image)?;
    let metadata = le64(row(&rows(&regions, 16, le32(&regions, 8) as usize)?, METADATA)?, 16);
    let table = read(image, metadata)?;
    if !table.starts_with(b"metadata") {
        return Err(bad("its metadata is none"));
    }
    let items = rows(&table, ROW, le16(&table, 10).into())?;
    if items.iter().any(|item| guid(item) == PARENT) {
        return Err(bad("it has a parent, a file of the host"));
    }
    let number = |id| {
        let at = metadata.saturating_add(le32(row(&items, id)?, 16).into());
        let mut bytes = [0; 8];
        image.read_at(at, &mut bytes).map(|()| u64::from_le_bytes(bytes))
    };
    if number(PARAMETERS)? & HAS_PARENT != 0 {
        return Err(bad("it has a parent, a file of the host"));
    }
    number(DISK_SIZE)
}

/// The table of regions. Which of its copies another reader takes must not matter.
fn region_table(image: &dyn Blocks) -> Result<Vec<u8>> {
    let [table, copy] = REGIONS.map(|at| read(image, at));
    let (mut table, copy) = (table?, copy?);
    if table != copy {
        return Err(bad("its two tables of regions disagree"));
    }
    let sum = le32(&table, 4);
    table[4..8].fill(0);
    if !table.starts_with(b"regi") || !crc32c(u32::MAX, &table) != sum {
        return Err(bad("the check sum of its table of regions is wrong"));
    }
    Ok(table)
}

fn read(image: &dyn Blocks, at: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; AREA as usize];
    image.read_at(at, &mut bytes).map(|()| bytes)
}

/// The rows of a table, which begin at `first`.
fn rows(table: &[u8], first: usize, count: usize) -> Result<Vec<&[u8]>> {
    match count {
        0..=MAX_ROWS => Ok(table[first..].chunks_exact(ROW).take(count).collect()),
        _ => Err(bad("a table in it is larger than itself")),
    }
}

/// The only row with this name.
fn row<'a>(rows: &[&'a [u8]], id: Uuid) -> Result<&'a [u8]> {
    let mut found = rows.iter().filter(|row| guid(row) == id);
    match (found.next(), found.next()) {
        (Some(row), None) => Ok(row),
        _ => Err(bad("it does not say, or says twice, what it is")),
    }
}

fn guid(row: &[u8]) -> Uuid {
    Uuid::from_bytes_le(row.first_chunk().copied().unwrap_or_default())
}

fn bad(why: &str) -> Fault {
    refusal::of_disk(DiskFormat::Vhdx, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image of a disk of 64 MiB with these rows in its metadata, which lie
    /// 64 KiB behind it: parameters and size.
    fn image(flags: u32, items: &[Uuid]) -> Vec<u8> {
        let mut bytes = vec![0; 8 * AREA as usize];
        bytes[..8].copy_from_slice(b"vhdxfile");
        let metadata = 5 * AREA as usize;
        let mut put = |at: usize, from: &[u8]| bytes[at..at + from.len()].copy_from_slice(from);
        put(metadata, b"metadata");
        put(metadata + 10, &(items.len() as u16).to_le_bytes());
        for (index, id) in items.iter().enumerate() {
            let at = metadata + ROW * (index + 1);
            put(at, &id.to_bytes_le());
            let place = AREA as u32 + if *id == DISK_SIZE { 8 } else { 0 };
            put(at + 16, &place.to_le_bytes());
        }
        put(metadata + AREA as usize + 4, &flags.to_le_bytes());
        put(metadata + AREA as usize + 8, &(64_u64 << 20).to_le_bytes());
        for at in REGIONS {
            put(at as usize, b"regi\0\0\0\0\x01");
            put(at as usize + 16, &METADATA.to_bytes_le());
            put(at as usize + 32, &(metadata as u64).to_le_bytes());
        }
        summed(bytes)
    }

    /// Rights the check sums of the tables of regions.
    fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
        for at in REGIONS {
            let table = &mut bytes[at as usize..(at + AREA) as usize];
            table[4..8].fill(0);
            let sum = !crc32c(u32::MAX, table);
            table[4..8].copy_from_slice(&sum.to_le_bytes());
        }
        bytes
    }

    fn patched(at: u64, value: u8) -> Vec<u8> {
        let mut bytes = image(0, &[PARAMETERS, DISK_SIZE]);
        bytes[at as usize] = value;
        bytes
    }

    #[test]
    fn an_image_that_holds_its_content() {
        // Whether blocks stay allocated says nothing about their content.
        for flags in [0, 1] {
            assert_eq!(size(&image(flags, &[PARAMETERS, DISK_SIZE])).unwrap(), 64 << 20);
        }
    }

    #[test]
    fn an_image_that_leads_elsewhere_or_nowhere() {
        let why = |image: Vec<u8>| size(&image).unwrap_err().detail;
        assert!(why(image(2, &[PARAMETERS, DISK_SIZE])).contains("has a parent"));
        assert!(why(image(0, &[PARAMETERS, DISK_SIZE, PARENT])).contains("has a parent"));
        assert!(why(image(0, &[DISK_SIZE])).contains("does not say"));
        assert!(why(image(0, &[PARAMETERS, DISK_SIZE, DISK_SIZE])).contains("says twice"));
        assert!(why(patched(REGIONS[1] + 9999, 1)).contains("disagree"));
        assert!(why(patched(REGIONS[0] + 32, 1)).contains("disagree"));
        let mut altered = patched(REGIONS[0] + 9999, 1);
        altered[REGIONS[1] as usize + 9999] = 1;
        assert!(why(altered.clone()).contains("check sum"));
        altered[REGIONS[0] as usize + 11] = 1;
        altered[REGIONS[1] as usize + 11] = 1;
        assert!(why(summed(altered)).contains("larger than itself"));
        assert!(why(patched(5 * AREA + 11, 8)).contains("larger than itself"));
        assert!(why(patched(5 * AREA, 0)).contains("metadata is none"));
        assert!(why(patched(5 * AREA + 32 + 18, 200)).contains("beyond its end"));
        assert!(why(image(0, &[PARAMETERS])[..300_000].to_vec()).contains("beyond its end"));
    }
}
