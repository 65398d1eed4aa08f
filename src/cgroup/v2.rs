//! Version 2: a controller's files.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::plan::{Step, read, write};
use super::{CgroupLimits, Cpu, DeviceNumber, DiskRates, v1};

pub(super) fn cpu(dir: &Path, cpu: &Cpu) -> Vec<Step> {
    let quota = or_max(cpu.quota_us);
    vec![
        Step::write(dir.join("cpu.weight"), cpu.weight()),
        Step::write(dir.join("cpu.max"), format!("{quota} {}", cpu.period_us)),
    ]
}

pub(super) fn memory(dir: &Path, limits: &CgroupLimits) -> Vec<Step> {
    vec![
        Step::write(dir.join("memory.max"), limits.memory_bytes),
        // A kernel without swap has no such file, and no swap to escape into.
        Step::try_write(dir.join("memory.swap.max"), limits.swap_bytes),
    ]
}

/// Unset is the parent's set, so that a CPU which comes later is used too.
///
/// Older kernels (6.1) unset no cgroup that has processes (ENOSPC): it gets
/// all that its parent has now.
pub(super) fn cpuset(dir: &Path, cpus: Option<&BTreeSet<u32>>) -> Vec<Step> {
    let file = dir.join("cpuset.cpus");
    if let Some(cpus) = cpus {
        return vec![Step::write(file, v1::cpu_list(cpus))];
    }
    let parents = dir.parent().and_then(|p| read(&p.join("cpuset.cpus.effective")).ok());
    let all = parents.filter(|cpus| !cpus.is_empty()).map(|cpus| Step::try_write(&file, cpus));
    all.into_iter().chain([Step::try_write(&file, "\n")]).collect()
}

pub(super) fn io(dir: &Path, rates: &DiskRates, devices: &[DeviceNumber]) -> Vec<Step> {
    let needed = *rates != DiskRates::default();
    let rule = format!(
        "rbps={} wbps={} riops={} wiops={}",
        or_max(rates.read_bytes),
        or_max(rates.write_bytes),
        or_max(rates.read_iops),
        or_max(rates.write_iops)
    );
    devices
        .iter()
        .map(|device| Step::Write {
            path: dir.join("io.max"),
            value: format!("{device} {rule}"),
            optional: !needed,
        })
        .collect()
}

/// Neither used nor promised: a mapping is refused, not ended when it is touched.
pub(super) fn no_huge_pages(dir: &Path, sizes: &[String]) -> Vec<Step> {
    let files = sizes.iter().flat_map(|s| ["rsvd.max", "max"].map(|f| format!("hugetlb.{s}.{f}")));
    files.map(|file| Step::write(dir.join(file), 0)).collect()
}

fn or_max(value: Option<u64>) -> String {
    value.map_or("max".to_owned(), |v| v.to_string())
}

/// Lets `dir`'s children use the controllers that `dir` itself has.
///
/// One write for each: a controller that cannot be enabled must not keep the
/// others off. What a limit needs and is still missing shows at its own file.
pub(super) fn enable(dir: &Path, controllers: &BTreeSet<String>) -> Vec<Step> {
    ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"]
        .into_iter()
        .filter(|name| controllers.contains(*name))
        .map(|name| Step::try_write(dir.join("cgroup.subtree_control"), format!("+{name}")))
        .collect()
}

/// Bytes charged to a cgroup.
pub(super) fn memory_current(dir: &Path) -> std::io::Result<u64> {
    let text = read(&dir.join("memory.current"))?;
    text.parse().map_err(std::io::Error::other)
}

/// Takes back up to so many bytes; it tries for two seconds. What is on its way
/// to a disk is waited for: version 1 does so by itself, here the kernel says
/// EAGAIN (cgroup-v2.rst, `memory.reclaim`), as it does when nothing is left.
pub(super) fn reclaim(dir: &Path, bytes: u64) {
    let (start, goal) = (Instant::now(), memory_current(dir).unwrap_or(0).saturating_sub(bytes));
    while let Ok(left) = memory_current(dir).map(|now| now.saturating_sub(goal))
        && left > 0
        && write(&dir.join("memory.reclaim"), &left.to_string()).is_err()
        && unwritten(dir) > 0
        && start.elapsed() < Duration::from_secs(2)
    {
        thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes of files that are not on a disk yet.
fn unwritten(dir: &Path) -> u64 {
    let text = read(&dir.join("memory.stat")).unwrap_or_default();
    let fields = text.lines().filter_map(|line| line.split_once(' '));
    fields
        .filter(|(name, _)| ["file_dirty", "file_writeback"].contains(name))
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum()
}
