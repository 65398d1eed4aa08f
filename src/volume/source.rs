//! What a volume's blocks come from: what it may be, and whether two are the same.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::device;
use super::marks::MARKS;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::sys::{loopdev, mount};
use crate::types::VolumeSource;

/// A source that can be attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Bytes.
    pub bytes: u64,
    /// Which of the others that were named beside it are the same.
    pub same: Vec<usize>,
}

/// Looks at a source; a fault that names its field when it cannot be one. `own` are directories of
/// berth's, in which nothing can be. What has `mark` already is no other user.
pub(super) fn look(
    source: &VolumeSource,
    read_only: bool,
    mark: &str,
    own: &[PathBuf],
    others: &[VolumeSource],
) -> Result<Seen> {
    let refuse =
        |why: String| Fault::invalid(source.field(), format!("{}: {why}", source.path().display()));
    let path = source.path();
    if !path.is_absolute() {
        return Err(refuse("must be an absolute path".into()));
    }
    let real = fs::canonicalize(path).map_err(|e| refuse(e.to_string()))?;
    let own = own.iter().filter_map(|dir| fs::canonicalize(dir).ok());
    if own.into_iter().any(|dir| real.starts_with(dir)) {
        return Err(refuse("is berth's own; name another".into()));
    }
    let found = fs::metadata(&real).map_err(|e| refuse(e.to_string()))?;
    match source {
        VolumeSource::Block { .. } if !found.file_type().is_block_device() => {
            return Err(refuse("is no block device; a file is {\"file\": …}".into()));
        }
        VolumeSource::Block { .. } => is_free(&real, &found, mark).map_err(refuse)?,
        VolumeSource::File { .. } if !found.is_file() => {
            return Err(refuse("is no file; a block device is {\"block\": …}".into()));
        }
        VolumeSource::File { .. } => {
            if swaps().contains(&real) {
                return Err(refuse("the host swaps to it".into()));
            }
            if let Some(device) = other_loop_of(&found).or_fault("looking at loop devices")? {
                return Err(refuse(format!("is in use as {}; detach it there", device.display())));
            }
        }
    }
    let bytes = size(&open(&real, read_only).map_err(|e| {
        let remedy = "; attach it read_only if it is only to be read";
        refuse(format!("{e}{}", if read_only { "" } else { remedy }))
    })?)
    .map_err(|e| refuse(e.to_string()))?;
    if bytes == 0 || !bytes.is_multiple_of(512) {
        return Err(refuse(format!("its {bytes} bytes must be a multiple of 512, and some")));
    }
    let identity = identity(source, &found);
    let is_same = |other: &VolumeSource| {
        fs::metadata(other.path()).is_ok_and(|found| self::identity(other, &found) == identity)
    };
    let same = (0..others.len()).filter(|index| is_same(&others[*index])).collect();
    Ok(Seen { bytes, same })
}

/// Files and devices that the host swaps to.
fn swaps() -> Vec<PathBuf> {
    let table = fs::read("/proc/swaps").unwrap_or_default();
    let first = |line: &[u8]| {
        line.split(|byte: &u8| byte.is_ascii_whitespace()).next().map(mount::unescape)
    };
    let path = |name| PathBuf::from(OsString::from_vec(name));
    table.split(|byte| *byte == b'\n').skip(1).filter_map(first).map(path).collect()
}

/// Opens it as its device does.
pub(super) fn open(path: &Path, read_only: bool) -> io::Result<File> {
    // A fifo that took its place would keep the opener waiting.
    OpenOptions::new().read(true).write(!read_only).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Bytes of an open file or block device.
fn size(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// What it is, whatever path leads there.
fn identity(source: &VolumeSource, found: &Metadata) -> (bool, u64, u64) {
    match source {
        VolumeSource::Block { .. } => (true, found.rdev(), 0),
        VolumeSource::File { .. } => (false, found.dev(), found.ino()),
    }
}

/// Whether nothing of the host's uses a block device.
fn is_free(path: &Path, found: &Metadata, mark: &str) -> std::result::Result<(), String> {
    let (major, minor) = (libc::major(found.rdev()), libc::minor(found.rdev()));
    if major == loopdev::MAJOR {
        match loopdev::open_marked(minor) {
            Ok(Some((_, of))) if of.starts_with(MARKS) && of != mark => {
                return Err("is a volume's device already; name what that is made of".into());
            }
            Ok(_) => {}
            Err(e) => return Err(e.to_string()),
        }
    }
    // The kernel lets nobody have alone what is mounted, swapped to, or part of another device.
    match OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK).open(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::ResourceBusy => Err("is in use on the host: it is \
             mounted, swapped to, or a part of another device; end that, or name another"
            .into()),
        Err(e) => Err(e.to_string()),
    }
}

/// A loop device that is no volume's and has the file already.
fn other_loop_of(file: &Metadata) -> io::Result<Option<PathBuf>> {
    for (device, of) in loopdev::marked("")? {
        if !of.starts_with(MARKS) && device.is_of(file)? {
            return Ok(Some(device.path));
        }
    }
    Ok(None)
}

/// Gives a source a device with this mark, or finds the one that it has; its number.
pub(super) fn attach(source: &VolumeSource, read_only: bool, mark: &str) -> Result<u32> {
    let doing = || format!("attaching {}", source.path().display());
    for (device, _) in loopdev::marked(mark).or_fault(doing())? {
        // Also when the source is gone by now: an instance may have it open.
        if !device.is_emptied().or_fault(doing())? {
            return Ok(device.number);
        }
        let number = device.number;
        if !device::clear(device, mark, false).or_fault(doing())? {
            return Err(Fault::new(
                FaultKind::VolumeBusy,
                format!("/dev/loop{number}, which the volume was on, is still open somewhere"),
            ));
        }
    }
    let backing = open(source.path(), read_only).or_fault(doing())?;
    let found = backing.metadata().or_fault(doing())?;
    let busy = |why: &str| Fault::new(FaultKind::VolumeBusy, format!("{}: {why}", doing()));
    // What it was when it was given to the instance it need not be any more.
    match source {
        VolumeSource::Block { .. } if found.file_type().is_block_device() => {
            is_free(source.path(), &found, mark).map_err(|why| busy(&format!("it {why}")))?;
        }
        VolumeSource::File { .. } if found.is_file() => {
            // Its device keeps it locked: no other one of berth's gets it.
            loopdev::lock_detached(&backing).map_err(|e| match e.kind() {
                ErrorKind::ResourceBusy => busy("another instance or program has it locked"),
                _ => Fault::internal(doing(), e),
            })?;
        }
        _ => return Err(busy("it is something else by now; detach it, and attach what it is")),
    }
    let device = loopdev::attach_marked(&backing, mark, read_only).or_fault(doing())?;
    Ok(device.number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &Path) -> VolumeSource {
        VolumeSource::File { path: path.to_owned() }
    }

    #[test]
    fn root_what_is_no_source_is_refused_by_its_field() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let own = dir.path().join("own");
        fs::create_dir(&own).unwrap();
        let made = |path: PathBuf, bytes: u64| {
            File::create(&path).unwrap().set_len(bytes).unwrap();
            path
        };
        let good = made(dir.path().join("good"), 1 << 20);
        let inside = made(own.join("record.json"), 512);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&inside, &link).unwrap();
        let odd = made(dir.path().join("odd"), 1000);
        let empty = made(dir.path().join("empty"), 0);
        let look = |source: &VolumeSource, others: &[VolumeSource]| {
            super::look(source, false, "none", std::slice::from_ref(&own), others)
        };
        for (path, why) in [
            (inside, "berth's own"),
            (link, "berth's own"),
            (odd, "multiple of 512"),
            (empty, "multiple of 512"),
            (dir.path().to_owned(), "is no file"),
            ("/dev/null".into(), "is no file"),
            ("relative".into(), "absolute"),
            (dir.path().join("absent"), "No such file"),
        ] {
            let fault = look(&file(&path), &[]).unwrap_err();
            assert_eq!(fault.field.as_deref(), Some("source.file.path"));
            assert!(fault.detail.contains(why), "{fault}");
        }
        let fault = look(&VolumeSource::Block { path: good.clone() }, &[]).unwrap_err();
        assert_eq!(fault.field.as_deref(), Some("source.block.path"));
        assert!(fault.detail.contains("no block device"), "{fault}");
        let hard = dir.path().join("hard");
        fs::hard_link(&good, &hard).unwrap();
        let others = [file(Path::new("/etc/passwd")), file(&hard), file(Path::new("/absent"))];
        let seen = look(&file(&good), &others).unwrap();
        assert_eq!(seen, Seen { bytes: 1 << 20, same: vec![1] });
    }

    #[test]
    fn root_what_the_host_uses_is_no_source() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let device = loopdev::attach(&path, false, false).unwrap();
        let fault = look(&file(&path), false, "none", &[], &[]).unwrap_err();
        assert!(fault.detail.contains(&device.path.display().to_string()), "{fault}");
        let block = VolumeSource::Block { path: device.path.clone() };
        assert_eq!(look(&block, false, "none", &[], &[]).unwrap().bytes, 1 << 20);
        let exclusive =
            OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&device.path).unwrap();
        let fault = look(&block, false, "none", &[], &[]).unwrap_err();
        assert!(fault.detail.contains("in use on the host"), "{fault}");
        drop(exclusive);
    }
}
