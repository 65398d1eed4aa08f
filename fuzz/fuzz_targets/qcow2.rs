//! Reads arbitrary bytes as a qcow2 image: each piece of its disk is there or is a fault.
#![no_main]

use std::rc::Rc;

use berth::image::disk::Blocks;
use berth::image::disk::qcow2::Qcow2;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(disk) = Qcow2::open(Rc::new(bytes.to_vec())) else { return };
    let mut buffer = [0; 4096];
    let size = disk.size();
    for at in [0, 511, 4096, 65_535, size / 2, size.saturating_sub(4096)] {
        if disk.read_at(at, &mut buffer).is_ok() {
            assert!(at + 4096 <= size);
            let hole = disk.hole(at).min(4096) as usize;
            assert!(buffer[..hole].iter().all(|byte| *byte == 0));
            // Read at once is what is read in two pieces.
            let mut second = [0; 1000];
            disk.read_at(at + 3096, &mut second).unwrap();
            assert_eq!(buffer[3096..], second);
        }
    }
    assert!(disk.read_at(size, &mut buffer).is_err());
});
