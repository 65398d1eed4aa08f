//! What an instance uses, put together from its cgroup, disks and interfaces.

use chrono::Utc;

use super::handle::View;
use super::parts::Parts;
use crate::fault::Result;
use crate::types::{BlockStats, InstanceStats, InterfaceStats};

/// Reads the statistics of an instance. What does not run uses nothing but disk.
pub fn read(parts: &Parts, view: &View) -> Result<InstanceStats> {
    let record = &view.record;
    let group = if view.init.is_some() { parts.group(record).stats()? } else { Default::default() };
    let at = Utc::now();
    let uptime = match (view.init, record.started_at) {
        (Some(_), Some(since)) => u64::try_from((at - since).num_seconds()).unwrap_or(0),
        _ => 0,
    };
    Ok(InstanceStats {
        id: record.id,
        at,
        uptime,
        cpu: group.cpu,
        memory: group.memory,
        pids: group.pids,
        block: block(parts, view)?,
        interfaces: interfaces(parts, view),
        pressure: group.pressure,
    })
}

fn block(parts: &Parts, view: &View) -> Result<Vec<BlockStats>> {
    let paths = parts.paths(&view.record);
    let mut disks = vec![("root", paths.root_disk(), paths.disk_mount(), view.record.root_bytes)];
    if view.record.ephemeral_bytes > 0 {
        disks.push((
            "ephemeral",
            paths.ephemeral_disk(),
            paths.ephemeral_disk_mount(),
            view.record.ephemeral_bytes,
        ));
    }
    disks.into_iter().map(|(name, file, mount, size)| parts.disks.stats(name, &file, &mount, size)).collect()
}

fn interfaces(parts: &Parts, view: &View) -> Vec<InterfaceStats> {
    let vifs = &view.record.definition.vifs;
    vifs.iter()
        .map(|vif| {
            // An interface that is being replaced counts nothing.
            parts.network.stats(vif).unwrap_or_else(|_| InterfaceStats {
                devname: vif.devname.clone(),
                address: vif.address.clone(),
                ..Default::default()
            })
        })
        .collect()
}
