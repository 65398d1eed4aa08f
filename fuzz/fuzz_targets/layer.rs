//! Unpacks arbitrary archives, without the jail, beside a file that must not change.
#![no_main]

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use berth::image::unpack::{TreeKind, UnpackLimits, extract};
use libfuzzer_sys::fuzz_target;

const LIMITS: UnpackLimits = UnpackLimits { entries: 64, bytes: 1 << 20, ids: 65_536 };

/// Rights every header's check sum, or nearly all inputs would end at their first.
fn mend(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while let Some(block) = bytes.get_mut(at..at + 512) {
        let mut header = tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        if block.iter().any(|byte| *byte != 0) {
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
        let size = header.entry_size().unwrap_or(0).min(1 << 20) as usize;
        at += 512 + size.next_multiple_of(512);
    }
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    let bytes = mend(bytes);
    // A memory file system, where there is one: a disk would be the bottleneck.
    let parent = if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
    let outer = tempfile::tempdir_in(parent).unwrap();
    let root = outer.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(outer.path().join("secret"), "untouched").unwrap();
    let directory = File::open(&root).unwrap();
    let kind = if bytes.len() % 2 == 0 { TreeKind::Layer } else { TreeKind::Root };
    if let Ok(report) = extract(directory.try_clone().unwrap().into(), &bytes[..], kind, LIMITS) {
        assert!(report.entries <= LIMITS.entries && report.bytes <= LIMITS.bytes);
        assert!(report.stored <= report.bytes);
        // What the extractor reports is there, or marking it fails.
        report.marks.set(std::os::fd::AsFd::as_fd(&directory)).unwrap();
    }
    let secret = fs::metadata(outer.path().join("secret")).unwrap();
    assert_eq!(fs::read_to_string(outer.path().join("secret")).unwrap(), "untouched");
    assert_eq!((secret.nlink(), secret.mode() & 0o7777), (1, 0o644));
    assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 2);
});
