//! The file system on a disk as a mount.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::template::Filesystem;
use crate::fault::{OrFault, Result};
use crate::sys::loopdev::LoopDevice;
use crate::sys::mount::{self, Attributes, FsOption};

/// Goes past the host's page cache: data is cached once, by the file system
/// on the disk, and counted there.
pub(super) const DIRECT_IO: bool = true;

/// The file system `filesystem` on `device` as a mount that is nowhere yet.
pub(super) fn mount_device(
    device: &LoopDevice,
    filesystem: Filesystem,
    attributes: Attributes,
) -> Result<OwnedFd> {
    let source = FsOption::Text("source", &device.path);
    // Discard: what is deleted inside becomes a hole in the file.
    let discard = FsOption::Flag("discard");
    let own = match filesystem {
        Filesystem::Ext4 => FsOption::Text("errors", Path::new("remount-ro")),
        // Copies of a template have its UUID.
        Filesystem::Xfs => FsOption::Flag("nouuid"),
    };
    mount::create(filesystem.name(), &[source, discard, own], attributes)
        .or_fault(format_args!("mounting the file system on {}", device.path.display()))
}
