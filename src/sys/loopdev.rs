//! Loop devices: a file as a block device.
//!
//! Every device of a disk clears itself when the last to use it (an open
//! descriptor, a mount) goes away, so that neither a crash nor a forgotten
//! name leaves one behind. A device is known by the file it has, never by its
//! number alone: numbers are given again.
//!
//! A volume's device stays until it is cleared, for nobody may have it open, and an
//! instance that may use its number must not find another file there. It is known by its
//! [mark](attach_marked).

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::mem::zeroed;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::{CWD, FileType, FlockOperation, Mode, flock, makedev, mknodat};
use rustix::io::Errno;

use crate::fault::{Fault, FaultKind, OrFault, Result};

/// Major device number of all loop devices.
pub const MAJOR: u32 = 7;

// From include/uapi/linux/loop.h.
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_SET_STATUS64: libc::c_ulong = 0x4C04;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_SET_CAPACITY: libc::c_ulong = 0x4C07;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// An attached loop device, held attached while this value or a mount of it lives.
#[derive(Debug)]
pub struct LoopDevice {
    /// `/dev/loopN`.
    pub path: PathBuf,
    /// N, which is also the minor device number.
    pub number: u32,
    file: File,
}

/// Attaches `file`, or finds the device that already has it: two devices over
/// one file would ruin its file system.
///
/// `direct_io` goes past the host's page cache where the host's file system
/// can; the kernel quietly does without where it cannot.
pub fn attach(file: &Path, read_only: bool, direct_io: bool) -> Result<LoopDevice> {
    attach_part(file, (0, 0), read_only, direct_io)
}

/// [`attach`] of a part of `file`: where it begins and its bytes, both multiples
/// of 512; 0 bytes: all that follow.
pub fn attach_part(
    file: &Path,
    part: (u64, u64),
    read_only: bool,
    direct_io: bool,
) -> Result<LoopDevice> {
    let doing = || format!("attaching {} to a loop device", file.display());
    // The lock belongs to the open file, and the device keeps that open: whoever
    // gets the lock knows that no device of ours has the file.
    const TRIES: u32 = 200;
    let backing = OpenOptions::new().read(true).write(!read_only).open(file).or_fault(doing())?;
    for _ in 0..TRIES {
        match flock(&backing, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                return configure_free(&backing, part, read_only, direct_io).or_fault(doing());
            }
            Err(Errno::WOULDBLOCK) => {}
            Err(e) => return Err(e).or_fault(doing()),
        }
        if let Some(device) = find_by_backing(file)? {
            return Ok(device);
        }
        // It is being cleared, or a child that is about to exec still has it.
        sleep(Duration::from_millis(10));
    }
    Err(Fault::internal(doing(), "another process keeps the file locked"))
}

/// Longest mark, bytes.
pub const MARK: usize = 63;

/// Attaches an open file to a free device that stays until [`LoopDevice::clear`], and is found by
/// `mark`, at most [`MARK`] bytes. Where the host can, its page cache is gone past.
pub fn attach_marked(backing: &File, mark: &str, read_only: bool) -> io::Result<LoopDevice> {
    let mut name = [0; 64];
    if mark.len() > MARK {
        return Err(io::Error::other("the mark of a loop device is too long"));
    }
    name[..mark.len()].copy_from_slice(mark.as_bytes());
    let mut flags = LO_FLAGS_DIRECT_IO;
    if read_only {
        flags |= LO_FLAGS_READ_ONLY;
    }
    configure_free_as(backing, (0, 0), flags, name)
}

/// The attached devices whose marks begin so, with their marks.
pub fn marked(prefix: &str) -> io::Result<Vec<(LoopDevice, String)>> {
    let mut found = Vec::new();
    for number in attached()? {
        if let Some((device, mark)) = open_marked(number)?
            && mark.starts_with(prefix)
        {
            found.push((device, mark));
        }
    }
    Ok(found)
}

/// Device `number` with its mark, which is empty for one that has none; if it is attached.
pub fn open_marked(number: u32) -> io::Result<Option<(LoopDevice, String)>> {
    Ok(open_number(number)?.map(|(device, info)| {
        let mark: Vec<u8> = info.file_name.into_iter().take_while(|byte| *byte != 0).collect();
        (device, String::from_utf8_lossy(&mark).into_owned())
    }))
}

/// Numbers of the devices that have a file.
fn attached() -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let number: Option<u32> =
            name.to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok());
        // Only attached devices have this file; opening the others is in vain.
        if Path::new("/sys/block").join(&name).join("loop/backing_file").exists() {
            numbers.extend(number);
        }
    }
    Ok(numbers)
}

/// Device `number` and what it has, if it has something.
fn open_number(number: u32) -> io::Result<Option<(LoopDevice, LoopInfo64)>> {
    let path = device_path(number);
    let file = match OpenOptions::new().read(true).open(&path) {
        Ok(file) => file,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENXIO | libc::ENOENT | libc::ENODEV)) => {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    // Asked after opening: from here on the device cannot be cleared and given again.
    Ok(status(&file)?.map(|info| (LoopDevice { path, number, file }, info)))
}

/// Keeps `file` from getting a device of ours while it is open, once it has none:
/// what was written to the device is then in the file. A device outlives its last
/// user for a moment; longer, and somebody else has mounted it, or has a copy of
/// our mount: [`ErrorKind::ResourceBusy`].
pub fn lock_detached(file: &File) -> io::Result<()> {
    const TRIES: u32 = 100;
    for _ in 0..TRIES {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) => sleep(Duration::from_millis(10)),
            Err(e) => return Err(e.into()),
        }
    }
    Err(Errno::BUSY.into())
}

/// The device that has `file`, if one does.
pub fn find_by_backing(file: &Path) -> Result<Option<LoopDevice>> {
    let doing = || format!("looking for the loop device of {}", file.display());
    let wanted = match fs::metadata(file) {
        Ok(meta) => meta,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).or_fault(doing()),
    };
    for number in attached().or_fault(doing())? {
        if let Some(device) = open_attached(number, &wanted).or_fault(doing())? {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

/// Device `number`, if it has the file that `backing` describes.
pub fn open_attached(number: u32, backing: &fs::Metadata) -> io::Result<Option<LoopDevice>> {
    let is_its = |info: &LoopInfo64| info.inode == backing.ino() && info.device == backing.dev();
    Ok(open_number(number)?.filter(|(_, info)| is_its(info)).map(|(device, _)| device))
}

impl LoopDevice {
    /// Waits until no file system is mounted of the device, and has all that was
    /// written to it in the file. Others may have it open.
    pub fn settle(self) -> io::Result<()> {
        // A file system ends a moment after its last mount.
        const TRIES: u32 = 1000;
        for _ in 0..TRIES {
            match OpenOptions::new().write(true).custom_flags(libc::O_EXCL).open(&self.path) {
                Ok(device) => return device.sync_all(),
                Err(e) if e.kind() == ErrorKind::ResourceBusy => sleep(Duration::from_millis(10)),
                Err(e) => return Err(e),
            }
        }
        Err(Errno::BUSY.into())
    }

    /// Whether it has the file, or the block device, that this describes.
    pub fn is_of(&self, backing: &fs::Metadata) -> io::Result<bool> {
        let Some(info) = status(&self.file)? else { return Ok(false) };
        Ok(match backing.file_type().is_block_device() {
            true => info.rdevice == backing.rdev(),
            false => info.inode == backing.ino() && info.device == backing.dev(),
        })
    }

    /// Whether its file was [taken away](Self::empty).
    pub fn is_emptied(&self) -> io::Result<bool> {
        Ok(status(&self.file)?.is_some_and(|info| info.offset != 0))
    }

    /// Writes to the file what the device's cache holds.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Has it end with its last user, which is this value if there is no other; then it is free
    /// when that has been dropped.
    pub fn clear(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open; this request takes no argument.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), LOOP_CLR_FD, 0) }).map(drop)
    }

    /// Undoes [`clear`](Self::clear) of a device that has other users.
    pub fn keep(&self) -> io::Result<()> {
        self.set_status(|info| info.flags &= !LO_FLAGS_AUTOCLEAR)
    }

    /// Takes its file away from all who have it open, to write, to read or mapped: from here on
    /// it is empty. Kernels that want nobody to have it mapped say [`ErrorKind::WouldBlock`].
    pub fn empty(&self) -> io::Result<()> {
        // More than any file has: what begins there has no size.
        self.set_status(|info| info.offset = 1 << 62)
    }

    fn set_status(&self, change: impl FnOnce(&mut LoopInfo64)) -> io::Result<()> {
        let mut info = status(&self.file)?.ok_or(Errno::NXIO)?;
        change(&mut info);
        // SAFETY: the request reads a loop_info64, which lives through the call.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), LOOP_SET_STATUS64, &raw const info) })
            .map(drop)
    }

    /// Makes the device as large as its file now is.
    pub fn update_size(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open; this request takes no argument.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), LOOP_SET_CAPACITY, 0) }).map(drop)
    }

    /// Whether the host's page cache is gone past.
    pub fn is_direct(&self) -> io::Result<bool> {
        Ok(status(&self.file)?.is_some_and(|info| info.flags & LO_FLAGS_DIRECT_IO != 0))
    }
}

/// One at a time within the service: many at once would ask for the same free
/// number and try again in vain. Other programs can still come between.
static ATTACHING: Mutex<()> = Mutex::new(());

fn configure_free(
    backing: &File,
    part: (u64, u64),
    read_only: bool,
    direct_io: bool,
) -> io::Result<LoopDevice> {
    let mut flags = LO_FLAGS_AUTOCLEAR;
    if read_only {
        flags |= LO_FLAGS_READ_ONLY;
    }
    if direct_io {
        flags |= LO_FLAGS_DIRECT_IO;
    }
    configure_free_as(backing, part, flags, [0; 64])
}

fn configure_free_as(
    backing: &File,
    part: (u64, u64),
    flags: u32,
    name: [u8; 64],
) -> io::Result<LoopDevice> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    let read_only = flags & LO_FLAGS_READ_ONLY != 0;
    let _one = ATTACHING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    loop {
        // SAFETY: the descriptor is open; this request takes no argument.
        let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE, 0) })?;
        let device = open_free(number.unsigned_abs(), read_only)?;
        match configure(&device.file, backing, part, flags, name) {
            Ok(()) => return Ok(device),
            // Somebody else was faster.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            Err(e) => return Err(e),
        }
    }
}

fn configure(
    device: &File,
    backing: &File,
    (offset, size): (u64, u64),
    flags: u32,
    name: [u8; 64],
) -> io::Result<()> {
    // SAFETY: all-zero is valid: integers and arrays of integers.
    let mut config: LoopConfig = unsafe { zeroed() };
    config.fd = backing.as_raw_fd().unsigned_abs();
    config.info.flags = flags;
    config.info.file_name = name;
    config.info.offset = offset;
    config.info.size_limit = size;
    // SAFETY: the request reads a loop_config, which lives through the call;
    // both descriptors are open.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) }).map(drop)
}

fn open_free(number: u32, read_only: bool) -> io::Result<LoopDevice> {
    let path = device_path(number);
    let open = || OpenOptions::new().read(true).write(!read_only).open(&path);
    let file = match open() {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            // A /dev that is no devtmpfs does not follow the kernel.
            match mknodat(
                CWD,
                &path,
                FileType::BlockDevice,
                Mode::RUSR | Mode::WUSR,
                makedev(MAJOR, number),
            ) {
                Ok(()) | Err(Errno::EXIST) => open()?,
                Err(e) => return Err(e.into()),
            }
        }
        other => other?,
    };
    Ok(LoopDevice { path, number, file })
}

fn device_path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

fn status(device: &File) -> io::Result<Option<LoopInfo64>> {
    // SAFETY: all-zero is valid: integers and arrays of integers.
    let mut info: LoopInfo64 = unsafe { zeroed() };
    // SAFETY: the request writes a loop_info64, which lives through the call.
    match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) }) {
        Ok(_) => Ok(Some(info)),
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(e) => Err(e),
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A fault for a host without loop devices.
pub fn check_available() -> Result<()> {
    File::open("/dev/loop-control").map(drop).or_kind(
        FaultKind::HostUnsupported,
        "opening /dev/loop-control (load the kernel module `loop`)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn backing(dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path
    }

    /// Clearing is the kernel's, soon after the last close.
    fn wait_until_free(file: &Path) {
        for _ in 0..500 {
            if find_by_backing(file).unwrap().is_none() {
                return;
            }
            sleep(Duration::from_millis(10));
        }
        panic!("{} is still attached", file.display());
    }

    #[test]
    fn root_a_file_has_one_device_which_ends_with_its_last_user() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let file = backing(dir.path(), "disk");
        assert!(find_by_backing(&file).unwrap().is_none());
        let first = attach(&file, false, false).unwrap();
        let second = attach(&file, false, false).unwrap();
        assert_eq!(first.number, second.number);
        assert!(!first.is_direct().unwrap());
        drop(first);
        assert_eq!(find_by_backing(&file).unwrap().unwrap().number, second.number);
        drop(second);
        wait_until_free(&file);
    }

    #[test]
    fn root_the_device_follows_its_file_and_is_known_by_it() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (file, other) = (backing(dir.path(), "disk"), backing(dir.path(), "other"));
        let device = attach(&file, false, true).unwrap();
        let size = || fs::read_to_string(format!("/sys/block/loop{}/size", device.number)).unwrap();
        assert_eq!(size().trim(), "2048");
        OpenOptions::new().write(true).open(&file).unwrap().set_len(2 << 20).unwrap();
        device.update_size().unwrap();
        assert_eq!(size().trim(), "4096");
        let other = fs::metadata(&other).unwrap();
        assert!(open_attached(device.number, &other).unwrap().is_none());
    }

    #[test]
    fn root_many_at_once_get_devices_of_their_own() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let files: Vec<_> = (0..20).map(|i| backing(dir.path(), &format!("d{i}"))).collect();
        let devices: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> =
                files.iter().map(|f| scope.spawn(|| attach(f, false, false).unwrap())).collect();
            running.into_iter().map(|r| r.join().unwrap()).collect()
        });
        let numbers: BTreeSet<_> = devices.iter().map(|d| d.number).collect();
        assert_eq!(numbers.len(), files.len());
        drop(devices);
        files.iter().for_each(|f| wait_until_free(f));
    }

    #[test]
    fn root_a_marked_device_stays_and_can_be_taken_away() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let file = backing(dir.path(), "volume");
        let mark = format!("berth-test:{}", uuid::Uuid::new_v4().simple());
        let open = || OpenOptions::new().read(true).write(true).open(&file).unwrap();
        let number = attach_marked(&open(), &mark, false).unwrap().number;
        let mut found = marked(&mark).unwrap();
        let (device, of) = found.pop().unwrap();
        assert!(found.is_empty() && device.number == number && of == mark);
        assert!(device.is_of(&fs::metadata(&file).unwrap()).unwrap());
        let holder = OpenOptions::new().read(true).write(true).open(&device.path).unwrap();
        rustix::io::pwrite(&holder, b"written", 0).unwrap();
        device.clear().unwrap();
        assert!(open_marked(number).unwrap().is_some(), "somebody has it open");
        device.keep().unwrap();
        device.sync().unwrap();
        assert!(!device.is_emptied().unwrap());
        device.empty().unwrap();
        assert!(device.is_emptied().unwrap());
        assert!(rustix::io::pwrite(&holder, b"too late", 0).is_err());
        assert_eq!(rustix::io::pread(&holder, &mut [0; 8], 0).unwrap(), 0);
        device.clear().unwrap();
        drop((device, holder));
        for _ in 0..500 {
            if marked(&mark).unwrap().is_empty() {
                let kept = fs::read(&file).unwrap();
                return assert_eq!(&kept[..8], b"written\0");
            }
            sleep(Duration::from_millis(10));
        }
        panic!("loop{number} is still attached");
    }

    #[test]
    fn a_missing_file_is_a_fault_that_names_it() {
        let fault = attach(Path::new("/absent/disk"), false, false).unwrap_err();
        assert!(fault.detail.contains("/absent/disk"), "{fault}");
    }
}
