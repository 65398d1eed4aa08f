//! Tables of disks that grow, read again as what they are then.

use super::*;

const SECTOR: usize = 512;

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// A disk of 256 sectors with a GUID table and partitions of (first, last sector).
fn gpt_disk(partitions: &[(u64, u64)]) -> Vec<u8> {
    let mut rows = vec![0; 128 * 128];
    for (row, (first, last)) in rows.chunks_exact_mut(128).zip(partitions) {
        row[..32].fill(7);
        put64(row, 32, *first);
        put64(row, 40, *last);
    }
    let mut disk = vec![0; 256 * SECTOR];
    disk[450] = 0xee;
    put32(&mut disk, 454, 1);
    put32(&mut disk, 458, 255);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let header = &mut disk[SECTOR..2 * SECTOR];
    header[..8].copy_from_slice(b"EFI PART");
    put32(header, 8, 0x10000);
    put32(header, 12, 92);
    for (at, value) in [(24, 1), (32, 255), (40, 34), (48, 222), (72, 2)] {
        put64(header, at, value);
    }
    header[56..72].fill(9);
    put32(header, 80, 128);
    put32(header, 84, 128);
    put32(header, 88, partitions::crc32(&rows));
    let sum = partitions::crc32(&header[..92]);
    put32(header, 16, sum);
    disk[2 * SECTOR..34 * SECTOR].copy_from_slice(&rows);
    disk
}

/// A disk of 256 sectors with a master boot record of (type, first sector, sectors).
fn mbr_disk(rows: &[(u8, u32, u32)]) -> Vec<u8> {
    let mut disk = vec![0; 256 * SECTOR];
    for (row, (kind, first, sectors)) in disk[446..510].chunks_exact_mut(16).zip(rows) {
        row[4] = *kind;
        put32(row, 8, *first);
        put32(row, 12, *sectors);
    }
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

/// Grows the partition at a sector, and the disk.
fn grown(disk: &[u8], start: u64, by: u64) -> Result<Vec<u8>> {
    let mut disk = disk.to_vec();
    let patches = grow(&disk, start * SECTOR as u64, by)?;
    disk.resize(disk.len() + by as usize, 0);
    for Patch { offset, bytes } in patches {
        disk[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    Ok(disk)
}

fn why(fault: Result<Vec<u8>>) -> String {
    fault.unwrap_err().detail
}

#[test]
fn the_last_partition_of_a_guid_table_grows_in_both_copies() {
    let before = gpt_disk(&[(40, 49), (64, 127)]);
    let after = grown(&before, 64, GROWTH).unwrap();
    let (old, new) = (partitions::read(&before), partitions::read(&after));
    let (old, new) = (old.unwrap().unwrap(), new.unwrap().unwrap());
    assert_eq!(new[0], old[0]);
    assert_eq!(new[1], Partition { size: old[1].size + GROWTH, ..old[1].clone() });

    let end = after.len() / SECTOR - 1;
    let (first, second) = (&after[SECTOR..2 * SECTOR], &after[end * SECTOR..]);
    assert_eq!((le64(first, 24), le64(first, 32)), (1, end as u64));
    assert_eq!((le64(second, 24), le64(second, 32)), (end as u64, 1));
    assert_eq!(le64(second, 72), end as u64 - 32);
    assert_eq!(le64(first, 48), end as u64 - 33);
    assert_eq!(first[56..72], [9; 16], "the disk's own GUID stays");
    assert_eq!(after[2 * SECTOR..34 * SECTOR], after[(end - 32) * SECTOR..end * SECTOR]);
    let mut summed = second[..92].to_vec();
    summed[16..20].fill(0);
    assert_eq!(le32(second, 16), partitions::crc32(&summed));
    assert_eq!(le32(&after, 458), end as u32, "the record that protects it");
}

#[test]
fn a_partition_before_others_does_not_grow() {
    let disk = gpt_disk(&[(64, 127), (128, 129)]);
    assert!(why(grown(&disk, 64, GROWTH)).contains("not the last"));
    assert!(why(grown(&disk, 65, GROWTH)).contains("no partition"));
    // The row's order says nothing.
    assert!(grown(&gpt_disk(&[(64, 127), (40, 41)]), 64, GROWTH).is_ok());
}

#[test]
fn a_partition_of_a_master_boot_record_grows_where_that_can_say_so() {
    let disk = mbr_disk(&[(0x82, 10, 10), (0x83, 20, 100)]);
    let after = partitions::read(&grown(&disk, 20, GROWTH).unwrap()).unwrap().unwrap();
    assert_eq!(after[1].size, 100 * 512 + GROWTH);
    assert!(why(grown(&disk, 10, GROWTH)).contains("not the last"));
    assert!(grow(&disk, 20 * 512, 4 << 40).unwrap_err().detail.contains("no larger"));
}

#[test]
fn a_logical_partition_and_one_before_an_empty_extended_one_do_not_grow() {
    let mut disk = mbr_disk(&[(0x05, 30, 60)]);
    let logical = mbr_disk(&[(0x83, 2, 20)]);
    disk[30 * SECTOR..31 * SECTOR].copy_from_slice(&logical[..SECTOR]);
    assert!(why(grown(&disk, 32, GROWTH)).contains("logical"));
    let mut disk = mbr_disk(&[(0x83, 10, 10), (0x05, 30, 60)]);
    disk[30 * SECTOR + 510..31 * SECTOR].copy_from_slice(&[0x55, 0xaa]);
    assert!(why(grown(&disk, 10, GROWTH)).contains("not the last"));
}

#[test]
fn a_disk_without_a_table_grows_as_it_is() {
    assert!(grow(&vec![0; 256 * SECTOR], 0, GROWTH).unwrap().is_empty());
}

#[test]
fn a_frame_that_cannot_be_is_refused() {
    let layout = Layout {
        uuid: uuid::Uuid::nil(),
        label: String::new(),
        block: 4096,
        inode_size: 256,
        inodes: 16,
        features: [0; 3],
    };
    let good = Frame { size: 1 << 20, root_start: 512, root_size: 1 << 19, layout };
    good.check().unwrap();
    for bad in [
        Frame { root_start: 1 << 20, ..good.clone() },
        Frame { root_start: u64::MAX, ..good.clone() },
        Frame { root_start: 100, ..good.clone() },
        Frame { size: u64::MAX, root_start: 0, root_size: u64::MAX, ..good.clone() },
        Frame { layout: Layout { block: 1, ..good.layout.clone() }, ..good.clone() },
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
}

#[test]
fn only_an_ext_file_system_is_made_again() {
    let mut squashfs = vec![0; 1 << 16];
    squashfs[..4].copy_from_slice(b"hsqs");
    let fault = write(Rc::new(squashfs), &mut Vec::new()).unwrap_err();
    assert!(fault.detail.contains("only ext2"), "{fault}");
}

/// Bytes, and zeros behind them.
struct Long(Vec<u8>, u64);

impl Blocks for Long {
    fn size(&self) -> u64 {
        self.1
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        buffer.fill(0);
        let here = self.0.get(offset as usize..).unwrap_or_default();
        let length = here.len().min(buffer.len());
        buffer[..length].copy_from_slice(&here[..length]);
        Ok(())
    }
}

/// A disk with a file system from sector 128 on, of which every byte around it is 1.
fn disk_of(ext: &[u8]) -> Vec<u8> {
    let mut disk = vec![1; 128 * SECTOR + ext.len() + 4 * PIECE];
    disk[..SECTOR]
        .copy_from_slice(&mbr_disk(&[(0x83, 128, (ext.len() / SECTOR) as u32)])[..SECTOR]);
    disk[128 * SECTOR..][..ext.len()].copy_from_slice(ext);
    disk
}

#[test]
fn all_but_the_root_is_given_and_no_more_than_is_kept() {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/ext4");
    let mut ext = std::fs::read_dir(seeds)
        .unwrap()
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .find(|bytes| ext::open(Rc::new(bytes.clone())).is_ok_and(|ext| ext.layout().is_ok()))
        .expect("no seed is a file system");
    ext.resize(ext.len().next_multiple_of(SECTOR), 0);
    ext[..BOOT_BLOCK as usize].fill(2);
    let disk = disk_of(&ext);
    let mut given = Vec::new();
    let frame = write(Rc::new(disk.clone()), &mut given).unwrap();
    assert_eq!((frame.size, frame.root_start), (disk.len() as u64, 128 * SECTOR as u64));
    assert_eq!(frame.root_size, ext.len() as u64);
    let mut again = vec![0; disk.len()];
    let mut rest = &given[..];
    while !rest.is_empty() {
        let (at, length) = (le64(rest, 0) as usize, le32(rest, 8) as usize);
        again[at..at + length].copy_from_slice(&rest[12..12 + length]);
        rest = &rest[12 + length..];
    }
    let mut expected = disk.clone();
    expected[128 * SECTOR + BOOT_BLOCK as usize..][..ext.len() - BOOT_BLOCK as usize].fill(0);
    assert!(again == expected);

    let size = disk.len() as u64 + MOST_OUTSIDE;
    let fault = write(Rc::new(Long(disk, size)), &mut std::io::sink()).unwrap_err();
    assert!(fault.detail.contains("16 GiB outside"), "{fault}");
}
