//! lxcfs's files in a running instance, when lxcfs was started again.
//!
//! The mounts that an instance was started with are of a daemon that is gone, and answer nothing any
//! more; one started meanwhile has none. The files of the new daemon are put on top, in the
//! instance's own mount namespace. What is mounted there is root's inside to say: no link is
//! followed, a place that shows something else is left alone, and who looks may be held up by a file
//! system of the instance's, and is to be waited for with a limit. Programs inside with mount
//! namespaces of their own have what is mounted by propagation, as their owner made them.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use super::lxcfs;
use crate::cgroup::Group;
use crate::fault::{OrFault, Result};
use crate::sys::mount::{self, Attributes};
use crate::sys::process::ProcessId;
use crate::sys::thread;

const DOING: &str = "renewing what lxcfs shows";

/// What is mounted at a place inside.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// A file of this lxcfs.
    Present,
    /// A file of another lxcfs.
    Dead,
    /// The kernel's own.
    Kernels,
    /// Something of the instance's.
    Foreign,
}

/// The lxcfs that there is.
#[derive(Clone, Debug)]
pub struct Lxcfs {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Its file system.
    pub device: u64,
}

/// Whose mounts are renewed.
#[derive(Debug)]
pub struct Running {
    /// The first process of the instance.
    pub init: ProcessId,
    /// The instance's user namespace. If the first process is not in it, it has a kernel of its own.
    pub user_ns: PathBuf,
    /// The instance.
    pub group: Group,
}

impl Lxcfs {
    /// Puts its files where a running instance has those of another lxcfs, or none. Gives how many
    /// that were.
    pub fn renew(&self, running: &Running) -> Result<usize> {
        let init = running.init;
        let inode = |path: &Path| fs::metadata(path).map(|found| found.ino()).or_fault(DOING);
        let of_init = |name: &str| inode(Path::new(&format!("/proc/{}/ns/{name}", init.pid)));
        if of_init("user")? != inode(&running.user_ns)? {
            return Ok(0);
        }
        let mut count = self.renew_in(init, true)?;
        // Services with mounts of their own took a copy of what was.
        let mut done = BTreeSet::from([of_init("mnt")?]);
        let found = running.group.pids()?.into_iter().filter_map(ProcessId::of);
        let found: Vec<ProcessId> = found.collect();
        // A number that the kernel gave to another process meanwhile is not in here.
        let members = running.group.pids()?;
        for process in found.into_iter().filter(|process| members.contains(&process.pid)) {
            let namespace = inode(Path::new(&format!("/proc/{}/ns/mnt", process.pid)));
            if namespace.is_ok_and(|namespace| done.insert(namespace)) {
                // It may have ended.
                count += self.renew_in(process, false).unwrap_or_default();
            }
        }
        Ok(count)
    }

    /// The same in one process's mount namespace; with `all` in place of none, too.
    fn renew_in(&self, process: ProcessId, all: bool) -> Result<usize> {
        let of_process = |name: &str| PathBuf::from(format!("/proc/{}/{name}", process.pid));
        thread::between_mounts(&of_process("ns/mnt"), |outside, inside| {
            if !process.is_alive() {
                return Ok(0);
            }
            inside.enter()?;
            let places = lxcfs::OFFERED.map(|path| (path, open(path)));
            outside.enter()?;
            let table = fs::read_to_string(of_process("mountinfo")).or_fault(DOING)?;
            let mut covers = Vec::new();
            for (path, place) in places {
                let Some(place) = place else { continue };
                let source = self.mount_point.join(path);
                let covered = match seen(&table, mount_id(&place)?, path, self.device) {
                    Seen::Dead => true,
                    Seen::Kernels => all,
                    Seen::Present | Seen::Foreign => false,
                };
                if covered && source.exists() {
                    let cover = mount::clone_tree_at(CWD, &source).or_fault(DOING)?;
                    mount::set_attributes(cover.as_fd(), attributes(), None)?;
                    covers.push((place, cover));
                }
            }
            inside.enter()?;
            for (place, cover) in &covers {
                mount::attach_on(cover.as_fd(), place.as_fd(), "").or_fault(DOING)?;
            }
            Ok(covers.len())
        })
    }
}

fn attributes() -> Attributes {
    Attributes::MOUNT_ATTR_RDONLY
        | Attributes::MOUNT_ATTR_NOSUID
        | Attributes::MOUNT_ATTR_NODEV
        | Attributes::MOUNT_ATTR_NOEXEC
}

/// What is on top at a path, if the instance has that.
fn open(path: &str) -> Option<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = openat2(CWD, "/", flags | OFlags::DIRECTORY, Mode::empty(), ResolveFlags::empty());
    openat2(root.ok()?, path, flags, Mode::empty(), resolve).ok()
}

/// The mount that something was opened by; asks no file system.
fn mount_id(place: &OwnedFd) -> Result<u64> {
    let doing = "looking what is mounted inside";
    let path = format!("/proc/self/fdinfo/{}", place.as_raw_fd());
    let text = fs::read_to_string(path).or_fault(doing)?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    id.unwrap_or_default().trim().parse().or_fault(doing)
}

/// What the mount of this id is, by the instance's table of mounts.
fn seen(table: &str, id: u64, path: &str, device: u64) -> Seen {
    let wanted = id.to_string();
    let line = table.lines().find(|line| line.split(' ').next() == Some(&wanted));
    let fields = line.and_then(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(2);
        Some((mount.next()?, mount.next()?, source.split(' ').next()?))
    });
    let Some((number, root, kind)) = fields else { return Seen::Foreign };
    let current = format!("{}:{}", libc::major(device), libc::minor(device));
    match kind {
        "fuse.lxcfs" if number == current => Seen::Present,
        "fuse.lxcfs" => Seen::Dead,
        "proc" if root == "/" && path.starts_with("proc/") => Seen::Kernels,
        "sysfs" if path.starts_with("sys/") => Seen::Kernels,
        _ => Seen::Foreign,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
21 1 0:40 / /proc rw,nosuid - proc proc rw
22 1 0:41 / /sys ro - sysfs sysfs ro
23 22 0:41 /devices/system/cpu /sys/devices/system/cpu ro - sysfs sysfs ro
24 21 0:50 /proc/meminfo /proc/meminfo ro - fuse.lxcfs lxcfs ro,user_id=0
25 21 0:51 /proc/stat /proc/stat ro shared:7 - fuse.lxcfs lxcfs ro,user_id=0
26 21 0:60 /x /proc/uptime rw - tmpfs mine rw
27 21 0:40 /version /proc/loadavg rw - proc proc rw
";

    #[test]
    fn only_what_lacks_it_is_covered() {
        let device = libc::makedev(0, 51);
        let seen = |id, path| seen(TABLE, id, path, device);
        assert_eq!(seen(24, "proc/meminfo"), Seen::Dead);
        assert_eq!(seen(25, "proc/stat"), Seen::Present);
        assert_eq!(seen(21, "proc/cpuinfo"), Seen::Kernels);
        assert_eq!(seen(23, "sys/devices/system/cpu"), Seen::Kernels);
        assert_eq!(seen(26, "proc/uptime"), Seen::Foreign);
        assert_eq!(seen(27, "proc/loadavg"), Seen::Foreign);
        assert_eq!(seen(2, "proc/loadavg"), Seen::Foreign, "no such mount");
    }
}
