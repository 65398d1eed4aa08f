//! What is not to be seen or written, below /proc and /sys.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::Errno;

use super::mounts::open;
use crate::fault::{OrFault, Result};
use crate::sys::mount::{self, Attributes, FsOption};

/// Covers files with the null device that is in `dev`, and directories with an
/// empty one that nobody can write to. What is absent needs none.
pub(super) fn mask(root: BorrowedFd<'_>, dev: BorrowedFd<'_>, paths: &[PathBuf]) -> Result<()> {
    let attributes = Attributes::MOUNT_ATTR_RDONLY
        | Attributes::MOUNT_ATTR_NOSUID
        | Attributes::MOUNT_ATTR_NOEXEC;
    for path in paths {
        let doing = || format!("hiding {}", path.display());
        let target = match open(root, path, OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            target => target.or_fault(doing())?,
        };
        let kind = FileType::from_raw_mode(fstat(&target).or_fault(doing())?.st_mode);
        let cover = if kind.is_dir() {
            let size = FsOption::Text("size", Path::new("0k"));
            let attributes = attributes | Attributes::MOUNT_ATTR_NODEV;
            mount::create(
                "tmpfs",
                &[FsOption::Text("source", Path::new("tmpfs")), size],
                attributes,
            )
            .or_fault(doing())?
        } else {
            let null = mount::clone_tree_at(dev, Path::new("null")).or_fault(doing())?;
            mount::change(null.as_fd(), attributes, Attributes::empty(), false).or_fault(doing())?;
            null
        };
        mount::attach_on(cover.as_fd(), target.as_fd(), "").or_fault(doing())?;
    }
    Ok(())
}

/// Puts a copy of a path's own mount on it that cannot be written through. What is absent needs none.
pub(super) fn make_read_only(root: BorrowedFd<'_>, paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        let doing = || format!("making {} read-only", path.display());
        let target = match open(root, path, OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            target => target.or_fault(doing())?,
        };
        let tree = mount::clone_tree_at(target.as_fd(), Path::new("")).or_fault(doing())?;
        let read_only = Attributes::MOUNT_ATTR_RDONLY;
        mount::change(tree.as_fd(), read_only, Attributes::empty(), false).or_fault(doing())?;
        mount::attach_on(tree.as_fd(), target.as_fd(), "").or_fault(doing())?;
    }
    Ok(())
}
