//! What is said of disks: devices, copies, backups, use.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fault::{OrFault, Result};
use crate::store::atomic::TEMPORARY;
use crate::store::room::Claim;
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

/// What a copy of a disk is called where it finds no room.
pub(super) const COPY: &str = "the copy of a disk";

/// A copy of a disk that is in use.
pub struct DiskCopy {
    from: File,
    to: File,
    claim: Claim,
}

impl DiskCopy {
    /// Fills the empty file `to` with what is on the disk `from` by now, if
    /// that takes any time.
    pub(super) fn ahead(from: File, to: File, claim: Claim) -> Result<DiskCopy> {
        let doing = "copying a disk that is in use";
        if share_extents(&from, &to) {
            // Faster into an empty file than over extents that differ by now.
            to.set_len(0).or_fault(doing)?;
        } else {
            let mut room = Ok(());
            let copied = copy_data(&from, &to, &mut |_| {
                room = keep_up(&from, &claim);
                room.is_ok()
            });
            // Cut short for it.
            room?;
            copied.or_fault(doing)?;
        }
        Ok(DiskCopy { from, to, claim })
    }

    /// Makes it what the disk is now, which takes no change meanwhile. The
    /// bytes that had to be copied again.
    pub fn catch_up(self) -> Result<(u64, Claim)> {
        let DiskCopy { from, to, claim } = self;
        keep_up(&from, &claim)?;
        if share_extents(&from, &to) {
            return Ok((0, claim));
        }
        let changed = copy_changes(&from, &to).or_fault("copying what changed on a disk")?;
        Ok((changed, claim))
    }
}

/// Asks for the room of what the disk came to hold meanwhile.
fn keep_up(from: &File, claim: &Claim) -> Result<()> {
    let holds = from.metadata().or_fault("copying a disk that is in use")?.blocks() * 512;
    claim.raise(holds, COPY)
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
