//! Starting: root file system, cgroup, bundle, monitor, first process.

use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread;

use crate::cgroup::{CgroupLayout, Controller, DeviceNumber};
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::instance::host_parts::HostParts;
use crate::instance::live::Live;
use crate::instance::record::Record;
use crate::instance::stats;
use crate::instance::teardown::undone;
use crate::monitor::{self, MonitorSpec, ViewSpec};
use crate::runtime::chosen::Chosen;
use crate::runtime::dev::Extra;
use crate::runtime::disks::{self, Disk};
use crate::runtime::native::seccomp;
use crate::runtime::role::Role;
use crate::runtime::spec::{self, CgroupView, SpecInput};
use crate::runtime::walls::{FreshProc, Walls};
use crate::runtime::{init, lxcfs, targets};
use crate::store::atomic;
use crate::sys::mount;
use crate::types::InitKind;

use super::{cold_resize, create, stop, volume};

/// Starts a stopped instance. What it did is undone when it fails.
pub fn start(parts: &HostParts, mut before: Record) -> Result<(Record, Live)> {
    if before.resize.is_some() {
        // It may not boot from disks that are half another flavor's.
        cold_resize::finish_interrupted(parts, &mut before)?;
    }
    start_as(parts, before.clone(), before)
}

/// Starts a stopped instance changed into `changed`; when it fails, it is as
/// it was `before`.
pub fn start_as(parts: &HostParts, before: Record, changed: Record) -> Result<(Record, Live)> {
    let mut record = changed.started(&parts.boot_id);
    // The last end is not to be taken for the end of this run.
    atomic::remove_file(&parts.paths(&record).exit())?;
    // The disk takes the record while the instance boots. Killed in between,
    // the service finds that it shall run, and starts it again.
    let booted = &record.clone();
    let (live, saved) = thread::scope(|scope| {
        let saving = scope.spawn(|| record.save(&parts.paths(booted)));
        let live = boot(parts, booted);
        (live, saving.join().unwrap_or_else(|panic| resume_unwind(panic)))
    });
    match (live, saved) {
        (Ok(live), Ok(())) => Ok((record, live)),
        (Err(fault), _) | (Ok(_), Err(fault)) => {
            let undoing = undo(parts, before, record.generation);
            Err(undone(fault, "taking it down again", undoing))
        }
    }
}

fn undo(parts: &HostParts, before: Record, generation: u64) -> Result<()> {
    let mut before = stop::power_off(parts, before)?;
    before.generation = generation;
    before.save(&parts.paths(&before))
}

fn boot(parts: &HostParts, record: &Record) -> Result<Live> {
    let paths = parts.paths(record);
    create::fresh_network(parts, record)?;
    let devices = parts.mount(record)?;
    stats::set_baseline(&paths.block_baseline(), &devices)?;
    parts.placement.place(record);
    let mut disks = disks::disks(record.id, record.disk_kinds(), &devices);
    disks.extend(volume::attach_all(parts, record)?);
    write_bundle(parts, record, &disks)?;
    let devices: Vec<_> = disks.iter().map(|disk| disk.device).collect();
    let spec = monitor_spec(parts, record, &devices, disks)?;
    let monitor = monitor::launch(&spec, &parts.monitor_program)?;
    let (_, messages) = monitor.subscribe()?;
    let init = monitor.start()?.init.ok_or_else(|| {
        Fault::new(FaultKind::RuntimeFailed, "the first process ended before it was started")
    })?;
    parts.placement.confirm(record.id);
    Live::follow(monitor, init, messages)
}

fn monitor_spec(
    parts: &HostParts,
    record: &Record,
    devices: &[DeviceNumber],
    disks: Vec<Disk>,
) -> Result<MonitorSpec> {
    let group = parts.group(record);
    let boot = record.boot();
    let role = boot.role();
    let walls = Walls::from_extra_specs(&boot.definition.flavor.extra_specs)?;
    Ok(MonitorSpec {
        instance: record.id,
        state_dir: parts.layout.state().into(),
        run_dir: parts.layout.run().into(),
        runtime: parts.runtime.clone(),
        plan: group.plan(&parts.limits(record)?, devices, record.id_block)?,
        own_cgroups: parts.hierarchy.monitors(&parts.config.instances.cgroup)?,
        join_cgroups: match &parts.runtime {
            Chosen::Native(_) => group.everywhere(),
            Chosen::Program(_) => group.left_alone(),
        },
        oom_counters: group.oom_counters(),
        console_log_bytes: parts.config.instances.console_log_bytes,
        view: Some(ViewSpec {
            command_line: init::command_line(boot.config, boot.definition.command.as_deref()),
            locked: walls.fresh_proc == FreshProc::Nobody,
        }),
        systemd_memory_mb: (role == Role::System(InitKind::Systemd))
            .then_some(boot.definition.flavor.memory_mb),
        block: record.id_block,
        device_cgroup: group.place(Controller::Devices).map(|place| place.path).ok_or_else(
            || Fault::new(FaultKind::HostUnsupported, "the host has no cgroup of devices"),
        )?,
        lxcfs: parts.config.instances.lxcfs.clone(),
        init: init::of_lines(role),
        devices: Extra::of(role, walls),
        disks,
    })
}

/// What lxcfs offers. It writes below `/sys/devices/system/cpu` as the host's root for whoever opens a
/// file there, and what a runtime mounts read-only, root inside mounts writable again; so all
/// of lxcfs is made read-only. One that cannot be is not for instances.
fn lxcfs_files(parts: &HostParts, record: &Record) -> Result<Vec<(PathBuf, PathBuf)>> {
    let instances = &parts.config.instances;
    if instances.lxcfs.as_os_str().is_empty() {
        return Ok(Vec::new());
    }
    let found = parts.lxcfs().ok_or_else(|| {
        Fault::new(FaultKind::HostUnsupported, "lxcfs does not answer: start it again")
    });
    match found.and_then(|path| mount::make_fuse_read_only(&path).map(|()| lxcfs::files(&path))) {
        Err(fault) if instances.lxcfs_required => {
            let detail = format!(
                "without lxcfs no instance is started here (instances.lxcfs_required): {}",
                fault.detail
            );
            Err(Fault { detail, ..fault })
        }
        Err(fault) => {
            tracing::warn!(
                instance = %record.id,
                fault = %fault.in_full(),
                "it starts without what lxcfs shows and sees the host's /proc/meminfo and the like"
            );
            Ok(Vec::new())
        }
        Ok(files) => Ok(files),
    }
}

fn write_bundle(parts: &HostParts, record: &Record, disks: &[Disk]) -> Result<()> {
    let paths = parts.paths(record);
    let boot = record.boot();
    let layers: Vec<_> = boot.layers.iter().map(|digest| parts.images.layer_dir(digest)).collect();
    let user = crate::image::resolve_user(&layers, &boot.config.user, record.id_block.size)?;
    let lxcfs = lxcfs_files(parts, record)?;
    let role = boot.role();
    let cgroup_view = match parts.hierarchy.layout() {
        CgroupLayout::V1 => CgroupView::V1,
        CgroupLayout::Hybrid | CgroupLayout::V2 => CgroupView::Unified,
    };
    let mut spec = spec::build(&SpecInput {
        definition: &boot.definition,
        image: boot.config,
        user: &user,
        layout: &paths,
        block: record.id_block,
        hostname: &create::hostname(record),
        cgroups_path: &parts.group(record).oci_path(),
        cgroup_view,
        lxcfs: &lxcfs,
        rescued: record.rescue.is_some(),
        apparmor: parts.apparmor.profile(role)?,
        disks,
    })?;
    targets::follow_links(&mut spec, &paths.rootfs())?;
    std::fs::create_dir_all(paths.bundle()).or_fault("making the bundle")?;
    if parts.runtime.is_native() {
        seccomp::write(&paths.bundle(), &spec)?;
    }
    let file = paths.bundle().join("config.json");
    let text = serde_json::to_vec(&spec).or_fault("serialising the bundle")?;
    std::fs::write(&file, text).or_fault(format_args!("writing {}", file.display()))
}
