//! Reads arbitrary bytes as a disk: partitions lie inside it and beside each other.
#![no_main]

use berth::image::disk::partitions::read;
use libfuzzer_sys::fuzz_target;

#[path = "../shared/gpt.rs"]
mod gpt;

fuzz_target!(|bytes: &[u8]| {
    let disk = gpt::mend(bytes);
    if let Ok(Some(mut found)) = read(&disk) {
        found.sort_by_key(|partition| partition.start);
        let mut end = 0;
        for partition in found {
            assert!(partition.start >= end);
            end = partition.start + partition.size;
        }
        assert!(end <= disk.len() as u64);
    }
});
