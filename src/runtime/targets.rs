//! Where a bundle's mounts go, looked at before a runtime program does.
//!
//! The root file system is an image's or a tenant's. Runtime programs have
//! followed a link in it out to the host (CVE-2021-30465, and runc 1.1's devices
//! below a `/dev` that is a link), so none is ever given one to follow.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::Deserialize;

use crate::fault::{Fault, FaultKind, OrFault, Result};

/// Links that one lookup may lead through, as in the kernel.
const MAX_LINKS: usize = 40;
/// Where images have links of good right (`/mnt` to `/var/mnt`), and berth puts disks.
const DISKS: &str = "/mnt";

/// Has the mounts of disks go where the links in the root file system lead
/// inside it, so that the runtime program meets none.
pub fn follow_links(spec: &mut Spec, rootfs: &Path) -> Result<()> {
    let Some(mut mounts) = spec.mounts().clone() else { return Ok(()) };
    let (disks, others): (Vec<_>, Vec<_>) =
        mounts.iter_mut().partition(|mount| mount.destination().starts_with(DISKS));
    for mount in disks {
        let way = walk(rootfs, mount.destination())?;
        // A disk there would stand for what berth mounts, links of its owner's and all.
        let meets = |other: &Path| way.end.starts_with(other) || other.starts_with(&way.end);
        if let Some(other) = others.iter().find(|other| meets(other.destination())) {
            let to = format!("a link that leads to {}", other.destination().display());
            return Err(unacceptable(&way.link.unwrap_or(way.end), &to, mount.destination()));
        }
        mount.set_destination(way.end);
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

/// Refuses a bundle of which a mount would go through a link, or onto
/// something else than a directory.
pub fn check(bundle: &Path) -> Result<()> {
    #[derive(Deserialize)]
    struct Bundle {
        root: Root,
        #[serde(default)]
        mounts: Vec<Mount>,
    }
    #[derive(Deserialize)]
    struct Root {
        path: PathBuf,
    }
    #[derive(Deserialize)]
    struct Mount {
        destination: PathBuf,
    }
    let doing = "looking where the instance's mounts go";
    let text = fs::read(bundle.join("config.json")).or_fault(doing)?;
    let bundle: Bundle = serde_json::from_slice(&text).or_fault(doing)?;
    let mut covered: Vec<&Path> = Vec::new();
    for Mount { destination } in &bundle.mounts {
        // What is below an earlier mount is of berth's making.
        if covered.iter().any(|earlier| destination.starts_with(earlier)) {
            continue;
        }
        let way = walk(&bundle.root.path, destination)?;
        if let Some(link) = way.link {
            return Err(unacceptable(&link, "a symbolic link", destination));
        }
        if way.blocked {
            return Err(unacceptable(&way.end, "no directory", destination));
        }
        covered.push(destination);
    }
    Ok(())
}

fn unacceptable(place: &Path, is: &str, destination: &Path) -> Fault {
    Fault::new(
        FaultKind::ImageUnacceptable,
        format!(
            "{} in the instance's root file system is {is}, where {} has to be mounted: \
             make it a directory",
            place.display(),
            destination.display()
        ),
    )
}

/// How one gets to a place.
struct Way {
    /// The place's path without links, or that of what is in the way.
    end: PathBuf,
    /// The first link on it.
    link: Option<PathBuf>,
    /// Whether something is in the way: a directory is needed all along.
    blocked: bool,
}

/// Goes to `path` as a process with `root` as its root directory would. What
/// is absent is taken for directories to be made.
fn walk(root: &Path, path: &Path) -> Result<Way> {
    let doing = || format!("looking at {} in the root file system", path.display());
    let root = File::open(root).or_fault(doing())?;
    let mut todo = names(path);
    let mut here: Vec<(OsString, Option<OwnedFd>)> = Vec::new();
    let (mut link, mut links) = (None, 0);
    let place = |here: &[(OsString, Option<OwnedFd>)]| {
        Path::new("/").join(here.iter().map(|(name, _)| name).collect::<PathBuf>())
    };
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            here.pop();
            continue;
        }
        let opened = match here.last() {
            Some((_, None)) => None,
            Some((_, Some(parent))) => look(parent, &name).or_fault(doing())?,
            None => look(&root, &name).or_fault(doing())?,
        };
        let Some((fd, kind)) = opened else {
            here.push((name, None));
            continue;
        };
        if kind == FileType::Symlink {
            link.get_or_insert_with(|| place(&here).join(&name));
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP).or_kind(FaultKind::ImageUnacceptable, doing());
            }
            let target = rustix::fs::readlinkat(&fd, "", Vec::new()).or_fault(doing())?;
            let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
            if target.is_absolute() {
                here.clear();
            }
            names(&target).into_iter().rev().for_each(|name| todo.push_front(name));
            continue;
        }
        here.push((name, Some(fd)));
        if kind != FileType::Directory {
            return Ok(Way { end: place(&here), link, blocked: true });
        }
    }
    Ok(Way { end: place(&here), link, blocked: false })
}

/// What has this name in a directory; `None` when nothing has.
fn look(
    directory: impl std::os::fd::AsFd,
    name: &OsString,
) -> rustix::io::Result<Option<(OwnedFd, FileType)>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
    Ok(Some((fd, kind)))
}

fn names(path: &Path) -> VecDeque<OsString> {
    let name = |component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Bundle(tempfile::TempDir);

    impl Bundle {
        fn new(mounts: &[&str]) -> Bundle {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("rootfs");
            fs::create_dir(&root).unwrap();
            let mounts: Vec<_> =
                mounts.iter().map(|to| serde_json::json!({"destination": to})).collect();
            let config = serde_json::json!({"root": {"path": root}, "mounts": mounts});
            fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
            Bundle(dir)
        }

        fn root(&self) -> PathBuf {
            self.0.path().join("rootfs")
        }

        fn refusal(&self) -> String {
            let fault = check(self.0.path()).unwrap_err();
            assert_eq!(fault.kind, FaultKind::ImageUnacceptable);
            fault.detail
        }
    }

    #[test]
    fn a_directory_or_nothing_is_a_place_to_mount_on() {
        let bundle = Bundle::new(&["/proc", "/dev", "/dev/pts", "/sys/fs/cgroup", "/mnt/a/b"]);
        fs::create_dir(bundle.root().join("dev")).unwrap();
        // Below /dev there will be another file system, whatever the image has there.
        symlink("/tmp", bundle.root().join("dev/pts")).unwrap();
        check(bundle.0.path()).unwrap();
    }

    #[test]
    fn no_link_is_left_to_a_runtime_program() {
        for target in ["/tmp", "../../../tmp", "real", "gone", "dev"] {
            let bundle = Bundle::new(&["/proc", "/dev", "/dev/pts"]);
            fs::create_dir(bundle.root().join("real")).unwrap();
            symlink(target, bundle.root().join("dev")).unwrap();
            let detail = bundle.refusal();
            assert!(target == "dev" || detail.starts_with("/dev in the instance's"), "{detail}");
        }
        let bundle = Bundle::new(&["/sys/fs/cgroup"]);
        fs::create_dir(bundle.root().join("sys")).unwrap();
        symlink("/tmp", bundle.root().join("sys/fs")).unwrap();
        assert!(bundle.refusal().starts_with("/sys/fs in the instance's"));
        let bundle = Bundle::new(&["/run"]);
        fs::write(bundle.root().join("run"), "").unwrap();
        assert!(bundle.refusal().contains("is no directory"));
    }

    #[test]
    fn disks_go_where_links_lead_inside() {
        let dir = tempfile::tempdir().unwrap();
        let lead = |target: &str, to: &str| {
            let link = dir.path().join("mnt");
            let _ = fs::remove_file(&link);
            symlink(target, link).unwrap();
            let mut spec = Spec::default();
            let mut mount = oci_spec::runtime::Mount::default();
            mount.set_destination(to.into());
            spec.set_mounts(Some(vec![mount]));
            follow_links(&mut spec, dir.path()).unwrap();
            spec.mounts().as_ref().unwrap()[0].destination().clone()
        };
        assert_eq!(lead("var/mnt", "/mnt"), Path::new("/var/mnt"));
        assert_eq!(lead("var/mnt", "/mnt/instance"), Path::new("/var/mnt/instance"));
        assert_eq!(lead("/var/mnt", "/mnt/instance"), Path::new("/var/mnt/instance"));
        assert_eq!(lead("../../../tmp", "/mnt"), Path::new("/tmp"));
        for target in ["/", "..", "/dev", "dev/pts", "/sys/fs"] {
            let link = dir.path().join("mnt");
            fs::remove_file(&link).unwrap();
            symlink(target, link).unwrap();
            let mut spec = Spec::default();
            let mounts = ["/dev", "/sys/fs/cgroup", "/mnt"].map(|to| {
                let mut mount = oci_spec::runtime::Mount::default();
                mount.set_destination(to.into());
                mount
            });
            spec.set_mounts(Some(mounts.into()));
            let fault = follow_links(&mut spec, dir.path()).unwrap_err();
            assert!(fault.detail.starts_with("/mnt in the instance's"), "{target}: {fault}");
        }
        // Others are the check's to refuse.
        assert_eq!(lead("x", "/run"), Path::new("/run"));
    }
}
