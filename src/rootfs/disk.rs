//! Disks of a hard size: what holds a flavor's `root_gb` and `ephemeral_gb`.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};
use serde::{Deserialize, Serialize};

use super::loop_disk::LoopDisks;
use super::overlay::UPPER;
use crate::config::{Storage, StorageBackend};
use crate::fault::{OrFault, Result};
use crate::store::layout::{InstanceLayout, Layout};
use crate::sys::copy::{copy_changes, copy_data, share_extents};
use crate::sys::mount;

/// A block device of the host, as limits and statistics name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// E.g. `/dev/loop3`.
    pub path: PathBuf,
    /// Major device number.
    pub major: u32,
    /// Minor device number.
    pub minor: u32,
}

/// A disk and the path of a copy of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The disk.
    pub file: PathBuf,
    /// The copy.
    pub copy: PathBuf,
}

/// A copy of a disk that is in use.
pub struct DiskCopy {
    from: File,
    to: File,
}

impl DiskCopy {
    /// Fills the empty file `to` with what is on the disk `from` by now, if
    /// that takes any time.
    pub(super) fn ahead(from: File, to: File) -> Result<DiskCopy> {
        let doing = "copying a disk that is in use";
        if share_extents(&from, &to) {
            // Faster into an empty file than over extents that differ by now.
            to.set_len(0).or_fault(doing)?;
        } else {
            copy_data(&from, &to, &mut |_| true).or_fault(doing)?;
        }
        Ok(DiskCopy { from, to })
    }

    /// Makes it what the disk is now, which takes no change meanwhile. The
    /// bytes that had to be copied again.
    pub fn finish(self) -> Result<u64> {
        if share_extents(&self.from, &self.to) {
            return Ok(0);
        }
        copy_changes(&self.from, &self.to).or_fault("copying what changed on a disk")
    }
}

/// What a mounted disk's file system holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes it can hold, its own book-keeping not counted: what `df` shows.
    pub size: u64,
    /// Bytes it holds.
    pub used: u64,
}

/// A way to hold a disk's size. A disk is named by a file path of the layout;
/// what lies there is the back end's own affair.
pub trait DiskBackend: Send + Sync {
    /// Does ahead what makes later [`create`](Self::create)s of this size fast.
    fn prepare(&self, size: u64) -> Result<()>;

    /// Makes an empty disk of `size` bytes. One that exists with that size is success.
    fn create(&self, file: &Path, size: u64) -> Result<()>;

    /// Mounts the disk at the directory `mount_point`; what is mounted there
    /// already is left if it is this disk, and taken away if not. With
    /// `user_ns`, ids appear as that user namespace maps them.
    fn attach(
        &self,
        file: &Path,
        mount_point: &Path,
        user_ns: Option<&Path>,
    ) -> Result<BlockDevice>;

    /// Unmounts the disk; not mounted is success.
    fn detach(&self, file: &Path, mount_point: &Path) -> Result<()>;

    /// Makes the disk and its file system `size` bytes large, while mounted
    /// when `mount_point` is given and in use. Smaller than it is: a fault of
    /// the field `flavor.root_gb`.
    fn grow(&self, file: &Path, mount_point: Option<&Path>, size: u64) -> Result<()>;

    /// Copies a disk as it lies, which must be consistent, to `copy`: in no
    /// time where the host's file system shares extents between files.
    fn copy(&self, file: &Path, copy: &Path) -> Result<()>;

    /// Copies a disk that is in use to `copy`, up to [`DiskCopy::finish`].
    fn copy_ahead(&self, file: &Path, copy: &Path) -> Result<DiskCopy>;

    /// Mounts a copy read-only and at no place. The file is removed, and what
    /// is in it goes with the mount's descriptor.
    fn open_copy(&self, copy: &Path) -> Result<OwnedFd>;

    /// Copies detached disks as they are, each to the path it comes with, all
    /// of them or none: the data only, and in no space where the host's file
    /// system shares extents between files. `progress` is told of the bytes
    /// copied and those in all, and says whether to go on.
    fn keep(&self, disks: &[Kept], progress: &dyn Fn(u64, u64) -> bool) -> Result<()>;

    /// Puts what [`keep`](Self::keep) copied in the place of its detached
    /// disk; no copy is success.
    fn put_back(&self, disk: &Kept) -> Result<()>;

    /// Makes what was written to the disk so far survive a loss of power.
    fn sync(&self, file: &Path) -> Result<()>;

    /// Removes a detached disk; absence is success.
    fn remove(&self, file: &Path) -> Result<()>;
}

/// All disks of this host, through the configured back end.
pub struct Disks {
    backend: Box<dyn DiskBackend>,
}

impl Disks {
    /// Opens the configured back end; what a crash left half made is removed.
    pub fn new(layout: &Layout, config: &Storage) -> Result<Disks> {
        let backend = match config.backend {
            StorageBackend::Loop => Box::new(LoopDisks::new(layout, config)?),
        };
        Ok(Disks { backend })
    }

    /// Does ahead what makes later [`create`](Self::create)s of this size fast.
    pub fn prepare(&self, size: u64) -> Result<()> {
        self.backend.prepare(size)
    }

    /// Makes an empty disk of `size` bytes. One that exists with that size is success.
    pub fn create(&self, file: &Path, size: u64) -> Result<()> {
        self.backend.create(file, size)
    }

    /// Mounts an instance's root disk at `mount_point`, for [`super::Rootfs::mount`].
    pub fn attach(&self, file: &Path, mount_point: &Path) -> Result<BlockDevice> {
        self.backend.attach(file, mount_point, None)
    }

    /// Mounts the ephemeral disk of an instance at `layout.ephemeral_mount()`,
    /// ids mapped by its pinned user namespace. [`detach`](Self::detach) undoes it.
    pub fn attach_ephemeral(&self, layout: &InstanceLayout) -> Result<BlockDevice> {
        self.backend.attach(
            &layout.ephemeral_disk(),
            &layout.ephemeral_mount(),
            Some(&layout.user_ns()),
        )
    }

    /// Unmounts a disk; not mounted is success.
    pub fn detach(&self, file: &Path, mount_point: &Path) -> Result<()> {
        self.backend.detach(file, mount_point)
    }

    /// Makes a disk and its file system `size` bytes large, mounted or not.
    pub fn grow(&self, file: &Path, mount_point: Option<&Path>, size: u64) -> Result<()> {
        self.backend.grow(file, mount_point, size)
    }

    /// Copies a disk as it lies, which must be consistent, to `copy`.
    pub fn copy(&self, file: &Path, copy: &Path) -> Result<()> {
        self.backend.copy(file, copy)
    }

    /// Copies a disk that is in use to `copy`, up to [`DiskCopy::finish`].
    pub fn copy_ahead(&self, file: &Path, copy: &Path) -> Result<DiskCopy> {
        self.backend.copy_ahead(file, copy)
    }

    /// Mounts a root disk's copy and opens what the instance wrote: the upper
    /// directory. The file is removed, and all of it goes with the descriptor.
    pub fn open_copy(&self, copy: &Path) -> Result<OwnedFd> {
        let mount = self.backend.open_copy(copy)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(mount, UPPER, flags, Mode::empty()).or_fault("opening the copy of a disk")
    }

    /// Copies detached disks, all of them or none; see [`DiskBackend::keep`].
    pub fn keep(&self, disks: &[Kept], progress: &dyn Fn(u64, u64) -> bool) -> Result<()> {
        self.backend.keep(disks, progress)
    }

    /// Puts a copy in the place of its detached disk; no copy is success.
    pub fn put_back(&self, disk: &Kept) -> Result<()> {
        self.backend.put_back(disk)
    }

    /// Makes what was written to the disk so far survive a loss of power.
    pub fn sync(&self, file: &Path) -> Result<()> {
        self.backend.sync(file)
    }

    /// Removes a detached disk; absence is success.
    pub fn remove(&self, file: &Path) -> Result<()> {
        self.backend.remove(file)
    }

    /// What the file system mounted at `mount_point` holds.
    pub fn usage(&self, mount_point: &Path) -> Result<DiskUsage> {
        let doing = || format!("asking for the usage of {}", mount_point.display());
        if !mount::is_mount_point(mount_point)? {
            // The figures of the host's own disk would be worse than none.
            return Err(rustix::io::Errno::NODEV).or_fault(doing());
        }
        let found = rustix::fs::statvfs(mount_point).or_fault(doing())?;
        Ok(DiskUsage {
            size: found.f_blocks * found.f_frsize,
            used: found.f_blocks.saturating_sub(found.f_bfree) * found.f_frsize,
        })
    }
}
