//! The walls of the jail: what the child sees, may use and may do.

#![expect(clippy::disallowed_methods, reason = "its faults quote nix's errors: see `crate::sys`")]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

use super::calls;
use super::task::{Task, Work};
use crate::fault::{Fault, OrFault, Result};
use crate::image::disk::{foreign, mounted};
use crate::image::recognise::FileSystem;
use crate::sys::filter;

/// Most memory that the child may map. xz may take a quarter of it.
const ADDRESS_SPACE: u64 = 1 << 30;
/// Most that the converter may map: of each of its threads and heaps, most is only reserved. What
/// it may write to is bounded by [`ADDRESS_SPACE`], too.
const CONVERTER_ADDRESS_SPACE: u64 = 1 << 36;
/// The stack of each of the converter's threads, of which a slow disk makes it start many: it may
/// write to all of it, so the usual 8 MiB of 64 threads would be half of what it has.
const CONVERTER_STACK: u64 = 1 << 20;
/// Most CPU time, in seconds.
const CPU_SECONDS: u64 = 4 * 3600;
/// Files that may be open while a mounted tree is walked: a directory on each level of it.
const OPEN_DIRECTORIES: u64 = 512;
/// The user and group of the jail, which owns nothing. A number of berth's own: `nobody`'s may be
/// a daemon's, which could then trace the converter. systemd's list of ids leaves 65520 to 65533
/// unused, so nothing gives it away; `berth check` looks for an account.
pub const USER: u32 = 65_529;

/// Gives up everything that the task does not need.
pub(super) fn confine(task: &Task) -> Result<Option<OwnedFd>> {
    // By its parent, for no process can move itself.
    if std::process::id() != 1 {
        return Err(Fault::internal("entering the jail", "it has no PID namespace of its own"));
    }
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )
    .or_fault("taking namespaces for the jail")?;
    let (root, keep, bytes) = match &task.work {
        Work::Decompress { .. }
        | Work::Look
        | Work::Disk { .. }
        | Work::FindRoot
        | Work::DiskPart { .. }
        | Work::Frame
        | Work::Grow { .. } => (Root::Empty, CapabilitySet::empty(), 0),
        Work::Mounted { device, file_system, .. } => {
            (Root::Device(device, *file_system), CapabilitySet::DAC_READ_SEARCH, 0)
        }
        Work::Convert { image, disk, limits, .. } => {
            (Root::Programs { image, disk }, CapabilitySet::empty(), limits.bytes)
        }
        Work::Stage { limits } => (Root::Directory, CapabilitySet::empty(), limits.bytes),
        Work::Layer { limits, .. } => (Root::Directory, unpacking(), limits.bytes),
        Work::Fill { device } => {
            // For `trusted.*`, of which no layer takes any: the filter leaves nothing else of it.
            (Root::NewDevice(device), unpacking() | CapabilitySet::SYS_ADMIN, u64::MAX)
        }
    };
    let subvolumes = match &task.work {
        Work::Mounted { device, file_system: FileSystem::Btrfs, .. } => Some(subvolumes(device)?),
        _ => None,
    };
    change_root(&task.directory, root)?;
    let files = if matches!(task.work, Work::Mounted { .. }) { OPEN_DIRECTORIES } else { 64 };
    let space = if matches!(task.work, Work::Convert { .. }) {
        // The C library of the program that the child becomes takes it for its threads.
        lower(Resource::RLIMIT_STACK, CONVERTER_STACK).or_fault("limiting the converter")?;
        CONVERTER_ADDRESS_SPACE
    } else {
        ADDRESS_SPACE
    };
    limit(space, bytes, files).or_fault("limiting the jail")?;
    rustix::process::umask(rustix::fs::Mode::empty());
    drop_privileges(keep)?;
    // The last wall: those before it take calls that it has not.
    filter::hold_to(&calls::of(&task.work)).or_fault("filtering the jail's system calls")?;
    Ok(subvolumes)
}

/// The top of a Btrfs, from which all of its subvolumes can be reached, mounted nowhere.
fn subvolumes(device: &Path) -> Result<OwnedFd> {
    let mount = || -> rustix::io::Result<OwnedFd> {
        let btrfs = fsopen("btrfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(btrfs.as_fd(), "source", device)?;
        fsconfig_set_string(btrfs.as_fd(), "subvolid", "5")?;
        fsconfig_set_flag(btrfs.as_fd(), "ro")?;
        fsconfig_create(btrfs.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        fsmount(btrfs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    mount().map_err(|errno| {
        mounted::not_mounted(FileSystem::Btrfs, Errno::from_raw(errno.raw_os_error()))
    })
}

/// What unpacking takes.
fn unpacking() -> CapabilitySet {
    CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::MKNOD
        | CapabilitySet::SETFCAP
}

/// What the jail sees.
#[derive(Clone, Copy)]
enum Root<'a> {
    /// Nothing.
    Empty,
    /// The directory itself.
    Directory,
    /// What is on a device.
    Device(&'a Path, FileSystem),
    /// The empty ext2, ext3 or ext4 that berth made on a device, to be filled.
    NewDevice(&'a Path),
    /// The host's programs, an image to read and a disk to write.
    Programs { image: &'a Path, disk: &'a Path },
}

/// Makes `directory`, or what is mounted on it, all that there is.
fn change_root(directory: &Path, root: Root<'_>) -> Result<()> {
    let none = None::<&str>;
    let doing = || format!("making {} the jail's root", directory.display());
    let safe = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let read_only = safe | MsFlags::MS_RDONLY;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).or_fault(doing())?;
    match root {
        Root::Empty => mount(Some("tmpfs"), directory, Some("tmpfs"), read_only, Some("mode=0555")),
        Root::Directory => {
            let flags = safe | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
            mount(Some(directory), directory, none, MsFlags::MS_BIND, none)
                .and_then(|()| mount(none, directory, none, flags, none))
        }
        Root::Programs { image, disk } => programs(directory, image, disk),
        // The driver of ext4 knows all three.
        Root::NewDevice(device) => {
            mount(Some(device), directory, Some("ext4"), safe, Some("acl,user_xattr"))
        }
        Root::Device(device, file_system) => {
            let (driver, options) = (mounted::driver(file_system), mounted::options(file_system));
            return mount(Some(device), directory, driver, read_only, options)
                .map_err(|errno| mounted::not_mounted(file_system, errno))
                .and_then(|()| enter(directory).or_fault(doing()));
        }
    }
    .and_then(|()| enter(directory))
    .or_fault(doing())
}

/// Mounts a file system of what `qemu-img` needs.
fn programs(directory: &Path, image: &Path, disk: &Path) -> nix::Result<()> {
    let none = None::<&str>;
    let safe = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let bind = |from: &Path, to: &Path, flags: MsFlags| {
        mount(Some(from), to, none, MsFlags::MS_BIND, none)?;
        mount(none, to, none, flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT, none)
    };
    mount(Some("tmpfs"), directory, Some("tmpfs"), safe, Some("mode=0755,size=1m"))?;
    for name in ["usr", "lib", "lib64"] {
        let (from, to) = (Path::new("/").join(name), directory.join(name));
        match std::fs::read_link(&from) {
            Ok(target) => std::os::unix::fs::symlink(target, &to).map_err(errno)?,
            Err(_) if from.is_dir() => {
                std::fs::create_dir(&to).map_err(errno)?;
                bind(&from, &to, safe | MsFlags::MS_RDONLY)?;
            }
            Err(_) => {}
        }
    }
    let file = |from: &Path, name: &str, flags: MsFlags| {
        let to = directory.join(name);
        File::create(&to).map_err(errno)?;
        bind(from, &to, flags | MsFlags::MS_NOEXEC)
    };
    std::fs::create_dir(directory.join("etc")).map_err(errno)?;
    let cache = Path::new("/etc/ld.so.cache");
    if cache.exists() {
        file(cache, "etc/ld.so.cache", safe | MsFlags::MS_RDONLY)?;
    }
    file(image, foreign::IMAGE, safe | MsFlags::MS_RDONLY)?;
    file(disk, foreign::DISK, safe)?;
    mount(none, directory, none, safe | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none)
}

/// Makes a mount point all that there is.
fn enter(directory: &Path) -> nix::Result<()> {
    nix::unistd::chdir(directory)?;
    // The old root lands on top of the new one and goes.
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")
}

fn limit(space: u64, file_bytes: u64, files: u64) -> nix::Result<()> {
    for (resource, value) in [
        (Resource::RLIMIT_AS, space),
        // All that is private and may be written to: setrlimit(2).
        (Resource::RLIMIT_DATA, ADDRESS_SPACE),
        (Resource::RLIMIT_CPU, CPU_SECONDS),
        (Resource::RLIMIT_FSIZE, file_bytes),
        (Resource::RLIMIT_NOFILE, files),
        (Resource::RLIMIT_CORE, 0),
    ] {
        lower(resource, value)?;
    }
    Ok(())
}

fn lower(resource: Resource, value: u64) -> nix::Result<()> {
    // The host may have set less already, and only less is possible without SYS_RESOURCE.
    let value = value.min(getrlimit(resource)?.1);
    setrlimit(resource, value, value)
}

fn drop_privileges(keep: CapabilitySet) -> Result<()> {
    // Capabilities stay as they are through the change of user, and no later
    // change of user or program brings any back.
    rustix::thread::set_capabilities_secure_bits(
        CapabilitiesSecureBits::NO_SETUID_FIXUP
            | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
            | CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED,
    )
    .or_fault("locking the jail's privileges")?;
    for capability in CapabilitySet::all().iter() {
        // Capabilities that this kernel does not know cannot be dropped, nor had.
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    let (uid, gid) = (Uid::from_raw(USER), Gid::from_raw(USER));
    let become_it = || {
        nix::unistd::setgroups(&[])?;
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)
    };
    become_it().or_fault("becoming the jail's user")?;
    nix::unistd::setfsgid(Gid::from_raw(0));
    nix::unistd::setfsuid(Uid::from_raw(0));
    let sets =
        CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).or_fault("dropping capabilities")?;
    rustix::thread::set_no_new_privs(true).or_fault("forbidding new privileges")?;
    // The last check is on what is, not on what was asked for.
    let now = rustix::thread::capabilities(None).or_fault("reading capabilities")?;
    if now.effective == keep && now.permitted == keep && now.inheritable.is_empty() {
        Ok(())
    } else {
        Err(Fault::internal("dropping capabilities", "some stayed"))
    }
}
