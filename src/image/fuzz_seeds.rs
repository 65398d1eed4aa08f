//! Runs the fuzzers' seeds, and with them every crash that was ever found,
//! through the readers in each test run (see `fuzz/README.md`).

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use super::disk::{Blocks, frame as frames, sums};
use super::recognise::DiskFormat;
use super::tar_reader::TarReader;
use super::testing::LIMITS;
use super::unpack::{TreeKind, extract};
use super::{disk, manifest, recognise, refusal, stage};
use crate::fault::{Fault, FaultKind};

// What lays a fuzzer's bytes into an image is the same here.
#[path = "../../fuzz/shared/foreign.rs"]
mod foreign;
#[path = "../../fuzz/shared/frame.rs"]
mod frame;
#[path = "../../fuzz/shared/gpt.rs"]
mod gpt;
#[path = "../../fuzz/shared/journal.rs"]
mod journal;

fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        (path, bytes)
    };
    let seeds: Vec<_> = fs::read_dir(directory).unwrap().map(read).collect();
    assert!(!seeds.is_empty());
    seeds
}

#[test]
fn root_layer_seeds_stay_inside() {
    for (path, bytes) in seeds("layer") {
        for kind in [TreeKind::Layer, TreeKind::Root, TreeKind::RootBelow, TreeKind::FileSystem] {
            let outer = tempfile::tempdir().unwrap();
            let root = outer.path().join("root");
            fs::create_dir(&root).unwrap();
            fs::write(outer.path().join("secret"), "untouched").unwrap();
            let root = OwnedFd::from(fs::File::open(root).unwrap());
            if let Ok(report) = extract(root.try_clone().unwrap(), &bytes[..], kind, LIMITS) {
                report.marks.set(root.as_fd()).unwrap();
            }
            let secret = fs::read_to_string(outer.path().join("secret")).unwrap();
            assert_eq!(secret, "untouched", "{} {kind:?}", path.display());
            let names = fs::read_dir(outer.path()).unwrap().count();
            assert_eq!(names, 2, "{} {kind:?}", path.display());
        }
    }
}

#[test]
fn manifest_seeds_give_a_plan_or_a_fault() {
    let mut plans = 0;
    for (_, bytes) in seeds("manifest") {
        for reader in [manifest::docker, manifest::oci] {
            let members = std::cell::RefCell::new(bytes.split(|byte| *byte == 0));
            // A name read again is the same member.
            let known = std::cell::RefCell::new(std::collections::HashMap::new());
            let read = |name: &str| {
                let next = || members.borrow_mut().next().map(<[u8]>::to_vec);
                let bytes = known.borrow().get(name).cloned().or_else(next);
                let bytes = bytes
                    .ok_or_else(|| Fault::new(FaultKind::ImageUnacceptable, "no more members"))?;
                known.borrow_mut().insert(name.to_owned(), bytes.clone());
                Ok(bytes)
            };
            plans += usize::from(reader(&read, "amd64").is_ok());
        }
    }
    assert!(plans >= 3, "the good seeds are no longer read");
}

#[test]
fn recognise_seeds_are_told() {
    for (_, bytes) in seeds("recognise") {
        let content = recognise::content(&bytes);
        assert!(!refusal::of_content(content).detail.is_empty());
        let directory = tempfile::tempdir().unwrap();
        let root = OwnedFd::from(fs::File::open(directory.path()).unwrap());
        stage::is_root_file_system(&bytes[..]);
        if let Ok(staged) = stage::stage(&root, std::io::Cursor::new(bytes), LIMITS) {
            staged.members.keys().for_each(|name| drop(staged.find(name)));
        }
    }
}

#[test]
fn qcow2_seeds_are_disks_or_faults() {
    for (path, bytes) in seeds("qcow2") {
        let Ok(image) = disk::qcow2::Qcow2::open(Rc::new(bytes)) else { continue };
        let mut all = vec![0; 65_536];
        let read = disk::Blocks::read_at(&image, 0, &mut all);
        assert!(read.is_err() || all[1080..1082] == [0x53, 0xef], "{}", path.display());
        // Piece by piece it is the same, where the file ends within its last cluster too.
        for (index, wanted) in all.chunks(512).enumerate().filter(|_| read.is_ok()) {
            let mut piece = [9; 512];
            disk::Blocks::read_at(&image, index as u64 * 512, &mut piece).unwrap();
            assert_eq!(piece, wanted, "{}: sector {index}", path.display());
        }
    }
}

#[test]
fn partitions_seeds_lie_beside_each_other_or_are_faults() {
    let read = |name: &str| {
        let (_, bytes) = seeds("partitions").into_iter().find(|(p, _)| p.ends_with(name)).unwrap();
        disk::partitions::read(&bytes).map(|found| found.unwrap_or_default())
    };
    let places = |name: &str| -> Vec<_> {
        let sectors = |p: &disk::partitions::Partition| (p.number, p.start / 512, p.size / 512);
        read(name).unwrap().iter().map(sectors).collect()
    };
    assert_eq!(places("gpt"), [(1, 4, 2), (2, 6, 2)]);
    assert_eq!(places("mbr"), [(1, 1, 1), (5, 3, 1), (6, 5, 1)]);
    assert!(read("across").unwrap_err().detail.contains("lies across another"));
    assert!(read("circle").unwrap_err().detail.contains("in a circle"));
    for (_, bytes) in seeds("partitions") {
        drop(disk::partitions::read(&bytes));
    }
}

#[test]
fn ext4_seeds_are_archives_or_faults() {
    let mut archives = 0;
    for (path, bytes) in seeds("ext4") {
        let mut archive = Vec::new();
        if disk::write_tar_of(Rc::new(bytes), &mut archive, LIMITS).is_err() {
            continue;
        }
        let mut reader = TarReader::new(&archive[..]);
        let mut names = Vec::new();
        while let Some(member) = reader.next().unwrap() {
            names.push(member.path);
        }
        assert_eq!(names[0], b"./", "{}", path.display());
        archives += 1;
    }
    assert!(archives >= 2, "the good seeds are no longer read");
}

#[test]
fn journal_seeds_are_replayed_or_faults() {
    let archive = |image: Vec<u8>| {
        let mut archive = Vec::new();
        disk::write_tar_of(Rc::new(image), &mut archive, LIMITS).map(|()| archive)
    };
    let mut replayed = Vec::new();
    for (path, bytes) in seeds("journal") {
        let journal::Laid { before, after } = journal::lay(&bytes);
        let Ok(found) = archive(before) else { continue };
        assert!(found == archive(after).unwrap(), "{}", path.display());
        let has = |name: &[u8]| found.windows(name.len()).any(|window| window == name);
        // The last transaction's name was never committed.
        if has(b"card\0") && !has(b"lard\0") {
            replayed.push(path.file_name().unwrap().to_owned());
        }
    }
    replayed.sort();
    assert_eq!(replayed, ["around", "async", "debugfs", "plain", "v1", "v2", "v3", "wide"]);
}

#[test]
fn foreign_seeds_are_let_through_or_faults() {
    let mut through = Vec::new();
    for (path, bytes) in seeds("foreign") {
        let (kind, image) = foreign::image(&bytes);
        match disk::foreign::check(&image, kind, 32 << 20) {
            Ok(()) => through.push(path.file_name().unwrap().to_owned()),
            Err(fault) => assert_eq!(fault.kind, FaultKind::ImageUnacceptable),
        }
        let least = disk::foreign::check(&image, kind, 1 << 20);
        assert!(least.is_err(), "{}: the disk has 16 MiB", path.display());
    }
    through.sort();
    assert_eq!(through, ["vdi", "vhd", "vhdx", "vmdk", "vmdk-stream"]);
}

#[test]
fn frame_seeds_are_kept_and_grow_or_are_faults() {
    let (mut kept, mut grown) = (Vec::new(), Vec::new());
    for (path, bytes) in seeds("frame") {
        let name = path.file_name().unwrap().to_owned();
        let disk = frame::disk(&bytes);
        let Ok(frame) = frames::write(Rc::new(disk.clone()), &mut Vec::new()) else { continue };
        frame.check().unwrap();
        if frames::grow(&disk, frame.root_start, frames::GROWTH).is_ok() {
            grown.push(name.clone());
        }
        kept.push(name);
    }
    kept.sort();
    grown.sort();
    assert_eq!(kept, ["bare", "gpt", "gpt-alone", "gpt-first", "logical", "mbr"]);
    assert_eq!(grown, ["bare", "gpt", "gpt-alone", "logical", "mbr"]);
}
