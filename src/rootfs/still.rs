//! A detached disk that nobody changes.
//!
//! Whoever takes a mount namespace of its own gets a copy of every mount there
//! is, and the file system on a disk stays mounted there when it is unmounted
//! here. Then it cannot be waited for: it is frozen instead.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::mounting::{DIRECT_IO, mount_device};
use super::template::Filesystem;
use crate::fault::{OrFault, Result};
use crate::sys::fs::{freeze, thaw};
use crate::sys::loopdev::{self, lock_detached};
use crate::sys::mount::{self, Attributes};

/// As long as this value and the file that it was made of are open, what the
/// file holds is consistent and stays as it is.
pub struct Still {
    /// Of the file system that others have mounted.
    frozen: Option<OwnedFd>,
}

impl Still {
    /// Holds `disk`, the file at `path`, which is mounted nowhere that this service knows of.
    pub fn hold(disk: &File, path: &Path) -> Result<Still> {
        let doing = || format!("holding {} still", path.display());
        match lock_detached(disk) {
            Ok(()) => return Ok(Still { frozen: None }),
            Err(e) if e.kind() == ErrorKind::ResourceBusy => {}
            Err(e) => return Err(e).or_fault(doing()),
        }
        // The device that there is, and a mount of the file system that is on
        // it: it cannot end while it is held.
        let device = loopdev::attach(path, false, DIRECT_IO)?;
        let attributes = Attributes::MOUNT_ATTR_NODEV | Attributes::MOUNT_ATTR_NOSUID;
        let mounted = mount_device(&device, Filesystem::of(path)?, attributes)?;
        let root = mount::root_of(mounted.as_fd())?;
        freeze(root.as_fd()).or_fault(doing())?;
        tracing::info!(disk = %path.display(), "another process has a copy of its mount: frozen");
        Ok(Still { frozen: Some(root) })
    }

    /// Whether somebody else has the file system mounted.
    pub(super) fn is_mounted_elsewhere(&self) -> bool {
        self.frozen.is_some()
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        let Some(root) = &self.frozen else { return };
        if let Err(error) = thaw(root.as_fd()) {
            // The next to mount it tries again.
            tracing::error!(%error, "thawing a disk");
        }
    }
}
