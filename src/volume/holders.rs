//! Who inside an instance has a device open.
//!
//! No file system is asked anything: one of the instance's own may never answer. Descriptors on
//! their way through a socket are in no process's table and are not found.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use crate::cgroup::DeviceNumber;
use crate::fault::harmless;
use crate::sys::process::ProcessId;

/// A process that has it open, or mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// As the host sees it.
    pub process: ProcessId,
    /// Its number inside.
    pub inside: i32,
    /// Its name, as it gave it.
    pub name: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Holder { process, inside, name } = self;
        write!(f, "{} (pid {inside} inside, {} on the host)", harmless(name), process.pid)
    }
}

/// Those among these processes.
pub(super) fn find(device: DeviceNumber, pids: &[i32]) -> Vec<Holder> {
    let holder = |pid: &i32| {
        // Before it is looked at: one that takes the number later is another.
        let process = ProcessId::of_any_thread(*pid)?;
        let tasks = entries(&PathBuf::from(format!("/proc/{pid}/task")));
        let holds = tasks.iter().any(|task| has_open(device, task)) || has_mapped(device, &tasks);
        holds.then(|| describe(process))
    };
    pids.iter().filter_map(holder).collect()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Threads may have tables of their own.
fn has_open(device: DeviceNumber, task: &Path) -> bool {
    entries(&task.join("fd")).iter().any(|fd| {
        let number = fd.file_name().unwrap_or_default();
        is_of(device, fd) && !is_path_only(&task.join("fdinfo").join(number))
    })
}

/// All threads share their memory, but the first may have ended.
fn has_mapped(device: DeviceNumber, tasks: &[PathBuf]) -> bool {
    tasks.iter().filter_map(|task| task.file_name()).any(|thread| {
        let maps = entries(&Path::new("/proc").join(thread).join("map_files"));
        maps.iter().any(|map| is_of(device, map))
    })
}

/// Whether a link of proc's leads to a node of the device.
fn is_of(device: DeviceNumber, link: &Path) -> bool {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    statx(CWD, link, flags, StatxFlags::TYPE).is_ok_and(|found| {
        FileType::from_raw_mode(found.stx_mode.into()) == FileType::BlockDevice
            && (found.stx_rdev_major, found.stx_rdev_minor) == (device.major, device.minor)
    })
}

/// Whether a descriptor only names a file (`O_PATH`): to open that anew is to ask the cgroup of devices.
fn is_path_only(info: &Path) -> bool {
    let text = fs::read_to_string(info).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_PATH != 0)
}

fn describe(process: ProcessId) -> Holder {
    let read = |name: &str| {
        fs::read_to_string(format!("/proc/{}/{name}", process.pid)).unwrap_or_default()
    };
    let status = read("status");
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let inside = numbers.and_then(|numbers| numbers.split_whitespace().last()?.parse().ok());
    let name = read("comm").trim_end().to_owned();
    Holder { process, inside: inside.unwrap_or(process.pid), name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::loopdev;
    use std::fs::File;

    #[test]
    fn root_who_has_it_open_is_found() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("volume");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let device = loopdev::attach(&path, false, false).unwrap();
        let number = DeviceNumber { major: loopdev::MAJOR, minor: device.number };
        let sleep = |with: &str| {
            let mut command = std::process::Command::new("sh");
            command.args(["-c", &format!("exec sleep 100 {with}")]);
            command.spawn().unwrap()
        };
        let (mut holder, mut other) =
            (sleep(&format!("7<{}", device.path.display())), sleep("7</dev/null"));
        let pids = [holder.id().cast_signed(), other.id().cast_signed()];
        let found = loop {
            let found = find(number, &pids);
            if found.iter().any(|holder| holder.name == "sleep") {
                break found;
            }
        };
        holder.kill().and_then(|()| holder.wait()).unwrap();
        other.kill().and_then(|()| other.wait()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].process.pid, found[0].inside), (pids[0], pids[0]));
        assert!(find(number, &pids).is_empty());
    }
}
