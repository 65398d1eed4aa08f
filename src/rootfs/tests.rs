//! The whole of it on the real kernel, as root, in a directory of its own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};
use uuid::Uuid;

use super::*;
use crate::config::Storage;
use crate::fault::{FaultKind, OrFault, Result};
use crate::store::layout::{InstanceLayout, Layout};
use crate::store::room::Room;
use crate::sys::ids::IdBlock;
use crate::sys::{loopdev, mount, ns, thread};
use crate::types::{Dns, InjectedFile};

const MIB: u64 = 1 << 20;
const BLOCK: IdBlock = IdBlock { first: 1_900_000_000, size: 65_536 };

/// A service's directories, taken away with all mounts in them.
struct Host {
    dir: tempfile::TempDir,
    layout: Layout,
    disks: Disks,
}

impl Host {
    fn new(filesystem: &str) -> Host {
        // Not /tmp: that may be a tmpfs, which has no idmapped mounts everywhere.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let layout = Layout::new(dir.path().join("state"), dir.path().join("run"));
        Host { disks: disks(&layout, filesystem), layout, dir }
    }

    /// A directory of layers as the image store keeps them.
    fn layer(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A root file system with its namespaces and its disk attached, not mounted.
    fn rootfs(&self, layers: Vec<PathBuf>, size: u64) -> Rootfs {
        let layout = self.instance();
        let file = layout.root_disk();
        self.disks.create(&file, size).unwrap();
        ns::create_pinned(BLOCK, &layout.user_ns(), &layout.net_ns()).unwrap();
        self.disks.attach(&file, &layout.disk_mount()).unwrap();
        Rootfs::new(layers, BLOCK, layout)
    }

    fn instance(&self) -> InstanceLayout {
        let layout = self.layout.instance(Uuid::new_v4());
        fs::create_dir_all(layout.state()).unwrap();
        fs::create_dir_all(layout.run()).unwrap();
        layout
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for path in mount::mounts_below(self.dir.path()).unwrap_or_default() {
            let _ = mount::unmount(&path);
        }
    }
}

fn disks(layout: &Layout, filesystem: &str) -> Disks {
    let config = Storage { filesystem: filesystem.into(), ..Default::default() };
    Disks::new(layout, &config, Room::open(layout, &config)).unwrap()
}

fn as_root_inside(f: impl FnOnce() -> std::io::Result<()> + Send) -> Result<()> {
    thread::as_ids(BLOCK, || f().or_fault("inside"))
}

/// The kernel clears a device soon after its last user.
fn wait_until_free(file: &Path) {
    for _ in 0..500 {
        if loopdev::find_by_backing(file).unwrap().is_none() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{} is still attached", file.display());
}

fn take_down(host: &Host, rootfs: &Rootfs) {
    let layout = &rootfs.layout;
    rootfs.unmount().unwrap();
    host.disks.detach(&layout.root_disk(), &layout.disk_mount()).unwrap();
    ns::unpin(&layout.user_ns()).unwrap();
    ns::unpin(&layout.net_ns()).unwrap();
}

/// Two layers, the upper with a whiteout, an opaque directory and a change.
fn two_layers(host: &Host) -> Vec<PathBuf> {
    let (low, high) = (host.layer("low"), host.layer("high"));
    for path in ["opaque", "merged"] {
        fs::create_dir(low.join(path)).unwrap();
        fs::create_dir(high.join(path)).unwrap();
    }
    for path in ["gone", "changed", "opaque/old", "merged/low"] {
        fs::write(low.join(path), "low").unwrap();
    }
    for path in ["changed", "opaque/new", "merged/high"] {
        fs::write(high.join(path), "high").unwrap();
    }
    let whiteout = high.join("gone");
    mknodat(CWD, &whiteout, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)).unwrap();
    let opaque = high.join("opaque");
    setxattr(&opaque, "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    vec![low, high]
}

fn check_merged(rootfs: &Rootfs) {
    let root = rootfs.layout.rootfs();
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    assert_eq!(read("gone"), None);
    assert_eq!(read("changed").as_deref(), Some("high"));
    assert_eq!((read("opaque/old"), read("opaque/new").as_deref()), (None, Some("high")));
    assert_eq!(read("merged/low").as_deref(), Some("low"));
    assert_eq!(read("merged/high").as_deref(), Some("high"));
    // What is root's on disk is the instance's root's here.
    assert_eq!(fs::metadata(root.join("changed")).unwrap().uid(), BLOCK.first);
    as_root_inside(|| {
        fs::write(root.join("made"), "x")?;
        fs::write(root.join("merged/low"), "written")?;
        fs::remove_file(root.join("changed"))
    })
    .unwrap();
    let upper = rootfs.layout.disk_mount().join("upper");
    for path in ["made", "merged/low"] {
        let meta = fs::metadata(upper.join(path)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (0, 0), "{path}");
    }
    assert!(fs::symlink_metadata(upper.join("changed")).unwrap().file_type().is_char_device());
    // The layers are as they were.
    assert_eq!(fs::read_to_string(rootfs.layers[0].join("merged/low")).unwrap(), "low");
}

#[test]
fn root_layers_merge_and_ids_are_mapped_on_every_kernel_way() {
    for way in [Rootfs::mount_detached_only, Rootfs::mount_attached_only] {
        let host = Host::new("ext4");
        let rootfs = host.rootfs(two_layers(&host), 64 * MIB);
        way(&rootfs).unwrap();
        check_merged(&rootfs);
        // Who is inside reads the options of the overlay.
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let target = rootfs.layout.rootfs();
        let line = table.lines().find(|line| line.contains(target.to_str().unwrap())).unwrap();
        let options = line.split_once(" - ").unwrap().1;
        assert!(!options.contains(host.dir.path().to_str().unwrap()), "{options}");
        let below = mount::mounts_below(rootfs.layout.run()).unwrap();
        // The tree, the disk and two pins: no place of a layer is left.
        assert_eq!(below.len(), 4, "{below:?}");
        let file = rootfs.layout.root_disk();
        take_down(&host, &rootfs);
        assert_eq!(mount::mounts_below(host.dir.path()).unwrap(), Vec::<PathBuf>::new());
        wait_until_free(&file);
    }
}

#[test]
fn root_a_tree_without_its_disk_is_refused() {
    let host = Host::new("ext4");
    let rootfs = host.rootfs(vec![host.layer("l")], 64 * MIB);
    host.disks.detach(&rootfs.layout.root_disk(), &rootfs.layout.disk_mount()).unwrap();
    assert!(rootfs.mount().unwrap_err().detail.contains("not mounted"));
    let none = Rootfs::new(vec![], BLOCK, rootfs.layout);
    assert_eq!(none.mount().unwrap_err().kind, FaultKind::ImageUnacceptable);
}

#[test]
fn root_ids_the_disk_does_not_map_are_a_fault_not_a_read_only_tree() {
    let host = Host::new("ext4");
    let rootfs = host.rootfs(vec![host.layer("l")], 64 * MIB);
    // The user namespace pinned is another one's: the mounter's id is not in it.
    let other = IdBlock { first: BLOCK.first + BLOCK.size, ..BLOCK };
    ns::create_pinned(other, &rootfs.layout.user_ns(), &rootfs.layout.net_ns()).unwrap();
    for way in [Rootfs::mount_detached_only, Rootfs::mount_attached_only] {
        let fault = way(&rootfs).unwrap_err();
        assert!(fault.detail.contains("read-only"), "{fault}");
        assert!(!mount::is_mount_point(&rootfs.layout.rootfs()).unwrap());
    }
}

#[test]
fn root_the_size_is_hard_and_deleting_gives_space_back_to_the_host() {
    for (filesystem, size) in [("ext4", 64 * MIB), ("xfs", 300 * MIB)] {
        let host = Host::new(filesystem);
        let rootfs = host.rootfs(vec![host.layer("l")], size);
        rootfs.mount().unwrap();
        let root = rootfs.layout.rootfs();
        let shown = host.disks.usage(&root).unwrap();
        assert!(shown.size <= size && shown.size > size / 5 * 3, "{filesystem}: {shown:?}");
        assert_eq!(host.disks.usage(&rootfs.layout.disk_mount()).unwrap().size, shown.size);
        let fault = as_root_inside(|| {
            let mut file = File::create(root.join("big"))?;
            loop {
                file.write_all(&[1; 1 << 20])?;
            }
        })
        .unwrap_err();
        assert_eq!(fault.kind, FaultKind::ResourcesExhausted, "{fault}");
        let blocks = || fs::metadata(rootfs.layout.root_disk()).unwrap().blocks() * 512;
        let sync = || rustix::fs::syncfs(File::open(rootfs.layout.disk_mount()).unwrap()).unwrap();
        sync();
        let full = blocks();
        assert!(full > size / 3 && full <= size + MIB, "{filesystem}: {full}");
        fs::remove_file(root.join("big")).unwrap();
        // Discards follow the file system's own commit.
        let freed = (0..100).any(|_| {
            sync();
            std::thread::sleep(Duration::from_millis(50));
            blocks() < full / 2
        });
        assert!(freed, "{filesystem}: {} of {full} stay allocated", blocks());
        take_down(&host, &rootfs);
    }
}

#[test]
fn root_usage_of_no_mount_is_a_fault_not_the_hosts_figures() {
    let host = Host::new("ext4");
    assert!(host.disks.usage(host.dir.path()).is_err());
}

/// Whether the kernel lets us grow a mounted ext4 (some containers may not).
fn may_use_system_resources() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).unwrap().effective.contains(CapabilitySet::SYS_RESOURCE)
}

#[test]
fn root_disks_grow_while_mounted_and_never_shrink() {
    for (filesystem, size) in [("ext4", 64 * MIB), ("xfs", 300 * MIB)] {
        let host = Host::new(filesystem);
        let rootfs = host.rootfs(vec![host.layer("l")], size);
        rootfs.mount().unwrap();
        let (file, point) = (rootfs.layout.root_disk(), rootfs.layout.disk_mount());
        let before = host.disks.usage(&point).unwrap().size;
        let grown = host.disks.grow(&file, Some(&point), size * 3);
        let after = host.disks.usage(&rootfs.layout.rootfs()).unwrap().size;
        let length = || fs::metadata(&file).unwrap().len();
        if filesystem == "xfs" || may_use_system_resources() {
            grown.unwrap();
            assert!(after > before + size, "{filesystem}: {before} to {after}");
            assert_eq!(length(), size * 3);
            host.disks.grow(&file, Some(&point), size * 3).unwrap();
        } else {
            assert_eq!(grown.unwrap_err().kind, FaultKind::HostUnsupported);
            assert_eq!((after, length()), (before, size), "not undone");
        }
        let fault = host.disks.grow(&file, Some(&point), size / 2).unwrap_err();
        assert_eq!(fault.field.as_deref(), Some("flavor.root_gb"));
        take_down(&host, &rootfs);
    }
}

#[test]
fn root_disks_grow_while_not_mounted_and_keep_their_content() {
    for (filesystem, size) in [("ext4", 64 * MIB), ("xfs", 300 * MIB)] {
        let host = Host::new(filesystem);
        let rootfs = host.rootfs(vec![host.layer("l")], size);
        let (file, point) = (rootfs.layout.root_disk(), rootfs.layout.disk_mount());
        fs::write(point.join("kept"), "kept").unwrap();
        let before = host.disks.usage(&point).unwrap().size;
        host.disks.detach(&file, &point).unwrap();
        host.disks.grow(&file, Some(&point), size * 2).unwrap();
        wait_until_free(&file);
        host.disks.attach(&file, &point).unwrap();
        let after = host.disks.usage(&point).unwrap().size;
        assert!(after > before + size / 2, "{filesystem}: {before} to {after}");
        assert_eq!(fs::read_to_string(point.join("kept")).unwrap(), "kept");
        take_down(&host, &rootfs);
    }
}

#[test]
fn root_a_disk_that_others_have_mounted_grows_without_the_capability() {
    let size = 64 * MIB;
    let host = Host::new("ext4");
    let rootfs = host.rootfs(vec![host.layer("l")], size);
    let (file, point) = (rootfs.layout.root_disk(), rootfs.layout.disk_mount());
    fs::write(point.join("kept"), "kept").unwrap();
    // Its mount namespace has a copy of every mount there is now.
    let mut other =
        Command::new("unshare").args(["-m", "sleep", "600"]).spawn().expect("starting unshare");
    std::thread::sleep(Duration::from_millis(300));
    host.disks.detach(&file, &point).unwrap();
    let inode = fs::metadata(&file).unwrap().ino();
    let grown = std::thread::scope(|scope| {
        let growing = || {
            without_system_resources();
            host.disks.grow(&file, Some(&point), size * 2)
        };
        scope.spawn(growing).join().unwrap()
    });
    grown.unwrap();
    assert_ne!(fs::metadata(&file).unwrap().ino(), inode, "nobody had a copy of the mount");
    let left: Vec<_> = fs::read_dir(file.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains(crate::store::atomic::TEMPORARY))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    host.disks.attach(&file, &point).unwrap();
    assert!(host.disks.usage(&point).unwrap().size > size + size / 2);
    assert_eq!(fs::read_to_string(point.join("kept")).unwrap(), "kept");
    // Theirs is neither frozen nor touched.
    let theirs = format!("/proc/{}/root{}", other.id(), point.display());
    fs::write(Path::new(&theirs).join("theirs"), "x").unwrap();
    assert!(!point.join("theirs").exists());
    other.kill().unwrap();
    other.wait().unwrap();
    take_down(&host, &rootfs);
}

/// Of this thread, and of what it starts.
fn without_system_resources() {
    use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
    let now = capabilities(None).unwrap();
    let without = |set: CapabilitySet| set.difference(CapabilitySet::SYS_RESOURCE);
    let sets = CapabilitySets {
        effective: without(now.effective),
        permitted: without(now.permitted),
        inheritable: now.inheritable,
    };
    set_capabilities(None, sets).unwrap();
}

#[test]
fn root_a_kept_disk_comes_back_as_it_was() {
    for (filesystem, size) in [("ext4", 64 * MIB), ("xfs", 300 * MIB)] {
        let host = Host::new(filesystem);
        let rootfs = host.rootfs(vec![host.layer("l")], size);
        let (file, point) = (rootfs.layout.root_disk(), rootfs.layout.disk_mount());
        let kept = DiskBackup { file: file.clone(), copy: rootfs.layout.root_disk_kept() };
        fs::write(point.join("old"), vec![7; 3 << 20]).unwrap();
        let before = host.disks.usage(&point).unwrap().size;
        host.disks.detach(&file, &point).unwrap();
        let told = std::cell::Cell::new((0, 0));
        let keep = |go_on| {
            let progress = |done, total| {
                told.set((done, total));
                go_on
            };
            host.disks.back_up(std::slice::from_ref(&kept), &progress)
        };
        keep(true).unwrap();
        let (done, total) = told.get();
        // Nothing is copied where extents can be shared.
        assert!(total == 0 || (3 * MIB <= done && done <= total), "{done} of {total}");
        let size_of_copy = fs::metadata(&kept.copy).unwrap().blocks() * 512;
        assert!(total == 0 || size_of_copy <= total + MIB, "holes were filled");
        host.disks.grow(&file, None, size * 2).unwrap();
        wait_until_free(&file);
        host.disks.attach(&file, &point).unwrap();
        fs::write(point.join("new"), "new").unwrap();
        fs::remove_file(point.join("old")).unwrap();
        host.disks.detach(&file, &point).unwrap();
        // Twice: a service may be killed in between.
        host.disks.put_back(&kept).unwrap();
        host.disks.put_back(&kept).unwrap();
        assert!(!kept.copy.exists());
        host.disks.attach(&file, &point).unwrap();
        assert_eq!(host.disks.usage(&point).unwrap().size, before, "{filesystem}");
        assert_eq!(fs::read(point.join("old")).unwrap(), vec![7; 3 << 20]);
        assert!(!point.join("new").exists());
        if total > 0 {
            host.disks.detach(&file, &point).unwrap();
            assert_eq!(keep(false).unwrap_err().kind, FaultKind::InstanceInvalidState);
            let left = fs::read_dir(rootfs.layout.state()).unwrap();
            let left: Vec<_> = left.map(|entry| entry.unwrap().path()).collect();
            assert_eq!(left, std::slice::from_ref(&file), "a copy that was cut short stayed");
        }
        take_down(&host, &rootfs);
    }
}

#[test]
fn root_a_copy_shares_extents_where_the_hosts_file_system_can() {
    let host = Host::new("xfs");
    let rootfs = host.rootfs(vec![host.layer("l")], 300 * MIB);
    // An xfs of the host's, in which a disk is kept.
    let state = rootfs.layout.disk_mount();
    let kept = DiskBackup { file: state.join("disk"), copy: state.join("copy") };
    fs::write(&kept.file, vec![7; 20 << 20]).unwrap();
    let copied = std::cell::Cell::new(false);
    let progress = |_, _| {
        copied.set(true);
        true
    };
    let used = || {
        File::open(&state).unwrap().sync_all().unwrap();
        host.disks.usage(&state).unwrap().used
    };
    let before = used();
    host.disks.back_up(std::slice::from_ref(&kept), &progress).unwrap();
    assert!(!copied.get());
    assert!(used() < before + MIB, "{before} to {}", used());
    assert_eq!(fs::read(&kept.copy).unwrap(), fs::read(&kept.file).unwrap());
    take_down(&host, &rootfs);
}

#[test]
fn root_a_copy_of_a_disk_with_all_its_space_has_all_its_space() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let layout = Layout::new(dir.path(), dir.path());
    let config = Storage { preallocate: true, ..Default::default() };
    let disks = Disks::new(&layout, &config, Room::open(&layout, &config)).unwrap();
    let kept = DiskBackup { file: dir.path().join("disk"), copy: dir.path().join("copy") };
    disks.create(&kept.file, 64 * MIB).unwrap();
    disks.back_up(std::slice::from_ref(&kept), &|_, _| true).unwrap();
    assert!(fs::metadata(&kept.copy).unwrap().blocks() * 512 >= 64 * MIB);
}

#[test]
fn root_a_copy_that_does_not_fit_the_host_is_refused_before_it_is_begun() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let point = dir.path().join("state");
    fs::create_dir(&point).unwrap();
    let option = mount::FsOption::Text("size", Path::new("40m"));
    let small = mount::create("tmpfs", &[option], mount::Attributes::empty()).unwrap();
    mount::attach(std::os::fd::AsFd::as_fd(&small), &point).unwrap();
    let layout = Layout::new(&point, dir.path().join("run"));
    let config = Storage { reserved_host_disk_mb: 1, ..Default::default() };
    let disks = Disks::new(&layout, &config, Room::open(&layout, &config)).unwrap();
    let kept = DiskBackup { file: point.join("disk"), copy: point.join("copy") };
    fs::write(&kept.file, vec![7; 25 << 20]).unwrap();
    let begun = std::cell::Cell::new(false);
    let progress = |_, _| {
        begun.set(true);
        true
    };
    let fault = disks.back_up(std::slice::from_ref(&kept), &progress).unwrap_err();
    fs::remove_dir(point.join("templates")).unwrap();
    let left = fs::read_dir(&point).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    mount::unmount(&point).unwrap();
    assert_eq!(fault.kind, FaultKind::ResourcesExhausted, "{fault}");
    assert!(fault.detail.contains("takes 25 MiB"), "{fault}");
    assert!(!begun.get());
    assert_eq!(left, [kept.file]);
}

#[test]
fn root_a_disk_that_does_not_fit_the_host_is_refused_and_removed() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let point = dir.path().join("state");
    fs::create_dir(&point).unwrap();
    let option = mount::FsOption::Text("size", Path::new("40m"));
    let small = mount::create("tmpfs", &[option], mount::Attributes::empty()).unwrap();
    mount::attach(std::os::fd::AsFd::as_fd(&small), &point).unwrap();
    let layout = Layout::new(&point, dir.path().join("run"));
    let config = Storage { preallocate: true, ..Default::default() };
    let disks = Disks::new(&layout, &config, Room::open(&layout, &config)).unwrap();
    let file = point.join("disk");
    let fault = disks.create(&file, 64 * MIB).unwrap_err();
    let left = fs::read_dir(&point).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
    mount::unmount(&point).unwrap();
    assert_eq!(fault.kind, FaultKind::ResourcesExhausted, "{fault}");
    assert_eq!(left, [OsStr::new("templates")]);
}

#[test]
fn root_every_step_can_be_repeated_and_a_new_service_takes_over() {
    let host = Host::new("ext4");
    let rootfs = host.rootfs(two_layers(&host), 64 * MIB);
    let layout = &rootfs.layout;
    rootfs.mount().unwrap();
    // A service that was killed and started again has forgotten everything.
    let again = disks(&host.layout, "ext4");
    again.create(&layout.root_disk(), 64 * MIB).unwrap();
    assert!(again.create(&layout.root_disk(), 65 * MIB).is_err());
    let device = again.attach(&layout.root_disk(), &layout.disk_mount()).unwrap();
    assert_eq!(device.major, loopdev::MAJOR);
    let own = fs::metadata(layout.disk_mount()).unwrap().dev();
    assert_eq!(rustix::fs::minor(own), device.minor);
    rootfs.mount().unwrap();
    let below = mount::mounts_below(layout.run()).unwrap();
    assert_eq!(below.len(), 4, "{below:?}");
    for _ in 0..2 {
        take_down(&host, &rootfs);
        again.remove(&layout.root_disk()).unwrap();
    }
    assert_eq!(mount::mounts_below(host.dir.path()).unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn root_another_disk_in_the_place_is_replaced() {
    let host = Host::new("ext4");
    let layout = host.instance();
    let (old, new) = (layout.state().join("old"), layout.root_disk());
    for file in [&old, &new] {
        host.disks.create(file, 64 * MIB).unwrap();
    }
    host.disks.attach(&old, &layout.disk_mount()).unwrap();
    fs::write(layout.disk_mount().join("old"), "").unwrap();
    host.disks.attach(&new, &layout.disk_mount()).unwrap();
    assert!(!layout.disk_mount().join("old").exists());
    wait_until_free(&old);
    host.disks.detach(&new, &layout.disk_mount()).unwrap();
}

#[test]
fn root_a_disk_still_in_use_elsewhere_gets_no_second_device() {
    let host = Host::new("ext4");
    let layout = host.instance();
    let (file, point) = (layout.root_disk(), layout.disk_mount());
    host.disks.create(&file, 64 * MIB).unwrap();
    let first = host.disks.attach(&file, &point).unwrap();
    // An open file keeps the file system alive beyond the unmount.
    let held = File::create(point.join("held")).unwrap();
    host.disks.detach(&file, &point).unwrap();
    let second = host.disks.attach(&file, &point).unwrap();
    assert_eq!(first, second);
    drop(held);
    host.disks.detach(&file, &point).unwrap();
    wait_until_free(&file);
}

#[test]
fn root_twenty_at_once() {
    let host = Host::new("ext4");
    let layers = two_layers(&host);
    let all: Vec<Rootfs> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    let rootfs = host.rootfs(layers.clone(), 64 * MIB);
                    rootfs.mount().unwrap();
                    rootfs
                })
            })
            .collect();
        running.into_iter().map(|r| r.join().unwrap()).collect()
    });
    for rootfs in &all {
        check_merged(rootfs);
    }
    // One template, and no trace of another attempt at it.
    assert_eq!(fs::read_dir(host.layout.templates()).unwrap().count(), 1);
    std::thread::scope(|scope| {
        for rootfs in &all {
            scope.spawn(|| take_down(&host, rootfs));
        }
    });
    assert_eq!(mount::mounts_below(host.dir.path()).unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn root_only_the_instances_root_passes_to_the_tree() {
    let host = Host::new("ext4");
    let rootfs = host.rootfs(two_layers(&host), 64 * MIB);
    rootfs.mount().unwrap();
    // The directories above are the service's and let everybody pass.
    fs::set_permissions(host.dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let list = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).arg("ls").arg(rootfs.layout.rootfs()).output().unwrap()
    };
    let user_ns = format!("--user={}", rootfs.layout.user_ns().display());
    let inside = list("nsenter", &[&user_ns, "--setuid=0", "--setgid=0"]);
    assert!(inside.status.success(), "{inside:?}");
    let other = list("nsenter", &[&user_ns, "--setuid=1", "--setgid=1"]);
    assert!(!other.status.success(), "{other:?}");
    let nobody = list("setpriv", &["--reuid=65534", "--regid=65534", "--clear-groups"]);
    assert!(!nobody.status.success(), "{nobody:?}");
    take_down(&host, &rootfs);
}

#[test]
fn root_set_id_programs_work_inside() {
    let host = Host::new("ext4");
    let layer = host.layer("l");
    fs::copy("/usr/bin/id", layer.join("id")).unwrap();
    fs::set_permissions(layer.join("id"), fs::Permissions::from_mode(0o4755)).unwrap();
    let rootfs = host.rootfs(vec![layer], 64 * MIB);
    rootfs.mount().unwrap();
    fs::set_permissions(host.dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let output = Command::new("nsenter")
        .arg(format!("--user={}", rootfs.layout.user_ns().display()))
        .args(["--setuid=1000", "--setgid=0"])
        .arg(rootfs.layout.rootfs().join("id"))
        .arg("-u")
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"0\n", "{output:?}");
    take_down(&host, &rootfs);
}

#[test]
fn root_a_change_of_the_configured_file_system_leaves_disks_usable() {
    let host = Host::new("ext4");
    let rootfs = host.rootfs(vec![host.layer("l")], 64 * MIB);
    let (file, point) = (rootfs.layout.root_disk(), rootfs.layout.disk_mount());
    host.disks.detach(&file, &point).unwrap();
    disks(&host.layout, "xfs").attach(&file, &point).unwrap();
    rootfs.mount().unwrap();
    take_down(&host, &rootfs);
}

#[test]
fn root_an_ephemeral_disk_is_mapped() {
    let host = Host::new("ext4");
    let layout = host.instance();
    ns::create_pinned(BLOCK, &layout.user_ns(), &layout.net_ns()).unwrap();
    host.disks.create(&layout.ephemeral_disk(), 64 * MIB).unwrap();
    let device = host.disks.attach_ephemeral(&layout, Path::new("/dev/vdb")).unwrap();
    assert_eq!(device, host.disks.attach_ephemeral(&layout, Path::new("/dev/vdb")).unwrap());
    let point = layout.ephemeral_mount();
    assert_eq!(fs::metadata(&point).unwrap().uid(), BLOCK.first);
    // By the instance's name for it, which this host may have for another device.
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(mounts.contains(&format!("/dev/vdb {} ext4 ", point.display())), "{mounts}");
    as_root_inside(|| fs::write(point.join("f"), "x")).unwrap();
    assert_eq!(fs::metadata(point.join("f")).unwrap().uid(), BLOCK.first);
    host.disks.detach(&layout.ephemeral_disk(), &point).unwrap();
    wait_until_free(&layout.ephemeral_disk());
}

fn seed() -> Seed {
    Seed {
        hostname: "web.example.org".into(),
        dns: Some(Dns { nameservers: vec!["192.0.2.1".into()], search: vec![] }),
        machine_id: Uuid::from_u128(7),
        networkd: Some(Vec::new()),
        files: vec![InjectedFile {
            path: "/srv/new/file".into(),
            content: "aGVsbG8=".into(),
            mode: 0o4750,
        }],
        first_boot: true,
    }
}

#[test]
fn root_a_seed_is_written_once_and_belongs_to_the_instances_root() {
    let host = Host::new("ext4");
    let layer = host.layer("l");
    fs::create_dir_all(layer.join("etc/cloud/cloud.cfg.d")).unwrap();
    fs::write(layer.join("etc/machine-id"), "of the image").unwrap();
    symlink("/run/systemd/resolve/stub-resolv.conf", layer.join("etc/resolv.conf")).unwrap();
    let rootfs = host.rootfs(vec![layer], 64 * MIB);
    rootfs.mount().unwrap();
    rootfs.seed(&seed()).unwrap();
    let root = rootfs.layout.rootfs();
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    assert_eq!(read("etc/hostname"), "web.example.org\n");
    assert!(read("etc/hosts").contains("127.0.1.1 web.example.org web\n"));
    assert_eq!(read("etc/resolv.conf"), "nameserver 192.0.2.1\n");
    assert_eq!(read("etc/machine-id"), "00000000000000000000000000000007\n");
    assert_eq!(read("srv/new/file"), "hello");
    assert!(read("etc/systemd/network/99-berth.network").contains("Name=eth*\n"));
    assert!(read("etc/cloud/cloud.cfg.d/00-berth.cfg").contains("\nresize_rootfs: false\n"));
    let on_disk = rootfs.layout.disk_mount().join("upper/srv/new");
    for path in [on_disk.clone(), on_disk.join("file")] {
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (0, 0), "{}", path.display());
    }
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&on_disk), mode(&on_disk.join("file"))), (0o755, 0o4750));
    // Later boots leave what the owner made of it.
    as_root_inside(|| fs::write(root.join("etc/hostname"), "mine")).unwrap();
    rootfs.seed(&Seed { first_boot: false, ..seed() }).unwrap();
    assert_eq!(read("etc/hostname"), "mine");
    take_down(&host, &rootfs);
}

#[test]
fn root_an_image_without_etc_gets_one() {
    let host = Host::new("ext4");
    let rootfs = host.rootfs(vec![host.layer("l")], 64 * MIB);
    rootfs.mount().unwrap();
    rootfs.seed(&seed()).unwrap();
    assert!(rootfs.layout.rootfs().join("etc/hostname").exists());
    assert!(rootfs.layout.rootfs().join("etc/machine-id").exists());
    // What is for cloud-init alone is for images that have it.
    assert!(!rootfs.layout.rootfs().join("etc/cloud").exists());
    take_down(&host, &rootfs);
}

#[test]
fn root_hostile_links_lead_nowhere() {
    let host = Host::new("ext4");
    let outside = host.layer("outside");
    // /etc/hostname and /srv lead out, by `..` and absolutely; a fifo would block an open.
    let layer = host.layer("files");
    fs::create_dir(layer.join("etc")).unwrap();
    let up = "../".repeat(12);
    let relative = format!("{up}{}/hostname", outside.display());
    symlink(&relative, layer.join("etc/hostname")).unwrap();
    mknodat(CWD, layer.join("etc/hosts"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    symlink(outside.join("resolv"), layer.join("etc/resolv.conf")).unwrap();
    symlink(&outside, layer.join("srv")).unwrap();
    let rootfs = host.rootfs(vec![layer], 64 * MIB);
    rootfs.mount().unwrap();
    // Inside, /srv dangles: that file is refused, by its name.
    let fault = rootfs.seed(&seed()).unwrap_err();
    assert_eq!(fault.field.as_deref(), Some("files[0].path"), "{fault}");
    rootfs.seed(&Seed { files: vec![], ..seed() }).unwrap();
    let root = rootfs.layout.rootfs();
    for path in ["hostname", "hosts", "resolv.conf"] {
        assert!(fs::symlink_metadata(root.join("etc").join(path)).unwrap().is_file(), "{path}");
    }
    take_down(&host, &rootfs);

    // The whole of /etc leads out: made inside if it can be, refused if not.
    let layer = host.layer("directory");
    symlink(&outside, layer.join("etc")).unwrap();
    let rootfs = host.rootfs(vec![layer], 64 * MIB);
    rootfs.mount().unwrap();
    let fault = rootfs.seed(&seed()).unwrap_err();
    assert_eq!(fault.kind, FaultKind::ImageUnacceptable, "{fault}");
    let inside = rootfs.layout.rootfs().join(outside.strip_prefix("/").unwrap());
    as_root_inside(|| fs::create_dir_all(&inside)).unwrap();
    rootfs.seed(&Seed { files: vec![], ..seed() }).unwrap();
    assert!(inside.join("hostname").exists());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    take_down(&host, &rootfs);
}

#[test]
fn root_an_injected_file_does_not_replace_a_directory_or_overfill_the_disk() {
    let host = Host::new("ext4");
    let layer = host.layer("l");
    fs::create_dir(layer.join("srv")).unwrap();
    let rootfs = host.rootfs(vec![layer], 64 * MIB);
    rootfs.mount().unwrap();
    let file = |path: &str, content: &str| InjectedFile {
        path: path.into(),
        content: content.into(),
        mode: 0o644,
    };
    let with = |file| Seed { files: vec![file], ..seed() };
    let fault = rootfs.seed(&with(file("/srv", ""))).unwrap_err();
    assert_eq!(fault.field.as_deref(), Some("files[0].path"), "{fault}");
    let large = "A".repeat(96 << 20);
    let fault = rootfs.seed(&with(file("/large", &large))).unwrap_err();
    assert_eq!(fault.kind, FaultKind::FlavorDiskTooSmall, "{fault}");
    assert!(!rootfs.layout.rootfs().join("large").exists());
    take_down(&host, &rootfs);
}

/// The victim of the next test: it makes and takes away until it is killed.
#[test]
#[ignore = "started by root_a_kill_at_any_moment_leaves_nothing"]
fn victim() {
    let Some(dir) = std::env::var_os("BERTH_TEST_VICTIM").map(PathBuf::from) else { return };
    let layout = Layout::new(dir.join("state"), dir.join("run"));
    let disks = disks(&layout, "ext4");
    loop {
        let instance = layout.instance(Uuid::from_u128(1));
        fs::create_dir_all(instance.state()).unwrap();
        fs::create_dir_all(instance.run()).unwrap();
        disks.create(&instance.root_disk(), 64 * MIB).unwrap();
        ns::create_pinned(BLOCK, &instance.user_ns(), &instance.net_ns()).unwrap();
        disks.attach(&instance.root_disk(), &instance.disk_mount()).unwrap();
        let rootfs = Rootfs::new(vec![dir.join("l")], BLOCK, instance.clone());
        rootfs.mount_attached_only().unwrap();
        rootfs.unmount().unwrap();
        rootfs.mount().unwrap();
        rootfs.seed(&seed()).unwrap();
        rootfs.unmount().unwrap();
        disks.detach(&instance.root_disk(), &instance.disk_mount()).unwrap();
        disks.remove(&instance.root_disk()).unwrap();
    }
}

#[test]
fn root_a_kill_at_any_moment_leaves_nothing() {
    let host = Host::new("ext4");
    host.layer("l");
    // The victims are to find the template made.
    let first = host.dir.path().join("first");
    host.disks.create(&first, 64 * MIB).unwrap();
    host.disks.remove(&first).unwrap();
    let mut met = 0;
    for round in 0..25u64 {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "rootfs::tests::victim", "--ignored"])
            .env("BERTH_TEST_VICTIM", host.dir.path())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let layout = host.layout.instance(Uuid::from_u128(1));
        while !layout.run().exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Spread over several turns of the loop; where exactly is the machine's affair.
        std::thread::sleep(Duration::from_micros(round * 900));
        let ended = victim.try_wait().unwrap();
        victim.kill().unwrap();
        victim.wait().unwrap();
        assert!(ended.is_none(), "the victim failed by itself: {ended:?}");
        met += usize::from(!mount::mounts_below(host.dir.path()).unwrap().is_empty());
        // What the service does at its next start.
        let file = layout.root_disk();
        let again = disks(&host.layout, "ext4");
        let rootfs = Rootfs::new(vec![], BLOCK, layout);
        take_down(&host, &rootfs);
        wait_until_free(&file);
        again.remove(&file).unwrap();
        assert_eq!(mount::mounts_below(host.dir.path()).unwrap(), Vec::<PathBuf>::new());
        let run = rootfs.layout.run();
        let left: Vec<_> = fs::read_dir(run)
            .map(|entries| entries.map(|e| e.unwrap().file_name()).collect())
            .unwrap_or_default();
        let known = |name: &OsStr| name == "disk" || name == "rootfs";
        assert!(left.iter().all(|name| known(name)), "{left:?}");
        let files = fs::read_dir(rootfs.layout.state()).map_or(0, Iterator::count);
        assert_eq!(files, 0);
        fs::remove_dir_all(run).unwrap();
    }
    assert!(met > 0, "no victim was met in the middle of anything");
}
