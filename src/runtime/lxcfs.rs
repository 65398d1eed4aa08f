//! What lxcfs offers: files of /proc and /sys that show the instance, not the host.

use std::path::{Path, PathBuf};

/// Files and directories below lxcfs's mount point, which are also the paths
/// below the instance's root that they cover.
const OFFERED: [&str; 8] = [
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/loadavg",
    "proc/meminfo",
    "proc/stat",
    "proc/swaps",
    "proc/uptime",
    "sys/devices/system/cpu",
];

/// What is there to be bind-mounted: source on the host, and destination inside.
pub fn files(mount_point: &Path) -> Vec<(PathBuf, PathBuf)> {
    OFFERED
        .iter()
        .map(|path| (mount_point.join(path), Path::new("/").join(path)))
        .filter(|(source, _)| source.exists())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(files(dir.path()), []);
        std::fs::create_dir(dir.path().join("proc")).unwrap();
        std::fs::write(dir.path().join("proc/meminfo"), "").unwrap();
        let expected = (dir.path().join("proc/meminfo"), PathBuf::from("/proc/meminfo"));
        assert_eq!(files(dir.path()), [expected]);
    }
}
