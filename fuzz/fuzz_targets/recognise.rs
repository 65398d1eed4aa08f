//! Recognises arbitrary bytes, and takes them apart as an image archive.
#![no_main]

use std::fs::File;
use std::io::Cursor;
use std::path::Path;

use berth::image::recognise::{Content, Members, content};
use berth::image::refusal;
use berth::image::stage::{is_root_file_system, stage};
use berth::image::unpack::UnpackLimits;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let first = content(bytes);
    assert!(!refusal::of_content(first).detail.is_empty());
    let mut members = Members::default();
    let certain = bytes.split(|byte| *byte == b'\n').any(|name| members.add(name));
    assert!(!certain || members.archive() == berth::image::recognise::ArchiveKind::Rootfs);
    if first == Content::Tar {
        let parent = if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
        let directory = tempfile::tempdir_in(parent).unwrap();
        let root = File::open(directory.path()).unwrap().into();
        let limits = UnpackLimits { entries: 64, bytes: 1 << 20, ids: 65_536 };
        is_root_file_system(bytes);
        if let Ok(staged) = stage(&root, Cursor::new(bytes), limits) {
            staged.members.keys().for_each(|name| drop(staged.find(name)));
        }
    }
});
