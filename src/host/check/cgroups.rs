//! The controllers that limits, pause and statistics need.

use std::fs;

use super::outcome::{failed, ok, warning};
use crate::cgroup::{CgroupLayout, Controller, Hierarchy, Version};
use crate::config::Config;
use crate::host::facts::read;
use crate::types::Check;

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let hierarchy = match Hierarchy::detect() {
        Ok(hierarchy) => hierarchy,
        Err(fault) => {
            let remedy = "mount -t cgroup2 cgroup2 /sys/fs/cgroup";
            return vec![failed("cgroups", fault.detail, remedy)];
        }
    };
    let mut checks = vec![layout(&hierarchy)];
    checks.extend(Controller::ALL.map(|c| controller(&hierarchy, c, config)));
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    checks.push(all_is_charged(&fs::read_to_string("/proc/cmdline").unwrap_or_default()));
    checks.push(swap(hierarchy.limits_swap(), swaps.lines().count() > 1));
    checks
}

fn layout(hierarchy: &Hierarchy) -> Check {
    match hierarchy.layout() {
        CgroupLayout::V2 => ok("cgroups", "v2"),
        old => warning(
            "cgroups",
            old.to_string(),
            "for production boot with systemd.unified_cgroup_hierarchy=1: v2 has pressure figures and exact write rates",
        ),
    }
}

fn controller(hierarchy: &Hierarchy, controller: Controller, config: &Config) -> Check {
    let name = format!("cgroup: {}", what_for(controller));
    let own = controller.v1_name();
    match hierarchy.place(controller) {
        Some(place) => {
            let version = if place.version == Version::V1 { "v1" } else { "v2" };
            ok(&name, format!("{version}, {}", place.path.display()))
        }
        None if is_needed(controller, config) => {
            failed(&name, format!("no controller {own}"), remedy(hierarchy.layout(), controller))
        }
        None => {
            warning(&name, format!("no controller {own}"), remedy(hierarchy.layout(), controller))
        }
    }
}

fn what_for(controller: Controller) -> &'static str {
    match controller {
        Controller::Cpu => "CPU quota and weight",
        Controller::Cpuacct => "CPU accounting",
        Controller::Cpuset => "CPU pinning",
        Controller::Memory => "memory",
        Controller::Io => "disk rates",
        Controller::Pids => "processes",
        Controller::Freezer => "pause",
        Controller::Devices => "device filter",
        Controller::Hugetlb => "the host's huge pages",
    }
}

/// Without the others some flavors are refused, or a figure is 0.
fn is_needed(controller: Controller, config: &Config) -> bool {
    match controller {
        Controller::Io | Controller::Cpuacct => false,
        // Where the host has some, instances take them.
        Controller::Hugetlb => huge_pages(),
        Controller::Cpuset => !config.host.cpu_dedicated_set.is_empty(),
        _ => true,
    }
}

/// Whether the host has huge pages, or makes them when they are wanted.
fn huge_pages() -> bool {
    ["nr_hugepages", "nr_overcommit_hugepages"].iter().any(|name| {
        let sizes = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
        sizes.filter_map(|size| read(&size.path().join(name)).ok()).any(|count| count != "0")
    })
}

/// Version 2 charges buffers of sockets and the kernel's own memory to an
/// instance unless the host was told not to.
fn all_is_charged(command_line: &str) -> Check {
    const NAME: &str = "cgroup: the kernel's memory";
    let told = command_line.split_whitespace().filter_map(|w| w.strip_prefix("cgroup.memory="));
    match told.flat_map(|w| w.split(',')).find(|w| ["nosocket", "nokmem"].contains(w)) {
        None => ok(NAME, "charged"),
        Some(option) => failed(
            NAME,
            format!("not charged: {option}"),
            format!("boot without cgroup.memory={option}: instances take memory beyond their own"),
        ),
    }
}

fn remedy(layout: CgroupLayout, controller: Controller) -> String {
    let name = controller.v1_name();
    match layout {
        CgroupLayout::V2 => format!(
            "boot without cgroup_disable={0}, with a kernel that has the controller {0}",
            controller.v2_name().unwrap_or(name)
        ),
        CgroupLayout::V1 | CgroupLayout::Hybrid => format!(
            "mkdir -p /sys/fs/cgroup/{name} && mount -t cgroup -o {name} {name} /sys/fs/cgroup/{name}"
        ),
    }
}

fn swap(can_limit: bool, has_swap: bool) -> Check {
    const NAME: &str = "swap limit";
    match (can_limit, has_swap) {
        (true, true) => ok(NAME, "apart from memory"),
        (true, false) => ok(NAME, "apart from memory; the host has no swap"),
        (false, _) => warning(
            NAME,
            "memory and swap cannot be limited apart",
            "boot with swapaccount=1; until then instances are kept out of swap by swappiness 0, and swap_mb is not held",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::CheckStatus::{Failed, Ok, Warning};

    #[test]
    fn a_missing_controller_fails_or_warns_with_its_own_remedy() {
        let line = "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let hierarchy = Hierarchy::from_mountinfo(line).unwrap();
        let mut config = Config::default();
        let status = |c, config: &Config| controller(&hierarchy, c, config).status;
        assert_eq!(status(Controller::Memory, &config), Ok);
        assert_eq!(status(Controller::Freezer, &config), Failed);
        assert_eq!(status(Controller::Io, &config), Warning);
        assert_eq!(status(Controller::Cpuset, &config), Warning);
        config.host.cpu_dedicated_set = "0".into();
        assert_eq!(status(Controller::Cpuset, &config), Failed);
        let remedy = controller(&hierarchy, Controller::Pids, &config).remedy.unwrap();
        assert!(remedy.contains("mount -t cgroup -o pids pids"), "{remedy}");
        assert_eq!(layout(&hierarchy).status, Warning);
    }

    #[test]
    fn memory_that_is_not_charged_fails() {
        assert_eq!(all_is_charged("quiet cgroup.memory=nobpf").status, Ok);
        assert_eq!(all_is_charged("cgroup.memory=nobpf,nosocket quiet").status, Failed);
        assert_eq!(all_is_charged("cgroup.memory=nokmem").status, Failed);
    }

    #[test]
    fn swap_that_cannot_be_limited_is_a_warning() {
        assert_eq!(swap(false, true).status, Warning);
        assert_eq!(swap(true, false).status, Ok);
    }
}
