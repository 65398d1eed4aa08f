//! Layers and disk put together with overlayfs, ids mapped on the way in.
//!
//! Nothing is copied and nothing chowned: layers lie on the host with real
//! ids, and each instance sees them through mounts whose ids its own user
//! namespace maps. What it writes lies on its disk with ids from 0, too.

use std::ffi::CString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, StatVfsMountFlags, fstatvfs, openat, statvfs};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::seed::{self, Seed};
use crate::fault::{Cause, Fault, FaultKind, OrFault, Result};
use crate::store::layout::InstanceLayout;
use crate::sys::ids::IdBlock;
use crate::sys::mount::{self, Attributes, FsOption};
use crate::sys::thread;

/// Directory on the disk that takes what the instance writes.
pub(super) const UPPER: &str = "upper";
/// Directory on the disk for overlayfs' own use.
const WORK: &str = "work";
/// The kernel's limit is 500 lower layers.
const MOST_LAYERS: usize = 500;
/// A directory of the image that is renamed inside is one in the upper directory that names where
/// the layers have it: only the kernel can write that there, and no layer holds any, for what an
/// image has of overlayfs's own attributes is data ([`crate::image::whiteout`]). Whoever reads the
/// upper directory follows it, as [`crate::snapshot::Tree`] does. Copies of metadata only, which
/// name a file's content in that way, gain nothing that would be worth it.
const OPTIONS: [(&str, &str); 4] =
    [("redirect_dir", "on"), ("metacopy", "off"), ("index", "off"), ("xino", "auto")];

/// One instance's root file system.
#[derive(Clone, Debug)]
pub struct Rootfs {
    /// The unpacked layers, lowest first, as the image lists them.
    pub layers: Vec<PathBuf>,
    /// The ids of the instance.
    pub block: IdBlock,
    /// Its paths.
    pub layout: InstanceLayout,
    /// Where the disk that takes its changes is mounted.
    disk: PathBuf,
    /// Where the merged tree goes.
    target: PathBuf,
    /// What the instance's table of mounts names it by: a disk's name inside.
    source: PathBuf,
}

/// A way to make the overlay of its pieces.
type Way = fn(&Rootfs, &DetachedMounts) -> Result<(), Refusal>;

/// The pieces of an overlay, as detached mounts with mapped ids.
struct DetachedMounts {
    layers: Vec<OwnedFd>,
    disk: OwnedFd,
}

impl Rootfs {
    /// What the instance boots: on its root disk, at `layout.rootfs()`.
    pub fn new(layers: Vec<PathBuf>, block: IdBlock, layout: InstanceLayout) -> Rootfs {
        let (disk, target) = (layout.disk_mount(), layout.rootfs());
        Rootfs { layers, block, layout, disk, target, source: "/dev/vda".into() }
    }

    /// The same of another disk (its mount point), at another place.
    #[must_use]
    pub fn at(self, disk: PathBuf, target: PathBuf) -> Rootfs {
        Rootfs { disk, target, ..self }
    }

    /// The same by another name in the table of mounts.
    #[must_use]
    pub fn named(self, source: PathBuf) -> Rootfs {
        Rootfs { source, ..self }
    }

    /// Mounts the merged tree at its place. The user namespace must be
    /// pinned and the disk mounted. A tree that is mounted already stays.
    pub fn mount(&self) -> Result<()> {
        self.mount_with(&[Self::mount_detached, Self::mount_attached])
    }

    /// Unmounts it; not mounted is success.
    pub fn unmount(&self) -> Result<()> {
        let merged = mount::unmount(&self.target);
        // Left only by a crash in the middle of `mount_attached`.
        let parts = self.clear_attached();
        merged.and(parts)
    }

    /// Writes what makes this instance itself into its mounted tree.
    pub fn seed(&self, seed: &Seed) -> Result<()> {
        if !mount::is_mount_point(&self.target)? {
            return Err(Fault::internal("seeding the root file system", "it is not mounted"));
        }
        seed::write(seed, &self.target, self.block)
    }

    fn mount_with(&self, ways: &[Way]) -> Result<()> {
        self.check()?;
        if mount::is_mount_point(&self.target)? {
            return Ok(());
        }
        self.make_directories()?;
        let parts = self.detached_mounts()?;
        let mut refused = None;
        for way in ways {
            match way(self, &parts) {
                Ok(()) => return Ok(()),
                // This kernel does not take it that way.
                Err(Refusal { errno: Some(Errno::INVAL | Errno::OPNOTSUPP), fault }) => {
                    refused = Some(fault)
                }
                Err(Refusal { fault, .. }) => return Err(fault),
            }
        }
        Err(refused.unwrap_or_else(|| Fault::internal("mounting the overlay", "no way to do it")))
    }

    fn check(&self) -> Result<()> {
        if self.layers.is_empty() || self.layers.len() > MOST_LAYERS {
            let count = self.layers.len();
            let detail = format!("the image has {count} layers; 1 to {MOST_LAYERS} can be mounted");
            return Err(Fault::new(FaultKind::ImageUnacceptable, detail));
        }
        let disk = &self.disk;
        if !mount::is_mount_point(disk)? {
            // Writes would go to the host's own disk, without a limit.
            let detail = format!("{} is not mounted", disk.display());
            return Err(Fault::internal("mounting the root file system", detail));
        }
        Ok(())
    }

    /// The runtime goes to the tree as the instance's root: its group may pass
    /// through the instance's directory, and nobody else may, for the set-id
    /// programs in the tree are real.
    fn make_directories(&self) -> Result<()> {
        let run = self.layout.run();
        let doing = || format!("making the directories below {}", run.display());
        fs::create_dir_all(run).or_fault(doing())?;
        chown(run, Some(0), Some(self.block.first)).or_fault(doing())?;
        fs::set_permissions(run, Permissions::from_mode(0o710)).or_fault(doing())?;
        fs::create_dir_all(&self.target).or_fault(doing())?;
        for name in [UPPER, WORK] {
            let path = self.disk.join(name);
            // The mode of the upper directory is that of / inside.
            match DirBuilder::new().mode(0o755).create(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(e).or_fault(doing());
                }
                Ok(()) => {
                    fs::set_permissions(&path, Permissions::from_mode(0o755)).or_fault(doing())?;
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn detached_mounts(&self) -> Result<DetachedMounts> {
        let path = self.layout.user_ns();
        let user_ns = File::open(&path).or_fault(format_args!("opening {}", path.display()))?;
        let mapped = |path: &Path, attributes| {
            let tree = mount::clone_tree(path)?;
            mount::set_attributes(tree.as_fd(), attributes, Some(user_ns.as_fd()))?;
            Ok(tree)
        };
        let layers = self.layers.iter().map(|layer| mapped(layer, Attributes::MOUNT_ATTR_RDONLY));
        Ok(DetachedMounts {
            layers: layers.collect::<Result<_>>()?,
            disk: mapped(&self.disk, Attributes::empty())?,
        })
    }

    /// Linux 6.15 and later: the parts are given as descriptors and never have a place.
    fn mount_detached(&self, parts: &DetachedMounts) -> Result<(), Refusal> {
        let open = |mount: &OwnedFd, name: &str| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(mount, name, flags, Mode::empty()).or_fault("opening a directory of the overlay")
        };
        // Overlayfs wants the topmost first.
        let lower: Vec<OwnedFd> =
            parts.layers.iter().rev().map(|layer| open(layer, ".")).collect::<Result<_>>()?;
        let (upper, work) = (open(&parts.disk, UPPER)?, open(&parts.disk, WORK)?);
        let mut options = vec![FsOption::Text("source", &self.source)];
        options.extend(OPTIONS.map(|(name, value)| FsOption::Text(name, Path::new(value))));
        options.extend(lower.iter().map(|fd| FsOption::Fd("lowerdir+", fd.as_fd())));
        options.push(FsOption::Fd("upperdir", upper.as_fd()));
        options.push(FsOption::Fd("workdir", work.as_fd()));
        let merged = self.as_instance_root(|| {
            mount::create("overlay", &options, Attributes::MOUNT_ATTR_NODEV)
                .map_err(|e| Refusal::new(e.errno, e))
        })?;
        check_writable(merged.as_fd())?;
        Ok(mount::attach(merged.as_fd(), &self.target)?)
    }

    /// Earlier kernels: the parts have a place for as long as the overlay is being made.
    fn mount_attached(&self, parts: &DetachedMounts) -> Result<(), Refusal> {
        self.clear_attached()?;
        let mounted = self.attach_parts(parts).map_err(Refusal::from).and_then(|data| {
            let target = &self.target;
            self.as_instance_root(|| {
                thread::work_in(&self.parts_dir())?;
                let (source, data) = (&self.source, data.as_c_str());
                rustix::mount::mount(source, target, "overlay", MountFlags::NODEV, data)
                    .map_err(|errno| Refusal::new(errno, errno))
            })?;
            let writable = statvfs(target)
                .or_fault("checking the overlay")
                .and_then(|found| refuse_read_only(found.f_flag));
            writable.map_err(|fault| {
                // The fault says more than a failed unmount could.
                let _ = mount::unmount(target);
                Refusal::from(fault)
            })
        });
        let cleared = self.clear_attached();
        mounted.and_then(|()| cleared.map_err(Refusal::from))
    }

    /// Gives the parts places, and these to overlayfs as one line of options.
    ///
    /// The names in it are relative to the places' directory: the instance reads
    /// the line in its `/proc/self/mountinfo`, where a path of the host has no
    /// business, and [`MOST_LAYERS`] of them fit into the page that mount(2) takes.
    fn attach_parts(&self, parts: &DetachedMounts) -> Result<CString> {
        let place = |name: &str, tree: &OwnedFd| {
            let path = self.parts_dir().join(name);
            fs::create_dir_all(&path).or_fault("making a place for a layer")?;
            mount::attach(tree.as_fd(), &path)
        };
        let names: Vec<String> = (0..parts.layers.len()).map(|n| n.to_string()).collect();
        for (name, layer) in names.iter().zip(&parts.layers) {
            place(name, layer)?;
        }
        place("disk", &parts.disk)?;
        let mut options = OPTIONS.map(|(name, value)| format!("{name}={value}")).to_vec();
        let topmost_first: Vec<&str> = names.iter().rev().map(String::as_str).collect();
        options.push(format!("lowerdir={}", topmost_first.join(":")));
        options.push(format!("upperdir=disk/{UPPER},workdir=disk/{WORK}"));
        CString::new(options.join(",")).or_fault("the overlay's options")
    }

    fn parts_dir(&self) -> PathBuf {
        self.layout.run().join("layers")
    }

    fn clear_attached(&self) -> Result<()> {
        let directory = self.parts_dir();
        for path in mount::mounts_below(&directory)? {
            mount::unmount(&path)?;
        }
        match fs::remove_dir_all(&directory) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).or_fault(format_args!("removing {}", directory.display()))
            }
            _ => Ok(()),
        }
    }

    /// Overlayfs remembers who mounted it and acts as that: an id the disk's
    /// mount does not map could not write to it.
    fn as_instance_root<T: Send>(
        &self,
        f: impl FnOnce() -> Result<T, Refusal> + Send,
    ) -> Result<T, Refusal> {
        thread::as_ids(self.block, || Ok(f()))?
    }
}

/// A failure, with the kernel's answer when it was the kernel that refused.
struct Refusal {
    errno: Option<Errno>,
    fault: Fault,
}

impl Refusal {
    fn new(errno: Errno, error: impl Into<Box<Cause>>) -> Refusal {
        Refusal { errno: Some(errno), fault: Fault::internal("mounting the overlay", error) }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Refusal {
        Refusal { errno: None, fault }
    }
}

fn check_writable(mount: BorrowedFd<'_>) -> Result<()> {
    refuse_read_only(fstatvfs(mount).or_fault("checking the overlay")?.f_flag)
}

/// Overlayfs turns read-only, without a word, when it cannot use its work directory.
fn refuse_read_only(flags: StatVfsMountFlags) -> Result<()> {
    if flags.contains(StatVfsMountFlags::RDONLY) {
        return Err(Fault::internal(
            "mounting the overlay",
            "the kernel made it read-only; it could not use the disk (see the kernel's log)",
        ));
    }
    Ok(())
}

#[cfg(test)]
impl Rootfs {
    /// Only as on Linux 6.15 and later.
    pub(super) fn mount_detached_only(&self) -> Result<()> {
        self.mount_with(&[Self::mount_detached])
    }

    /// Only as on earlier kernels.
    pub(super) fn mount_attached_only(&self) -> Result<()> {
        self.mount_with(&[Self::mount_attached])
    }
}
