//! An instance's `/dev`: a file system of the host's, which belongs to the instance's root.
//!
//! On one that was mounted inside no device would open, whoever makes its node, for the kernel
//! takes the mounter's word for nothing there. Here the host makes the nodes, also later in a
//! running instance, and nobody inside can make one. What may be opened the cgroup of devices
//! says all the same.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, Spec};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chmodat, chownat, fstat, makedev,
    mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::disks::Disk;
use super::role::Role;
use super::walls::{FreshProc, Walls};
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::store::atomic;
use crate::sys::ids::IdBlock;
use crate::sys::mount::{self, Attributes, FsOption};

/// What fits into it: it is for nodes and links, and counts as the instance's memory.
const SIZE: &str = "64m";

/// Devices that every instance has: name, major and minor number.
const CHARACTERS: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// What is there beside them. Whoever opens one of these devices has no right by it but over what
/// is the instance's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extra {
    /// File systems that programs serve.
    Fuse,
    /// Interfaces whose packets programs send and get.
    Tun,
    /// The place of a proc and a sysfs of which nothing is hidden, [`UNCOVERED`]: without them the
    /// kernel lets nobody mount them who makes a user namespace of his own.
    Uncovered,
}

impl Extra {
    /// Those of an instance. One program alone may neither mount nor make interfaces.
    pub fn of(role: Role, walls: Walls) -> Vec<Extra> {
        let wanted = [
            (Extra::Fuse, walls.fuse),
            (Extra::Tun, walls.tun),
            (Extra::Uncovered, walls.fresh_proc == FreshProc::Users),
        ];
        let wanted = wanted.into_iter().filter(|(_, wanted)| *wanted && role.is_system());
        wanted.map(|(extra, _)| extra).collect()
    }

    /// As udev makes it.
    fn character(&self) -> Option<(&'static str, u32, u32)> {
        match self {
            Extra::Fuse => Some(("fuse", 10, 229)),
            Extra::Tun => Some(("net/tun", 10, 200)),
            Extra::Uncovered => None,
        }
    }
}

/// Links that every instance has.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// What other file systems are mounted on; runc gives these the directory's mode.
const PLACES: [(&str, u32); 3] = [("pts", 0o755), ("shm", 0o1777), ("mqueue", 0o1777)];

/// The directory of [`Extra::Uncovered`].
const UNCOVERED: &str = ".berth";
/// Its proc.
pub(super) const PROC: &str = ".berth/proc";
/// Its sysfs.
pub(super) const SYS: &str = ".berth/sys";
/// Where links to disks are.
const BY_ID: [&str; 2] = ["disk", "disk/by-id"];

/// What the console is mounted on; crun makes none where it finds a /dev.
pub(super) const CONSOLE: &str = "console";

/// The group `disk` inside, as every distribution numbers it.
const DISK: u32 = 6;

/// Which may be opened: nothing but the usual character devices, these extra ones, terminals, its
/// disks to read, and volumes.
pub fn rules(disks: &[Disk], extras: &[Extra]) -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let all = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?;
    let allow = |major: u32, minor: Option<u32>| {
        let device = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(LinuxDeviceType::C)
            .major(major)
            .access("rwm");
        match minor {
            Some(minor) => device.minor(minor).build(),
            None => device.build(),
        }
    };
    let mut devices = vec![all];
    let extras = extras.iter().filter_map(Extra::character);
    for (_, major, minor) in CHARACTERS.into_iter().chain(extras) {
        devices.push(allow(major, Some(minor))?);
    }
    // console, ptmx; pts/*.
    for minor in [1, 2] {
        devices.push(allow(5, Some(minor))?);
    }
    devices.push(allow(136, None)?);
    for disk in disks {
        let device = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(LinuxDeviceType::B)
            .major(disk.device.major)
            .minor(disk.device.minor)
            .access(if disk.is_writable() { "rw" } else { "r" });
        devices.push(device.build()?);
    }
    Ok(devices)
}

/// Has a bundle, of which an instance is to boot again, open these disks.
pub fn renew_rules(bundle: &Path, disks: &[Disk], extras: &[Extra]) -> Result<()> {
    let file = bundle.join("config.json");
    let doing = "renewing the bundle";
    let mut spec = Spec::load(&file).or_fault(doing)?;
    let mut linux = spec.linux().clone().unwrap_or_default();
    let mut resources = linux.resources().clone().unwrap_or_default();
    resources.set_devices(Some(rules(disks, extras).or_fault(doing)?));
    linux.set_resources(Some(resources));
    spec.set_linux(Some(linux));
    atomic::write_json(&file, &spec)
}

/// Mounts a new one at a directory, which is made; one that is there has been another boot's.
pub fn mount(point: &Path, block: IdBlock, disks: &[Disk], extras: &[Extra]) -> Result<()> {
    let doing = || format!("mounting the instance's /dev at {}", point.display());
    fs::create_dir_all(point).or_fault(doing())?;
    mount::unmount(point)?;
    let owner = block.first.to_string();
    let options = [
        ("source", "tmpfs"),
        ("mode", "0755"),
        ("size", SIZE),
        ("uid", owner.as_str()),
        ("gid", owner.as_str()),
    ];
    let options = options.map(|(name, value)| FsOption::Text(name, Path::new(value)));
    let attributes = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NOEXEC;
    let made = mount::create("tmpfs", &options, attributes).or_fault(doing())?;
    let root = mount::root_of(made.as_fd())?;
    fill(&Dev { root, block }, disks, extras).or_fault(doing())?;
    mount::attach(made.as_fd(), point)
}

fn fill(dev: &Dev, disks: &[Disk], extras: &[Extra]) -> rustix::io::Result<()> {
    if extras.contains(&Extra::Tun) {
        dev.directory("net", 0o755)?;
    }
    if extras.contains(&Extra::Uncovered) {
        // Nobody looks at them there.
        dev.directory(UNCOVERED, 0o700)?;
        [PROC, SYS].iter().try_for_each(|path| dev.directory(path, 0o555))?;
    }
    let extras = extras.iter().filter_map(Extra::character);
    for (name, major, minor) in CHARACTERS.into_iter().chain(extras) {
        dev.node(name, FileType::CharacterDevice, makedev(major, minor), 0o666, 0)?;
    }
    LINKS.iter().try_for_each(|(name, to)| dev.link(to, name))?;
    PLACES.iter().try_for_each(|(name, mode)| dev.directory(name, *mode))?;
    dev.file(CONSOLE)?;
    if disks.is_empty() {
        return Ok(());
    }
    BY_ID.iter().try_for_each(|name| dev.directory(name, 0o755))?;
    disks.iter().try_for_each(|disk| {
        let device = makedev(disk.device.major, disk.device.minor);
        dev.node(&disk.name, FileType::BlockDevice, device, 0o660, DISK)?;
        dev.link(&format!("../../{}", disk.name), &format!("disk/by-id/{}", disk.id()))
    })
}

/// Puts a disk into a mounted one, in which root inside may have made of names what it likes: its
/// own name is then taken from whatever has it, and a link is made where there still is a place.
pub fn plug(point: &Path, block: IdBlock, disk: &Disk) -> Result<()> {
    let doing = || format!("making /dev/{}", disk.name);
    let root = open_mounted(point)?;
    let device = makedev(disk.device.major, disk.device.minor);
    if is_node_of(root.as_fd(), &disk.name, device) {
        return Ok(());
    }
    match unlinkat(&root, &disk.name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(Errno::ISDIR) => {
            let detail = format!("/dev/{} inside is a directory; remove it there", disk.name);
            return Err(Fault::new(FaultKind::InstanceInvalidState, detail));
        }
        Err(e) => return Err(e).or_fault(doing()),
    }
    mknodat(&root, &disk.name, FileType::BlockDevice, Mode::empty(), device).or_fault(doing())?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = openat(&root, &disk.name, flags, Mode::empty()).or_fault(doing())?;
    let found = fstat(&node).or_fault(doing())?;
    if FileType::from_raw_mode(found.st_mode) != FileType::BlockDevice || found.st_rdev != device {
        return Err(Fault::internal(doing(), "somebody inside put another file in its place"));
    }
    // By the descriptor, for the name may be a link by now.
    let dev = Dev { root, block };
    let (user, group) = dev.owner(DISK);
    chownat(&node, "", user, group, AtFlags::EMPTY_PATH).or_fault(doing())?;
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    chmodat(CWD, path, Mode::from_raw_mode(0o660), AtFlags::empty()).or_fault(doing())?;
    for name in BY_ID {
        // There, or not ours to make.
        let _ = dev.directory_in_use(name);
    }
    if let Ok(by_id) = open_below(dev.root(), "disk/by-id") {
        let (id, to) = (disk.id(), format!("../../{}", disk.name));
        let _ = unlinkat(&by_id, &id, AtFlags::empty());
        if symlinkat(to, &by_id, &id).is_ok() {
            let (user, group) = dev.owner(0);
            let _ = chownat(&by_id, &id, user, group, AtFlags::SYMLINK_NOFOLLOW);
        }
    }
    Ok(())
}

/// Takes a disk out of a mounted one: its name, if that still is the disk's, and its link. What else
/// has been made of its node inside opens nothing.
pub fn unplug(point: &Path, disk: &Disk) -> Result<()> {
    let root = open_mounted(point)?;
    let device = makedev(disk.device.major, disk.device.minor);
    if is_node_of(root.as_fd(), &disk.name, device) {
        let doing = || format!("removing /dev/{}", disk.name);
        match unlinkat(&root, &disk.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
            Err(e) => return Err(e).or_fault(doing()),
        }
    }
    if let Ok(by_id) = open_below(root.as_fd(), "disk/by-id") {
        let _ = unlinkat(&by_id, disk.id(), AtFlags::empty());
    }
    Ok(())
}

/// The root of what is mounted there.
fn open_mounted(point: &Path) -> Result<OwnedFd> {
    let doing = || format!("opening the instance's /dev at {}", point.display());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = openat(CWD, point, flags, Mode::empty()).or_fault(doing())?;
    let above = fs::metadata(point.join("..")).or_fault(doing())?;
    if fstat(&root).or_fault(doing())?.st_dev == above.dev() {
        return Err(Fault::new(
            FaultKind::InstanceInvalidState,
            "the instance's /dev is not mounted",
        ));
    }
    Ok(root)
}

/// A directory below, on the way to which nothing is a link or a mount.
fn open_below(root: BorrowedFd<'_>, path: &str) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(root, path, flags, Mode::empty(), resolve)
}

fn is_node_of(root: BorrowedFd<'_>, name: &str, device: u64) -> bool {
    statat(root, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|found| {
        FileType::from_raw_mode(found.st_mode) == FileType::BlockDevice && found.st_rdev == device
    })
}

/// An instance's `/dev`.
struct Dev {
    root: OwnedFd,
    block: IdBlock,
}

impl Dev {
    fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    fn node(
        &self,
        name: &str,
        kind: FileType,
        device: u64,
        mode: u32,
        group: u32,
    ) -> rustix::io::Result<()> {
        mknodat(self.root(), name, kind, Mode::empty(), device)?;
        self.own(name, group)?;
        chmodat(self.root(), name, Mode::from_raw_mode(mode), AtFlags::empty())
    }

    fn file(&self, name: &str) -> rustix::io::Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(self.root(), name, flags, Mode::from_raw_mode(0o600))?;
        self.own(name, 0)
    }

    fn directory(&self, name: &str, mode: u32) -> rustix::io::Result<()> {
        mkdirat(self.root(), name, Mode::empty())?;
        self.own(name, 0)?;
        chmodat(self.root(), name, Mode::from_raw_mode(mode), AtFlags::empty())
    }

    /// [`directory`](Self::directory) where root inside may be at work: no link is followed.
    fn directory_in_use(&self, path: &str) -> rustix::io::Result<()> {
        let (parent, name) = match path.rsplit_once('/') {
            Some((parent, name)) => (open_below(self.root(), parent)?, name),
            None => (open_below(self.root(), ".")?, path),
        };
        mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
        let (user, group) = self.owner(0);
        chownat(&parent, name, user, group, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn link(&self, to: &str, name: &str) -> rustix::io::Result<()> {
        symlinkat(to, self.root(), name)?;
        self.own(name, 0)
    }

    fn own(&self, name: &str, group: u32) -> rustix::io::Result<()> {
        let (user, group) = self.owner(group);
        chownat(self.root(), name, user, group, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Root inside, and a group there.
    fn owner(&self, group: u32) -> (Option<Uid>, Option<Gid>) {
        let first = self.block.first;
        (Some(Uid::from_raw(first)), Some(Gid::from_raw(first + group)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::DeviceNumber;
    use crate::types::InitKind;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    const BLOCK: IdBlock = IdBlock { first: 3_000_000_000, size: 65_536 };

    #[test]
    fn extra_devices_are_a_system_instances_by_its_flavor() {
        let all = Walls { tun: true, fresh_proc: FreshProc::Users, ..Walls::default() };
        let init = Role::System(InitKind::Systemd);
        assert_eq!(Extra::of(init, Walls::default()), [Extra::Fuse]);
        assert_eq!(Extra::of(init, all), [Extra::Fuse, Extra::Tun, Extra::Uncovered]);
        assert_eq!(Extra::of(Role::Application, all), []);
        let opened = |extras: &[Extra]| {
            let rules = rules(&[], extras).unwrap();
            let numbers = |rule: &LinuxDeviceCgroup| (rule.major(), rule.minor());
            let misc = rules.iter().filter(|rule| rule.major() == Some(10)).map(numbers);
            misc.collect::<Vec<_>>()
        };
        assert_eq!(opened(&[Extra::Uncovered]), []);
        assert_eq!(opened(&[Extra::Fuse]), [(Some(10), Some(229))]);
        assert_eq!(opened(&[Extra::Tun]), [(Some(10), Some(200))]);
    }

    #[test]
    fn root_every_boot_has_a_new_one_that_belongs_to_the_instance() {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("dev");
        let device = DeviceNumber { major: 7, minor: 123 };
        let disk = Disk { name: "vda".into(), device, serial: "root-1".into(), volume: None };
        mount(&point, BLOCK, &[disk], &[Extra::Fuse, Extra::Tun, Extra::Uncovered]).unwrap();

        let seen = |name: &str| fs::symlink_metadata(point.join(name));
        let uncovered = seen(".berth").unwrap();
        assert_eq!((uncovered.uid(), uncovered.mode() & 0o7777), (BLOCK.first, 0o700));
        assert!(seen(PROC).unwrap().is_dir() && seen(SYS).unwrap().is_dir());
        let vda = seen("vda").unwrap();
        assert!(vda.file_type().is_block_device() && vda.rdev() == makedev(7, 123));
        assert_eq!((vda.uid(), vda.gid()), (BLOCK.first, BLOCK.first + DISK));
        assert_eq!(vda.mode() & 0o7777, 0o660);
        let by_id = point.join("disk/by-id/virtio-root-1");
        assert_eq!(fs::canonicalize(by_id).unwrap(), point.join("vda"));
        for (name, minor) in [("fuse", 229), ("net/tun", 200)] {
            let node = seen(name).unwrap();
            assert!(node.file_type().is_char_device() && node.rdev() == makedev(10, minor));
            assert_eq!((node.uid(), node.mode() & 0o7777), (BLOCK.first, 0o666));
        }
        fs::write(point.join("null"), "nothing").unwrap();
        plugged(&point);
        mount(&point, BLOCK, &[], &[]).unwrap();
        let again = ["", "null", "fd", "pts"].map(|name| seen(name).unwrap().uid());
        assert_eq!(again, [BLOCK.first; 4]);
        let gone = ["vda", "disk", "fuse", "net"].iter().all(|name| seen(name).is_err());
        mount::unmount(&point).unwrap();
        assert!(gone && !point.join("null").exists());
    }

    /// Of a `/dev` in use, whose root may have made traps of names.
    fn plugged(point: &Path) {
        let victim = point.parent().unwrap().join("victim");
        fs::write(&victim, "").unwrap();
        let device = DeviceNumber { major: 7, minor: 124 };
        let volume = Some(super::super::disks::VolumeDisk { read_only: false });
        let disk = Disk { name: "vdb".into(), device, serial: "vol-1".into(), volume };
        std::os::unix::fs::symlink(&victim, point.join("vdb")).unwrap();
        for _ in 0..2 {
            plug(point, BLOCK, &disk).unwrap();
            let vdb = fs::symlink_metadata(point.join("vdb")).unwrap();
            assert!(vdb.file_type().is_block_device() && vdb.rdev() == makedev(7, 124));
            assert_eq!((vdb.uid(), vdb.gid()), (BLOCK.first, BLOCK.first + DISK));
            assert_eq!(vdb.mode() & 0o7777, 0o660);
            let by_id = point.join("disk/by-id/virtio-vol-1");
            assert_eq!(fs::canonicalize(by_id).unwrap(), point.join("vdb"));
        }
        let kept = fs::metadata(&victim).unwrap();
        assert_eq!((kept.uid(), kept.mode() & 0o777), (0, 0o644));
        unplug(point, &disk).unwrap();
        assert!(fs::symlink_metadata(point.join("vdb")).is_err());
        assert!(fs::symlink_metadata(point.join("disk/by-id/virtio-vol-1")).is_err());
        // Links that would lead the host's root elsewhere lead nowhere.
        let outside = point.parent().unwrap().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::remove_dir_all(point.join("disk")).unwrap();
        std::os::unix::fs::symlink(&outside, point.join("disk")).unwrap();
        plug(point, BLOCK, &disk).unwrap();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        unplug(point, &disk).unwrap();
        fs::create_dir(point.join("vdb")).unwrap();
        assert!(plug(point, BLOCK, &disk).unwrap_err().detail.contains("directory"));
        unplug(point, &disk).unwrap();
        fs::remove_dir(point.join("vdb")).unwrap();
        fs::remove_file(point.join("disk")).unwrap();
    }
}
