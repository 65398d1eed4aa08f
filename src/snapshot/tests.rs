//! What is packed, unpacked again as an image is.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use chrono::Utc;
use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};
use serde_json::Value;

use super::*;
use crate::image::tar_reader::{MemberKind, TarReader};
use crate::image::testing::extract_bytes;
use crate::image::unpack::{TreeKind, UnpackLimits, extract};
use crate::types::{ImageConfig, SnapshotFormat};

const LIMITS: UnpackLimits = UnpackLimits { entries: 100, bytes: 1 << 30, ids: 65_536 };

/// The members of an archive, with their content.
pub(super) fn members(bytes: &[u8]) -> Vec<(String, MemberKind, Vec<u8>)> {
    let mut reader = TarReader::new(bytes);
    let mut members = Vec::new();
    while let Some(member) = reader.next().unwrap() {
        let mut content = Vec::new();
        reader
            .copy(&member, |_, data| {
                content.extend_from_slice(data);
                Ok(())
            })
            .unwrap();
        members.push((member.name(), member.kind, content));
    }
    members
}

fn pack(trees: &[(&Path, &[&str])]) -> Vec<(String, MemberKind, Vec<u8>)> {
    let tree = |(path, left_out): &(&Path, &[&str])| {
        let left_out = left_out.iter().map(|path| path.as_bytes().to_vec()).collect();
        Tree::new(
            File::open(path).unwrap().into(),
            left_out,
            Scratches::within(&std::env::temp_dir()),
        )
    };
    let contents = Contents {
        layers: trees.iter().map(tree).collect(),
        config: ImageConfig {
            cmd: vec!["/run".into()],
            exposed_ports: vec!["80/tcp".into(), "53/udp".into()],
            ..Default::default()
        },
        created: Utc::now(),
    };
    let mut bytes = Vec::new();
    let check = |done: u64, total: u64| assert!(done <= total);
    write(SnapshotFormat::DockerArchive, &contents, &mut bytes, &check).unwrap();
    members(&zstd::decode_all(&bytes[..]).unwrap())
}

#[test]
fn the_ports_that_an_image_names_are_in_its_snapshots() {
    let members = pack(&[]);
    let is_config = |name: &str| name.ends_with(".json") && name != "manifest.json";
    let (_, _, config) = members.iter().find(|(name, ..)| is_config(name)).unwrap();
    let config: serde_json::Value = serde_json::from_slice(config).unwrap();
    assert_eq!(config["config"]["ExposedPorts"], serde_json::json!({"80/tcp": {}, "53/udp": {}}));
}

fn set(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

#[test]
fn root_what_was_packed_unpacks_the_same() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| from.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::write(at("a/b/file"), "content").unwrap();
    std::os::unix::fs::chown(at("a/b/file"), Some(33), Some(65_535)).unwrap();
    fs::set_permissions(at("a/b/file"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::hard_link(at("a/b/file"), at("z")).unwrap();
    symlink("../anywhere", at("link")).unwrap();
    fs::write(at("seeded"), "by berth").unwrap();
    fs::write(at("a/.wh.evil"), "").unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.set_len(200 << 20).unwrap();
    sparse.write_all_at(b"middle", 100 << 20).unwrap();
    File::create(at("hole")).unwrap().set_len(1 << 20).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("gone"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::empty(),
        0,
    )
    .unwrap();
    set(&at("a"), "trusted.overlay.opaque", b"y");
    set(&at("z"), "trusted.overlay.origin", b"of this host");
    set(&at("z"), "user.mine", b"kept");

    let packed = pack(&[(from.path(), &["seeded"])]);
    let names: Vec<&str> = packed.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!((names.len(), names[0], names[2]), (3, "layers/0.tar", "manifest.json"));
    let config: Value = serde_json::from_slice(&packed[1].2).unwrap();
    assert_eq!(config["config"]["Cmd"][0], "/run");
    let layer = &packed[0].2;
    assert!(layer.len() < 1 << 20, "holes are not packed");
    assert!(!String::from_utf8_lossy(layer).contains("overlay"));

    let report = extract_bytes(layer, to.path(), LIMITS).unwrap();
    assert!(report.marks.opaque.contains(&b"a"[..]));
    let at = |name: &str| to.path().join(name);
    let found = fs::metadata(at("a/b/file")).unwrap();
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (33, 65_535, 0o4711));
    assert_eq!(found.mtime_nsec(), fs::metadata(from.path().join("z")).unwrap().mtime_nsec());
    assert_eq!(found.ino(), fs::metadata(at("z")).unwrap().ino());
    assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("../anywhere"));
    assert_eq!(fs::symlink_metadata(at("gone")).unwrap().rdev(), 0);
    let mut value = [0; 16];
    let length = lgetxattr(at("z"), "user.mine", &mut value).unwrap();
    assert_eq!(&value[..length], b"kept");
    let sparse = fs::read(at("sparse")).unwrap();
    assert_eq!((sparse.len(), &sparse[100 << 20..][..6]), (200 << 20, &b"middle"[..]));
    assert_eq!(fs::metadata(at("hole")).unwrap().len(), 1 << 20);
    assert!(!at("seeded").exists() && at("a/.wh.evil").exists());
}

#[test]
fn the_same_tree_gives_the_same_layer() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["b", "a", "c"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    let layers = |packed: Vec<(String, MemberKind, Vec<u8>)>| -> Vec<Vec<u8>> {
        packed.into_iter().filter(|(n, ..)| n.starts_with("layers/")).map(|(.., c)| c).collect()
    };
    let twice = layers(pack(&[(dir.path(), &[]), (dir.path(), &[])]));
    assert_eq!(twice[0], twice[1]);
    let inner: Vec<String> = members(&twice[0]).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(inner, ["./", "a", "b", "c"]);
}

#[test]
fn a_sink_that_fails_ends_it() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let layers = vec![Tree::new(
        File::open(dir.path()).unwrap().into(),
        Default::default(),
        Scratches::within(&std::env::temp_dir()),
    )];
    let contents = Contents { layers, config: ImageConfig::default(), created: Utc::now() };
    for format in [SnapshotFormat::DockerArchive, SnapshotFormat::RootfsTar] {
        assert!(write(format, &contents, &mut Full, &|_, _| {}).is_err());
    }
}

#[test]
fn root_a_tarball_holds_what_the_layers_show_together() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let at = |layer: usize, name: &str| dirs[layer].path().join(name);
    let put = |layer: usize, name: &str, content: &str| {
        fs::create_dir_all(at(layer, name).parent().unwrap()).unwrap();
        fs::write(at(layer, name), content).unwrap();
    };
    let whiteout = |layer: usize, name: &str| {
        fs::create_dir_all(at(layer, name).parent().unwrap()).unwrap();
        let kind = rustix::fs::FileType::CharacterDevice;
        let mode = rustix::fs::Mode::empty();
        rustix::fs::mknodat(rustix::fs::CWD, at(layer, name), kind, mode, 0).unwrap();
    };
    put(0, "etc/old", "0");
    put(0, "etc/both", "0");
    put(0, "hidden/below", "0");
    put(0, "gone/x", "0");
    put(0, "becomes-file/x", "0");
    put(0, "becomes-directory", "0");
    put(0, "linked", "0");
    fs::hard_link(at(0, "linked"), at(0, "second-name")).unwrap();
    put(1, "etc/both", "1");
    put(1, "becomes-file", "1");
    put(1, "becomes-directory/x", "1");
    put(1, "hidden/above", "1");
    set(&at(1, "hidden"), "trusted.overlay.opaque", b"y");
    whiteout(1, "gone");
    put(2, "gone/again", "2");
    set(&at(2, "gone"), "trusted.overlay.opaque", b"y");
    put(2, "etc/seeded", "2");
    put(2, "linked", "2");

    let mut left_out = std::collections::BTreeSet::new();
    left_out.insert(b"etc/seeded".to_vec());
    let tree = |layer: usize, left_out| {
        Tree::new(
            File::open(dirs[layer].path()).unwrap().into(),
            left_out,
            Scratches::within(&std::env::temp_dir()),
        )
    };
    let layers = vec![tree(0, Default::default()), tree(1, Default::default()), tree(2, left_out)];
    let contents = Contents { layers, config: ImageConfig::default(), created: Utc::now() };
    let mut bytes = Vec::new();
    let check = |done: u64, total: u64| assert!(done <= total);
    write(SnapshotFormat::RootfsTar, &contents, &mut bytes, &check).unwrap();
    let plain = zstd::decode_all(&bytes[..]).unwrap();
    let to = tempfile::tempdir().unwrap();
    let report = extract_bytes(&plain, to.path(), LIMITS).unwrap();
    assert!(report.marks.opaque.is_empty());
    let mut names: Vec<String> = members(&plain).into_iter().map(|(name, ..)| name).collect();
    names.retain(|name| !name.ends_with('/'));
    assert_eq!(
        names,
        [
            "becomes-directory/x",
            "becomes-file",
            "etc/both",
            "etc/old",
            "gone/again",
            "hidden/above",
            "linked",
            "second-name",
        ]
    );
    for (name, content) in [("etc/both", "1"), ("linked", "2"), ("second-name", "0")] {
        assert_eq!(fs::read_to_string(to.path().join(name)).unwrap(), content, "{name}");
    }
}

/// What is data in a tree that a container runtime works in is so in a snapshot of it: in a
/// layer, in a tarball and on a disk.
#[test]
fn root_data_that_looks_like_marks_is_kept() {
    let tree = tempfile::tempdir().unwrap();
    let at = |name: &str| tree.path().join(name);
    for directory in ["etc", "diff", ".wh.d"] {
        fs::create_dir(at(directory)).unwrap();
    }
    fs::write(at("diff/device"), "").unwrap();
    set(&at("diff/device"), "trusted.overlay.overlay.whiteout", b"0/0");
    set(&at("diff"), "trusted.overlay.overlay.opaque", b"y");
    set(&at("diff"), "trusted.overlay.origin", b"of this host");
    set(&at("diff"), "user.overlay.opaque", b"y");
    fs::write(at(".wh.d/.wh.x"), "x").unwrap();
    fs::hard_link(at(".wh.d/.wh.x"), at(".wh.d/y")).unwrap();
    let acl = b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xe8\x03\0\0\x04\0\x04\0\
        \xff\xff\xff\xff\x10\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";
    set(&at("etc"), "system.posix_acl_access", acl);
    set(&at("etc"), "system.posix_acl_default", acl);

    let new = || {
        Tree::new(
            File::open(tree.path()).unwrap().into(),
            [].into(),
            Scratches::within(Path::new("/tmp")),
        )
    };
    let layer = pack(&[(tree.path(), &[])]).swap_remove(0).2;
    let contents =
        Contents { layers: vec![new()], config: ImageConfig::default(), created: Utc::now() };
    let mut tarball = Vec::new();
    write(SnapshotFormat::RootfsTar, &contents, &mut tarball, &|_, _| {}).unwrap();
    let tarball = zstd::decode_all(&tarball[..]).unwrap();
    assert!(
        String::from_utf8_lossy(&tarball).contains("SCHILY.acl.access=user::rw-,user:1000:r--")
    );
    // Other readers of a layer find nothing that would delete.
    let mut plain = tar::Archive::new(&layer[..]);
    for member in plain.entries().unwrap() {
        assert!(!member.unwrap().path_bytes().starts_with(b".wh."));
    }

    for (archive, kind) in
        [(&layer, TreeKind::Layer), (&tarball, TreeKind::Root), (&tarball, TreeKind::FileSystem)]
    {
        let to = tempfile::tempdir().unwrap();
        let root = std::os::fd::OwnedFd::from(File::open(to.path()).unwrap());
        let report = extract(root.try_clone().unwrap(), &archive[..], kind, LIMITS).unwrap();
        report.marks.set(std::os::fd::AsFd::as_fd(&root)).unwrap();
        let at = |name: &str| to.path().join(name);
        let get = |name: &str, attribute: &str| {
            let mut value = [0; 99];
            let length = lgetxattr(at(name), attribute, &mut value).ok()?;
            Some(value[..length].to_vec())
        };
        assert_eq!(fs::read_to_string(at(".wh.d/y")).unwrap(), "x", "{kind:?}");
        assert_eq!(fs::metadata(at(".wh.d/.wh.x")).unwrap().nlink(), 2);
        for name in ["system.posix_acl_access", "system.posix_acl_default"] {
            assert_eq!(get("etc", name).as_deref(), Some(&acl[..]), "{kind:?}");
        }
        assert_eq!(get("diff", "user.overlay.opaque").unwrap(), b"y");
        assert_eq!(get("diff", "trusted.overlay.origin"), None);
        let device = fs::symlink_metadata(at("diff/device")).unwrap();
        if kind == TreeKind::FileSystem {
            assert!(device.file_type().is_char_device() && device.rdev() == 0);
            assert_eq!(get("diff", "trusted.overlay.opaque").unwrap(), b"y");
        } else {
            assert_eq!(get("diff/device", "trusted.overlay.overlay.whiteout").unwrap(), b"0/0");
            assert_eq!(get("diff", "trusted.overlay.overlay.opaque").unwrap(), b"y");
        }
    }
}
