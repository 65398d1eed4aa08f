//! Room on an instance's disk for removing files of its image.
//!
//! Overlayfs writes down what is removed of a layer: a directory of the upper directory that holds
//! the mark takes a block. On a full disk there is none, and files of the image could not be removed.
//! So a file beside the upper directory, which nobody inside can see, holds some room, and whenever
//! the disk is full it gives a little of it back. What is removed is not told from what is
//! written, so a program that goes on writing takes that, too; but a piece at a time, until all is
//! given. Once there is room again, the file takes its own.

//!
//! A disk that is frozen, or about to be, holds who writes to it, and no signal ends that wait. So a
//! child does it: this program, with a hidden first argument ([`COMMAND`]), as for [`super::rest`].
//! The service can end, and looks after other disks, whatever the child waits for.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{ExitCode, Stdio};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, StatxAttributes, StatxFlags, fallocate, fstatvfs,
    openat, statx,
};
use rustix::io::Errno;

use crate::fault::{Fault, OrFault, Result};
use crate::sys::process::other_life;

/// The hidden first argument by which the program knows that it is the child.
const COMMAND: &str = "reserve";
/// The file on the disk.
pub(super) const RESERVE: &str = "reserve";
/// What is given at once: more than the deepest tree of directories or a transaction of xfs takes.
const STEP: u64 = 256 << 10;
/// The most that is held.
const MOST: u64 = 16 << 20;
/// The part of the disk that is held.
const PART: u64 = 128;
/// The disk is no longer full when so many times the room that is held is free.
const PLENTY: u64 = 4;
const DOING: &str = "keeping room on a disk";

/// What is to be done about the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    /// It gives back all but this.
    Give(u64),
    /// It takes up to this.
    Take(u64),
}

/// Whether something is to be done on the disk that is mounted at `point`; nothing is if none is. Waits
/// for nobody, be the disk frozen or not.
pub fn is_due(point: &Path) -> Result<bool> {
    Ok(look(point)?.is_some())
}

/// Does it, in a child. Waits as long as the disk is frozen.
pub fn settle(point: &Path) -> Result<()> {
    let child = other_life(COMMAND)
        .arg(point)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .or_fault(DOING)?;
    if child.status.success() {
        return Ok(());
    }
    Err(Fault::internal(DOING, String::from_utf8_lossy(&child.stderr).trim()))
}

/// The child: `None` for the program's other lives.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if arguments.next()? != COMMAND {
        return None;
    }
    let point = arguments.next()?;
    Some(match act(Path::new(&point)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::FAILURE
        }
    })
}

fn act(point: &Path) -> Result<()> {
    let Some((disk, held, due)) = look(point)? else { return Ok(()) };
    let file = open(&disk, held == 0)?;
    match due {
        Due::Nothing => Ok(()),
        Due::Give(rest) => file.set_len(rest).or_fault(DOING),
        Due::Take(all) => match fallocate(file.as_fd(), FallocateFlags::empty(), 0, all) {
            // Somebody inside was faster.
            Err(Errno::NOSPC) => Ok(()),
            other => other.or_fault(DOING),
        },
    }
}

/// The disk, what is held on it, and what is to be done.
fn look(point: &Path) -> Result<Option<(OwnedFd, u64, Due)>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let disk = match openat(CWD, point, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        other => other.or_fault(DOING)?,
    };
    let found = statx(&disk, "", AtFlags::EMPTY_PATH, StatxFlags::TYPE).or_fault(DOING)?;
    if !found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(None);
    }
    let room = fstatvfs(&disk).or_fault(DOING)?;
    let (free, size) = (room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize);
    let held = match statx(&disk, RESERVE, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::SIZE) {
        Err(Errno::NOENT) => 0,
        other => other.or_fault(DOING)?.stx_size,
    };
    Ok(match due(size, free, held) {
        Due::Nothing => None,
        due => Some((disk, held, due)),
    })
}

fn open(disk: &OwnedFd, make: bool) -> Result<File> {
    let mut flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    flags.set(OFlags::CREATE, make);
    let file = openat(disk, RESERVE, flags, Mode::from_raw_mode(0o600));
    file.map(File::from).or_fault(DOING)
}

fn due(size: u64, free: u64, held: u64) -> Due {
    let wanted = (size / PART / STEP * STEP).min(MOST);
    if free < STEP && held > 0 {
        Due::Give(held.saturating_sub(STEP))
    } else if held < wanted && free / PLENTY > wanted {
        Due::Take(wanted)
    } else {
        Due::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_little_is_given_when_full_and_all_taken_when_there_is_room() {
        for (size, free, held, expected) in [
            (1024 * MIB, 900 * MIB, 0, Due::Take(8 * MIB)),
            (1 << 40, 1 << 39, 0, Due::Take(MOST)),
            (1024 * MIB, 900 * MIB, 8 * MIB, Due::Nothing),
            (1024 * MIB, 4096, 8 * MIB, Due::Give(8 * MIB - STEP)),
            (1024 * MIB, STEP, 8 * MIB - STEP, Due::Nothing),
            (1024 * MIB, 0, STEP, Due::Give(0)),
            (1024 * MIB, 0, 0, Due::Nothing),
            // Half of what was freed is not taken away again.
            (1024 * MIB, 10 * MIB, STEP, Due::Nothing),
            (1024 * MIB, 33 * MIB, STEP, Due::Take(8 * MIB)),
            // Too small a disk for any.
            (16 * MIB, 16 * MIB, 0, Due::Nothing),
        ] {
            assert_eq!(due(size, free, held), expected, "{size} {free} {held}");
        }
    }

    #[test]
    fn what_is_not_mounted_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_due(dir.path()).unwrap());
        assert!(!is_due(&dir.path().join("absent")).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
