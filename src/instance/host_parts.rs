//! The parts of the host that operations work with, opened once at start.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cgroup::{CgroupLimits, DeviceNumber, Group, Hierarchy};
use crate::config::Config;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::image::ImageStore;
use crate::network::fresh::Given;
use crate::network::{Network, Rates};
use crate::rootfs::idmap;
use crate::rootfs::rest::{self, Work};
use crate::rootfs::{BlockDevice, Disks, Rootfs};
use crate::runtime::disks::{self, Kind};
use crate::runtime::{apparmor::AppArmor, chosen::Chosen, lxcfs, probe, terminals};
use crate::store::layout::{InstanceLayout, Layout};
use crate::store::room::Room;
use crate::sys::ids::IdBlock;
use crate::sys::{self, mount};
use crate::types::{RuntimeInfo, Vif};
use crate::volume;

use super::placement::Placement;
use super::record::{Desired, Record};
use super::teardown::Teardown;

/// The parts.
pub struct HostParts {
    /// The configuration.
    pub config: Config,
    /// Every path.
    pub layout: Layout,
    /// Space below the state directory, which all that write there ask for.
    pub room: Arc<Room>,
    /// The image store.
    pub images: ImageStore,
    /// Disks of a hard size.
    pub disks: Disks,
    /// Interfaces and the stand-alone bridge.
    pub network: Network,
    /// The host's cgroup layout.
    pub hierarchy: Hierarchy,
    /// The OCI runtime that instances are started with.
    pub runtime: Chosen,
    /// What that can do.
    pub runtime_info: RuntimeInfo,
    /// The profiles that instances run under.
    pub apparmor: AppArmor,
    /// The monitor's program.
    pub monitor_program: PathBuf,
    /// Which CPUs the instances run on.
    pub placement: Placement,
    /// CPUs to dedicate.
    pub dedicated_cpus: BTreeSet<u32>,
    /// This boot of the host.
    pub boot_id: String,
    // Keep a second service off the same things while this one lives: what it
    // finds there and has no record of, it would remove.
    _locks: [File; 3],
}

impl HostParts {
    /// Opens the host: directories, lock, stores, runtime, bridge. Idempotent.
    pub fn open(config: Config) -> Result<HostParts> {
        let layout = Layout::new(&config.service.state_dir, &config.service.run_dir);
        // Only root enters the state; an instance's root must pass through
        // the volatile directories to its own root file system.
        make_dir(layout.state(), 0o700)?;
        let state_lock = lock(open_lock(&layout.lock())?, "service.state_dir", layout.state())?;
        make_dir(layout.run(), 0o711)?;
        let run_lock = lock_dir("service.run_dir", layout.run())?;
        let hierarchy = Hierarchy::detect()?;
        let cgroup_lock =
            lock_dir("instances.cgroup", &hierarchy.parent(&config.instances.cgroup)?)?;
        make_dir(&layout.instances(), 0o700)?;
        make_dir(&layout.moves(), 0o700)?;
        make_dir(&layout.run_instances(), 0o711)?;
        make_dir(&layout.runtime_root(), 0o700)?;
        mount::make_shared_mount_point(&layout.run_instances())?;
        let sets = crate::host::cpu_sets(&config)?;
        let network = Network::new(&config.bridge)?;
        let trial_ids = idmap::trial(&config.instances);
        let monitor_program = monitor_program(&config)?;
        let info = probe::probe(&config.runtime, layout.run(), trial_ids, &monitor_program)?;
        let room = Room::open(&layout, &config.storage);
        Ok(HostParts {
            images: ImageStore::open(&layout, &config.images, Arc::clone(&room))?
                .for_ids(config.instances.id_map_size),
            disks: Disks::new(&layout, &config.storage, Arc::clone(&room))?,
            room,
            network,
            runtime: probe::chosen(&info, &config.runtime, &layout.runtime_root()),
            runtime_info: info,
            apparmor: AppArmor::start(config.runtime.apparmor)?,
            monitor_program,
            placement: Placement::new(&config, &hierarchy, &sets),
            dedicated_cpus: sets.dedicated,
            hierarchy,
            boot_id: boot_id()?,
            layout,
            config,
            _locks: [state_lock, run_lock, cgroup_lock],
        })
    }

    /// lxcfs's mount point, when it is mounted there and answers.
    pub fn lxcfs(&self) -> Option<PathBuf> {
        let path = &self.config.instances.lxcfs;
        (!path.as_os_str().is_empty() && lxcfs::answers(path)).then(|| path.clone())
    }

    /// Paths of an instance.
    pub fn paths(&self, record: &Record) -> InstanceLayout {
        self.layout.instance(record.id)
    }

    /// The runtime that an instance was started with; the service's, if it never was.
    pub fn runtime_of(&self, layout: &InstanceLayout) -> Chosen {
        crate::monitor::launched_by(layout).unwrap_or_else(|| self.runtime.clone())
    }

    /// Its cgroup.
    pub fn group(&self, record: &Record) -> Group {
        Group::new(&self.hierarchy, &self.config.instances.cgroup, record.id)
    }

    /// Its limits.
    pub fn limits(&self, record: &Record) -> Result<CgroupLimits> {
        let cpus = self.placement.cpus(record);
        CgroupLimits::from_flavor(
            &record.definition.flavor,
            &self.config.instances,
            cpus.as_deref(),
        )
    }

    /// What it is given of networks.
    pub fn given(&self, record: &Record) -> Result<Given> {
        Ok(Given {
            block: record.id_block,
            bridge: self.config.bridge.clone(),
            vifs: record.definition.vifs.clone(),
            rates: Rates::from_extra_specs(&record.definition.flavor.extra_specs)?,
        })
    }

    /// Lets through a VIF what the flavor allows, and nothing while the instance is
    /// frozen or off.
    pub fn traffic(&self, record: &Record, vif: &Vif) -> Result<()> {
        if record.frozen.is_some() || record.desired != Desired::Running {
            return self.network.silence(vif);
        }
        let rates = Rates::from_extra_specs(&record.definition.flavor.extra_specs)?;
        self.network.apply_rates(vif, &rates)
    }

    /// The root file system that it boots: its own, or the rescue image's.
    pub fn rootfs(&self, record: &Record) -> Rootfs {
        let paths = self.paths(record);
        let target = paths.rootfs();
        let rescue_mount = paths.rescue_mount();
        let rootfs = Rootfs::new(self.layer_dirs(record.boot().layers), record.id_block, paths);
        if record.rescue.is_some() { rootfs.at(rescue_mount, target) } else { rootfs }
    }

    /// A rescued instance's own root file system, beside the one that it boots.
    fn own_rootfs(&self, record: &Record) -> Rootfs {
        let paths = self.paths(record);
        let (disk, target) = (paths.disk_mount(), paths.own_rootfs());
        Rootfs::new(self.layer_dirs(&record.layers), record.id_block, paths)
            .at(disk, target)
            .named(disks::path(record.disk_kinds(), Kind::Root))
    }

    fn layer_dirs(&self, digests: &[String]) -> Vec<PathBuf> {
        digests.iter().map(|digest| self.images.layer_dir(digest)).collect()
    }

    /// Attaches its disks and mounts its root and terminals; repeats do nothing. Gives the
    /// devices in the order of [`Record::disk_kinds`].
    pub fn mount(&self, record: &Record) -> Result<Vec<DeviceNumber>> {
        let paths = self.paths(record);
        let mut devices = Vec::new();
        let root = self.disks.attach(&paths.root_disk(), &paths.disk_mount())?;
        if record.rescue.is_some() {
            let disk = self.disks.attach(&paths.rescue_disk(), &paths.rescue_mount())?;
            devices.push(number(&disk));
            self.own_rootfs(record).mount()?;
        }
        self.rootfs(record).mount()?;
        devices.push(number(&root));
        terminals::mount(&paths.terminals(), record.id_block)?;
        if record.ephemeral_bytes > 0 {
            let name = disks::path(record.disk_kinds(), Kind::Ephemeral);
            devices.push(number(&self.disks.attach_ephemeral(&paths, &name)?));
        }
        Ok(devices)
    }

    /// The devices of its own disks, as far as they are mounted: rescue, root, ephemeral.
    pub fn devices(&self, layout: &InstanceLayout) -> Vec<DeviceNumber> {
        disk_mounts(layout)
            .iter()
            .filter(|path| mount::is_mount_point(path).unwrap_or(false))
            .filter_map(|path| Some(fs::metadata(path).ok()?.dev()))
            .map(|dev| DeviceNumber { major: libc::major(dev), minor: libc::minor(dev) })
            .collect()
    }

    /// The devices of all its disks, as far as it has them: its own, then volumes.
    pub fn all_devices(&self, layout: &InstanceLayout) -> Result<Vec<DeviceNumber>> {
        let volumes = volume::devices(layout)?.into_iter().map(|(device, _)| device);
        Ok(self.devices(layout).into_iter().chain(volumes).collect())
    }

    /// Writes to the disks what waits to be written, while the instance runs.
    pub fn sync_disks(&self, layout: &InstanceLayout) -> Result<()> {
        rest::rest(Work::Sync, &mounted_disks(layout)?)
    }

    /// Whether any of its disks is in use.
    pub fn has_mounted_disks(&self, layout: &InstanceLayout) -> Result<bool> {
        Ok(!mounted_disks(layout)?.is_empty())
    }

    /// Freezes the file systems on its disks, all or none, so that what is on
    /// the disks is consistent. [`HostParts::sync_disks`] before it makes it short.
    pub fn freeze_disks(&self, layout: &InstanceLayout) -> Result<()> {
        rest::rest(Work::Freeze, &mounted_disks(layout)?)
    }

    /// The same for disks of which some may be frozen already.
    pub fn freeze_disks_again(&self, layout: &InstanceLayout) -> Result<()> {
        rest::rest(Work::FreezeAgain, &mounted_disks(layout)?)
    }

    /// Undoes [`HostParts::freeze_disks`]; not frozen is success.
    pub fn thaw_disks(&self, layout: &InstanceLayout) -> Result<()> {
        let mut teardown = Teardown::default();
        for path in mounted_disks(layout)? {
            let thaw = || sys::fs::thaw(File::open(&path)?.as_fd());
            teardown.step("thawing a disk", thaw().or_fault("asking for it"));
        }
        teardown.into_result()
    }

    /// Undoes [`HostParts::mount`], and lets go of its volumes; absence is success.
    pub fn unmount(&self, layout: &InstanceLayout) -> Result<()> {
        let mut teardown = Teardown::default();
        let rootfs = Rootfs::new(Vec::new(), IdBlock { first: 0, size: 0 }, layout.clone());
        teardown.step("unmounting the root file system", rootfs.unmount());
        let own = rootfs.at(layout.disk_mount(), layout.own_rootfs());
        teardown.step("unmounting the rescued root file system", own.unmount());
        teardown.step("unmounting its terminals", mount::unmount(&layout.terminals()));
        teardown.step("letting go of its volumes", volume::release(layout));
        teardown.step("unmounting its /dev", mount::unmount(&layout.dev()));
        teardown.step(
            "unmounting the ephemeral disk",
            self.disks.detach(&layout.ephemeral_disk(), &layout.ephemeral_mount()),
        );
        teardown.step(
            "unmounting the root disk",
            self.disks.detach(&layout.root_disk(), &layout.disk_mount()),
        );
        teardown.step(
            "unmounting the rescue disk",
            self.disks.detach(&layout.rescue_disk(), &layout.rescue_mount()),
        );
        teardown.into_result()
    }
}

impl AsRef<ImageStore> for HostParts {
    fn as_ref(&self) -> &ImageStore {
        &self.images
    }
}

impl std::fmt::Debug for HostParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostParts").field("layout", &self.layout).finish_non_exhaustive()
    }
}

/// Where an instance's disks are mounted when they are.
fn disk_mounts(layout: &InstanceLayout) -> [PathBuf; 3] {
    [layout.rescue_mount(), layout.disk_mount(), layout.ephemeral_mount()]
}

/// Where an instance's disks are mounted, as far as they are.
fn mounted_disks(layout: &InstanceLayout) -> Result<Vec<PathBuf>> {
    let mut disks = Vec::new();
    for path in disk_mounts(layout) {
        if mount::is_mount_point(&path)? {
            disks.push(path);
        }
    }
    Ok(disks)
}

fn number(device: &BlockDevice) -> DeviceNumber {
    DeviceNumber { major: device.major, minor: device.minor }
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    let doing = || format!("making {}", path.display());
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).or_fault(doing())?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).or_fault(doing())
}

fn open_lock(path: &Path) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .or_fault(format_args!("opening {}", path.display()))
}

fn lock_dir(key: &str, path: &Path) -> Result<File> {
    lock(File::open(path).or_fault(format_args!("opening {}", path.display()))?, key, path)
}

/// Takes the lock on what `key` of the configuration names, or says who may have it.
fn lock(file: File, key: &str, what: &Path) -> Result<File> {
    file.try_lock().map_err(|_| {
        Fault::new(
            FaultKind::ServiceUnavailable,
            format!(
                "another berth serve uses {}: stop it, or give this one another {key}",
                what.display()
            ),
        )
    })?;
    Ok(file)
}

/// The monitor's program: as configured, else beside this one.
pub(super) fn monitor_program(config: &Config) -> Result<PathBuf> {
    let configured = &config.instances.monitor;
    let path = if configured.as_os_str().is_empty() {
        std::env::current_exe().or_fault("finding this program")?.with_file_name("berth-monitor")
    } else {
        configured.clone()
    };
    if path.is_file() {
        Ok(path)
    } else {
        Err(Fault::invalid(
            "instances.monitor",
            format!(
                "there is no {}: install berth-monitor there, or name its path",
                path.display()
            ),
        ))
    }
}

fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(path).or_fault(format_args!("reading {path}"))?.trim().to_owned())
}
