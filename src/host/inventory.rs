//! What the host has to give.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;

use super::cpus::cpu_sets;
use super::facts::{cpuinfo, meminfo, read};
use crate::config::Config;
use crate::fault::{OrFault, Result};
use crate::types::Inventory;

const GIB: u64 = 1 << 30;

/// What the instances have of it; the manager knows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Sum of `vcpus` of the instances that share.
    pub vcpus: u32,
    /// Dedicated CPUs that are taken.
    pub pcpus: u32,
    /// Sum of `memory_mb`.
    pub memory_mb: u64,
    /// Sum of the disks, GiB.
    pub local_gb: u64,
    /// What no disk can be promised, GiB.
    pub disk_reserved_gb: u64,
    /// Number of instances.
    pub instances: u32,
    /// Number of instances that run.
    pub running: u32,
}

/// The host's inventory; `state_dir` need not exist yet.
pub fn inventory(config: &Config, state_dir: &Path, used: &Usage) -> Result<Inventory> {
    let sets = cpu_sets(config)?;
    let memory = read(Path::new("/proc/meminfo"))?;
    let cpus = read(Path::new("/proc/cpuinfo"))?;
    let disk = disk(state_dir)?;
    let topology = topology(Path::new("/sys/devices/system/cpu"), &sets.online);
    Ok(Inventory {
        vcpus: sets.shared.len() as u32,
        pcpus: sets.dedicated.len() as u32,
        memory_mb: meminfo(&memory, "MemTotal") >> 20,
        local_gb: disk.size / GIB,
        vcpus_used: used.vcpus,
        pcpus_used: used.pcpus,
        memory_mb_used: used.memory_mb,
        local_gb_used: used.local_gb,
        disk_available_gb: disk.available / GIB,
        disk_reserved_gb: used.disk_reserved_gb,
        instances: used.instances,
        running_instances: used.running,
        cpu_model: first_of(&cpus, &["model name", "Model", "cpu"]),
        cpu_vendor: first_of(&cpus, &["vendor_id", "CPU implementer"]),
        cpu_flags: flags(&cpus),
        cpu_sockets: topology.sockets,
        cpu_cores: topology.cores,
        cpu_threads: topology.threads,
    })
}

/// Architectures name these lines differently.
fn first_of(cpuinfo_text: &str, keys: &[&str]) -> String {
    keys.iter().find_map(|key| cpuinfo(cpuinfo_text, key)).unwrap_or("unknown").to_owned()
}

fn flags(cpuinfo_text: &str) -> Vec<String> {
    let line = cpuinfo(cpuinfo_text, "flags").or_else(|| cpuinfo(cpuinfo_text, "Features"));
    line.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// A file system's size, bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    pub size: u64,
    pub available: u64,
}

/// The file system that holds `path`, or will hold it.
pub(super) fn disk(path: &Path) -> Result<Disk> {
    let there = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let s = statvfs(there).or_fault(format_args!("reading the size of {}", there.display()))?;
    Ok(Disk { size: s.f_blocks * s.f_frsize, available: s.f_bavail * s.f_frsize })
}

#[derive(Debug, PartialEq, Eq)]
struct Topology {
    sockets: u32,
    cores: u32,
    threads: u32,
}

/// Sockets, cores in a socket and threads in a core of the online CPUs; a
/// machine that does not say is one socket of single-threaded cores.
fn topology(sysfs: &Path, online: &BTreeSet<u32>) -> Topology {
    let mut sockets = BTreeSet::new();
    let mut cores = BTreeSet::new();
    for cpu in online {
        let dir: PathBuf = sysfs.join(format!("cpu{cpu}/topology"));
        let id = |file: &str| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<i64>().ok();
        let socket = id("physical_package_id").unwrap_or(0);
        sockets.insert(socket);
        cores.insert((socket, id("die_id").unwrap_or(0), id("core_id").unwrap_or(i64::from(*cpu))));
    }
    let count = |n: usize, of: usize| (n / of.max(1)).max(1) as u32;
    Topology {
        sockets: count(sockets.len(), 1),
        cores: count(cores.len(), sockets.len()),
        threads: count(online.len(), cores.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topology_of_two_sockets_with_threads() {
        let dir = tempfile::tempdir().unwrap();
        for cpu in 0..8u32 {
            let topology = dir.path().join(format!("cpu{cpu}/topology"));
            fs::create_dir_all(&topology).unwrap();
            fs::write(topology.join("physical_package_id"), format!("{}\n", cpu / 4)).unwrap();
            fs::write(topology.join("core_id"), format!("{}\n", cpu % 2)).unwrap();
        }
        let all: BTreeSet<u32> = (0..8).collect();
        assert_eq!(topology(dir.path(), &all), Topology { sockets: 2, cores: 2, threads: 2 });
        let silent = topology(&dir.path().join("none"), &BTreeSet::from([0, 1]));
        assert_eq!(silent, Topology { sockets: 1, cores: 2, threads: 1 });
    }

    #[test]
    fn arm_says_features() {
        let text = "processor : 0\nFeatures : fp asimd\nCPU implementer : 0x41\n";
        assert_eq!(flags(text), ["fp", "asimd"]);
        assert_eq!(first_of(text, &["vendor_id", "CPU implementer"]), "0x41");
        assert_eq!(first_of(text, &["model name"]), "unknown");
    }

    #[test]
    fn this_host_and_what_the_manager_says() {
        let mut config = Config::default();
        config.host.cpu_dedicated_set = "0".into();
        let used = Usage {
            vcpus: 3,
            pcpus: 1,
            memory_mb: 64,
            local_gb: 2,
            disk_reserved_gb: 5,
            instances: 2,
            running: 1,
        };
        let i = inventory(&config, Path::new("/absent/dir"), &used).unwrap();
        assert_eq!((i.pcpus, i.vcpus_used, i.pcpus_used), (1, 3, 1));
        assert_eq!((i.memory_mb_used, i.local_gb_used, i.disk_reserved_gb), (64, 2, 5));
        assert_eq!((i.instances, i.running_instances), (2, 1));
        assert!(i.memory_mb > 0 && i.local_gb > 0 && i.disk_available_gb <= i.local_gb);
        assert!(!i.cpu_flags.is_empty());
    }
}
