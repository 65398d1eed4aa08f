//! What some inits read when they are asked to go down, besides a signal: a request in a pipe of
//! theirs, or the mode of a file.
//!
//! The tree is the instance's: every path is resolved with it as root, what is written to is a
//! pipe that somebody reads from, and a file that is made is made as the instance's root.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fchmod, fstat};

use crate::fault::{OrFault, Result};
use crate::sys::fs::open_in_root;
use crate::sys::ids::IdBlock;
use crate::sys::process::ProcessId;
use crate::sys::thread;

/// `INIT_MAGIC` of sysvinit's initreq.h.
const MAGIC: u32 = 0x0309_1969;
/// `INIT_CMD_RUNLVL`.
const RUNLEVEL: u32 = 1;
/// Bytes of a request.
const REQUEST: usize = 384;
/// Seconds between the signals that ask and those that end, of what no script has stopped.
const GRACE: u32 = 3;

/// Something for an init to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Bytes in the first of these pipes that it reads. It needs no signal then.
    Pipe(&'static [&'static str], Vec<u8>),
    /// A file with this mode.
    File(&'static str, u32),
}

/// The request that telinit(8) writes: runlevel 0 or 6.
pub fn sysvinit(off: bool) -> Note {
    let level = if off { b'0' } else { b'6' };
    let mut request = Vec::with_capacity(REQUEST);
    for word in [MAGIC, RUNLEVEL, level.into(), GRACE] {
        request.extend(word.to_ne_bytes());
    }
    request.resize(REQUEST, 0);
    Note::Pipe(&["run/initctl", "dev/initctl"], request)
}

/// The word that openrc-shutdown(8) writes.
pub fn openrc(off: bool) -> Note {
    let word = if off { "poweroff" } else { "reboot" };
    Note::Pipe(&["run/openrc/init.ctl"], word.into())
}

/// What runit-init(8) does to its files, and to those that Debian has in their stead.
pub fn runit(off: bool) -> [Note; 4] {
    let reboot = if off { 0o000 } else { 0o100 };
    [
        Note::File("etc/runit/reboot", reboot),
        Note::File("run/runit.reboot", reboot),
        Note::File("etc/runit/stopit", 0o100),
        Note::File("run/runit.stopit", 0o100),
    ]
}

/// Leaves notes for an init; whether they say it all.
pub fn leave(notes: &[Note], init: ProcessId, block: IdBlock) -> Result<bool> {
    if notes.is_empty() {
        return Ok(false);
    }
    let doing = "asking the instance's init";
    let root = File::open(format!("/proc/{}/root", init.pid)).or_fault(doing)?;
    // Not another's, which has its number by now.
    if !init.is_alive() {
        return Ok(false);
    }
    // As the instance's root: the kernel knows no other owner there.
    thread::as_ids(block, || put_all(notes, root.as_fd()).or_fault(doing))
}

/// Puts all of them, whatever becomes of one; the first error is what is said of those.
fn put_all(notes: &[Note], root: BorrowedFd<'_>) -> std::io::Result<bool> {
    let put: Vec<_> = notes.iter().map(|note| put(note, root)).collect();
    put.into_iter().try_fold(false, |said, one| Ok(said | one?))
}

/// Whether the note says it all.
fn put(note: &Note, root: BorrowedFd<'_>) -> std::io::Result<bool> {
    match note {
        Note::Pipe(paths, bytes) => Ok(paths.iter().any(|path| write(root, path, bytes))),
        Note::File(path, mode) => {
            let mode = Mode::from_raw_mode(*mode);
            // Looked at before it is opened: to open a device is to use it.
            match open_in_root(root, Path::new(path), OFlags::PATH, Mode::empty()) {
                Ok(found) if !FileType::from_raw_mode(fstat(&found)?.st_mode).is_file() => {
                    return Ok(false);
                }
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
            // Some images have links there, into /run.
            let flags = flags | OFlags::CREATE;
            let file = open_in_root(root, Path::new(path), flags, mode)?;
            if FileType::from_raw_mode(fstat(&file)?.st_mode).is_file() {
                fchmod(&file, mode)?;
            }
            Ok(false)
        }
    }
}

/// Whether a pipe has taken the bytes.
fn write(root: BorrowedFd<'_>, path: &str, bytes: &[u8]) -> bool {
    let is_pipe = |flags| {
        let file = open_in_root(root, Path::new(path), flags, Mode::empty()).ok()?;
        let found = fstat(&file).ok()?;
        (FileType::from_raw_mode(found.st_mode) == FileType::Fifo).then_some(file)
    };
    // Looked at before it is opened: to open a device is to use it.
    is_pipe(OFlags::PATH)
        .and_then(|_| is_pipe(OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY))
        .is_some_and(|pipe| File::from(pipe).write_all(bytes).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn only_a_pipe_that_is_read_from_takes_a_request() {
        let dir = tempfile::tempdir().unwrap();
        let (run, root) = (dir.path().join("run"), File::open(dir.path()).unwrap());
        std::fs::create_dir(&run).unwrap();
        let note = sysvinit(true);
        let Note::Pipe(_, request) = &note else { panic!("{note:?}") };
        assert_eq!(request.len(), 384);
        assert_eq!(request[..12], [0x69, 0x19, 0x09, 0x03, 1, 0, 0, 0, b'0', 0, 0, 0]);
        let said = || put(&note, root.as_fd()).unwrap();
        assert!(!said());
        let pipe = run.join("initctl");
        std::fs::write(&pipe, "").unwrap();
        assert!(!said());
        assert_eq!(std::fs::read(&pipe).unwrap(), b"");
        std::fs::remove_file(&pipe).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RWXU).unwrap();
        assert!(!said(), "nobody reads");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let mut reader = File::from(rustix::fs::open(&pipe, flags, Mode::empty()).unwrap());
        assert!(said());
        let mut read = [0; 400];
        assert_eq!(reader.read(&mut read).unwrap(), 384);
    }

    #[test]
    fn a_files_mode_is_set_through_links_that_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/runit")).unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        let root = File::open(dir.path()).unwrap();
        symlink("/run/runit.stopit", dir.path().join("etc/runit/stopit")).unwrap();
        symlink(outside.path(), dir.path().join("etc/runit/reboot")).unwrap();
        let [reboot, _, stop, _] = runit(true);
        assert!(!put(&stop, root.as_fd()).unwrap());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.path().join("run/runit.stopit")), 0o100);
        let before = mode(outside.path());
        assert!(put(&reboot, root.as_fd()).is_err());
        assert_eq!(mode(outside.path()), before);
        // One that cannot be put keeps none of the others back.
        std::fs::remove_file(dir.path().join("run/runit.stopit")).unwrap();
        assert!(put_all(&runit(true), root.as_fd()).is_err());
        assert_eq!(mode(&dir.path().join("run/runit.stopit")), 0o100);
    }

    /// To open a device is to use it: here a pipe, which has its writer go on.
    #[test]
    fn what_is_no_file_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("etc/runit")).unwrap();
        let root = File::open(dir.path()).unwrap();
        let pipe = dir.path().join("etc/runit/stopit");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RWXU).unwrap();
        let (opened, seen) = std::sync::mpsc::channel();
        let to = pipe.clone();
        std::thread::spawn(move || {
            opened.send(std::fs::OpenOptions::new().write(true).open(to).is_ok())
        });
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(!put(&runit(true)[2], root.as_fd()).unwrap());
        assert!(seen.recv_timeout(std::time::Duration::from_millis(300)).is_err(), "it was opened");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        drop(rustix::fs::open(&pipe, flags, Mode::empty()).unwrap());
        assert!(seen.recv().unwrap());
    }
}
