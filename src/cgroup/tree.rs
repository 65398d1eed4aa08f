//! Walking a cgroup's directories, which the guest may have nested at will.
//!
//! An instance owns its directory on version 2 and in systemd's hierarchy, and
//! can nest deeper than `PATH_MAX` or the number of descriptors allow. So the
//! walk holds one descriptor, steps in and out with it, and keeps only names.

use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, unlinkat};

/// Calls `visit` with `root` and every directory below it, parents first, and,
/// when `remove`, takes them away, children first. Absence of `root` is success.
fn walk(
    root: &Path,
    remove: bool,
    visit: &mut dyn FnMut(&OwnedFd) -> io::Result<()>,
) -> io::Result<()> {
    let mut here = match open_dir(CWD, root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    visit(&here)?;
    // For each level: the name we came in by, and the children still to visit.
    let mut levels: Vec<(Option<CString>, Vec<CString>)> = vec![(None, children(&here)?)];
    while let Some((_, pending)) = levels.last_mut() {
        if let Some(name) = pending.pop() {
            match open_dir(&here, name.as_c_str()) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                opened => here = opened?,
            }
            visit(&here)?;
            levels.push((Some(name), children(&here)?));
        } else if let Some((Some(name), _)) = levels.pop() {
            here = open_dir(&here, c"..")?;
            if remove {
                absent_is_fine(unlinkat(&here, name.as_c_str(), AtFlags::REMOVEDIR))?;
            }
        }
    }
    if remove { absent_is_fine(rustix::fs::rmdir(root)) } else { Ok(()) }
}

fn open_dir(at: impl std::os::fd::AsFd, path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(at, path, flags, Mode::empty())?)
}

fn children(dir: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let dots: [&CStr; 2] = [c".", c".."];
        if entry.file_type() == FileType::Directory && !dots.contains(&entry.file_name()) {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

fn absent_is_fine(done: rustix::io::Result<()>) -> io::Result<()> {
    match done {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        done => Ok(done?),
    }
}

/// Removes a cgroup and all below it; absence is success.
pub(super) fn remove(root: &Path) -> io::Result<()> {
    walk(root, true, &mut |_| Ok(()))
}

/// Ids of the processes in a cgroup and all below it; none if it is absent.
pub(super) fn pids(root: &Path) -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    walk(root, false, &mut |dir| {
        let text = match read_file(dir, c"cgroup.procs") {
            // A threaded cgroup has no list of its own: its domain's has them.
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
            // The cgroup went away under us, and so did its processes.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => {
                return Ok(());
            }
            text => text?,
        };
        // A process outside our process namespace reads as 0.
        pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0));
        Ok(())
    })?;
    Ok(pids)
}

fn read_file(dir: &OwnedFd, name: &CStr) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut text = String::new();
    let file = openat(dir, name, flags, Mode::empty())?;
    std::fs::File::from(file).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn removes_deeper_than_a_path_can_name() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("g");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(root.join("c")).unwrap();
        let name = "x".repeat(200);
        let mut here = open_dir(CWD, &root).unwrap();
        for _ in 0..60 {
            rustix::fs::mkdirat(&here, &name, Mode::RWXU).unwrap();
            here = open_dir(&here, name.as_str()).unwrap();
        }
        remove(&root).unwrap();
        assert!(!root.exists());
        remove(&root).unwrap();
    }

    #[test]
    fn collects_processes_of_the_whole_tree() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("cgroup.procs"), "10\n11\n").unwrap();
        fs::write(dir.path().join("sub/cgroup.procs"), "0\n12\n").unwrap();
        let mut pids = pids(dir.path()).unwrap();
        pids.sort_unstable();
        assert_eq!(pids, [10, 11, 12]);
        assert!(super::pids(&dir.path().join("absent")).unwrap().is_empty());
    }
}
