//! Where each controller lives on this host: version 1, version 2, or both.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::plan::{self, CgroupPlan, Step};
use crate::config::parse_cpu_set;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::sys::mount::unescape;

/// How the host arranges its cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupLayout {
    /// Version 1 only.
    V1,
    /// Version 1 with a version 2 hierarchy beside it.
    Hybrid,
    /// Version 2 only, where production is.
    V2,
}

impl fmt::Display for CgroupLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CgroupLayout::V1 => "v1",
            CgroupLayout::Hybrid => "hybrid",
            CgroupLayout::V2 => "v2",
        })
    }
}

/// The interface a controller is driven through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy for each controller, or a few together.
    V1,
    /// The unified hierarchy.
    V2,
}

/// What berth asks of cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// CPU quota and weight.
    Cpu,
    /// CPU time used (version 2 counts it without a controller).
    Cpuacct,
    /// Which CPUs.
    Cpuset,
    /// Memory and swap.
    Memory,
    /// Disk rates.
    Io,
    /// Number of processes and threads.
    Pids,
    /// Freezing (version 2 freezes without a controller).
    Freezer,
    /// Device filter, written by the runtime (version 2 filters with eBPF).
    Devices,
    /// The host's huge pages, which no memory limit holds.
    Hugetlb,
}

impl Controller {
    /// All of them.
    pub const ALL: [Controller; 9] = [
        Controller::Cpu,
        Controller::Cpuacct,
        Controller::Cpuset,
        Controller::Memory,
        Controller::Io,
        Controller::Pids,
        Controller::Freezer,
        Controller::Devices,
        Controller::Hugetlb,
    ];

    /// Its name as a mount option of version 1.
    pub const fn v1_name(self) -> &'static str {
        match self {
            Controller::Cpu => "cpu",
            Controller::Cpuacct => "cpuacct",
            Controller::Cpuset => "cpuset",
            Controller::Memory => "memory",
            Controller::Io => "blkio",
            Controller::Pids => "pids",
            Controller::Freezer => "freezer",
            Controller::Devices => "devices",
            Controller::Hugetlb => "hugetlb",
        }
    }

    /// Its name in `cgroup.controllers`; `None` for what version 2 always does.
    pub const fn v2_name(self) -> Option<&'static str> {
        match self {
            Controller::Cpu => Some("cpu"),
            Controller::Cpuset => Some("cpuset"),
            Controller::Memory => Some("memory"),
            Controller::Io => Some("io"),
            Controller::Pids => Some("pids"),
            Controller::Hugetlb => Some("hugetlb"),
            Controller::Cpuacct | Controller::Freezer | Controller::Devices => None,
        }
    }
}

/// A directory of a hierarchy and the interface its files speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Version 1 or 2.
    pub version: Version,
    /// The directory.
    pub path: PathBuf,
}

/// The version 1 controllers that may be mounted; any other mount option is none.
const V1_CONTROLLERS: [&str; 14] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "blkio",
    "devices",
    "freezer",
    "pids",
    "net_cls",
    "net_prio",
    "perf_event",
    "hugetlb",
    "rdma",
    "misc",
];

/// The host's cgroup hierarchies. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hierarchy(Arc<Mounts>);

#[derive(Debug, Default)]
struct Mounts {
    v1: BTreeMap<String, PathBuf>,
    /// The named hierarchy of systemd, which carries no controller.
    systemd: Option<PathBuf>,
    unified: Option<PathBuf>,
    unified_controllers: BTreeSet<String>,
}

impl Hierarchy {
    /// Looks at the host's mounts.
    pub fn detect() -> Result<Hierarchy> {
        let text = fs::read_to_string("/proc/self/mountinfo").or_fault("reading the mounts")?;
        Hierarchy::from_mountinfo(&text)
    }

    /// Reads the text of a `mountinfo`; the version 2 mount point it names must
    /// be readable, for the list of its controllers.
    pub fn from_mountinfo(text: &str) -> Result<Hierarchy> {
        let mut mounts = Mounts::default();
        for (kind, point, options) in text.lines().filter_map(parse_mount) {
            match kind {
                "cgroup2" => {
                    mounts.unified.get_or_insert(point);
                }
                "cgroup" => mounts.add_v1(&point, options),
                _ => {}
            }
        }
        if let Some(unified) = &mounts.unified {
            let file = unified.join("cgroup.controllers");
            let names =
                fs::read_to_string(&file).or_fault(format_args!("reading {}", file.display()))?;
            mounts.unified_controllers = names.split_whitespace().map(str::to_owned).collect();
            if !mounts.v1.is_empty() {
                // crun wants it on version 1, whither it goes only while nothing here uses it.
                mounts.unified_controllers.remove(Controller::Hugetlb.v1_name());
            }
        }
        if mounts.unified.is_none() && mounts.v1.is_empty() {
            return Err(Fault::new(
                FaultKind::HostUnsupported,
                "no cgroup hierarchy is mounted: mount cgroup2 on /sys/fs/cgroup",
            ));
        }
        Ok(Hierarchy(Arc::new(mounts)))
    }

    /// How the host arranges its cgroups.
    pub fn layout(&self) -> CgroupLayout {
        match (&self.0.unified, self.0.v1.is_empty() && self.0.systemd.is_none()) {
            (None, _) => CgroupLayout::V1,
            (Some(_), true) => CgroupLayout::V2,
            (Some(_), false) => CgroupLayout::Hybrid,
        }
    }

    /// The root of the hierarchy that a controller lives in, if it is to be had.
    pub fn place(&self, controller: Controller) -> Option<Place> {
        if let Some(path) = self.0.v1.get(controller.v1_name()) {
            return Some(Place { version: Version::V1, path: path.clone() });
        }
        let path = self.0.unified.clone()?;
        let there = match controller.v2_name() {
            Some(name) => self.0.unified_controllers.contains(name),
            None => true,
        };
        there.then_some(Place { version: Version::V2, path })
    }

    /// Mount point of systemd's named version 1 hierarchy.
    pub fn systemd(&self) -> Option<&Path> {
        self.0.systemd.as_deref()
    }

    /// Mount point of version 2, on a hybrid host too.
    pub fn unified(&self) -> Option<&Path> {
        self.0.unified.as_deref()
    }

    /// Controllers that live on version 2 here.
    pub fn unified_controllers(&self) -> &BTreeSet<String> {
        &self.0.unified_controllers
    }

    /// Every hierarchy's mount point, once each: a controller's, systemd's and version 2's.
    pub fn roots(&self) -> Vec<&Path> {
        let m = &*self.0;
        let all = m.v1.values().chain(&m.systemd).chain(&m.unified);
        let unique: BTreeSet<&Path> = all.map(PathBuf::as_path).collect();
        unique.into_iter().collect()
    }

    /// Whether swap can be limited apart from memory.
    pub fn limits_swap(&self) -> bool {
        self.place(Controller::Memory).is_some_and(|place| match place.version {
            Version::V1 => place.path.join("memory.memsw.limit_in_bytes").exists(),
            // The root cgroup has no limits: the file's absence there says nothing.
            Version::V2 => Path::new("/proc/swaps").exists(),
        })
    }

    /// Whether write rates hold for buffered writes: version 2 charges
    /// write-back to who dirtied the page; version 1 needs the root's own rules.
    pub fn limits_buffered_writes(&self) -> bool {
        self.place(Controller::Io).is_some_and(|place| match place.version {
            Version::V1 => place.path.join("blkio.throttle.write_bps_device").exists(),
            Version::V2 => true,
        })
    }

    /// The CPUs that cgroups below `/{parent}` may run on now; none: unknown.
    pub fn usable_cpus(&self, parent: &str) -> BTreeSet<u32> {
        let Some(Place { version, path }) = self.place(Controller::Cpuset) else {
            return BTreeSet::new();
        };
        let file = match version {
            Version::V1 => "cpuset.effective_cpus",
            Version::V2 => "cpuset.cpus.effective",
        };
        // Version 2 has the file in the parent only once the controller reaches it.
        let texts = [path.join(parent), path].map(|dir| plan::read(&dir.join(file)));
        let sets = texts.iter().flatten().filter_map(|text| parse_cpu_set(file, text).ok());
        sets.into_iter().find(|cpus| !cpus.is_empty()).unwrap_or_default()
    }

    /// Ids of the instances that have a cgroup below `/{parent}` in any hierarchy.
    pub fn instances(&self, parent: &str) -> BTreeSet<Uuid> {
        let entries =
            self.roots().into_iter().filter_map(|root| fs::read_dir(root.join(parent)).ok());
        entries
            .flatten()
            .flatten()
            .filter_map(|entry| Uuid::parse_str(entry.file_name().to_str()?).ok())
            .collect()
    }

    /// The parent of all instances in one of the hierarchies, made when absent.
    pub fn parent(&self, parent: &str) -> Result<PathBuf> {
        self.monitors(parent)?;
        let root = self.roots().first().map(|root| root.join(parent));
        root.ok_or_else(|| Fault::new(FaultKind::HostUnsupported, "no cgroup hierarchy is mounted"))
    }

    /// Where monitors live, away from the service's own cgroup, which ends with
    /// the service: `/{parent}/monitors` everywhere, made when absent. The
    /// files are those a monitor writes itself into.
    pub fn monitors(&self, parent: &str) -> Result<Vec<PathBuf>> {
        let mut steps = Vec::new();
        let mut files = Vec::new();
        let cpuset = self.place(Controller::Cpuset).map(|place| place.path);
        for root in self.roots() {
            let parent = root.join(parent);
            let path = parent.join("monitors");
            for dir in [&parent, &path] {
                steps.push(Step::MakeDir { path: dir.clone(), owner: None });
                let empty = plan::read(&dir.join("cpuset.cpus")).unwrap_or_default().is_empty();
                if cpuset.as_deref() == Some(root) && self.unified() != Some(root) && empty {
                    steps.extend(super::v1::cpuset(dir, None));
                }
            }
            files.push(path.join("cgroup.procs"));
        }
        CgroupPlan { steps }.apply()?;
        Ok(files)
    }

    /// Removes the parent of all instances from every hierarchy, if it is empty.
    pub fn remove_parent(&self, parent: &str) -> Result<()> {
        let mut kept = None;
        for root in self.roots() {
            let _ = fs::remove_dir(root.join(parent).join("monitors"));
            match fs::remove_dir(root.join(parent)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => kept = Some((root, e)),
                _ => {}
            }
        }
        match kept {
            Some((root, e)) => {
                Err(e).or_fault(format_args!("removing {}/{parent}", root.display()))
            }
            None => Ok(()),
        }
    }

    /// Version 1: forgets the root's write rates of loop devices that are
    /// attached to nothing. A crash can leave them, and whoever gets the device
    /// next would inherit them.
    pub fn clear_stale_rates(&self) -> Result<()> {
        let Some(Place { version: Version::V1, path }) = self.place(Controller::Io) else {
            return Ok(());
        };
        for file in super::v1::ROOT_WRITE_RATES.map(|name| path.join(name)) {
            for key in plan::read(&file).unwrap_or_default().lines().filter_map(rule_key) {
                if key.starts_with("7:") && !is_attached_loop(key) {
                    Step::write(&file, format!("{key} 0")).apply()?;
                }
            }
        }
        Ok(())
    }
}

impl Mounts {
    fn add_v1(&mut self, point: &Path, options: &str) {
        for option in options.split(',') {
            if option == "name=systemd" {
                self.systemd.get_or_insert_with(|| point.to_owned());
            } else if V1_CONTROLLERS.contains(&option) {
                self.v1.entry(option.to_owned()).or_insert_with(|| point.to_owned());
            }
        }
    }
}

fn rule_key(line: &str) -> Option<&str> {
    line.split_whitespace().next()
}

fn is_attached_loop(key: &str) -> bool {
    Path::new("/sys/dev/block").join(key).join("loop/backing_file").exists()
}

/// File system type, mount point and super block options of a `mountinfo` line.
fn parse_mount(line: &str) -> Option<(&str, PathBuf, &str)> {
    let (mount, source) = line.split_once(" - ")?;
    let point = mount.split(' ').nth(4)?;
    let mut source = source.split(' ');
    let point = OsString::from_vec(unescape(point.as_bytes()));
    Some((source.next()?, point.into(), source.nth(1)?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A version 2 host whose hierarchy is a plain directory.
    pub(crate) fn v2_fixture(dir: &Path) -> Hierarchy {
        fs::write(dir.join("cgroup.controllers"), "cpuset cpu io memory pids hugetlb\n").unwrap();
        let line = format!("31 23 0:28 / {} rw - cgroup2 cgroup2 rw,nsdelegate\n", dir.display());
        Hierarchy::from_mountinfo(&line).unwrap()
    }

    #[test]
    fn v2_alone() {
        let dir = tempfile::tempdir().unwrap();
        let h = v2_fixture(dir.path());
        assert_eq!(h.layout(), CgroupLayout::V2);
        for controller in Controller::ALL {
            assert_eq!(h.place(controller).unwrap().version, Version::V2, "{controller:?}");
        }
        assert_eq!(h.roots(), [dir.path()]);
    }

    #[test]
    fn the_parents_cpus_or_the_roots_until_the_controller_reaches_it() {
        let dir = tempfile::tempdir().unwrap();
        let h = v2_fixture(dir.path());
        assert!(h.usable_cpus("berth").is_empty());
        fs::write(dir.path().join("cpuset.cpus.effective"), "0-3\n").unwrap();
        assert_eq!(h.usable_cpus("berth"), (0..4).collect());
        fs::create_dir(dir.path().join("berth")).unwrap();
        fs::write(dir.path().join("berth/cpuset.cpus.effective"), "1,3\n").unwrap();
        assert_eq!(h.usable_cpus("berth"), BTreeSet::from([1, 3]));
    }

    #[test]
    fn a_v2_controller_that_is_not_offered_is_absent() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpu memory").unwrap();
        let line = format!("1 2 0:1 / {} rw - cgroup2 none rw", dir.path().display());
        let h = Hierarchy::from_mountinfo(&line).unwrap();
        assert!(h.place(Controller::Memory).is_some());
        assert!(h.place(Controller::Pids).is_none());
        assert!(h.place(Controller::Freezer).is_some());
    }

    #[test]
    fn v1_with_controllers_mounted_together_and_blanks_in_the_path() {
        let h = Hierarchy::from_mountinfo(
            "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
             34 31 0:31 / /c\\040g/memory rw - cgroup none rw,memory\n\
             35 31 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
             36 31 0:33 / /proc rw - proc proc rw\n",
        )
        .unwrap();
        assert_eq!(h.layout(), CgroupLayout::V1);
        let cpu = h.place(Controller::Cpu).unwrap();
        assert_eq!(Some(&cpu), h.place(Controller::Cpuacct).as_ref());
        assert_eq!(h.place(Controller::Memory).unwrap().path, Path::new("/c g/memory"));
        assert_eq!(h.systemd(), Some(Path::new("/sys/fs/cgroup/systemd")));
        assert!(h.place(Controller::Pids).is_none());
        assert_eq!(h.roots().len(), 3);
    }

    #[test]
    fn hybrid_takes_each_controller_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "memory hugetlb").unwrap();
        let h = Hierarchy::from_mountinfo(&format!(
            "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
             41 31 0:38 / {} rw - cgroup2 cgroup2 rw\n",
            dir.path().display()
        ))
        .unwrap();
        assert_eq!(h.layout(), CgroupLayout::Hybrid);
        assert_eq!(h.place(Controller::Cpu).unwrap().version, Version::V1);
        assert_eq!(h.place(Controller::Memory).unwrap().version, Version::V2);
        assert!(h.place(Controller::Io).is_none());
        assert!(h.place(Controller::Hugetlb).is_none(), "crun would refuse the host");
    }

    #[test]
    fn no_cgroups_is_a_fault_with_a_remedy() {
        let fault = Hierarchy::from_mountinfo("1 2 0:1 / / rw - ext4 /dev/vda rw\n").unwrap_err();
        assert_eq!(fault.kind, FaultKind::HostUnsupported);
        assert!(fault.detail.contains("mount cgroup2"));
    }

    #[test]
    fn this_host_can_be_read() {
        let h = Hierarchy::detect().unwrap();
        assert!(h.place(Controller::Memory).unwrap().path.join("cgroup.procs").exists());
    }
}
