//! The cgroup as the kernel sees it: needs root, uses names of its own.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::hierarchy::tests::v2_fixture;
use super::limits::tests::limits;
use super::*;
use crate::fault::FaultKind;
use crate::sys::ids::IdBlock;

const BLOCK: IdBlock = IdBlock { first: 3_000_000_000, size: 65_536 };

/// A cgroup of its own, taken away at the end whatever happens.
struct Scratch {
    group: Group,
    hierarchy: Hierarchy,
    parent: String,
    devices: Vec<DeviceNumber>,
    children: Vec<Child>,
}

impl Scratch {
    fn new(hierarchy: Hierarchy) -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let parent = format!("berth-test-{}-{number}", std::process::id());
        let group = Group::new(&hierarchy, &parent, Uuid::new_v4());
        Scratch { group, hierarchy, parent, devices: Vec::new(), children: Vec::new() }
    }

    fn with(vcpus: u32, memory_mb: u64, specs: &[(&str, &str)]) -> Scratch {
        let scratch = Scratch::new(Hierarchy::detect().unwrap());
        let limits = limits(vcpus, memory_mb, specs).unwrap();
        scratch.group.plan(&limits, &[], BLOCK).unwrap().apply().unwrap();
        scratch
    }

    /// Starts a shell command that is in the group before it does anything.
    fn spawn(&mut self, command: &str) -> usize {
        let mut child = Command::new("sh")
            .args(["-c", &format!("read go; {command}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id().to_string();
        let mut stdin = child.stdin.take().unwrap();
        self.children.push(child);
        for place in self.places() {
            plan::write(&place.join("cgroup.procs"), &pid).unwrap();
        }
        stdin.write_all(b"go\n").unwrap();
        self.children.len() - 1
    }

    fn places(&self) -> Vec<std::path::PathBuf> {
        let path = self.group.oci_path();
        let all = self.hierarchy.roots().into_iter().map(|r| r.join(&path[1..]));
        all.filter(|p| p.exists()).collect()
    }

    fn file(&self, controller: Controller, name: &str) -> String {
        plan::read(&self.group.place(controller).unwrap().path.join(name)).unwrap()
    }

    fn cpu_ns(&self) -> u64 {
        self.group.stats().unwrap().cpu.usage_ns
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = self.group.kill_all(None);
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let removed = self.group.remove(&self.devices);
        let parent = self.hierarchy.remove_parent(&self.parent);
        if !std::thread::panicking() {
            removed.unwrap();
            parent.unwrap();
            assert!(!self.group.exists());
        }
    }
}

/// Waits for something that must come, not for how fast it comes.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_v1() -> bool {
    Hierarchy::detect().unwrap().place(Controller::Memory).unwrap().version == Version::V1
}

#[test]
fn root_the_plan_sets_limits_and_gives_away_only_what_is_safe() {
    let scratch = Scratch::with(2, 64, &[("berth:processes", "77")]);
    let again = scratch.group.plan(&limits(2, 64, &[]).unwrap(), &[], BLOCK).unwrap();
    again.apply().unwrap();
    let s = scratch.group.stats().unwrap();
    assert_eq!(s.memory.limit, 64 << 20);
    assert_eq!(s.pids.limit, crate::config::Instances::default().processes);
    let owner = |path: &Path| fs::metadata(path).unwrap().uid();
    for place in scratch.group.places() {
        let unified = place.version == Version::V2;
        let named = scratch.hierarchy.systemd().is_some_and(|s| place.path.starts_with(s));
        let expected = if unified || named { BLOCK.first } else { 0 };
        assert_eq!(owner(&place.path), expected, "{}", place.path.display());
        assert_eq!(owner(&place.path.join("cgroup.procs")), expected);
        for limit in ["memory.max", "pids.max", "cgroup.freeze", "memory.limit_in_bytes"] {
            let file = place.path.join(limit);
            assert!(!file.exists() || owner(&file) == 0, "{}", file.display());
        }
    }
    if is_v1() {
        assert_eq!(scratch.file(Controller::Cpu, "cpu.cfs_quota_us"), "200000");
        assert_eq!(scratch.file(Controller::Cpu, "cpu.shares"), "2048");
        assert!(!scratch.file(Controller::Cpuset, "cpuset.cpus").is_empty());
    }
}

#[test]
fn root_a_cpu_hog_gets_its_quota_and_no_more() {
    let mut scratch = Scratch::with(1, 64, &[("quota:cpu_quota", "20000")]);
    scratch.spawn("while :; do :; done");
    eventually("throttling", || scratch.group.stats().unwrap().cpu.throttled_periods > 2);
    let (start, used) = (Instant::now(), scratch.cpu_ns());
    std::thread::sleep(Duration::from_millis(1500));
    let used = scratch.cpu_ns() - used;
    // One period more can begin or end within the measurement.
    let allowed = start.elapsed().as_nanos() as u64 / 5 + 2 * 20_000_000;
    assert!(used > 0 && used <= allowed, "{used} ns used, {allowed} ns allowed");
}

#[test]
fn root_a_memory_hog_is_killed_in_its_own_group() {
    let mut scratch = Scratch::with(1, 32, &[]);
    let bystander = scratch.spawn("exec sleep 1000");
    let hog = scratch.spawn("exec tail /dev/zero");
    let status = scratch.children[hog].wait().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    assert!(scratch.group.oom_kills().unwrap() >= 1);
    let stats = scratch.group.stats().unwrap();
    assert!(stats.memory.peak <= 32 << 20, "{:?}", stats.memory);
    assert_eq!(stats.memory.swap, 0);
    assert!(scratch.children[bystander].try_wait().unwrap().is_none());
}

#[test]
fn root_a_fork_bomb_stops_at_its_limit() {
    let mut scratch = Scratch::with(1, 64, &[("berth:processes", "16")]);
    scratch.spawn("for i in $(seq 40); do sleep 1000 & done; wait");
    eventually("the limit", || scratch.group.stats().unwrap().pids.current == 16);
    assert!(scratch.group.pids().unwrap().len() <= 16);
    scratch.group.kill_all(None).unwrap();
    assert!(scratch.group.pids().unwrap().is_empty());
}

#[test]
fn root_frozen_processes_stand_still_and_can_be_thawed_or_killed() {
    let mut scratch = Scratch::with(1, 64, &[]);
    let hog = scratch.spawn("while :; do :; done");
    eventually("the hog", || scratch.cpu_ns() > 10_000_000);
    assert!(!scratch.group.is_frozen().unwrap());
    scratch.group.freeze().unwrap();
    scratch.group.freeze().unwrap();
    assert!(scratch.group.is_frozen().unwrap());
    let frozen_at = scratch.cpu_ns();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(scratch.cpu_ns(), frozen_at);
    scratch.group.thaw().unwrap();
    eventually("the thaw", || scratch.cpu_ns() > frozen_at);
    scratch.group.freeze().unwrap();
    scratch.group.kill_all(None).unwrap();
    assert_eq!(scratch.children[hog].wait().unwrap().signal(), Some(libc::SIGKILL));
}

#[test]
fn root_limits_change_live_up_and_down() {
    let mut scratch = Scratch::with(1, 64, &[]);
    scratch.spawn("exec sleep 1000");
    for (vcpus, memory_mb) in [(4, 512), (1, 32), (2, 2048), (2, 64)] {
        let mut limits = limits(vcpus, memory_mb, &[]).unwrap();
        scratch.group.update(&limits, &[]).unwrap();
        limits.swap_bytes = 1 << 20;
        scratch.group.update(&limits, &[]).unwrap();
        assert_eq!(scratch.group.stats().unwrap().memory.limit, memory_mb << 20);
        if is_v1() && scratch.hierarchy.limits_swap() {
            let both = scratch.file(Controller::Memory, "memory.memsw.limit_in_bytes");
            assert_eq!(both, ((memory_mb + 1) << 20).to_string());
        }
    }
}

#[test]
fn root_shrinking_below_what_is_in_use_is_refused_and_changes_nothing() {
    let mut scratch = Scratch::with(2, 256, &[]);
    // head keeps the shell's variable of 64 MiB in anonymous memory.
    scratch.spawn("x=$(head -c 67108864 /dev/zero | tr '\\0' x); exec 3</dev/zero; sleep 1000");
    eventually("the memory", || scratch.group.stats().unwrap().memory.rss > 64 << 20);
    let fault = scratch.group.update(&limits(1, 32, &[]).unwrap(), &[]).unwrap_err();
    assert_eq!(fault.kind, FaultKind::InstanceInvalidState, "{fault}");
    assert_eq!(fault.field.as_deref(), Some("flavor.memory_mb"));
    assert_eq!(scratch.group.stats().unwrap().memory.limit, 256 << 20);
    if is_v1() {
        assert_eq!(scratch.file(Controller::Cpu, "cpu.cfs_quota_us"), "200000");
        assert_eq!(scratch.file(Controller::Cpu, "cpu.shares"), "2048");
    }
}

#[test]
fn root_reclaim_gives_clean_cache_back() {
    let mut scratch = Scratch::with(1, 256, &[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cache");
    scratch.spawn(&format!(
        "dd if=/dev/zero of={} bs=1M count=32 conv=fsync; sleep 1000",
        file.display()
    ));
    eventually("the cache", || {
        fs::metadata(&file).is_ok_and(|m| m.len() == 32 << 20)
            && scratch.group.stats().unwrap().memory.cache >= 32 << 20
    });
    let mut given = 0;
    eventually("giving back", || {
        given += scratch.group.reclaim().unwrap();
        given >= 24 << 20
    });
}

/// A loop device with an ext4 of its own, mounted.
struct LoopDisk {
    dir: tempfile::TempDir,
    device: String,
}

impl LoopDisk {
    fn new() -> LoopDisk {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk");
        fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
        run(Command::new("mkfs.ext4").arg("-q").arg(&image));
        let device = run(Command::new("losetup").args(["-f", "--show"]).arg(&image));
        let disk = LoopDisk { dir, device };
        fs::create_dir(disk.mount()).unwrap();
        run(Command::new("mount").arg(&disk.device).arg(disk.mount()));
        disk
    }

    fn mount(&self) -> std::path::PathBuf {
        self.dir.path().join("m")
    }

    fn number(&self) -> DeviceNumber {
        let rdev = fs::metadata(&self.device).unwrap().rdev();
        DeviceNumber { major: libc::major(rdev), minor: libc::minor(rdev) }
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.mount()).status();
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn root_the_write_rate_holds_for_write_back_too_and_leaves_no_rule() {
    const RATE: u64 = 16 << 20;
    const BYTES: u64 = 40 << 20;
    let mut scratch = Scratch::with(1, 512, &[]);
    let disk = LoopDisk::new();
    let device = disk.number();
    scratch.devices = vec![device];
    let rate = RATE.to_string();
    let limited = limits(1, 512, &[("quota:disk_write_bytes_sec", &rate)]).unwrap();
    scratch.group.update(&limited, &scratch.devices).unwrap();

    let start = Instant::now();
    let file = disk.mount().join("f");
    let writer =
        scratch.spawn(&format!("exec dd if=/dev/zero of={} bs=1M count=40", file.display()));
    assert!(scratch.children[writer].wait().unwrap().success());
    run(Command::new("sync").arg("-f").arg(disk.mount()));
    // Half a second's worth may pass at once at the beginning of a slice.
    let least = Duration::from_millis((BYTES - RATE / 2) * 1000 / RATE);
    assert!(start.elapsed() >= least, "{BYTES} bytes in {:?}", start.elapsed());

    let rules = || {
        let io = scratch.hierarchy.place(Controller::Io).unwrap().path;
        let text = plan::read(&io.join("blkio.throttle.write_bps_device")).unwrap_or_default();
        text.lines().any(|line| line.starts_with(&format!("{device} ")))
    };
    assert_eq!(rules(), is_v1());
    scratch.group.update(&limits(1, 512, &[]).unwrap(), &scratch.devices).unwrap();
    assert!(!rules());
    scratch.group.update(&limited, &scratch.devices).unwrap();
    scratch.group.kill_all(None).unwrap();
    scratch.group.remove(&scratch.devices).unwrap();
    assert!(!rules());
}

/// The version 2 hierarchy, which a hybrid host has too: freezing, killing and
/// nesting need no controller.
fn unified_alone() -> Option<Hierarchy> {
    let detected = Hierarchy::detect().unwrap();
    let point = detected.unified()?;
    let line = format!("1 2 0:1 / {} rw - cgroup2 none rw", point.display());
    Some(Hierarchy::from_mountinfo(&line).unwrap())
}

#[test]
fn root_version_2_freezes_kills_and_removes_what_the_guest_nested() {
    let Some(hierarchy) = unified_alone() else { return };
    let mut scratch = Scratch::new(hierarchy);
    let dir = scratch.group.place(Controller::Freezer).unwrap().path;
    fs::create_dir_all(dir.join("system.slice/a.service")).unwrap();
    let hog = scratch.spawn("while :; do :; done");
    let pid = scratch.children[hog].id();
    plan::write(&dir.join("system.slice/a.service/cgroup.procs"), &pid.to_string()).unwrap();
    assert_eq!(scratch.group.pids().unwrap(), [pid as i32]);
    scratch.group.freeze().unwrap();
    assert!(scratch.group.is_frozen().unwrap());
    scratch.group.thaw().unwrap();
    assert!(!scratch.group.is_frozen().unwrap());
    scratch.group.freeze().unwrap();
    scratch.group.kill_all(None).unwrap();
    assert_eq!(scratch.children[hog].wait().unwrap().signal(), Some(libc::SIGKILL));
    scratch.group.remove(&[]).unwrap();
    assert!(!dir.exists());
    scratch.group.remove(&[]).unwrap();
    assert!(!scratch.group.is_frozen().unwrap());
}

#[test]
fn the_plan_of_version_2() {
    let dir = tempfile::tempdir().unwrap();
    let hierarchy = v2_fixture(dir.path());
    let id = Uuid::nil();
    let group = Group::new(&hierarchy, "berth", id);
    let device = DeviceNumber { major: 7, minor: 3 };
    let limits = limits(2, 64, &[("quota:disk_read_iops_sec", "90")]).unwrap();
    let plan = group.plan(&limits, &[device], BLOCK).unwrap();
    let own = dir.path().join("berth").join(id.to_string());
    let value = |path: &Path| {
        plan.steps.iter().rev().find_map(|step| match step {
            Step::Write { path: p, value, .. } if p == path => Some(value.as_str()),
            _ => None,
        })
    };
    assert_eq!(value(&own.join("cpu.max")), Some("200000 100000"));
    assert_eq!(value(&own.join("cpu.weight")), Some("200"));
    assert_eq!(value(&own.join("memory.max")), Some("67108864"));
    assert_eq!(value(&own.join("memory.swap.max")), Some("0"));
    assert_eq!(value(&own.join("pids.max")), Some("4096"));
    for size in super::group::huge_page_sizes() {
        assert_eq!(value(&own.join(format!("hugetlb.{size}.rsvd.max"))), Some("0"));
    }
    assert_eq!(value(&own.join("io.max")), Some("7:3 rbps=max wbps=max riops=90 wiops=max"));
    for level in [dir.path().to_owned(), dir.path().join("berth")] {
        let enabled = plan.steps.iter().filter(|step| {
            matches!(step, Step::Write { path, .. } if *path == level.join("cgroup.subtree_control"))
        });
        assert_eq!(enabled.count(), 6, "{}", level.display());
    }
    // The instance's own processes sit in its directory, which so must not
    // hand controllers further down: that is for the init inside to decide.
    assert_eq!(value(&own.join("cgroup.subtree_control")), None);
    let make =
        plan.steps.iter().position(|s| matches!(s, Step::MakeDir { path, .. } if *path == own));
    let limit = plan
        .steps
        .iter()
        .position(|s| matches!(s, Step::Write { path, .. } if *path == own.join("memory.max")));
    assert!(make < limit);
}

#[test]
fn version_2_refuses_to_shrink_below_what_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let group = Group::new(&v2_fixture(dir.path()), "berth", Uuid::nil());
    let own = group.place(Controller::Memory).unwrap().path;
    fs::create_dir_all(&own).unwrap();
    for (file, text) in [
        ("memory.current", "100000000"),
        ("memory.max", "200000000"),
        ("memory.reclaim", ""),
        ("cpu.max", "100000 100000"),
        ("cpu.weight", "100"),
        ("pids.max", "10"),
    ] {
        fs::write(own.join(file), text).unwrap();
    }
    let fault = group.update(&limits(1, 64, &[]).unwrap(), &[]).unwrap_err();
    assert_eq!(fault.kind, FaultKind::InstanceInvalidState);
    assert_eq!(
        plan::read(&own.join("memory.reclaim")).unwrap(),
        (100_000_000 - (64 << 20)).to_string()
    );
    assert_eq!(plan::read(&own.join("memory.max")).unwrap(), "200000000");
}

#[test]
fn a_failed_update_puts_every_value_back() {
    let dir = tempfile::tempdir().unwrap();
    let group = Group::new(&v2_fixture(dir.path()), "berth", Uuid::nil());
    let own = group.place(Controller::Memory).unwrap().path;
    fs::create_dir_all(&own).unwrap();
    let before = [
        ("memory.current", "1"),
        ("memory.max", "77"),
        ("cpu.max", "5000 10000"),
        ("cpu.weight", "7"),
    ];
    for (file, text) in before {
        fs::write(own.join(file), text).unwrap();
    }
    // There is no pids.max: that write fails after the others.
    assert!(group.update(&limits(1, 64, &[]).unwrap(), &[]).is_err());
    for (file, text) in before {
        // A real file of the kernel's is replaced as a whole; this one keeps a longer tail.
        assert!(plan::read(&own.join(file)).unwrap().starts_with(text), "{file}");
    }
}

#[test]
fn a_rate_without_the_controller_is_a_fault_and_without_a_rate_is_not() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cgroup.controllers"), "cpu memory pids").unwrap();
    let line = format!("1 2 0:1 / {} rw - cgroup2 none rw", dir.path().display());
    let group = Group::new(&Hierarchy::from_mountinfo(&line).unwrap(), "berth", Uuid::nil());
    let plain = limits(1, 64, &[]).unwrap();
    assert!(group.plan(&plain, &[], BLOCK).is_ok());
    let rated = limits(1, 64, &[("quota:disk_read_iops_sec", "9")]).unwrap();
    let fault = group.plan(&rated, &[], BLOCK).unwrap_err();
    assert_eq!(fault.kind, FaultKind::HostUnsupported);
    assert!(fault.detail.contains("blkio"), "{fault}");
}
