//! One instance's cgroup.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::plan::{self, CgroupPlan, Step, read};
use super::stats::{self, GroupStats, Sources};
use super::{CgroupLimits, Controller, DeviceNumber, Hierarchy, Place, Version, tasks, v1, v2};
use crate::config::parse_cpu_set;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::sys::ids::IdBlock;

/// Most sub-cgroups an instance may make on version 2: a system's services by
/// far, but no way to fill the kernel's memory with cgroups.
const MOST_DESCENDANTS: u32 = 8192;

/// What an instance's root may write in its own directory of version 2.
const DELEGATED_V2: [&str; 3] = ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];
/// The same in systemd's named hierarchy of version 1.
const DELEGATED_NAMED: [&str; 2] = ["cgroup.procs", "tasks"];

/// The cgroup `/{parent}/{name}`, in every hierarchy. It need not exist.
#[derive(Clone, Debug)]
pub struct Group {
    hierarchy: Hierarchy,
    parent: String,
    name: String,
}

impl Group {
    /// The cgroup of an instance; nothing is made.
    pub fn new(hierarchy: &Hierarchy, parent: &str, instance: Uuid) -> Group {
        let (hierarchy, parent) = (hierarchy.clone(), parent.to_owned());
        Group { hierarchy, parent, name: instance.to_string() }
    }

    /// OCI's `cgroupsPath`.
    pub fn oci_path(&self) -> String {
        format!("/{}/{}", self.parent, self.name)
    }

    /// Its directory in the hierarchy of a controller.
    pub fn place(&self, controller: Controller) -> Option<Place> {
        let root = self.hierarchy.place(controller)?;
        Some(Place { path: self.below(&root.path), ..root })
    }

    fn below(&self, root: &Path) -> PathBuf {
        root.join(&self.parent).join(&self.name)
    }

    /// Its directory in every hierarchy, whether it exists or not.
    pub(super) fn places(&self) -> Vec<Place> {
        let version = |root| match self.hierarchy.unified() == Some(root) {
            true => Version::V2,
            false => Version::V1,
        };
        let roots = self.hierarchy.roots().into_iter();
        roots.map(|root| Place { version: version(root), path: self.below(root) }).collect()
    }

    /// Whether it exists in any hierarchy.
    pub fn exists(&self) -> bool {
        self.places().iter().any(|place| place.path.exists())
    }

    /// What must be done before the first process joins: the directories, the
    /// limits, and what of them belongs to the instance's root.
    ///
    /// Only systemd's named hierarchy and version 2 are given away. Other
    /// controllers of version 1 are not safe to delegate, and no init wants them.
    pub fn plan(
        &self,
        limits: &CgroupLimits,
        devices: &[DeviceNumber],
        block: IdBlock,
    ) -> Result<CgroupPlan> {
        let mut steps = Vec::new();
        for place in self.places() {
            steps.extend(self.parent_steps(&place));
            let unified = place.version == Version::V2;
            let given = unified
                || self.hierarchy.systemd().map(|s| self.below(s)) == Some(place.path.clone());
            steps.push(Step::MakeDir {
                path: place.path.clone(),
                owner: given.then_some((block.first, block.first)),
            });
            if given {
                steps.extend(delegate(&place.path, unified, block));
            }
        }
        steps.extend(self.limit_steps(limits, devices)?);
        Ok(CgroupPlan { steps })
    }

    /// Makes the parent, and lets controllers reach the instance through it.
    fn parent_steps(&self, place: &Place) -> Vec<Step> {
        let Some(parent) = place.path.parent() else { return Vec::new() };
        let mut steps = Vec::new();
        let make = Step::MakeDir { path: parent.to_owned(), owner: None };
        match place.version {
            Version::V2 => {
                let controllers = self.hierarchy.unified_controllers();
                steps.extend(parent.parent().into_iter().flat_map(|r| v2::enable(r, controllers)));
                steps.push(make);
                steps.extend(v2::enable(parent, controllers));
            }
            Version::V1 => {
                steps.push(make);
                let cpuset = self.place(Controller::Cpuset);
                // An operator may have given the parent fewer CPUs: leave them.
                let unset = read(&parent.join("cpuset.cpus")).unwrap_or_default().is_empty();
                if cpuset.as_ref() == Some(place) && unset {
                    steps.extend(v1::cpuset(parent, None));
                }
            }
        }
        steps
    }

    fn limit_steps(&self, limits: &CgroupLimits, devices: &[DeviceNumber]) -> Result<Vec<Step>> {
        let mut steps = Vec::new();
        let cpu = self.needed(Controller::Cpu)?;
        let dir = &cpu.path;
        steps.extend(match cpu.version {
            Version::V1 => v1::cpu(dir, &limits.cpu),
            Version::V2 => v2::cpu(dir, &limits.cpu),
        });
        let memory = self.needed(Controller::Memory)?;
        steps.extend(match memory.version {
            Version::V1 => v1::memory(&memory.path, limits),
            Version::V2 => v2::memory(&memory.path, limits),
        });
        let pids = self.needed(Controller::Pids)?;
        steps.push(Step::write(pids.path.join("pids.max"), limits.processes));
        if let Some(cpuset) = self.wanted(Controller::Cpuset, limits.cpuset.is_some())? {
            steps.extend(match cpuset.version {
                Version::V1 => v1::cpuset(&cpuset.path, limits.cpuset.as_ref()),
                Version::V2 => v2::cpuset(&cpuset.path, limits.cpuset.as_ref()),
            });
        }
        if let Some(Place { version, path }) = self.place(Controller::Hugetlb) {
            steps.extend(match version {
                Version::V1 => v1::no_huge_pages(&path, &huge_page_sizes()),
                Version::V2 => v2::no_huge_pages(&path, &huge_page_sizes()),
            });
        }
        let limited = limits.disk != super::DiskRates::default();
        if let Some(io) = self.wanted(Controller::Io, limited)? {
            steps.extend(match (io.version, self.hierarchy.place(Controller::Io)) {
                (Version::V1, Some(root)) => v1::io(&io.path, &root.path, &limits.disk, devices),
                _ => v2::io(&io.path, &limits.disk, devices),
            });
        }
        Ok(steps)
    }

    fn wanted(&self, controller: Controller, needed: bool) -> Result<Option<Place>> {
        if needed { self.needed(controller).map(Some) } else { Ok(self.place(controller)) }
    }

    fn needed(&self, controller: Controller) -> Result<Place> {
        self.place(controller).ok_or_else(|| {
            Fault::new(
                FaultKind::HostUnsupported,
                format!(
                    "the host has no cgroup controller {0}: enable it in the kernel (no cgroup_disable={0}) or mount it",
                    controller.v1_name()
                ),
            )
        })
    }

    /// Changes the limits of a live group, all of them or none.
    ///
    /// Memory can only shrink to what is in use once the kernel has taken back
    /// what it could; fewer processes than there are only stops new ones.
    pub fn update(&self, limits: &CgroupLimits, devices: &[DeviceNumber]) -> Result<()> {
        let steps = self.limit_steps(limits, devices)?;
        self.make_room(limits)?;
        let mut undo = Vec::new();
        for step in &steps {
            undo.extend(inverse(step));
            if let Err(error) = step.run() {
                for step in undo.iter().rev() {
                    // Best effort: each value was in force a moment ago.
                    let _ = step.run();
                }
                return Err(self.explain(step, error, limits));
            }
        }
        Ok(())
    }

    /// Takes away what devices are limited to that the instance no longer has. It may be gone.
    pub fn forget(&self, devices: &[DeviceNumber]) -> Result<()> {
        let none = super::DiskRates::default();
        let steps = match (self.place(Controller::Io), self.hierarchy.place(Controller::Io)) {
            (Some(Place { version: Version::V1, path }), Some(root)) => {
                v1::io(&path, &root.path, &none, devices)
            }
            (Some(Place { version: Version::V2, path }), _) => v2::io(&path, &none, devices),
            _ => Vec::new(),
        };
        CgroupPlan { steps }.apply()
    }

    /// The CPUs it is limited to, as it stands; none: it is not limited, or absent.
    pub fn cpus(&self) -> BTreeSet<u32> {
        let file = self.place(Controller::Cpuset).map(|place| place.path.join("cpuset.cpus"));
        let text = file.and_then(|file| read(&file).ok()).unwrap_or_default();
        parse_cpu_set("cpuset.cpus", &text).unwrap_or_default()
    }

    /// Has a live group run on these CPUs, all of its parent's for `None`; whether
    /// there is one.
    pub fn move_to(&self, cpus: Option<&BTreeSet<u32>>) -> Result<bool> {
        let Some(Place { version, path }) = self.place(Controller::Cpuset) else {
            return Ok(false);
        };
        let steps = match version {
            Version::V1 => v1::cpuset(&path, cpus),
            Version::V2 => v2::cpuset(&path, cpus),
        };
        for step in &steps {
            match step.run() {
                // It ended, or is only about to be made.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
                    return Ok(false);
                }
                Err(error) => return Err(refused(step, error)),
                Ok(()) => {}
            }
        }
        Ok(true)
    }

    /// Version 2 would kill processes rather than refuse a limit below usage.
    fn make_room(&self, limits: &CgroupLimits) -> Result<()> {
        let Some(Place { version: Version::V2, path }) = self.place(Controller::Memory) else {
            return Ok(());
        };
        let used = || v2::memory_current(&path).or_fault("reading the memory in use");
        let excess = used()?.saturating_sub(limits.memory_bytes);
        if excess > 0 {
            v2::reclaim(&path, excess);
        }
        if used()? > limits.memory_bytes { Err(self.too_small(limits)) } else { Ok(()) }
    }

    fn explain(&self, step: &Step, error: io::Error, limits: &CgroupLimits) -> Fault {
        match step {
            Step::Write { path, .. }
                if error.raw_os_error() == Some(libc::EBUSY)
                    && path.to_string_lossy().contains("/memory.") =>
            {
                self.too_small(limits)
            }
            _ => refused(step, error),
        }
    }

    fn too_small(&self, limits: &CgroupLimits) -> Fault {
        const MIB: u64 = 1 << 20;
        let used = self.stats().map_or(0, |s| s.memory.usage);
        let detail = format!(
            "the instance uses {} MiB that cannot be taken back, more than {} MiB: give it more, or end processes in it",
            used.div_ceil(MIB),
            limits.memory_bytes / MIB
        );
        let fault = Fault::new(FaultKind::InstanceInvalidState, detail);
        Fault { field: Some("flavor.memory_mb".into()), ..fault }
    }

    /// Stops every process where it is. Bounded; on failure none stays frozen.
    pub fn freeze(&self) -> Result<()> {
        tasks::freeze(&self.needed(Controller::Freezer)?)
    }

    /// Lets them run again.
    pub fn thaw(&self) -> Result<()> {
        tasks::thaw(&self.needed(Controller::Freezer)?)
    }

    /// Whether every process is frozen; an absent group is not.
    pub fn is_frozen(&self) -> Result<bool> {
        match tasks::is_frozen(&self.needed(Controller::Freezer)?) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            state => state.or_fault("reading the freezer"),
        }
    }

    /// Gives back to the host what memory the kernel can take (clean cache,
    /// and what swap holds); returns the bytes given back.
    pub fn reclaim(&self) -> Result<u64> {
        let memory = self.needed(Controller::Memory)?;
        let used = || stats_of(&memory).or_fault("reading the memory in use");
        let before = used()?;
        match memory.version {
            // EBUSY when something is left: that is fine.
            Version::V1 => drop(plan::write(&memory.path.join("memory.force_empty"), "0")),
            Version::V2 => v2::reclaim(&memory.path, before),
        }
        Ok(before.saturating_sub(used()?))
    }

    /// What the instance uses.
    pub fn stats(&self) -> Result<GroupStats> {
        Sources {
            cpu: self.place(Controller::Cpu),
            cpuacct: self.place(Controller::Cpuacct),
            memory: self.place(Controller::Memory),
            pids: self.place(Controller::Pids),
            io: self.place(Controller::Io),
            unified: self.hierarchy.unified().map(|root| self.below(root)),
        }
        .read()
    }

    /// Processes that the kernel killed for want of memory since the group was made.
    pub fn oom_kills(&self) -> Result<u64> {
        let memory = self.needed(Controller::Memory)?;
        stats::oom_kills(&memory).or_fault("reading the cgroup's memory events")
    }

    /// Ids of its processes, as the host sees them, in order.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let pids = tasks::pids(&self.places()).or_fault("listing the instance's processes")?;
        Ok(pids.into_iter().collect())
    }

    /// Kills every process, frozen or not, until none is left. Bounded. Those that wait for a FUSE
    /// file system of one of `ids` wait no longer.
    pub fn kill_all(&self, ids: Option<IdBlock>) -> Result<()> {
        tasks::kill_all(&self.places(), self.place(Controller::Freezer).as_ref(), ids)
    }

    /// Files with a line `oom_kill N`, for whoever watches the instance.
    pub fn oom_counters(&self) -> Vec<PathBuf> {
        let file = |place: Place| match place.version {
            Version::V1 => place.path.join("memory.oom_control"),
            Version::V2 => place.path.join("memory.events"),
        };
        self.place(Controller::Memory).map(file).into_iter().collect()
    }

    /// `cgroup.procs` of hierarchies that runtime programs leave alone: the
    /// unified one beside version 1, and version 1's for huge pages where it is
    /// not mounted at their usual place.
    pub fn left_alone(&self) -> Vec<PathBuf> {
        let unified = (self.hierarchy.layout() == super::CgroupLayout::Hybrid)
            .then(|| self.hierarchy.unified().map(|unified| self.below(unified)))
            .flatten();
        let huge_pages = self
            .place(Controller::Hugetlb)
            .filter(|place| place.version == Version::V1)
            .map(|place| place.path);
        unified.into_iter().chain(huge_pages).map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// Its `cgroup.procs` in every hierarchy, for a runtime that enters them all by itself.
    pub fn everywhere(&self) -> Vec<PathBuf> {
        self.places().into_iter().map(|place| place.path.join("cgroup.procs")).collect()
    }

    /// Removes it from every hierarchy, with all below; absence is success.
    ///
    /// `devices` are the instance's, which version 1 also limits in the root.
    /// Do this before their file systems are unmounted: write-back is held to
    /// the rates until then.
    pub fn remove(&self, devices: &[DeviceNumber]) -> Result<()> {
        if let Some(Place { version: Version::V1, path }) = self.hierarchy.place(Controller::Io) {
            CgroupPlan { steps: v1::forget_devices(&path, devices) }.apply()?;
        }
        let mut failure = Ok(());
        for place in self.places() {
            let removed = tasks::remove(&place.path)
                .or_fault(format_args!("removing the cgroup {}", place.path.display()));
            failure = failure.and(removed);
        }
        failure
    }
}

fn refused(step: &Step, error: io::Error) -> Fault {
    match step {
        Step::Write { path, value, .. } => {
            Fault::internal(format_args!("writing {value:?} to {}", path.display()), error)
        }
        _ => Fault::internal("changing the limits", error),
    }
}

/// The sizes of huge pages that this kernel has, as cgroup files name them: `2MB`.
pub(super) fn huge_page_sizes() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let name = entry.file_name();
        let kib = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some(huge_page_size(kib))
    });
    sizes.collect()
}

fn huge_page_size(kib: u64) -> String {
    match kib {
        0..1024 => format!("{kib}KB"),
        1024..1_048_576 => format!("{}MB", kib >> 10),
        _ => format!("{}GB", kib >> 20),
    }
}

fn stats_of(memory: &Place) -> io::Result<u64> {
    let file = match memory.version {
        Version::V1 => "memory.usage_in_bytes",
        Version::V2 => "memory.current",
    };
    read(&memory.path.join(file))?.parse().map_err(io::Error::other)
}

fn delegate(dir: &Path, unified: bool, block: IdBlock) -> Vec<Step> {
    let files: &[&str] = if unified { &DELEGATED_V2 } else { &DELEGATED_NAMED };
    let mut steps: Vec<Step> = files
        .iter()
        .map(|file| Step::Chown {
            path: dir.join(file),
            uid: block.first,
            gid: block.first,
            optional: false,
        })
        .collect();
    if unified {
        steps.push(Step::try_write(dir.join("cgroup.max.descendants"), MOST_DESCENDANTS));
    }
    steps
}

/// The write that puts back what `step` is about to replace; `None` if that
/// cannot be read or cannot be written (an empty set).
fn inverse(step: &Step) -> Option<Step> {
    let Step::Write { path, value, .. } = step else { return None };
    let old = read(path).ok()?;
    let device = value.split(' ').next().filter(|word| word.contains(':'));
    let value = match device {
        // One line for each device: put back this device's, or take it away.
        Some(device) => {
            let line = old.lines().find(|line| line.split(' ').next() == Some(device));
            let none = if path.ends_with("io.max") {
                "rbps=max wbps=max riops=max wiops=max"
            } else {
                "0"
            };
            line.map_or_else(|| format!("{device} {none}"), str::to_owned)
        }
        None => old,
    };
    (!value.is_empty()).then(|| Step::write(path, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_huge_pages_are_named_as_the_kernel_does() {
        for (kib, name) in [(64, "64KB"), (2048, "2MB"), (524_288, "512MB"), (1 << 20, "1GB")] {
            assert_eq!(huge_page_size(kib), name);
        }
    }
}
