//! Version 1: a controller's files and their quirks.

use std::collections::BTreeSet;
use std::path::Path;

use super::plan::{Step, read};
use super::{CgroupLimits, Cpu, DeviceNumber, DiskRates};

/// The root cgroup's write rates.
///
/// Version 1 charges write-back to the root, whoever dirtied the page, so a
/// rate in the instance's own cgroup holds direct and synchronous writes only.
/// Every instance has block devices of its own, so the same rate in the root
/// holds what the kernel writes back for it and touches no one else.
///
/// The two are buckets of their own: an instance that writes directly and
/// through the cache at the same time can reach nearly twice its rate
/// (28 MiB/s of 16 measured). Version 2 has one bucket.
pub(super) const ROOT_WRITE_RATES: [&str; 2] =
    ["blkio.throttle.write_bps_device", "blkio.throttle.write_iops_device"];

pub(super) fn cpu(dir: &Path, cpu: &Cpu) -> Vec<Step> {
    let quota = cpu.quota_us.map_or("-1".to_owned(), |q| q.to_string());
    vec![
        Step::write(dir.join("cpu.shares"), cpu.shares),
        Step::write(dir.join("cpu.cfs_period_us"), cpu.period_us),
        Step::write(dir.join("cpu.cfs_quota_us"), quota),
    ]
}

/// Version 1 counts buffers of sockets, TCP's and all others', apart from memory
/// and only where they have a limit. They come on top: a part of the memory,
/// above which sockets make do with little.
const SOCKETS: u64 = 4;

/// `memsw` (memory and swap together) must never be below `memory`. Writing it
/// before and after makes one order right for a new cgroup, for growing and for
/// shrinking: of the first write only what is possible yet takes effect.
pub(super) fn memory(dir: &Path, limits: &CgroupLimits) -> Vec<Step> {
    let both = limits.memory_bytes + limits.swap_bytes;
    let memory = dir.join("memory.limit_in_bytes");
    let memsw = dir.join("memory.memsw.limit_in_bytes");
    let counts_swap = dir.ancestors().any(|d| d.join("memory.memsw.limit_in_bytes").exists());
    let sockets =
        Step::write(dir.join("memory.kmem.tcp.limit_in_bytes"), limits.memory_bytes / SOCKETS);
    if counts_swap {
        return vec![
            Step::try_write(&memsw, both),
            Step::write(memory, limits.memory_bytes),
            Step::write(memsw, both),
            sockets,
        ];
    }
    // Without swap accounting the least swappiness keeps anonymous memory in.
    let swappiness = if limits.swap_bytes == 0 { 0 } else { 60 };
    vec![
        Step::write(memory, limits.memory_bytes),
        Step::try_write(dir.join("memory.swappiness"), swappiness),
        sockets,
    ]
}

/// Neither used nor promised: a mapping is refused, not ended when it is touched.
pub(super) fn no_huge_pages(dir: &Path, sizes: &[String]) -> Vec<Step> {
    let files = sizes.iter().flat_map(|s| {
        ["rsvd.limit_in_bytes", "limit_in_bytes"].map(|f| format!("hugetlb.{s}.{f}"))
    });
    files.map(|file| Step::write(dir.join(file), 0)).collect()
}

/// `cpuset.cpus` and `cpuset.mems` start empty and must be set before a task may join.
pub(super) fn cpuset(dir: &Path, cpus: Option<&BTreeSet<u32>>) -> Vec<Step> {
    let inherit = |file: &str| {
        dir.ancestors()
            .skip(1)
            .filter_map(|d| read(&d.join(file)).ok())
            .find(|value| !value.is_empty())
    };
    let cpus = cpus.map(cpu_list).or_else(|| inherit("cpuset.cpus"));
    [("cpuset.cpus", cpus), ("cpuset.mems", inherit("cpuset.mems"))]
        .into_iter()
        .filter_map(|(file, value)| Some(Step::write(dir.join(file), value?)))
        .collect()
}

/// As the kernel takes it: `0,1,5`.
pub(super) fn cpu_list(cpus: &BTreeSet<u32>) -> String {
    cpus.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

pub(super) fn io(
    dir: &Path,
    root: &Path,
    rates: &DiskRates,
    devices: &[DeviceNumber],
) -> Vec<Step> {
    let mut steps = Vec::new();
    for device in devices {
        for (kind, bytes, iops) in [
            ("read", rates.read_bytes, rates.read_iops),
            ("write", rates.write_bytes, rates.write_iops),
        ] {
            for (unit, rate) in [("bps", bytes), ("iops", iops)] {
                let file = format!("blkio.throttle.{kind}_{unit}_device");
                // 0 takes a rule away: also one that the device's last user left.
                let rule = format!("{device} {}", rate.unwrap_or(0));
                let needed = rate.is_some();
                steps.push(rule_step(dir.join(&file), &rule, needed));
                if kind == "write" {
                    steps.push(rule_step(root.join(&file), &rule, needed));
                }
            }
        }
    }
    steps
}

fn rule_step(path: std::path::PathBuf, rule: &str, needed: bool) -> Step {
    Step::Write { path, value: rule.to_owned(), optional: !needed }
}

/// What takes the rules of `devices` out of the root.
pub(super) fn forget_devices(root: &Path, devices: &[DeviceNumber]) -> Vec<Step> {
    let files = ROOT_WRITE_RATES.map(|file| root.join(file));
    let rules = devices.iter().map(|device| format!("{device} 0"));
    rules.flat_map(|rule| files.clone().map(|file| Step::try_write(file, &rule))).collect()
}
