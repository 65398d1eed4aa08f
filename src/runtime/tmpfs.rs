//! Sizes of the file systems in memory that systemd mounts inside: the kernel and systemd reckon
//! them from the host's memory, and a full one takes all that the instance has. What the image
//! itself says of them stays.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::fault::{OrFault, Result};
use crate::sys::fs::{make_dirs_in_root, open_in_root, replace_file};
use crate::sys::ids::IdBlock;
use crate::sys::process::ProcessId;
use crate::sys::thread;

/// Most bytes of a table of file systems that are read.
const FSTAB: u64 = 1 << 20;

/// Leaves them to the systemd of a container that was made and is not started, as settings in its
/// `/run`: `/tmp`, where it is one, gets half of `memory_mb`, and each user's `/run/user` a tenth.
pub fn bound(init: ProcessId, block: IdBlock, memory_mb: u64) -> Result<()> {
    let doing = "bounding its file systems in memory";
    let root = File::open(format!("/proc/{}/root", init.pid)).or_fault(doing)?;
    let mebibytes = |part: u64| (memory_mb / part).max(1);
    let user = format!("[Login]\nRuntimeDirectorySize={}M\n", mebibytes(10));
    let mut files = vec![("run/systemd/logind.conf.d", user)];
    if !says_of_tmp(&root) {
        let options =
            format!("mode=1777,strictatime,nosuid,nodev,size={}m,nr_inodes=1m", mebibytes(2));
        files.push(("run/systemd/system/tmp.mount.d", format!("[Mount]\nOptions={options}\n")));
    }
    // Of the instance's own root, or the kernel would not know the owner there.
    thread::as_ids(block, || {
        let owner = (block.first, block.first);
        for (directory, text) in &files {
            let directory = make_dirs_in_root(root.as_fd(), Path::new(directory), owner);
            let directory = directory.or_fault(doing)?;
            let name = OsStr::new("50-berth.conf");
            replace_file(directory.as_fd(), name, text.as_bytes(), owner, 0o644).or_fault(doing)?;
        }
        Ok(())
    })
}

/// Whether the image has its own word on `/tmp`: more than that it is to be a `tmpfs`, which is a
/// link to the distribution's unit.
fn says_of_tmp(root: &File) -> bool {
    let open = |path, flags| open_in_root(root.as_fd(), Path::new(path), flags, Mode::empty());
    let unit = open("etc/systemd/system/tmp.mount", OFlags::PATH | OFlags::NOFOLLOW);
    let own = unit.is_ok_and(|unit| File::from(unit).metadata().is_ok_and(|unit| unit.is_file()));
    let table = open("etc/fstab", OFlags::RDONLY | OFlags::NONBLOCK).map(File::from);
    let table = table.map(|file| io::read_to_string(file.take(FSTAB)).unwrap_or_default());
    let of_tmp = |line: &str| line.split_whitespace().nth(1) == Some("/tmp");
    own || table.is_ok_and(|table| table.lines().any(of_tmp))
}
