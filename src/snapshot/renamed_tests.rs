//! Directories of an image that were renamed inside, in every shape of a snapshot.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use chrono::Utc;
use rustix::mount::{MountFlags, mount};

use super::tests::members;
use super::*;
use crate::image::testing::extract_bytes;
use crate::image::unpack::UnpackLimits;
use crate::sys::mount::unmount;
use crate::types::{ImageConfig, SnapshotFormat};

const LIMITS: UnpackLimits = UnpackLimits { entries: 1000, bytes: 1 << 30, ids: 65_536 };

/// An overlay of two layers and an upper directory, as berth mounts them.
struct Overlay {
    dir: tempfile::TempDir,
}

impl Overlay {
    fn new() -> Overlay {
        let dir = tempfile::tempdir().unwrap();
        for name in ["low", "high", "upper", "work", "merged", "unpacked", "again"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Overlay { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }

    /// Mounts it; `lower` are directories, the highest first.
    fn mount(&self, lower: &[&str], upper: bool, at: &str) {
        let path = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let lower: Vec<String> = lower.iter().map(|name| path(name)).collect();
        let mut options = format!("redirect_dir=on,index=off,lowerdir={}", lower.join(":"));
        if upper {
            options += &format!(",upperdir={},workdir={}", path("upper"), path("work"));
        }
        let options = std::ffi::CString::new(options).unwrap();
        mount("x", self.path(at), "overlay", MountFlags::empty(), options.as_c_str()).unwrap();
    }

    fn tree(&self, name: &str, left_out: &[&str]) -> Tree {
        Tree::new(
            File::open(self.path(name)).unwrap().into(),
            left_out.iter().map(|path| path.as_bytes().to_vec()).collect(),
            Scratches::within(&std::env::temp_dir()),
        )
    }

    fn packed(&self, format: SnapshotFormat) -> Vec<u8> {
        let upper = self.tree("upper", &[]).upper();
        let contents = Contents {
            layers: vec![self.tree("low", &[]), self.tree("high", &[]), upper],
            config: ImageConfig::default(),
            created: Utc::now(),
        };
        let mut bytes = Vec::new();
        write(format, &contents, &mut bytes, &|done, total| assert!(done <= total)).unwrap();
        zstd::decode_all(&bytes[..]).unwrap()
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        for name in ["merged", "again"] {
            let _ = unmount(&self.path(name));
        }
    }
}

/// Everything below a directory: what files hold, whose they are.
fn seen(root: &Path) -> BTreeMap<PathBuf, (u32, u32, Option<String>)> {
    fn below(root: &Path, path: &Path, all: &mut BTreeMap<PathBuf, (u32, u32, Option<String>)>) {
        for entry in fs::read_dir(root.join(path)).unwrap() {
            let path = path.join(entry.unwrap().file_name());
            let found = fs::symlink_metadata(root.join(&path)).unwrap();
            let content = found.is_file().then(|| fs::read_to_string(root.join(&path)).unwrap());
            all.insert(path.clone(), (found.mode(), found.uid(), content));
            if found.is_dir() {
                below(root, &path, all);
            }
        }
    }
    let mut all = BTreeMap::new();
    below(root, Path::new(""), &mut all);
    all
}

/// The last layer of what `docker save` writes.
fn last_layer(archive: &[u8]) -> Vec<u8> {
    let is_layer = |(name, ..): &(String, _, _)| name.starts_with("layers/");
    members(archive).into_iter().rfind(is_layer).unwrap().2
}

#[test]
fn root_a_renamed_directory_is_whole_in_every_shape() {
    let overlay = Overlay::new();
    for name in ["a/b/c/deep", "a/b/gone", "a/low", "beside/x", "usr/lib/p/old", "usr/lib/q/y"] {
        overlay.put(&format!("low/{name}"));
    }
    for name in ["a/b/c/high", "a/high", "usr/lib/p/new", "swap/one", "etc/stays"] {
        overlay.put(&format!("high/{name}"));
    }
    std::os::unix::fs::chown(overlay.path("low/a/low"), Some(33), Some(33)).unwrap();
    fs::hard_link(overlay.path("low/a/low"), overlay.path("low/a/b/second")).unwrap();
    overlay.mount(&["high", "low"], true, "merged");
    let at = |name: &str| overlay.path("merged").join(name);
    let rename = |from: &str, to: &str| fs::rename(at(from), at(to)).unwrap();
    // Beside, elsewhere, within what was renamed, back to a name that was, into a new directory.
    rename("a", "z");
    rename("z/b", "usr/b");
    rename("usr/b/c", "usr/b/d");
    rename("usr/lib/p", "usr/lib/p.old");
    fs::create_dir(at("usr/lib/p")).unwrap();
    fs::write(at("usr/lib/p/newest"), "n").unwrap();
    rename("usr/lib/q", "q");
    rename("q", "usr/lib/q");
    fs::create_dir(at("new")).unwrap();
    rename("beside", "new/beside");
    rename("swap", "swapped");
    rename("new", "swap");
    fs::remove_file(at("usr/b/gone")).unwrap();
    fs::write(at("usr/b/d/deep"), "written").unwrap();
    fs::write(at("z/more"), "more").unwrap();
    let expected = seen(&overlay.path("merged"));
    assert!(expected.contains_key(Path::new("usr/b/d/high")) && expected.len() > 20);
    unmount(&overlay.path("merged")).unwrap();

    // A tarball, of which a disk is made, too.
    let tarball = overlay.packed(SnapshotFormat::RootfsTar);
    let to = overlay.path("unpacked");
    let report = extract_bytes(&tarball, &to, LIMITS).unwrap();
    assert!(report.marks.opaque.is_empty());
    assert_eq!(seen(&to), expected);

    // A layer, on the layers that the image had.
    let layer = last_layer(&overlay.packed(SnapshotFormat::DockerArchive));
    assert!(!String::from_utf8_lossy(&layer).contains("redirect"));
    fs::remove_dir_all(&to).unwrap();
    fs::create_dir(&to).unwrap();
    let report = extract_bytes(&layer, &to, LIMITS).unwrap();
    report.marks.set(std::os::fd::AsFd::as_fd(&File::open(&to).unwrap())).unwrap();
    overlay.mount(&["unpacked", "high", "low"], false, "again");
    assert_eq!(seen(&overlay.path("again")), expected);
}

/// What an image's layer might hold is no word of the kernel's.
#[test]
fn root_a_layer_renames_nothing() {
    let overlay = Overlay::new();
    overlay.put("low/secret/x");
    overlay.put("high/d/y");
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(overlay.path("high/d"), "trusted.overlay.redirect", b"/secret", flags)
        .unwrap();
    let to = overlay.path("unpacked");
    extract_bytes(&overlay.packed(SnapshotFormat::RootfsTar), &to, LIMITS).unwrap();
    assert!(to.join("d/y").exists() && !to.join("d/x").exists());
}
