//! An instance's terminals: a devpts that the host mounts for it.
//!
//! The kernel has one table of terminals for all, `kernel.pty.max`, and no limit for each user of it but
//! a mount's own `max=`. Root inside can mount one more devpts, with no such limit, and could change
//! that of one that it had mounted itself. What the host mounts it cannot change; and of the
//! last `kernel.pty.reserve` terminals the kernel gives some only to a devpts that was mounted in the host's
//! first mount namespace, as this is. So what instances mount themselves takes none of these.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Uid, chownat};
use rustix::io::Errno;

use crate::fault::{OrFault, Result};
use crate::sys::ids::IdBlock;
use crate::sys::mount::{self, Attributes, FsOption};
use crate::sys::thread;

/// Most terminals of an instance: memory that no limit holds goes with each.
const MOST: &str = "256";
/// The group `tty` inside, as every distribution numbers it.
const TTY: u32 = 5;

/// Mounts it at a directory, which is made; its files belong to the instance's root. One that is
/// there is left.
pub fn mount(point: &Path, block: IdBlock) -> Result<()> {
    if mount::is_mount_point(point)? {
        return Ok(());
    }
    let doing = || format!("mounting the instance's terminals at {}", point.display());
    fs::create_dir_all(point).or_fault(doing())?;
    let group = block.first + TTY;
    let (is_large, text) = (i32::try_from(group).is_err(), group.to_string());
    let options = [
        ("gid", text.as_str()),
        ("source", "devpts"),
        ("mode", "0620"),
        ("ptmxmode", "0666"),
        ("max", MOST),
    ];
    let options = options.map(|(name, value)| FsOption::Text(name, Path::new(value)));
    let attributes = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NOEXEC;
    let create = |options: &[FsOption<'_>]| mount::create("devpts", options, attributes);
    // The multiplexer belongs to whoever mounts.
    let made = thread::as_ids(block, || {
        let made = match create(&options) {
            // Linux before 6.12 reads a signed number: there a terminal's group is its user's.
            Err(e) if e.errno == Errno::INVAL && is_large => create(&options[1..]),
            made => made,
        };
        made.or_fault(doing())
    })?;
    let (user, group) = (Uid::from_raw(block.first), Gid::from_raw(block.first));
    chownat(made.as_fd(), "", Some(user), Some(group), AtFlags::EMPTY_PATH).or_fault(doing())?;
    mount::attach(made.as_fd(), point)
}
