//! Taking an instance off the host. Everything is found by its id alone, every
//! step is tried, absence is success: so the same code undoes a failed create,
//! finishes an interrupted delete, and removes what no record owns.

use std::fs;
use std::io::ErrorKind;

use uuid::Uuid;

use crate::cgroup::Group;
use crate::fault::{OrFault, Result};
use crate::instance::host_parts::HostParts;
use crate::instance::record::Record;
use crate::instance::teardown::Teardown;
use crate::monitor::{self, ExitAction, Monitor};
use crate::network::fresh;
use crate::runtime::Runtime as _;
use crate::store::atomic;
use crate::store::layout::InstanceLayout;
use crate::sys::ns;

/// Destroys an instance and all that is its own.
pub fn destroy(parts: &HostParts, record: &Record) -> Result<()> {
    let ended = end_processes(parts, record.id);
    destroy_rest(parts, record, ended)
}

/// The rest of [`destroy`], after [`end_processes`].
pub fn destroy_rest(parts: &HostParts, record: &Record, ended: Result<()>) -> Result<()> {
    let mut teardown = Teardown::default();
    teardown.step("ending its processes", ended);
    teardown.step("noting that it was here", note_move(parts, record));
    // Whoever was preparing a boot of it has let go by then.
    let paths = parts.paths(record);
    let _turn = paths.run().exists().then(|| fresh::Turn::begin(&paths));
    for vif in &record.definition.vifs {
        teardown.step(format_args!("removing {}", vif.devname), parts.network.detach(vif));
    }
    purge_host_side(parts, record.id, &mut teardown);
    parts.images.release(record.definition.image_id, record.id);
    if let Some(rescue) = &record.rescue {
        parts.images.release(rescue.image_id, record.id);
    }
    teardown.step("removing image layers that nothing needs", parts.images.collect());
    teardown.into_result()
}

/// The host that it came from may ask yet whether it was taken. It was.
fn note_move(parts: &HostParts, record: &Record) -> Result<()> {
    match &record.arrival {
        Some(arrival) if parts.paths(record).unacknowledged().exists() => {
            atomic::write(&parts.layout.ended_move(arrival.move_id), b"")
        }
        _ => Ok(()),
    }
}

/// Removes what no record owns.
pub fn purge(parts: &HostParts, id: Uuid) -> Result<()> {
    let mut teardown = Teardown::default();
    teardown.step("ending its processes", end_processes(parts, id));
    purge_host_side(parts, id, &mut teardown);
    teardown.into_result()
}

fn purge_host_side(parts: &HostParts, id: Uuid, teardown: &mut Teardown) {
    let layout = parts.layout.instance(id);
    teardown.step("taking its file systems down", parts.unmount(&layout));
    // With its last holder the network namespace goes, and every veth pair
    // that has an end in it.
    teardown.step("releasing its network namespace", ns::unpin(&layout.net_ns()));
    teardown.step("releasing its user namespace", ns::unpin(&layout.user_ns()));
    teardown.step("releasing its next namespaces", fresh::unpin_next(&layout));
    teardown.step("removing its volatile files", remove_tree(layout.run()));
    teardown.step("removing its files", remove_tree(layout.state()));
}

/// Ends monitor, processes and cgroup, and the runtime program's memory of them.
pub fn end_processes(parts: &HostParts, id: Uuid) -> Result<()> {
    let layout = parts.layout.instance(id);
    let group = Group::new(&parts.hierarchy, &parts.config.instances.cgroup, id);
    // Write-back is held to the instance's rates until the cgroup is gone, so
    // that goes before the file systems, and needs to know their devices.
    let devices = parts.all_devices(&layout).unwrap_or_else(|fault| {
        // Whoever attaches a file there sets its rates anew.
        tracing::warn!(instance = %id, fault = %fault.in_full(), "ending it");
        parts.devices(&layout)
    });
    let log = parts.layout.run().join(format!("{id}.log"));
    let mut teardown = Teardown::default();
    // Whoever waits for a frozen disk does not die.
    teardown.step("thawing its disks", parts.thaw_disks(&layout));
    teardown.step("ending the monitor", end_monitor(parts, id, &layout, &group));
    teardown.step("ending processes", group.kill_all(monitor::ids_of(&layout)));
    teardown.step(
        "removing the runtime's state",
        parts.runtime_of(&layout).delete(&id.to_string(), &log),
    );
    teardown.step("removing the cgroup", group.remove(&devices));
    parts.placement.leave(id);
    teardown.step("removing a log", atomic::remove_file(&log));
    teardown.into_result()
}

/// A monitor that lives ends in good order once its instance's processes have;
/// of one that was killed, the runtime program may still be at work.
fn end_monitor(parts: &HostParts, id: Uuid, layout: &InstanceLayout, group: &Group) -> Result<()> {
    let strays = || monitor::end_strays(layout, &id.to_string(), &parts.layout.runtime_root());
    let Ok(Some(monitor)) = Monitor::connect(&layout.monitor_socket()) else {
        return strays();
    };
    // What follows the end of its first process was decided here.
    let told = monitor.on_exit(ExitAction::End);
    group.kill_all(monitor::ids_of(layout))?;
    let quit = told.and_then(|()| monitor.quit());
    if quit.is_err() && monitor.process().is_alive() { strays() } else { Ok(()) }
}

/// Removes a directory of the instance, unless something is still mounted
/// below it: files behind a mount are not the instance's directory.
fn remove_tree(path: &std::path::Path) -> Result<()> {
    let mounts = crate::sys::mount::mounts_below(path)?;
    if let Some(mount) = mounts.first() {
        return Err(crate::fault::Fault::internal(
            format_args!("removing {}", path.display()),
            format!("{} is still mounted", mount.display()),
        ));
    }
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).or_fault(format_args!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
