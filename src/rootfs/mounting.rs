//! The file system on a disk as a mount.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::template::Filesystem;
use crate::fault::{OrFault, Result};
use crate::sys::loopdev::{self, LoopDevice};
use crate::sys::mount::{self, Attributes, CreateError, FsOption};
use crate::sys::thread;

/// Goes past the host's page cache: data is cached once, by the file system
/// on the disk, and counted there.
pub(super) const DIRECT_IO: bool = true;

/// The file system `filesystem` on `device` as a mount that is nowhere yet.
pub(super) fn mount_device(
    device: &LoopDevice,
    filesystem: Filesystem,
    attributes: Attributes,
) -> Result<OwnedFd> {
    mount_source(&device.path, filesystem, attributes)
        .or_fault(format_args!("mounting the file system on {}", device.path.display()))
}

/// [`mount_device`] of which a table of mounts says that it is of `name`, an absolute path that
/// the host need not have. The kernel takes the name that it has found the device by.
pub(super) fn mount_device_as(
    device: &LoopDevice,
    name: &Path,
    filesystem: Filesystem,
    attributes: Attributes,
) -> Result<OwnedFd> {
    let doing = || format!("mounting the file system on {}", device.path.display());
    // Nobody else ever sees it.
    let place = mount::create("tmpfs", &[], Attributes::empty()).or_fault(doing())?;
    let root = mount::root_of(place.as_fd())?;
    thread::in_root(root.as_fd(), || {
        let parent = name.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).or_fault(doing())?;
        let number = makedev(loopdev::MAJOR, device.number);
        mknodat(CWD, name, FileType::BlockDevice, Mode::RUSR, number).or_fault(doing())?;
        mount_source(name, filesystem, attributes).or_fault(doing())
    })
}

fn mount_source(
    source: &Path,
    filesystem: Filesystem,
    attributes: Attributes,
) -> Result<OwnedFd, CreateError> {
    let source = FsOption::Text("source", source);
    // Discard: what is deleted inside becomes a hole in the file.
    let discard = FsOption::Flag("discard");
    let own = match filesystem {
        Filesystem::Ext4 => FsOption::Text("errors", Path::new("remount-ro")),
        // Copies of a template have its UUID.
        Filesystem::Xfs => FsOption::Flag("nouuid"),
    };
    mount::create(filesystem.name(), &[source, discard, own], attributes)
}
