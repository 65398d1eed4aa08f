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
mod metadata;
mod names;
mod tree;

use std::fs::File;
use std::io::Read;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::mpsc::sync_channel;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

use super::refusal::unacceptable;
use super::tar_reader::Member;
use crate::fault::{Fault, OrFault, Result};
use crate::sys::fs::begin_writeback;
use extractor::Extractor;
pub use marks::Marks;

/// Large files that wait to be written to the disk.
const WRITTEN: usize = 16;
/// The directory of Incus' and LXC's images in which the root file system is.
pub const BELOW: &[u8] = b"rootfs";

/// What an archive is unpacked as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TreeKind {
    /// A layer of an image: OCI's names of deletions act.
    Layer,
    /// A root file system: every name is a name, and deletes nothing.
    Root,
    /// What is below [`BELOW`] is that; all else is left out.
    RootBelow,
    /// A root file system that no overlay will have as a layer: overlayfs's marks in it,
    /// which are data, are what they were. Takes the capability `SYS_ADMIN`, too.
    FileSystem,
}

/// What a layer may need at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackLimits {
    /// Files and directories.
    pub entries: u64,
    /// Bytes of all files, holes counted.
    pub bytes: u64,
}

/// What a layer turned out to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackReport {
    /// Members of the archive.
    pub entries: u64,
    /// Bytes of all files, holes counted.
    pub bytes: u64,
    /// Bytes that were written, holes left out.
    pub stored: u64,
    /// What is to be set on its files.
    pub marks: Marks,
    /// As a layer of an image, the same archive would be another tree: it has names that
    /// would delete, or is not all of it unpacked.
    pub own_kind: bool,
}

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

/// Opens a name below a directory, following no link on the way.
fn open_below(root: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let name = if name.is_empty() { b"." } else { name };
    rustix::fs::openat2(
        root,
        name,
        flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

fn refused(member: &Member, why: impl std::fmt::Display) -> Fault {
    unacceptable(format!("{}: {why}", member.name()))
}

#[cfg(test)]
mod tests;
