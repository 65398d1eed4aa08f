//! Backups of disks that are files: a copy of each, at the cost of its data at most.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::Arc;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::disk::{DiskBackup, temporary_of};
use super::still::Still;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::store::atomic::sync_parent;
use crate::store::room::{Claim, Room};
use crate::sys::copy::{copy_data, share_extents};
use crate::sys::fs::preallocate;

/// A copy at work. It gets its name once it is whole.
struct BackupCopy<'a> {
    disk: &'a DiskBackup,
    from: File,
    to: File,
    // Bytes to copy; none where the extents are shared.
    data: u64,
    still: Still,
}

/// Makes the copies; `whole`: with space for all that may ever be written.
/// What a failure leaves is the caller's to remove.
pub(super) fn make(
    disks: &[DiskBackup],
    whole: bool,
    room: &Arc<Room>,
    progress: &dyn Fn(u64, u64) -> bool,
) -> Result<()> {
    let claims = claim(disks, whole, room)?;
    let copies = disks.iter().map(begin).collect::<Result<Vec<_>>>()?;
    let total = copies.iter().map(|copy| copy.data).sum();
    let mut done = 0;
    for copy in &copies {
        fill(copy, whole, &mut |bytes| {
            done += bytes;
            progress(done, total)
        })?;
    }
    copies.iter().zip(claims).try_for_each(|(copy, claim)| give_its_name(copy, claim))
}

fn begin(disk: &DiskBackup) -> Result<BackupCopy<'_>> {
    let doing = || format!("keeping {}", disk.file.display());
    let from = File::open(&disk.file).or_fault(doing())?;
    let still = Still::hold(&from, &disk.file)?;
    let temporary = temporary_of(&disk.copy);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let to = options.open(&temporary).or_fault(doing())?;
    let data = if share_extents(&from, &to) {
        0
    } else {
        from.metadata().or_fault(doing())?.blocks() * 512
    };
    Ok(BackupCopy { disk, from, to, data, still })
}

/// Asked before anything is copied: a full disk would hit every instance.
fn claim(disks: &[DiskBackup], whole: bool, room: &Arc<Room>) -> Result<Vec<Claim>> {
    let claimed = disks.iter().map(|disk| {
        let doing = format!("keeping {}", disk.file.display());
        let found = fs::metadata(&disk.file).or_fault(doing)?;
        let data = found.blocks() * 512;
        let bytes = if whole { data.max(found.len()) } else { data };
        let what = "keeping a disk until the resize is confirmed";
        room.for_copy(bytes, &temporary_of(&disk.copy), what)
    });
    claimed.collect()
}

fn fill(copy: &BackupCopy, whole: bool, progress: &mut dyn FnMut(u64) -> bool) -> Result<()> {
    let doing = || format!("keeping {}", copy.disk.file.display());
    if copy.data > 0 {
        copy_data(&copy.from, &copy.to, progress).map_err(|error| match error.kind() {
            ErrorKind::Interrupted => Fault::new(
                FaultKind::InstanceInvalidState,
                "the resize was cut short by a more urgent operation",
            ),
            _ => Err::<(), _>(error).or_fault(doing()).unwrap_err(),
        })?;
    }
    if whole {
        let size = copy.from.metadata().or_fault(doing())?.len();
        preallocate(&copy.to, size).or_fault(doing())?;
    }
    copy.to.sync_all().or_fault(doing())
}

fn give_its_name(copy: &BackupCopy, claim: Claim) -> Result<()> {
    let doing = || format!("keeping {}", copy.disk.file.display());
    let kept = &copy.disk.copy;
    claim.settle(|| fs::rename(temporary_of(kept), kept)).or_fault(doing())?;
    if copy.still.is_mounted_elsewhere() {
        // Both are the same now. That which others have mounted is kept, so that
        // what is done to the disk meets nobody.
        let (kept, disk) = (kept.as_path(), copy.disk.file.as_path());
        renameat_with(CWD, kept, CWD, disk, RenameFlags::EXCHANGE).or_fault(doing())?;
    }
    sync_parent(kept).or_fault(doing())
}
