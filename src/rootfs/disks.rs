//! Disks of a hard size, which hold a flavor's `root_gb` and `ephemeral_gb`:
//! sparse files with a file system of their own, through loop devices. That
//! works on any host file system, and `df` inside tells the truth.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, fstatvfs, major, minor, openat};

use super::backup;
use super::disk::{BlockDevice, COPY, DiskBackup, DiskCopy, DiskUsage, temporary_of};
use super::mounting::{DIRECT_IO, mount_device, mount_device_as};
use super::overlay::UPPER;
use super::template::{Filesystem, Templates, run};
use crate::config::{Storage, StorageBackend};
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::store::atomic::remove_file;
use crate::store::layout::{InstanceLayout, Layout};
use crate::store::room::{Claim, Room};
use crate::sys::copy::copy_sparse;
use crate::sys::fs::{grow_ext4, grow_xfs, preallocate, thaw};
use crate::sys::loopdev::{self, LoopDevice};
use crate::sys::mount::{self, Attributes};

/// All disks of this host. A disk is named by a file path of the layout; what
/// lies there is the business of this module alone.
pub struct Disks {
    templates: Templates,
    preallocate: bool,
    room: Arc<Room>,
}

impl Disks {
    /// Opens the configured back end; what a crash left half made is removed.
    pub fn new(layout: &Layout, config: &Storage, room: Arc<Room>) -> Result<Disks> {
        // The only one: another makes this line a matter of choice.
        let StorageBackend::Loop = config.backend;
        loopdev::check_available()?;
        let filesystem = Filesystem::parse(&config.filesystem)?;
        Ok(Disks {
            templates: Templates::open(layout.templates(), filesystem)?,
            preallocate: config.preallocate,
            room,
        })
    }

    /// Makes an empty disk of `size` bytes, which are promised to it from then on.
    /// One that exists with that size is success.
    pub fn create(&self, file: &Path, size: u64) -> Result<()> {
        let doing = || format!("making the disk {}", file.display());
        match fs::metadata(file) {
            Ok(found) if found.len() == size => return Ok(()),
            Ok(_) => return Err(Fault::internal(doing(), "it exists with another size")),
            Err(_) => {}
        }
        let temporary = temporary_of(file);
        let claim = self.room.for_disk(size, vec![temporary.clone()], "a disk")?;
        let template = self.templates.get(size)?;
        let made = self
            .fill(&template, &temporary, size)
            .and_then(|()| claim.settle(|| fs::rename(&temporary, file)));
        made.or_fault(doing()).inspect_err(|_| {
            // The reason is told already; `remove` and the next `create` also do away with it.
            let _ = fs::remove_file(&temporary);
        })
    }

    /// Makes an empty file for a disk that comes from another host, `size` bytes that are
    /// promised to it from then on.
    pub fn expect(&self, file: &Path, size: u64) -> Result<()> {
        let claim = self.room.for_disk(size, vec![], "a disk that comes from another host")?;
        let make = || {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600).open(file)?.set_len(size)
        };
        claim.settle(make).or_fault(format_args!("making the disk {}", file.display()))
    }

    /// Has what came in such a file be a disk: durable, and its file system as large as
    /// the file if it was smaller where it came from.
    pub fn accept(&self, file: &Path, was_smaller: bool) -> Result<()> {
        let doing = || format!("taking the disk {}", file.display());
        let disk = OpenOptions::new().write(true).open(file).or_fault(doing())?;
        let size = disk.metadata().or_fault(doing())?.len();
        if self.preallocate {
            preallocate(&disk, size).or_fault(doing())?;
        }
        if was_smaller {
            self.grow_unmounted(file, size)?;
        }
        disk.sync_all().or_fault(doing())
    }

    /// Mounts an instance's root disk at `mount_point`, for [`super::Rootfs::mount`].
    /// What is mounted there already is left if it is this disk, and taken away
    /// if not. [`detach`](Self::detach) undoes it.
    pub fn attach(&self, file: &Path, mount_point: &Path) -> Result<BlockDevice> {
        mount_disk(file, mount_point, None)
    }

    /// The same of an instance's ephemeral disk, at `layout.ephemeral_mount()`:
    /// ids appear as its pinned user namespace maps them, and the device by the name that the
    /// instance has for it.
    pub fn attach_ephemeral(&self, layout: &InstanceLayout, name: &Path) -> Result<BlockDevice> {
        let (file, mount_point) = (layout.ephemeral_disk(), layout.ephemeral_mount());
        mount_disk(&file, &mount_point, Some((&layout.user_ns(), name)))
    }

    /// Unmounts the disk; not mounted is success.
    pub fn detach(&self, _file: &Path, mount_point: &Path) -> Result<()> {
        // The device clears itself with its last user.
        mount::unmount(mount_point)
    }

    /// Makes the disk and its file system `size` bytes large, while mounted
    /// when `mount_point` is given and in use. Smaller than it is: a fault of
    /// the field `flavor.root_gb`.
    pub fn grow(&self, file: &Path, mount_point: Option<&Path>, size: u64) -> Result<()> {
        let doing = || format!("growing {}", file.display());
        let disk = OpenOptions::new().write(true).open(file).or_fault(doing())?;
        let before = disk.metadata().or_fault(doing())?.len();
        if size < before {
            return Err(Fault::invalid(
                "flavor.root_gb",
                format!("the disk has {before} bytes and cannot shrink to {size}"),
            ));
        }
        match mount_point {
            Some(point) if mount::is_mount_point(point)? => {
                self.grow_mounted(file, &disk, point, size)
            }
            _ => {
                // Should the file system fail to grow, the file stays large:
                // growing again finishes it.
                self.extend(&disk, before, size)?.or_fault(doing())?;
                self.grow_unmounted(file, size)
            }
        }
    }

    /// Copies a disk as it lies, which must be consistent, to `copy`: in no
    /// time where the host's file system shares extents between files.
    pub fn copy(&self, file: &Path, copy: &Path) -> Result<Claim> {
        let claim = self.claim_copy(file, copy)?;
        let (from, to) = open_for_copy(file, copy)?;
        copy_sparse(&from, &to).or_fault(format_args!("copying {}", file.display()))?;
        Ok(claim)
    }

    fn claim_copy(&self, file: &Path, copy: &Path) -> Result<Claim> {
        let from = fs::metadata(file).or_fault(format_args!("copying {}", file.display()))?;
        self.room.for_copy(from.blocks() * 512, copy, COPY)
    }

    /// Copies a disk that is in use to `copy`, up to [`DiskCopy::catch_up`].
    pub fn copy_ahead(&self, file: &Path, copy: &Path) -> Result<DiskCopy> {
        let claim = self.claim_copy(file, copy)?;
        let (from, to) = open_for_copy(file, copy)?;
        DiskCopy::ahead(from, to, claim)
    }

    /// Mounts a root disk's copy read-only, at no place, and opens what the
    /// instance wrote: the upper directory. The file is removed, and all of it
    /// goes with the descriptor, as what is given beside it shall: a copy's claim
    /// where it can still come to take space.
    pub fn open_copy(&self, copy: &Path, claim: Claim) -> Result<(OwnedFd, Option<Claim>)> {
        let claim = self.room.copies_share().then_some(claim);
        let mount = mount_copy(copy)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let upper =
            openat(mount, UPPER, flags, Mode::empty()).or_fault("opening the copy of a disk")?;
        Ok((upper, claim))
    }

    /// Copies detached disks as they are, each to the path it comes with, all
    /// of them or none: the data only, and in no space where the host's file
    /// system shares extents between files. `progress` is told of the bytes
    /// copied and those in all, and says whether to go on.
    pub fn back_up(&self, disks: &[DiskBackup], progress: &dyn Fn(u64, u64) -> bool) -> Result<()> {
        backup::make(disks, self.preallocate, &self.room, progress).inspect_err(|_| {
            // The reason is told already; whoever asked removes them too.
            let _ = disks.iter().try_for_each(|disk| self.remove(&disk.copy));
        })
    }

    /// Puts what [`back_up`](Self::back_up) copied in the place of its detached
    /// disk; no copy is success.
    pub fn put_back(&self, disk: &DiskBackup) -> Result<()> {
        let doing = || format!("putting {} back", disk.file.display());
        match fs::rename(&disk.copy, &disk.file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).or_fault(doing()),
            _ => crate::store::atomic::sync_parent(&disk.file).or_fault(doing()),
        }
    }

    /// Removes a detached disk; absence is success.
    pub fn remove(&self, file: &Path) -> Result<()> {
        remove_file(&temporary_of(file))?;
        remove_file(file)
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

    fn fill(&self, template: &Path, file: &Path, size: u64) -> std::io::Result<()> {
        let source = File::open(template)?;
        let target =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)?;
        copy_sparse(&source, &target)?;
        if self.preallocate { preallocate(&target, size) } else { Ok(()) }
    }

    fn grow_mounted(&self, file: &Path, disk: &File, mount_point: &Path, size: u64) -> Result<()> {
        let doing = || format!("growing {}", file.display());
        let device = mounted_device(file, mount_point)?
            .ok_or_else(|| Fault::internal(doing(), "another disk is mounted in its place"))?;
        let directory = File::open(mount_point).or_fault(doing())?;
        let (length, blocks) = (
            disk.metadata().or_fault(doing())?.len(),
            fstatvfs(&directory).or_fault(doing())?.f_blocks,
        );
        self.extend(disk, length, size)?.or_fault(doing())?;
        device.update_size().or_fault(doing())?;
        grow_filesystem(directory.as_fd(), Filesystem::of(file)?, size).map_err(|error| {
            // Cutting the file is safe only if the file system is all as it was.
            if fstatvfs(&directory).is_ok_and(|now| now.f_blocks == blocks) {
                // Both may fail: a file that is too large harms nobody.
                let _ = disk.set_len(length);
                let _ = device.update_size();
            }
            grow_fault(file, &error)
        })
    }

    fn grow_unmounted(&self, file: &Path, size: u64) -> Result<()> {
        let doing = || format!("growing {}", file.display());
        let filesystem = Filesystem::of(file)?;
        let grown = {
            let device = loopdev::attach(file, false, DIRECT_IO)?;
            device.update_size().or_fault(doing())?;
            let held = mount_device(&device, filesystem, Attributes::MOUNT_ATTR_NODEV)?;
            let root = mount::root_of(held.as_fd())?;
            grow_filesystem(root.as_fd(), filesystem, size)
        };
        match grown {
            // Without CAP_SYS_RESOURCE, ext4 grows only while not mounted.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) && filesystem == Filesystem::Ext4 => {
                self.leave_to_others(file)?;
                let device = loopdev::attach(file, false, DIRECT_IO)?;
                // Mounting it just now has replayed the journal; resize2fs
                // wants the check all the same.
                run(Command::new("e2fsck").args(["-f", "-p"]).arg(&device.path))?;
                run(Command::new("resize2fs").arg(&device.path))
            }
            other => other.map_err(|e| grow_fault(file, &e)),
        }
    }

    /// Where others have a copy of the disk's mount, what they have mounted becomes a file
    /// without a name, and a copy of it the disk: of that nobody else knows.
    fn leave_to_others(&self, file: &Path) -> Result<()> {
        let disk = File::open(file).or_fault(format_args!("growing {}", file.display()))?;
        match loopdev::lock_detached(&disk) {
            Err(e) if e.kind() == std::io::ErrorKind::ResourceBusy => {}
            other => return other.or_fault(format_args!("growing {}", file.display())),
        }
        drop(disk);
        let left = temporary_of(file);
        let swapped = [DiskBackup { file: file.to_owned(), copy: left.clone() }];
        self.back_up(&swapped, &|_, _| true)?;
        remove_file(&left)
    }

    /// Makes the file larger, or leaves it as it was: without room, or as the
    /// host says.
    fn extend(&self, disk: &File, length: u64, size: u64) -> Result<std::io::Result<()>> {
        let claim = self.room.for_disk(size.saturating_sub(length), vec![], "a larger disk")?;
        let mut done = claim.settle(|| disk.set_len(size));
        if done.is_ok() && self.preallocate {
            done = preallocate(disk, size).inspect_err(|_| {
                // Nothing is in the new part yet.
                let _ = disk.set_len(length);
            });
        }
        Ok(done)
    }
}

/// Mounts a disk at the directory `mount_point`. With `inside`, ids appear as that user namespace
/// maps them, and the device by that name.
fn mount_disk(
    file: &Path,
    mount_point: &Path,
    inside: Option<(&Path, &Path)>,
) -> Result<BlockDevice> {
    if mount::is_mount_point(mount_point)? {
        if let Some(device) = mounted_device(file, mount_point)? {
            return Ok(describe(&device));
        }
        mount::unmount(mount_point)?;
    }
    fs::create_dir_all(mount_point).or_fault(format_args!("making {}", mount_point.display()))?;
    let device = loopdev::attach(file, false, DIRECT_IO)?;
    // The raw mount has the instance's set-id programs with the host's own
    // ids; only mapped may they work.
    let filesystem = Filesystem::of(file)?;
    let mounted = match inside {
        None => {
            let attributes = Attributes::MOUNT_ATTR_NODEV | Attributes::MOUNT_ATTR_NOSUID;
            mount_device(&device, filesystem, attributes)?
        }
        Some((path, name)) => {
            let user_ns = File::open(path).or_fault(format_args!("opening {}", path.display()))?;
            let attributes = Attributes::MOUNT_ATTR_NODEV;
            let mounted = mount_device_as(&device, name, filesystem, attributes)?;
            mount::set_attributes(mounted.as_fd(), attributes, Some(user_ns.as_fd()))?;
            mounted
        }
    };
    // Where others have a copy of the mount, a service that was killed may have left it frozen.
    thaw(mount::root_of(mounted.as_fd())?.as_fd())
        .or_fault(format_args!("thawing {}", file.display()))?;
    mount::attach(mounted.as_fd(), mount_point)?;
    Ok(describe(&device))
}

/// A copy as a read-only mount that is nowhere; its file is removed.
fn mount_copy(copy: &Path) -> Result<OwnedFd> {
    // Writable below: the file system's journal is replayed as after a loss of power.
    let device = loopdev::attach(copy, false, DIRECT_IO);
    remove_file(copy)?;
    let attributes = Attributes::MOUNT_ATTR_RDONLY
        | Attributes::MOUNT_ATTR_NODEV
        | Attributes::MOUNT_ATTR_NOSUID
        | Attributes::MOUNT_ATTR_NOATIME;
    let device = device?;
    let mount = mount_device(&device, Filesystem::of(&device.path)?, attributes)?;
    mount::root_of(mount.as_fd())
}

/// A disk, and the empty file that becomes its copy.
fn open_for_copy(file: &Path, copy: &Path) -> Result<(File, File)> {
    let doing = || format!("copying {}", file.display());
    remove_file(copy)?;
    let from = File::open(file).or_fault(doing())?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    Ok((from, options.open(copy).or_fault(doing())?))
}

/// Grows the mounted file system that holds `directory` into all of its device.
fn grow_filesystem(
    directory: BorrowedFd<'_>,
    filesystem: Filesystem,
    size: u64,
) -> std::io::Result<()> {
    let blocks = size / fstatvfs(directory)?.f_bsize;
    match filesystem {
        Filesystem::Ext4 => grow_ext4(directory, blocks),
        Filesystem::Xfs => grow_xfs(directory, blocks),
    }
}

fn grow_fault(file: &Path, error: &std::io::Error) -> Fault {
    let detail = format!("growing the file system on {}: {error}", file.display());
    match error.raw_os_error() {
        Some(libc::EPERM) => Fault::new(
            FaultKind::HostUnsupported,
            format!("{detail}; the kernel wants CAP_SYS_RESOURCE: stop the instance first"),
        ),
        _ => Fault::new(FaultKind::Internal, detail),
    }
}

/// The device mounted at `mount_point`, if it has `file`.
fn mounted_device(file: &Path, mount_point: &Path) -> Result<Option<LoopDevice>> {
    let doing = || format!("looking at what is mounted at {}", mount_point.display());
    let backing = match fs::metadata(file) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.or_fault(doing())?,
    };
    let device = fs::metadata(mount_point).or_fault(doing())?.dev();
    if major(device) != loopdev::MAJOR {
        return Ok(None);
    }
    loopdev::open_attached(minor(device), &backing).or_fault(doing())
}

fn describe(device: &LoopDevice) -> BlockDevice {
    BlockDevice { path: device.path.clone(), major: loopdev::MAJOR, minor: device.number }
}
