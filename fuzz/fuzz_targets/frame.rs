//! Keeps what is around the root file system of an arbitrary disk, and grows
//! its partition: all outside it is kept, and the table that was grown says the
//! same of all others.
#![no_main]

use std::rc::Rc;

use berth::image::disk::frame::{BOOT_BLOCK, Frame, GROWTH, Patch, grow, write};
use berth::image::disk::partitions;
use libfuzzer_sys::fuzz_target;

#[path = "../shared/frame.rs"]
mod frame;
#[path = "../shared/gpt.rs"]
mod gpt;

fuzz_target!(|bytes: &[u8]| {
    let disk = frame::disk(bytes);
    let mut given = Vec::new();
    let Ok(frame) = write(Rc::new(disk.clone()), &mut given) else { return };
    frame.check().unwrap();
    assert!(again(&given, &frame) == outside(&disk, &frame));
    let Ok(patches) = grow(&disk, frame.root_start, GROWTH) else { return };
    let mut grown = disk.clone();
    grown.resize(disk.len() + GROWTH as usize, 0);
    for Patch { offset, bytes } in &patches {
        grown[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }
    let table = |disk: &Vec<u8>| partitions::read(disk).unwrap().unwrap_or_default();
    let mut expected = table(&disk);
    for partition in expected.iter_mut().filter(|partition| partition.start == frame.root_start) {
        partition.size += GROWTH;
    }
    assert_eq!(expected, table(&grown));
});

/// The disk that the kept pieces are.
fn again(mut given: &[u8], frame: &Frame) -> Vec<u8> {
    let mut disk = vec![0; frame.size as usize];
    while let Some((head, rest)) = given.split_first_chunk::<12>() {
        let at = u64::from_le_bytes(*head.first_chunk().unwrap()) as usize;
        let length = u32::from_le_bytes(*head.last_chunk().unwrap()) as usize;
        disk[at..at + length].copy_from_slice(&rest[..length]);
        given = &rest[length..];
    }
    disk
}

/// The disk without its root, whose boot block is none of its own.
fn outside(disk: &[u8], frame: &Frame) -> Vec<u8> {
    let mut disk = disk.to_vec();
    disk[(frame.root_start + BOOT_BLOCK) as usize..frame.root_end() as usize].fill(0);
    disk
}
