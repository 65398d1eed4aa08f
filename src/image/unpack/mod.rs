//! Unpacks one layer's archive into a directory.
//!
//! No name in the archive can reach outside that directory: every file is
//! made relative to a directory that was opened below the root without
//! following a link, names are brought into a form without `..` ([`names`]), and a
//! symbolic link in the middle of a name is followed by this code, one step at
//! a time, and refused where it climbs out. That holds with the jail around it
//! ([`super::jail`]) and without.

mod extractor;
mod marks;
mod members;
mod metadata;
mod names;
mod tree;

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::mpsc::sync_channel;

use nix::sched::{CloneFlags, unshare};

use crate::fault::{Fault, OrFault, Result};
use crate::sys::fs::begin_writeback;
use extractor::Extractor;
pub use extractor::{BELOW, TreeKind, UnpackLimits, UnpackReport};
pub use marks::Marks;

/// Large files that wait to be written to the disk.
const WRITTEN: usize = 16;

/// Unpacks the plain archive `source` into the directory `root`.
///
/// Needs the capabilities `CHOWN`, `DAC_OVERRIDE`, `FOWNER`, `FSETID`,
/// `MKNOD` and `SETFCAP`. What a failure leaves is for the caller to remove.
pub fn extract(
    root: OwnedFd,
    source: impl Read + Send,
    kind: TreeKind,
    limits: UnpackLimits,
) -> Result<UnpackReport> {
    // A thread of its own, because extended attributes of files that cannot be
    // opened are set relative to the working directory.
    std::thread::scope(|scope| {
        let (written, files) = sync_channel(WRITTEN);
        // The disk works while the rest is unpacked, and the sync at the end is short.
        scope.spawn(|| files.into_iter().for_each(|file: File| begin_writeback(&file)));
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS).or_fault("taking a working directory of one's own")?;
            Extractor::new(root, kind, limits, written).run(source)
        });
        thread.join().unwrap_or_else(|_| Err(Fault::internal("unpacking a layer", "a defect")))
    })
}

#[cfg(test)]
mod tests;
