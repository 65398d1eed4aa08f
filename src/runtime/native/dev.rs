//! /dev, which is a file system of the host's ([`crate::runtime::dev`]), terminals, and the
//! console; no device is made or taken from the image's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags, fstat, fstatfs, makedev};

use super::config::refused;
use super::mounts::open;
use crate::fault::{OrFault, Result};
use crate::runtime::dev::CONSOLE;
use crate::sys::mount::{self, Attributes};
use crate::sys::pty;

/// Type of a file system as statfs(2) gives it.
pub(super) const TMPFS: i64 = 0x0102_1994;
/// The same of devpts.
pub(super) const DEVPTS: i64 = 0x1cd1;

/// The console.
pub(super) struct Console {
    /// The monitor's end.
    pub master: OwnedFd,
    /// The instance's.
    pub peer: OwnedFd,
}

/// Opens /dev, which the host has filled.
pub(super) fn filled(root: BorrowedFd<'_>) -> Result<OwnedFd> {
    let doing = "opening /dev";
    let dev = open(root, Path::new("dev"), OFlags::PATH | OFlags::DIRECTORY).or_fault(doing)?;
    is_of_type(dev.as_fd(), TMPFS, "/dev")?;
    let null = open(dev.as_fd(), Path::new("null"), OFlags::PATH).or_fault(doing)?;
    let found = fstat(&null).or_fault(doing)?;
    let is_character = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice;
    if !is_character || found.st_rdev != makedev(1, 3) {
        return Err(refused("/dev/null in the instance is none"));
    }
    Ok(dev)
}

/// Makes a terminal in the instance's own devpts, and shows it at /dev/console.
pub(super) fn console(root: BorrowedFd<'_>, dev: BorrowedFd<'_>) -> Result<Console> {
    let doing = "making /dev/console";
    let terminal = terminal(root)?;
    let pts = open(root, Path::new("dev/pts"), OFlags::PATH | OFlags::DIRECTORY).or_fault(doing)?;
    let name = terminal.number.to_string();
    let tree = mount::clone_tree_at(pts.as_fd(), Path::new(&name)).or_fault(doing)?;
    let attributes = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NOEXEC;
    mount::change(tree.as_fd(), attributes, Attributes::empty(), false).or_fault(doing)?;
    let place = open(dev, Path::new(CONSOLE), OFlags::PATH).or_fault(doing)?;
    mount::attach_on(tree.as_fd(), place.as_fd(), "").or_fault(doing)?;
    Ok(Console { master: terminal.master, peer: terminal.peer })
}

/// A new terminal.
pub(super) struct Terminal {
    /// The outer end.
    pub master: OwnedFd,
    /// The end for programs.
    pub peer: OwnedFd,
    /// Its name below /dev/pts.
    pub number: u32,
}

/// Makes a terminal in the devpts that is at dev/pts below `root`; what else is there is refused.
pub(super) fn terminal(root: BorrowedFd<'_>) -> Result<Terminal> {
    let doing = "making a terminal";
    let pts = open(root, Path::new("dev/pts"), OFlags::PATH | OFlags::DIRECTORY).or_fault(doing)?;
    is_of_type(pts.as_fd(), DEVPTS, "/dev/pts")?;
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = open(pts.as_fd(), Path::new("ptmx"), flags).or_fault(doing)?;
    is_of_type(master.as_fd(), DEVPTS, "/dev/pts/ptmx")?;
    let found = fstat(&master).or_fault(doing)?;
    if found.st_rdev != makedev(5, 2) {
        return Err(refused("/dev/pts/ptmx in the instance is no multiplexer of terminals"));
    }
    rustix::pty::unlockpt(&master).or_fault(doing)?;
    let number = pty::number(master.as_fd()).or_fault(doing)?;
    let peer = pty::open_peer(master.as_fd()).or_fault(doing)?;
    Ok(Terminal { master, peer, number })
}

/// Refuses what is not on a file system of the type that is expected there.
pub(super) fn is_of_type(fd: BorrowedFd<'_>, kind: i64, what: &str) -> Result<()> {
    let found = fstatfs(fd).or_fault(format_args!("looking at {what}"))?;
    if found.f_type as i64 == kind {
        return Ok(());
    }
    Err(refused(format!("{what} in the instance is on another file system than it should be")))
}
