//! Another flavor for an instance, running or not: what both kinds of resize do.

use crate::fault::{Fault, Result};
use crate::instance::host_parts::HostParts;
use crate::instance::record::Record;
use crate::instance::teardown::undone;
use crate::instance::validate;
use crate::monitor::Monitor;
use crate::network::Rates;
use crate::network::fresh::Turn;
use crate::runtime::walls::Walls;
use crate::types::Flavor;

/// What an instance shall be, checked.
pub struct FlavorChange {
    /// Its record then.
    pub new: Record,
}

impl FlavorChange {
    /// Checks what can be checked before anything changes.
    pub fn plan(
        parts: &HostParts,
        record: &Record,
        flavor: Flavor,
        running: bool,
    ) -> Result<FlavorChange> {
        validate::flavor("flavor", &flavor)?;
        let mut new = record.clone();
        new.definition.flavor = flavor;
        // Limits and rates that cannot be had are found now.
        parts.limits(&new)?;
        Rates::from_extra_specs(&new.definition.flavor.extra_specs)?;
        Walls::from_extra_specs(&new.definition.flavor.extra_specs)?;
        sizes(record, &mut new, running)?;
        policy(record, &new)?;
        Ok(FlavorChange { new })
    }

    /// Does it; a step that fails is undone, save that a grown disk stays grown.
    pub fn carry_out(self, parts: &HostParts, record: &Record, running: bool) -> Result<Record> {
        let FlavorChange { mut new } = self;
        grow(parts, record, &new, running)?;
        let changed = (|| {
            if running {
                apply(parts, &new)?;
            }
            traffic(parts, &new, running)?;
            new.save(&parts.paths(&new))
        })();
        match changed {
            Ok(()) => Ok(new),
            Err(fault) => {
                let restored = restore(parts, record, running);
                Err(undone(fault, "restoring the old limits", restored))
            }
        }
    }
}

/// Gives a record the sizes of its flavor, if the disks may have them.
pub fn sizes(old: &Record, new: &mut Record, running: bool) -> Result<()> {
    let flavor = &new.definition.flavor;
    // root_gb = 0 keeps what there is: the size was made for the image.
    if flavor.root_gb > 0 {
        new.root_bytes = flavor.root_gb << 30;
    }
    new.ephemeral_bytes = flavor.ephemeral_gb << 30;
    if new.root_bytes < old.root_bytes {
        return Err(Fault::invalid(
            "flavor.root_gb",
            format!("a root disk only grows, and it has {} GiB", old.root_bytes >> 30),
        ));
    }
    if new.ephemeral_bytes < old.ephemeral_bytes {
        return Err(Fault::invalid(
            "flavor.ephemeral_gb",
            format!("an ephemeral disk only grows, and it has {} GiB", old.ephemeral_bytes >> 30),
        ));
    }
    if running && old.ephemeral_bytes == 0 && new.ephemeral_bytes > 0 {
        return Err(Fault::invalid(
            "flavor.ephemeral_gb",
            "an ephemeral disk can be added only while the instance is stopped",
        ));
    }
    Ok(())
}

/// Dedicated CPUs are chosen when the instance is made.
fn policy(old: &Record, new: &Record) -> Result<()> {
    let policy = |r: &Record| {
        let flavor = &r.definition.flavor;
        let dedicated = flavor.extra_specs.get("hw:cpu_policy").is_some_and(|p| p == "dedicated");
        (dedicated, if dedicated { flavor.vcpus } else { 0 })
    };
    if policy(old) == policy(new) {
        return Ok(());
    }
    Err(Fault::invalid(
        "flavor.extra_specs.hw:cpu_policy",
        "the CPU policy and the number of dedicated CPUs cannot change on an existing instance: delete and create it",
    ))
}

fn grow(parts: &HostParts, old: &Record, new: &Record, running: bool) -> Result<()> {
    let paths = parts.paths(new);
    if new.root_bytes > old.root_bytes {
        let mount = running.then(|| paths.disk_mount());
        parts.disks.grow(&paths.root_disk(), mount.as_deref(), new.root_bytes)?;
    }
    if new.ephemeral_bytes > old.ephemeral_bytes {
        if old.ephemeral_bytes == 0 {
            parts.disks.create(&paths.ephemeral_disk(), new.ephemeral_bytes)?;
        } else {
            let mount = running.then(|| paths.ephemeral_mount());
            parts.disks.grow(&paths.ephemeral_disk(), mount.as_deref(), new.ephemeral_bytes)?;
        }
    }
    Ok(())
}

/// Puts limits in force, now and for a reboot from inside.
fn apply(parts: &HostParts, record: &Record) -> Result<()> {
    parts.placement.place(record);
    let limits = &parts.limits(record)?;
    let paths = parts.paths(record);
    let devices = parts.all_devices(&paths)?;
    let group = parts.group(record);
    group.update(limits, &devices)?;
    // Without one it ended in between: the next start plans anew.
    if let Some(monitor) = Monitor::connect(&paths.monitor_socket())? {
        monitor.update_plan(&group.plan(limits, &devices, record.id_block)?)?;
    }
    parts.placement.confirm(record.id);
    Ok(())
}

/// Puts in force on a running instance what its record says, should a change
/// have been cut short.
pub fn restore(parts: &HostParts, old: &Record, running: bool) -> Result<()> {
    if running {
        apply(parts, old)?;
    }
    traffic(parts, old, running)
}

/// Puts the flavor's rates in force. An interface of a stopped instance may have
/// no host end: Nova unplugs its ports for a revert, and a boot of the host takes
/// them all. Whoever plugs it again gives it its rates.
fn traffic(parts: &HostParts, record: &Record, running: bool) -> Result<()> {
    for vif in &record.definition.vifs {
        if running || parts.network.host_ends_present(std::slice::from_ref(vif))? {
            parts.traffic(record, vif)?;
        }
    }
    let paths = parts.paths(record);
    // Made with the namespaces, which a boot of the host took away.
    if !paths.network().exists() {
        return Ok(());
    }
    Turn::begin(&paths)?.note(parts.given(record)?)
}
