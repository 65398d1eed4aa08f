//! Reads arbitrary bytes as an ext file system: what comes of it is an archive
//! within its limits that the archive's reader takes, or a fault.
#![no_main]

use std::rc::Rc;

use berth::image::disk::write_tar_of;
use berth::image::tar_reader::TarReader;
use berth::image::unpack::UnpackLimits;
use libfuzzer_sys::fuzz_target;

const LIMITS: UnpackLimits = UnpackLimits { entries: 64, bytes: 1 << 20, ids: 65_536 };

fuzz_target!(|bytes: &[u8]| {
    let mut archive = Vec::new();
    if write_tar_of(Rc::new(bytes.to_vec()), &mut archive, LIMITS).is_err() {
        return;
    }
    let mut reader = TarReader::new(&archive[..]);
    let (mut members, mut held) = (0, 0);
    while let Some(member) = reader.next().unwrap() {
        members += 1;
        held += member.size;
        reader.copy(&member, |_, _| Ok(())).unwrap();
    }
    assert!(members <= LIMITS.entries && held <= LIMITS.bytes);
});
