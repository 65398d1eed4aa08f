//! Reads an ext file system whose journal is arbitrary: what comes of it is a
//! fault, or what comes of the same file system with the journal's blocks written.
#![no_main]

use std::rc::Rc;

use berth::image::disk::{sums, write_tar_of};
use berth::image::recognise::content;
use berth::image::unpack::UnpackLimits;
use libfuzzer_sys::fuzz_target;

#[path = "../shared/journal.rs"]
mod journal;

const LIMITS: UnpackLimits = UnpackLimits { entries: 64, bytes: 1 << 20, ids: 65_536 };

fuzz_target!(|bytes: &[u8]| {
    let journal::Laid { before, after } = journal::lay(bytes);
    let (mut replayed, mut written) = (Vec::new(), Vec::new());
    // What is written may look like another kind of disk, which is no part of this.
    let alike = content(&after) == content(&before);
    if write_tar_of(Rc::new(before), &mut replayed, LIMITS).is_ok() && alike {
        write_tar_of(Rc::new(after), &mut written, LIMITS).unwrap();
        assert!(replayed == written);
    }
});
