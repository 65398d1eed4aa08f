//! Looks at arbitrary bytes as other programs' disk images: of one that is let
//! through to QEMU, QEMU's own way of reading finds no other file.
#![no_main]

use berth::fault::{Fault, FaultKind};
use berth::image::disk::{Blocks, foreign, sums};
use berth::image::recognise::DiskFormat;
use libfuzzer_sys::fuzz_target;

#[path = "../shared/foreign.rs"]
mod shared;

const MOST: u64 = 1 << 40;
/// Where QEMU looks for a VMDK's parent.
const DESCRIPTOR: std::ops::Range<usize> = 512..21 * 512;
const PARENT: &[u8] = b"parentFileNameHint";
/// What the metadata is called in a VHDX, as it is stored.
const REGION: [u8; 16] = *b"\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e";
/// What a parent's place is called in a VHDX, as it is stored.
const LOCATOR: [u8; 16] = *b"\x2d\x5f\xd3\xa8\x0b\xb3\x4d\x45\xab\xf7\xd3\xd8\x48\x34\xab\x0c";

fuzz_target!(|bytes: &[u8]| {
    let (disk, image) = shared::image(bytes);
    if foreign::check(&image, disk, MOST).is_err() {
        return;
    }
    let whole = &image.pieces[0].1;
    match disk {
        DiskFormat::Vmdk => {
            let text = &whole[DESCRIPTOR.start..DESCRIPTOR.end.min(whole.len())];
            assert!(!text.windows(PARENT.len()).any(|window| window == PARENT));
            assert!((1..=MOST / 512).contains(&number(whole, 12)));
        }
        DiskFormat::Vhd => assert_eq!(whole[60..64], [0, 0, 0, 3]),
        DiskFormat::Vdi => assert!(whole[76] == 1 || whole[76] == 2),
        _ => {
            // Row by row, as long as the metadata lies where QEMU puts it.
            let place = (shared::METADATA as u64).to_le_bytes();
            let metadata = &image.pieces[2].1;
            let rows = number(metadata, 10) as u16;
            let mut rows = metadata.chunks_exact(32).skip(1).take(rows.into());
            let is_there = |row: &[u8]| row[..16] == REGION && row[16..24] == place;
            let is_there = whole.get(16..).is_some_and(|rows| rows.chunks_exact(32).any(is_there));
            assert!(!is_there || !rows.any(|row| row[..16] == LOCATOR));
        }
    }
});

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}
