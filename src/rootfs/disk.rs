//! What is said of disks: devices, copies, backups, use.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fault::{OrFault, Result};
use crate::store::atomic::TEMPORARY;
use crate::sys::copy::{copy_changes, copy_data, share_extents};

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

/// A detached disk and the path of its backup, from which a resize is undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskBackup {
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
    pub fn catch_up(self) -> Result<u64> {
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

/// Where a disk, or a copy of one, is made: it gets its name once it is whole.
pub(super) fn temporary_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(TEMPORARY);
    name.into()
}
