//! /dev: nodes that are the host's, links, and the console. It is a file system of the
//! runtime's own; no device is made or taken from the image's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, fstatfs, makedev, openat, symlinkat};

use super::config::refused;
use super::mounts::open;
use crate::fault::{OrFault, Result};
use crate::sys::mount::{self, Attributes};
use crate::sys::pty;

/// Devices that every instance has: name, major and minor number.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Links that every instance has.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

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

/// Fills /dev, and gives it.
pub(super) fn fill(root: BorrowedFd<'_>) -> Result<OwnedFd> {
    let doing = "making /dev";
    let dev = open(root, Path::new("dev"), OFlags::PATH | OFlags::DIRECTORY).or_fault(doing)?;
    is_of_type(dev.as_fd(), TMPFS, "/dev")?;
    let attributes = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NOEXEC;
    for (name, major, minor) in DEVICES {
        let doing = || format!("making /dev/{name}");
        let tree = mount::clone_tree_at(CWD, &Path::new("/dev").join(name)).or_fault(doing())?;
        let found = fstat(&tree).or_fault(doing())?;
        let is_character = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice;
        if !is_character || found.st_rdev != makedev(major, minor) {
            return Err(refused(format!("the host's /dev/{name} is not {major}:{minor}")));
        }
        mount::change(tree.as_fd(), attributes, Attributes::empty(), false).or_fault(doing())?;
        let place = file(dev.as_fd(), name, 0o666).or_fault(doing())?;
        mount::attach_on(tree.as_fd(), place.as_fd(), "").or_fault(doing())?;
    }
    for (name, to) in LINKS {
        symlinkat(to, &dev, name).or_fault(format_args!("making /dev/{name}"))?;
    }
    Ok(dev)
}

fn file(dev: BorrowedFd<'_>, name: &str, mode: u32) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dev, name, flags, Mode::from_raw_mode(mode))
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
    let place = file(dev, "console", 0o620).or_fault(doing)?;
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
