//! Tests of the extractor, run as root: owners, devices and attributes are real.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use ::tar::EntryType;

use super::super::testing::{Archive, LIMITS, extract_bytes, header};
use super::*;
use crate::fault::FaultKind;
use crate::image::whiteout;

/// A directory for the layer, inside one whose other content must never change.
struct Place {
    outer: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let outer = tempfile::tempdir().unwrap();
        fs::create_dir(outer.path().join("root")).unwrap();
        fs::write(outer.path().join("secret"), "untouched").unwrap();
        Place { outer }
    }

    fn root(&self) -> std::path::PathBuf {
        self.outer.path().join("root")
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.root().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn outside_is_untouched(&self) -> bool {
        let mut names: Vec<_> = fs::read_dir(self.outer.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let secret = fs::metadata(self.outer.path().join("secret")).unwrap();
        names == ["root", "secret"]
            && fs::read_to_string(self.outer.path().join("secret")).unwrap() == "untouched"
            && secret.nlink() == 1
            && secret.mode() & 0o7777 == 0o644
    }
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

fn is_whiteout(path: &Path) -> bool {
    let metadata = fs::symlink_metadata(path).unwrap();
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

fn mode(name: &str, mode: u32) -> ::tar::Header {
    let mut header = header(EntryType::Regular, name, 0);
    header.set_mode(mode);
    header
}

/// Every archive here must be refused, with a word of the reason, and must
/// leave the world outside the layer as it was.
#[test]
fn root_hostile_archives_are_refused() {
    let deep = "d/".repeat(300);
    let long_part = "n".repeat(256);
    let long_path = format!("{}x", "directory/".repeat(500));
    let sized = |kind: EntryType| Archive::new().raw(header(kind, "f", 5), b"hello");
    let xattr = |name: &str, value: &[u8]| {
        Archive::new().pax(&[(&format!("SCHILY.xattr.{name}"), value)]).file("f", b"")
    };
    let new = Archive::new;
    let table: Vec<(&str, Archive, &str)> = vec![
        ("dot dot", new().file("../secret", b"x"), "'..'"),
        ("dot dot inside", new().file("a/../../secret", b"x"), "'..'"),
        ("long name, dot dot", new().long_name("x/../../secret").file("f", b"x"), "'..'"),
        ("pax path, dot dot", new().pax(&[("path", b"../secret")]).file("f", b"x"), "'..'"),
        ("through a link out", new().symlink("a", "..").file("a/secret", b"x"), "leads out"),
        (
            "through two links",
            new().symlink("a", "b").symlink("b", "../..").file("a/x", b""),
            "leads out",
        ),
        ("deeper link out", new().symlink("d/a", "../..").file("d/a/secret", b"x"), "leads out"),
        ("link loop", new().symlink("a", "b").symlink("b", "a").file("a/x", b""), "too many links"),
        ("dir through link out", new().symlink("a", "..").dir("a/d"), "leads out"),
        (
            "whiteout through link out",
            new().symlink("a", "..").file("a/.wh.secret", b""),
            "leads out",
        ),
        (
            "opaque through link out",
            new().symlink("a", "..").file("a/.wh..wh..opq", b""),
            "leads out",
        ),
        ("hard link out", new().hardlink("a", "../secret"), "'..'"),
        ("absolute hard link", new().hardlink("a", "/etc/passwd"), "not in this layer"),
        ("hard link through link", new().symlink("l", "..").hardlink("a", "l/secret"), "leads out"),
        ("hard link to nothing", new().hardlink("a", "b"), "not in this layer"),
        ("hard link to itself", new().file("a", b"").hardlink("a", "./a"), "itself"),
        ("hard link to directory", new().dir("d").hardlink("a", "d"), "directory"),
        ("hard link to the root", new().hardlink("a", "."), "directory"),
        ("hard link to whiteout", new().file(".wh.w", b"").hardlink("a", "w"), "not in this layer"),
        ("whiteout of dot dot", new().file(".wh...", b""), "nothing that has a name"),
        ("whiteout of dot", new().file(".wh..", b""), "nothing that has a name"),
        ("whiteout of nothing", new().file("d/.wh.", b""), "nothing that has a name"),
        ("inside a whiteout name", new().file(".wh.d/x", b""), "name of a deletion"),
        ("whiteout directory", new().dir(".wh.d"), "must be a file"),
        ("huge device", new().node(EntryType::Block, "b", 1 << 12, 0), "device number"),
        ("long part", new().long_name(&long_part).file("f", b""), "255"),
        ("long path", new().long_name(&long_path).file("f", b""), "4095"),
        ("deep path", new().long_name(&format!("{deep}x")).file("f", b""), "deep"),
        ("zero in a name", new().pax(&[("path", b"a\0b")]).file("f", b""), "zero"),
        ("empty symlink", new().symlink("l", ""), "target"),
        ("root as a file", new().file(".", b"x"), "root must be"),
        ("file over full directory", new().file("d/x", b"").file("d", b""), "something in it"),
        ("link over full directory", new().file("d/x", b"").symlink("d", "e"), "something in it"),
        ("through a file", new().file("f", b"").file("f/x", b""), "no directory"),
        ("content of a directory", sized(EntryType::Directory), "check sum"),
        ("unknown type", sized(EntryType::new(b'N')), "unknown type"),
        ("another volume", sized(EntryType::new(b'M')), "volumes together"),
        ("lying pax size", new().pax(&[("size", b"99999")]).file("f", b"x"), "cut off"),
        (
            "overflowing pax size",
            new().pax(&[("size", b"18446744073709551615")]).file("f", b""),
            "bounds",
        ),
        ("pax size no number", new().pax(&[("size", b"-1")]).file("f", b""), "no number"),
        ("bomb", new().pax(&[("size", b"9999999999")]).file("f", b""), "max_unpacked_bytes"),
        ("two pax headers", new().pax(&[]).pax(&[]).file("f", b""), "two extension"),
        ("pax and no member", new().pax(&[("path", b"x")]), "ends after"),
        ("bad capability", xattr("security.capability", b"x"), "no file capability"),
        ("bad acl", xattr("system.posix_acl_access", b"x"), "access list"),
        (
            "bad acl text",
            new().pax(&[("SCHILY.acl.access", b"u:x")]).file("f", b""),
            "no access list",
        ),
        (
            "half an acl",
            new().pax(&[("SCHILY.acl.access", b"user::rw-")]).file("f", b""),
            "none that Linux takes",
        ),
        (
            "an acl of strangers",
            new()
                .pax(&[("SCHILY.acl.access", b"u::rw-,g::r--,o::r--,m::r--,u:stranger:r--")])
                .file("f", b""),
            "--numeric-owner",
        ),
    ];
    for (what, archive, reason) in table {
        let place = Place::new();
        let fault = archive.extract(&place.root()).expect_err(what);
        assert!(fault.detail.contains(reason), "{what}: {fault}");
        assert!(
            matches!(fault.kind, FaultKind::ImageUnacceptable | FaultKind::ImageCorrupt),
            "{what}: {fault}"
        );
        assert!(place.outside_is_untouched(), "{what}");
    }
}

#[test]
fn limits_on_entries_and_bytes() {
    let place = Place::new();
    let many = (0..10).fold(Archive::new(), |archive, n| archive.file(&n.to_string(), b""));
    let limits = UnpackLimits { entries: 9, ..LIMITS };
    let fault = extract_bytes(&many.bytes(), &place.root(), limits).unwrap_err();
    assert!(fault.detail.contains("max_entries"), "{fault}");
    // Directories that the archive does not list count too.
    let place = Place::new();
    let limits = UnpackLimits { entries: 3, ..LIMITS };
    let deep = Archive::new().file("a/b/c/d", b"").bytes();
    assert!(extract_bytes(&deep, &place.root(), limits).is_err());
    let place = Place::new();
    let limits = UnpackLimits { bytes: 5, ..LIMITS };
    let two = Archive::new().file("a", b"123").file("b", b"456").bytes();
    assert!(extract_bytes(&two, &place.root(), limits).is_err());
}

#[test]
fn root_links_inside_the_tree_are_followed_as_parents() {
    let place = Place::new();
    let report = Archive::new()
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .symlink("abs", "/usr/lib")
        .symlink("usr/up", "../usr/./lib")
        .file("lib/a", b"a")
        .file("abs/b", b"b")
        .file("usr/up/c", b"c")
        .hardlink("d", "abs/a")
        .extract(&place.root())
        .unwrap();
    for name in ["a", "b", "c"] {
        assert_eq!(place.read(&format!("usr/lib/{name}")), name);
    }
    assert_eq!(place.read("d"), "a");
    assert_eq!(fs::metadata(place.path("d")).unwrap().nlink(), 2);
    assert_eq!(fs::read_link(place.path("lib")).unwrap(), Path::new("usr/lib"));
    assert_eq!(report.stored, 3);
}

#[test]
fn root_a_link_that_leads_out_is_kept_as_a_link() {
    let place = Place::new();
    Archive::new().symlink("l", "../secret").symlink("m", "/etc").extract(&place.root()).unwrap();
    assert_eq!(fs::read_link(place.path("l")).unwrap(), Path::new("../secret"));
    // A later file of that name replaces the link and does not write through it.
    let place = Place::new();
    Archive::new().symlink("l", "../secret").file("l", b"own").extract(&place.root()).unwrap();
    assert_eq!(place.read("l"), "own");
    assert!(fs::symlink_metadata(place.path("l")).unwrap().is_file());
    // Nor does a hard link to a link follow it, nor a change of the link's owner.
    let place = Place::new();
    Archive::new().symlink("l", "../secret").hardlink("h", "l").extract(&place.root()).unwrap();
    assert!(fs::symlink_metadata(place.path("h")).unwrap().is_symlink());
    assert!(place.outside_is_untouched());
}

#[test]
fn root_owners_modes_and_times() {
    let place = Place::new();
    let mut suid = header(EntryType::Regular, "suid", 0);
    suid.set_mode(0o6755);
    suid.set_uid(1000);
    suid.set_gid(65_535);
    let mut sticky = header(EntryType::Directory, "tmp/", 0);
    sticky.set_mode(0o1777);
    let mut top = header(EntryType::Directory, "./", 0);
    top.set_mode(0o751);
    Archive::new()
        .raw(top, b"")
        .raw(suid, b"")
        .raw(sticky, b"")
        .file("tmp/inside", b"")
        .raw(mode("none", 0), b"")
        .pax(&[("mtime", b"1700000000.123456789"), ("uid", b"7")])
        .file("timed", b"x")
        .pax(&[("mtime", b"5.5")])
        .symlink("link", "nowhere")
        .dir("dir")
        .file("dir/x", b"")
        .extract(&place.root())
        .unwrap();
    let stat = |name: &str| fs::symlink_metadata(place.path(name)).unwrap();
    assert_eq!((stat("suid").uid(), stat("suid").gid()), (1000, 65_535));
    assert_eq!(stat("suid").mode() & 0o7777, 0o6755);
    assert_eq!(stat("tmp").mode() & 0o7777, 0o1777);
    assert_eq!(stat("none").mode() & 0o7777, 0);
    assert_eq!(stat("").mode() & 0o7777, 0o751);
    assert_eq!((stat("timed").mtime(), stat("timed").mtime_nsec()), (1_700_000_000, 123_456_789));
    assert_eq!(stat("timed").uid(), 7);
    assert_eq!((stat("link").mtime(), stat("link").mtime_nsec()), (5, 500_000_000));
    assert_eq!(stat("dir").mtime(), 1_000_000_000, "what went in later must not count");
    assert_eq!(stat("").mtime(), 1_000_000_000);
}

#[test]
fn root_parents_that_are_not_listed_are_roots() {
    let place = Place::new();
    Archive::new().file("a/b/c", b"x").extract(&place.root()).unwrap();
    let metadata = fs::metadata(place.path("a/b")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o755, 0));
}

#[test]
fn root_devices_and_pipes() {
    let place = Place::new();
    Archive::new()
        .node(EntryType::Char, "null", 1, 3)
        .node(EntryType::Block, "disk", 8, 300)
        .node(EntryType::Fifo, "pipe", 0, 0)
        .extract(&place.root())
        .unwrap();
    let stat = |name: &str| fs::symlink_metadata(place.path(name)).unwrap();
    assert!(stat("null").file_type().is_char_device());
    assert_eq!(stat("null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(stat("null").mode() & 0o7777, 0o644);
    assert!(stat("disk").file_type().is_block_device());
    assert_eq!(stat("disk").rdev(), rustix::fs::makedev(8, 300));
    assert!(stat("pipe").file_type().is_fifo());
}

#[test]
fn root_extended_attributes() {
    let mut capability = 0x0200_0001_u32.to_le_bytes().to_vec();
    capability.resize(20, 0);
    capability[5] = b'\n'; // CAP_NET_BIND_SERVICE and a neighbour: a byte that splits naive parsers.
    let acl = |perm: u8| -> Vec<u8> {
        let entry =
            |tag: u8, perm: u8, id: u32| [&[tag, 0, perm, 0][..], &id.to_le_bytes()].concat();
        [
            vec![2, 0, 0, 0],
            entry(0x01, 7, u32::MAX),
            entry(0x02, perm, 1000),
            entry(0x04, 5, u32::MAX),
            entry(0x10, 7, u32::MAX),
            entry(0x20, 0, u32::MAX),
        ]
        .concat()
    };
    let place = Place::new();
    Archive::new()
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.note", b"text"),
            ("SCHILY.xattr.security.selinux", b"left_out"),
            ("SCHILY.xattr.trusted.mine", b"left_out"),
        ])
        .file("ping", b"program")
        .pax(&[("SCHILY.xattr.system.posix_acl_default", &acl(6)), ("SCHILY.xattr.user.d", b"1")])
        .dir("shared")
        .file("shared/inside", b"")
        .pax(&[("SCHILY.xattr.system.posix_acl_access", &acl(4)), ("SCHILY.xattr.user.x", b"1")])
        .node(EntryType::Fifo, "pipe", 0, 0)
        .extract(&place.root())
        .unwrap();
    let get = |file: &str, name: &str| attribute(&place.path(file), name);
    assert_eq!(get("ping", "security.capability"), Some(capability));
    assert_eq!(get("ping", "user.note").as_deref(), Some(&b"text"[..]));
    assert_eq!(get("ping", "security.selinux"), None);
    assert_eq!(get("ping", "trusted.mine"), None);
    assert_eq!(get("shared", "system.posix_acl_default"), Some(acl(6)));
    assert_eq!(get("shared", "user.d").as_deref(), Some(&b"1"[..]));
    assert_eq!(get("shared/inside", "system.posix_acl_access"), None, "inherited");
    assert_eq!(get("pipe", "system.posix_acl_access"), Some(acl(4)));
}

#[test]
fn root_whiteouts_become_overlayfs_marks() {
    let place = Place::new();
    let report = Archive::new()
        .file("d/.wh.gone", b"")
        .file(".wh.top", b"")
        .file("new/.wh..wh..opq", b"")
        .file("new/kept", b"k")
        .file(".wh..wh.plnk/7", b"")
        .extract(&place.root())
        .unwrap();
    assert!(is_whiteout(&place.path("d/gone")));
    assert!(is_whiteout(&place.path("top")));
    assert_eq!(report.marks.deleting, BTreeSet::from([b"d".to_vec()]));
    assert_eq!(place.read("new/kept"), "k");
    assert_eq!(report.marks.opaque, BTreeSet::from([b"new".to_vec()]));
    assert!(!place.path(".wh..wh.plnk").exists());
    let root = fs::File::open(place.root()).unwrap();
    report.marks.set(root.as_fd()).unwrap();
    assert_eq!(attribute(&place.path("new"), "trusted.overlay.opaque"), Some(b"y".to_vec()));
    assert_eq!(attribute(&place.path("d"), "trusted.overlay.opaque"), None);
    assert_eq!(attribute(&place.path("d"), "trusted.overlay.origin"), Some(Vec::new()));
}

/// A deletion is about lower layers, wherever it stands in the archive.
#[test]
fn root_a_whiteout_beside_its_own_name() {
    let before = |archive: Archive| archive.file(".wh.x", b"");
    for after in [false, true] {
        let wrap = |archive: fn(Archive) -> Archive| match after {
            false => archive(before(Archive::new())),
            true => before(archive(Archive::new())),
        };
        let place = Place::new();
        let report = wrap(|a| a.file("x", b"new")).extract(&place.root()).unwrap();
        assert_eq!((place.read("x").as_str(), report.marks.opaque.len()), ("new", 0));
        let place = Place::new();
        let report = wrap(|a| a.dir("x").file("x/f", b"f")).extract(&place.root()).unwrap();
        assert_eq!(place.read("x/f"), "f");
        assert_eq!(report.marks.opaque, BTreeSet::from([b"x".to_vec()]));
        let place = Place::new();
        let report = wrap(|a| a.file("x/f", b"f")).extract(&place.root()).unwrap();
        assert_eq!(place.read("x/f"), "f");
        assert_eq!(report.marks.opaque, BTreeSet::from([b"x".to_vec()]), "a parent not listed");
    }
}

#[test]
fn marks_are_set_only_below_the_root_and_behind_no_link() {
    let place = Place::new();
    std::os::unix::fs::symlink("..", place.path("out")).unwrap();
    let root = fs::File::open(place.root()).unwrap();
    for name in ["..", "out", "/", "out/root", "absent"] {
        let names = BTreeSet::from([name.as_bytes().to_vec()]);
        let opaque = Marks { opaque: names.clone(), ..Marks::default() };
        let deleting = Marks { deleting: names, ..Marks::default() };
        let mut attributes = Marks::default();
        attributes.add(name.as_bytes(), b"trusted.overlay.x", b"y").unwrap();
        for marks in [opaque, deleting, attributes] {
            assert!(marks.set(root.as_fd()).is_err(), "{name}");
        }
    }
}

/// What unpacks can make devices; whoever sets marks would open them.
#[test]
fn root_marks_are_set_on_files_and_directories_alone() {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    let place = Place::new();
    let root = fs::File::open(place.root()).unwrap();
    for (name, kind, device) in [
        ("null", FileType::CharacterDevice, makedev(1, 3)),
        ("pipe", FileType::Fifo, 0),
        ("file", FileType::RegularFile, 0),
    ] {
        mknodat(CWD, place.path(name), kind, Mode::RWXU, device).unwrap();
        let opaque = BTreeSet::from([name.as_bytes().to_vec()]);
        let marks = Marks { opaque, ..Marks::default() };
        assert_eq!(marks.set(root.as_fd()).is_ok(), name == "file", "{name}");
    }
}

#[test]
fn marks_fit_into_what_the_jail_may_say() {
    let mut marks = Marks::default();
    let name = |n: usize| format!("{n:04000}").into_bytes();
    let noted = (0..20_000).take_while(|n| {
        let noted = if n % 2 == 0 { marks.hide(name(*n)) } else { marks.delete_in(name(*n)) };
        noted.inspect_err(|fault| assert_eq!(fault.kind, FaultKind::ImageUnacceptable)).is_ok()
    });
    let noted = noted.count();
    assert!((8000..8200).contains(&noted), "{noted}");
    assert!(serde_json::to_vec(&marks).unwrap().len() < 63 << 20);
}

#[test]
fn root_the_later_of_two_wins() {
    let place = Place::new();
    Archive::new()
        .file("f", b"one")
        .raw(mode("g", 0o600), b"")
        .hardlink("h", "f")
        .file("f", b"two")
        .dir("empty")
        .file("empty", b"now a file")
        .file("was-file", b"")
        .dir("was-file")
        .file("was-file/x", b"x")
        .dir("d")
        .raw(
            {
                let mut header = header(EntryType::Directory, "d", 0);
                header.set_mode(0o700);
                header
            },
            b"",
        )
        .symlink("ld", "d")
        .dir("ld")
        .extract(&place.root())
        .unwrap();
    assert_eq!(place.read("f"), "two");
    assert_eq!(place.read("h"), "one", "the other name of the first content");
    assert_eq!(place.read("empty"), "now a file");
    assert_eq!(place.read("was-file/x"), "x");
    assert_eq!(fs::metadata(place.path("d")).unwrap().permissions().mode() & 0o7777, 0o700);
    assert!(fs::symlink_metadata(place.path("ld")).unwrap().is_dir());
}

/// A parent that was looked up before must not be used after it was replaced.
#[test]
fn root_a_cached_parent_does_not_outlive_its_directory() {
    let place = Place::new();
    Archive::new()
        .dir("real")
        .symlink("a", "real")
        .file("a/one", b"1")
        .file("a", b"")
        .dir("a")
        .file("a/two", b"2")
        .extract(&place.root())
        .unwrap();
    assert_eq!(place.read("real/one"), "1");
    assert_eq!(place.read("a/two"), "2");
    assert!(!place.path("real/two").exists());
}

#[test]
fn zeros_become_holes() {
    let place = Place::new();
    let mut data = vec![0; 1 << 20];
    data[500_000] = 1;
    let report = Archive::new().file("f", &data).extract(&place.root()).unwrap();
    assert_eq!(fs::read(place.path("f")).unwrap(), data);
    assert_eq!((report.bytes, report.stored), (1 << 20, 4096));
    assert!(fs::metadata(place.path("f")).unwrap().blocks() <= 16);
    let place = Place::new();
    let report = Archive::new().file("tail", &[0; 5000]).extract(&place.root()).unwrap();
    assert_eq!(fs::read(place.path("tail")).unwrap(), [0; 5000]);
    assert_eq!(report.stored, 5000 - 4096);
}

/// Sparse files as GNU tar writes them, in its own format and in three of pax.
#[test]
fn sparse_files_of_gnu_tar() {
    let from = tempfile::tempdir().unwrap();
    let file = fs::File::create(from.path().join("sparse")).unwrap();
    file.set_len(8 << 20).unwrap();
    // More pieces than a GNU header holds, so that it is extended.
    for n in 0..40_u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, &[n as u8 + 1; 100], n * 200_000).unwrap();
    }
    let expected = fs::read(from.path().join("sparse")).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let output = std::process::Command::new("tar")
            .args(["-c", "-S"])
            .args(format)
            .arg("-C")
            .arg(from.path())
            .arg("sparse")
            .output()
            .unwrap();
        assert!(output.stdout.len() < 1 << 20, "{format:?}: not sparse in the archive");
        let place = Place::new();
        let report = extract_bytes(&output.stdout, &place.root(), LIMITS)
            .unwrap_or_else(|fault| panic!("{format:?}: {fault}"));
        assert!(fs::read(place.path("sparse")).unwrap() == expected, "{format:?}");
        assert_eq!(report.bytes, 8 << 20);
        assert!(report.stored < 1 << 20, "{format:?}");
    }
}

/// What GNU tar packs of a real tree comes out the same.
#[test]
fn root_a_tree_packed_by_gnu_tar() {
    let from = tempfile::tempdir().unwrap();
    let deep = from.path().join("x".repeat(120)).join("y".repeat(120));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "deep").unwrap();
    fs::hard_link(deep.join("file"), from.path().join("other")).unwrap();
    std::os::unix::fs::symlink("z".repeat(150), from.path().join("link")).unwrap();
    for format in ["gnu", "pax", "posix"] {
        let output = std::process::Command::new("tar")
            .args(["-c", &format!("--format={format}"), "--xattrs", "-C"])
            .arg(from.path())
            .arg(".")
            .output()
            .unwrap();
        let place = Place::new();
        extract_bytes(&output.stdout, &place.root(), LIMITS).unwrap();
        let difference = std::process::Command::new("diff")
            .args(["-r", "--no-dereference"])
            .arg(from.path())
            .arg(place.root())
            .output()
            .unwrap();
        assert!(difference.status.success(), "{format}: {difference:?}");
        assert_eq!(fs::metadata(place.path("other")).unwrap().nlink(), 2);
    }
}

#[test]
fn an_archive_without_end_mark_is_read_and_a_cut_one_is_not() {
    let bytes = Archive::new().file("a", &[1; 600]).bytes();
    let place = Place::new();
    extract_bytes(&bytes[..512 + 1024], &place.root(), LIMITS).unwrap();
    for cut in [100, 511, 700, 512 + 1000] {
        let place = Place::new();
        let fault = extract_bytes(&bytes[..cut], &place.root(), LIMITS).unwrap_err();
        assert_eq!(fault.kind, FaultKind::ImageCorrupt, "{cut}: {fault}");
    }
    let place = Place::new();
    let mut changed = bytes.clone();
    changed[3] ^= 1;
    assert!(extract_bytes(&changed, &place.root(), LIMITS).is_err());
}

/// A leading slash is the root, and `..` goes one part back, as tar, Docker and skopeo read them.
#[test]
fn root_absolute_names_are_names_below_the_root() {
    let place = Place::new();
    Archive::new()
        .raw(top_of("/", 0o700), b"")
        .dir("/usr/bin")
        .file("/usr/bin/perl5", b"perl")
        .hardlink("/usr/bin/perl", "/usr/bin/perl5")
        .hardlink("usr/bin/other", "/usr/bin/../bin/perl5")
        .file("a/../inside", b"x")
        .file("/../../over", b"x")
        .file("//double//slash", b"x")
        .file("/.wh.gone", b"")
        .extract(&place.root())
        .unwrap();
    assert_eq!(fs::metadata(place.path("usr/bin/perl")).unwrap().nlink(), 3);
    assert_eq!(fs::metadata(place.root()).unwrap().mode() & 0o7777, 0o700);
    for name in ["inside", "over", "double/slash"] {
        assert_eq!(place.read(name), "x");
    }
    assert!(is_whiteout(&place.path("gone")));
    assert!(place.outside_is_untouched());
}

fn top_of(name: &str, mode: u32) -> ::tar::Header {
    let mut header = header(EntryType::Directory, name, 0);
    header.set_mode(mode);
    header
}

/// What a container runtime keeps in a tree is data there: it comes out as it went in, and
/// overlayfs takes none of it for its own.
#[test]
fn root_marks_inside_a_tree_are_data() {
    let tree = || {
        Archive::new()
            .pax(&[
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ])
            .dir("diff")
            .pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc")])
            .file("diff/f", b"f")
            .node(EntryType::Char, "diff/gone", 0, 0)
            .hardlink("diff/gone too", "diff/gone")
    };
    for kind in [TreeKind::Layer, TreeKind::Root] {
        let place = Place::new();
        let report = tree().extract_as(kind, &place.root()).unwrap();
        assert!(!report.own_kind);
        assert_eq!(attribute(&place.path("diff"), "trusted.overlay.opaque"), None);
        assert!(fs::symlink_metadata(place.path("diff/gone")).unwrap().is_file());
        report.marks.set(fs::File::open(place.root()).unwrap().as_fd()).unwrap();
        let get = |file: &str, name: &str| attribute(&place.path(file), name);
        assert_eq!(get("diff", "trusted.overlay.opaque"), None);
        assert_eq!(get("diff", "trusted.overlay.overlay.opaque").unwrap(), b"y");
        assert_eq!(get("diff", "user.overlay.opaque").unwrap(), b"y");
        assert_eq!(get("diff/f", "trusted.overlay.overlay.redirect").unwrap(), b"/etc");
        assert_eq!(get("diff/gone too", whiteout::DEVICE_XATTR).unwrap(), whiteout::DEVICE_VALUE);
    }
    // Where no overlay will be, all of it is what it was.
    let place = Place::new();
    let report = tree().extract_as(TreeKind::FileSystem, &place.root()).unwrap();
    assert_eq!(report.marks, Marks::default());
    assert!(is_whiteout(&place.path("diff/gone")) && is_whiteout(&place.path("diff/gone too")));
    assert_eq!(attribute(&place.path("diff"), "trusted.overlay.opaque").unwrap(), b"y");
}

#[test]
fn root_only_a_layer_has_names_that_delete() {
    let names = [".wh.a", "d/.wh..wh..opq", ".wh.d/x", ".wh..wh.plnk/7", ".wh.", ".wh..."];
    let tree = |names: &[&str]| names.iter().fold(Archive::new(), |tree, n| tree.file(n, b"x"));
    for kind in [TreeKind::Root, TreeKind::FileSystem] {
        let place = Place::new();
        let report = tree(&names).extract_as(kind, &place.root()).unwrap();
        for name in names {
            assert_eq!(place.read(name), "x");
        }
        assert!(report.own_kind && report.marks == Marks::default());
    }
    // A snapshot's own word for such a name holds in a layer, too, and one for what deletes there.
    let place = Place::new();
    let report = Archive::new()
        .pax(&[("BERTH.path", b".wh.d/.wh.x")])
        .file("berth.wh.d/berth.wh.x", b"x")
        .pax(&[("BERTH.path", b".wh.d/y"), ("BERTH.linkpath", b".wh.d/.wh.x")])
        .hardlink("berth.wh.d/y", "berth.wh.d/berth.wh.x")
        .pax(&[("BERTH.deletion", b".wh.d/.wh.gone")])
        .file("berth.wh.d/.wh.gone", b"")
        .pax(&[("BERTH.deletion", b".wh.d/.wh..wh..opq")])
        .file("berth.wh.d/.wh..wh..opq", b"")
        .extract(&place.root())
        .unwrap();
    assert_eq!(place.read(".wh.d/y"), "x");
    assert!(is_whiteout(&place.path(".wh.d/gone")));
    assert_eq!(report.marks.opaque, BTreeSet::from([b".wh.d".to_vec()]));
    let hostile = Archive::new().pax(&[("BERTH.path", b"../secret")]).file("f", b"");
    assert!(hostile.extract(&Place::new().root()).is_err());
}

#[test]
fn root_a_root_below_rootfs_is_taken_alone() {
    let place = Place::new();
    let report = Archive::new()
        .file("metadata.yaml", b"x")
        .raw(top_of("rootfs", 0o711), b"")
        .file("rootfs/etc/x", b"x")
        .hardlink("rootfs/y", "rootfs/etc/x")
        .file("templates/hostname.tpl", b"x")
        .file("./rootfs/.wh.z", b"x")
        .extract_as(TreeKind::RootBelow, &place.root())
        .unwrap();
    assert!(report.own_kind);
    let mut names: Vec<_> =
        fs::read_dir(place.root()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".wh.z", "etc", "y"]);
    assert_eq!(fs::metadata(place.root()).unwrap().mode() & 0o7777, 0o711);
    let out = Archive::new().file("x", b"").hardlink("rootfs/y", "x");
    let fault = out.extract_as(TreeKind::RootBelow, &Place::new().root()).unwrap_err();
    assert!(fault.detail.contains("out of rootfs/"), "{fault}");
}

/// Ids that no instance has are nobody's, and give nobody rights.
#[test]
fn root_large_ids_are_nobodys() {
    let place = Place::new();
    let owned = |name: &str, uid: u64, gid: u64| {
        let mut header = header(EntryType::Regular, name, 0);
        header.set_mode(0o6755);
        header.set_uid(uid);
        header.set_gid(gid);
        header
    };
    Archive::new()
        .raw(owned("user", 65_536, 7), b"")
        .raw(owned("group", 7, 1 << 33), b"")
        .pax(&[("uid", b"4294967296"), ("gid", b"70000")])
        .symlink("link", "x")
        .extract(&place.root())
        .unwrap();
    let found = |name: &str| {
        let found = fs::symlink_metadata(place.path(name)).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777)
    };
    assert_eq!(found("user"), (65_534, 7, 0o2755));
    assert_eq!(found("group"), (7, 65_534, 0o4755));
    assert_eq!(found("link"), (65_534, 65_534, 0o777));
}

#[test]
fn root_access_lists_in_text() {
    let place = Place::new();
    let text = b"user::rw-\nuser:games:r--\ngroup::r-x\ngroup:adm:r--\nmask::r-x\nother::---\n";
    let ids = b"user::rw-,group::r-x,other::---,user:5:r--,group:adm:r--:4,mask::r-x";
    Archive::new()
        .pax(&[("SCHILY.acl.access", text)])
        .file("d/names", b"")
        .pax(&[("SCHILY.acl.access", ids)])
        .file("ids", b"")
        .pax(&[("SCHILY.acl.access", text), ("SCHILY.acl.default", text)])
        .dir("d")
        .pax(&[("SCHILY.acl.access", text)])
        .node(EntryType::Fifo, "pipe", 0, 0)
        .pax(&[("SCHILY.acl.access", text)])
        .file("replaced", b"")
        .file("replaced", b"")
        .file("etc/passwd", b"root:x:0:0::/:\ngames:x:5:60::/:\ngames:x:6:60::/:\n")
        .file("etc/group", b"adm:x:4:\n")
        .file("d/new", b"")
        .extract(&place.root())
        .unwrap();
    let get = |file: &str, name: &str| attribute(&place.path(file), name);
    let wanted = get("ids", "system.posix_acl_access").unwrap();
    assert_eq!(wanted.len(), 4 + 6 * 8);
    for file in ["d/names", "d", "pipe"] {
        assert_eq!(get(file, "system.posix_acl_access").as_ref(), Some(&wanted), "{file}");
    }
    assert_eq!(get("d", "system.posix_acl_default"), Some(wanted));
    assert_eq!(get("replaced", "system.posix_acl_access"), None);
    assert_eq!(get("d/new", "system.posix_acl_access"), None, "inherited");
    assert_eq!(fs::metadata(place.path("d")).unwrap().mtime(), 1_000_000_000);
}

/// What GNU tar, Go and others write that is no file: labels, lists of names, sizes of links.
#[test]
fn root_what_counts_for_nothing_is_passed_over() {
    let place = Place::new();
    let mut label = header(EntryType::new(b'V'), "backup of", 0);
    label.as_old_mut().uid = [0; 8];
    label.as_old_mut().mode = [0; 8];
    let mut link = header(EntryType::Link, "hard", 9);
    link.as_old_mut().linkname[..1].copy_from_slice(b"f");
    let mut blank = header(EntryType::Regular, "blank", 0);
    (blank.as_old_mut().uid, blank.as_old_mut().gid) = ([b' '; 8], [0; 8]);
    Archive::new()
        .raw(label, b"")
        .raw(header(EntryType::new(b'D'), "dumped/", 6), b"Yf\0Nx\0")
        .file("f", b"content")
        .raw(link, b"")
        .raw(header(EntryType::Directory, "sized", 4096), b"")
        .raw(blank, b"")
        .file("last", b"last")
        .extract(&place.root())
        .unwrap();
    assert_eq!((place.read("hard"), place.read("last")), ("content".into(), "last".into()));
    assert!(place.path("dumped").is_dir() && place.path("sized").is_dir());
    assert!(!place.path("backup of").exists());
}
