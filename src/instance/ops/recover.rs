//! After a start of the service: what is true of each instance, and rubbish.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use uuid::Uuid;

use crate::fault::Result;
use crate::instance::host_parts::HostParts;
use crate::instance::live::Live;
use crate::instance::record::{Desired, Frozen, Record};
use crate::monitor::{ExitAction, ExitRecord, Monitor, Phase};
use crate::store::atomic;

use super::{
    cold_resize, create, destroy, flavor_change, migrate, quiesce, rescue, start, stop, volume,
};

/// What became of an instance while the service was away.
#[derive(Debug)]
pub enum Recovered {
    /// It runs, or is frozen: nothing noticed. If it shall not run, a stop was
    /// cut short, and its actor goes on with that.
    Running(Live),
    /// It does not run.
    Stopped,
    /// Its delete was under way and is finished.
    Gone,
}

/// Finds out the truth about one instance and brings it to what Nova last asked.
pub fn recover(parts: &HostParts, mut record: Record) -> Result<(Record, Recovered)> {
    if record.desired == Desired::Deleted {
        destroy::destroy(parts, &record)?;
        return Ok((record, Recovered::Gone));
    }
    parts.images.hold(record.definition.image_id, record.id)?;
    atomic::remove_file(&parts.paths(&record).root_disk_copy())?;
    rescue::recover(parts, &record)?;
    migrate::tell_again(parts, &record)?;
    volume::let_run(parts, &record)?;
    if let Some(live) = adopt(parts, &mut record)? {
        parts.placement.read_back(&record);
        let volumes = volume::restore(parts, &mut record);
        if let Err(fault) = finish_changes(parts, &record).and(volumes) {
            tracing::warn!(instance = %record.id, fault = %fault.in_full(), "bringing it to what its record says");
        }
        return Ok((record, Recovered::Running(live)));
    }
    let ended: Option<ExitRecord> = atomic::read_json(&parts.paths(&record).exit()).unwrap_or(None);
    // An end that the service asked for says nothing against what Nova wants: a
    // hard reboot may have been cut short.
    let ended = ended.filter(|exit| !(exit.asked && record.desired == Desired::Running));
    let same_boot = record.boot_id.as_deref() == Some(parts.boot_id.as_str());
    let wanted = record.desired == Desired::Running;
    let mut record = stop::power_off(parts, record)?;
    volume::finish_detached(parts, &mut record)?;
    cold_resize::finish_interrupted(parts, &mut record)?;
    if let Some(exit) = ended {
        if wanted || record.exit.is_none() {
            // It ended while the service was away.
            record.exit = Some(stop::status(exit));
            record.desired = Desired::Stopped;
            record.save(&parts.paths(&record))?;
        }
    } else if wanted && (same_boot || parts.config.host.resume_guests_state_on_host_boot) {
        // Its monitor was killed, or a start was interrupted; or the host was
        // booted and the operator wants such instances back.
        let (record, live) = start::start(parts, record)?;
        return Ok((record, Recovered::Running(live)));
    } else if wanted {
        // The host was booted: as with any machine that lost its power.
        record.desired = Desired::Stopped;
        record.save(&parts.paths(&record))?;
    }
    // Pluggers look for the interfaces of stopped instances too.
    create::network(parts, &record)?;
    Ok((record, Recovered::Stopped))
}

/// Takes up an instance whose monitor lives.
fn adopt(parts: &HostParts, record: &mut Record) -> Result<Option<Live>> {
    let paths = parts.paths(record);
    let Ok(Some(monitor)) = Monitor::connect(&paths.monitor_socket()) else { return Ok(None) };
    let Ok((status, messages)) = monitor.subscribe() else { return Ok(None) };
    let (Phase::Running, Some(init)) = (status.phase, status.init) else { return Ok(None) };
    if status.on_exit == ExitAction::End && record.desired == Desired::Running {
        // A hard reboot that was cut short before it did anything.
        monitor.on_exit(ExitAction::Guest)?;
    }
    record.guest_reboots = status.guest_reboots;
    // The kernel knows better than the record whether it is frozen.
    record.frozen = match (parts.group(record).is_frozen()?, record.frozen) {
        (true, how) => Some(how.unwrap_or(Frozen::Paused)),
        (false, _) => None,
    };
    Live::follow(monitor, init, messages).map(Some)
}

/// A quiesce, an attach, a detach or a resize may have been cut short; where none was,
/// this changes nothing.
fn finish_changes(parts: &HostParts, record: &Record) -> Result<()> {
    quiesce::restore(parts, record)?;
    if record.resize.is_none() {
        cold_resize::remove_copies(parts, record)?;
    }
    create::network(parts, record)?;
    flavor_change::restore(parts, record, true)
}

/// Ids of everything that looks like an instance's and has no record.
pub fn orphans(parts: &HostParts, known: &BTreeSet<Uuid>) -> BTreeSet<Uuid> {
    let mut found = BTreeSet::new();
    found.extend(ids_in(&parts.layout.instances()));
    found.extend(ids_in(&parts.layout.run_instances()));
    found.extend(ids_in(&parts.layout.runtime_root()));
    found.extend(parts.hierarchy.instances(&parts.config.instances.cgroup));
    found.retain(|id| !known.contains(id));
    found
}

/// Ids that entries of a directory are named after.
pub fn ids_in(directory: &Path) -> Vec<Uuid> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().filter_map(|e| Uuid::parse_str(e.file_name().to_str()?).ok()).collect()
}
