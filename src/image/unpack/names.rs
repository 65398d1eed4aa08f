//! The names in an archive: what they mean, or why they are refused.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::fault::{Fault, Result};
use crate::image::refusal::unacceptable;
use crate::image::tar_reader::Member;

/// Longest name of a member, and longest target of a link (`PATH_MAX` less its end).
pub(super) const MAX_PATH: usize = 4095;
/// Longest part of a name.
const MAX_NAME: usize = 255;
/// Deepest directory. Removal of a tree holds a descriptor for each level.
pub(super) const MAX_DEPTH: usize = 256;

/// The parts of a name, empty for the root. A leading slash is that root, and `..`
/// goes one part back and never above it, as Docker reads names.
pub(super) fn parts<'a>(path: &'a [u8], member: &Member) -> Result<Vec<&'a [u8]>> {
    if path.is_empty() || path.len() > MAX_PATH || path.contains(&0) {
        return Err(refused(member, "a name is empty, holds a zero or is longer than 4095 bytes"));
    }
    let mut parts = Vec::new();
    for part in split(path) {
        if part != b".." {
            parts.push(part);
        } else if parts.pop().is_none() && !path.starts_with(b"/") {
            return Err(refused(member, "a name leads out of the tree by '..'"));
        }
    }
    if parts.len() > MAX_DEPTH {
        return Err(refused(member, "it lies more than 256 directories deep"));
    }
    if parts.iter().any(|part| part.len() > MAX_NAME) {
        return Err(refused(member, "a part of a name is longer than 255 bytes"));
    }
    Ok(parts)
}

/// The parts of a path, `..` among them.
pub(super) fn split(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// The directory that a name is in; `None` for the root.
pub(super) fn above(name: &[u8]) -> Option<&[u8]> {
    if name.is_empty() {
        return None;
    }
    Some(name.iter().rposition(|byte| *byte == b'/').map_or(&[], |slash| &name[..slash]))
}

/// Opens a name below a directory, following no link on the way.
pub(super) fn open_below(
    root: BorrowedFd<'_>,
    name: &[u8],
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let name = if name.is_empty() { b"." } else { name };
    rustix::fs::openat2(
        root,
        name,
        flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

/// The fault of a member that is refused.
pub(super) fn refused(member: &Member, why: impl std::fmt::Display) -> Fault {
    unacceptable(format!("{}: {why}", member.name()))
}
