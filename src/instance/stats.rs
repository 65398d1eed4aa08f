//! What an instance uses, put together from its cgroup, disks and interfaces.

use std::path::Path;

use chrono::Utc;

use super::handle::View;
use super::host_parts::HostParts;
use super::record::Record;
use crate::cgroup::{DeviceNumber, device_io};
use crate::fault::{OrFault, Result};
use crate::store::layout::InstanceLayout;
use crate::types::{BlockStats, InstanceStats, InterfaceStats, Volume};
use crate::volume;

/// Reads the statistics of an instance. What does not run uses nothing but disk.
pub fn read(parts: &HostParts, view: &View) -> Result<InstanceStats> {
    let record = &view.record;
    let running = view.init.is_some();
    let group = if running { parts.group(record).stats()? } else { Default::default() };
    let at = Utc::now();
    let uptime = match record.started_at {
        Some(since) if running => u64::try_from((at - since).num_seconds()).unwrap_or(0),
        _ => 0,
    };
    Ok(InstanceStats {
        id: record.id,
        at,
        uptime,
        cpu: group.cpu,
        memory: group.memory,
        pids: group.pids,
        block: block(parts, view),
        interfaces: interfaces(parts, view),
        pressure: group.pressure,
    })
}

/// A disk's device counts what every user of it moved, write-back included;
/// what it had counted before the start is taken off.
fn block(parts: &HostParts, view: &View) -> Vec<BlockStats> {
    let record = &view.record;
    let paths = parts.paths(record);
    let devices = parts.devices(&paths);
    let baseline = baseline(&paths.block_baseline());
    let rescue = record.rescue.as_ref().map_or(0, |rescue| rescue.disk_bytes);
    let disks = [
        ("rescue", paths.rescue_mount(), rescue),
        ("root", paths.disk_mount(), record.root_bytes),
        ("ephemeral", paths.ephemeral_mount(), record.ephemeral_bytes),
    ];
    disks
        .into_iter()
        .filter(|(_, _, size)| *size > 0)
        .enumerate()
        .map(|(index, (name, mount, size))| {
            let counted = devices.get(index).map_or([0; 4], |device| counters(*device));
            let before = baseline.get(index).copied().unwrap_or_default();
            let since = |i: usize| counted[i].saturating_sub(before[i]);
            let usage = parts.disks.usage(&mount).ok();
            BlockStats {
                name: name.into(),
                read_bytes: since(0),
                write_bytes: since(1),
                read_ops: since(2),
                write_ops: since(3),
                used: usage.map_or(0, |u| u.used),
                size: usage.map_or(size, |u| u.size),
            }
        })
        .chain(volumes(record, &paths))
        .collect()
}

/// What is in a volume nobody here knows: all of it is taken.
fn volumes(record: &Record, paths: &InstanceLayout) -> Vec<BlockStats> {
    let devices = volume::devices(paths).unwrap_or_default();
    let baselines = volume::baselines(paths);
    let of_volume = |of: Volume| {
        let mark = volume::mark(record.id, of.id);
        let device = devices.iter().find(|(_, known)| *known == mark);
        let before = baselines.get(&mark).copied().unwrap_or_default();
        let counted = device.map_or([0; 4], |(device, _)| counters(*device));
        let since = |i: usize| counted[i].saturating_sub(before[i]);
        BlockStats {
            name: of.device.trim_start_matches("/dev/").into(),
            read_bytes: since(0),
            write_bytes: since(1),
            read_ops: since(2),
            write_ops: since(3),
            used: of.bytes,
            size: of.bytes,
        }
    };
    record.volumes_inside().into_iter().map(of_volume).collect()
}

/// Bytes read, bytes written, reads, writes.
pub type Counters = [u64; 4];

/// What a device has counted since the host's boot.
pub fn counters(device: DeviceNumber) -> Counters {
    device_io(device)
        .map_or([0; 4], |io| [io.read_bytes, io.write_bytes, io.read_ops, io.write_ops])
}

fn baseline(path: &Path) -> Vec<Counters> {
    std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Notes what the devices have counted, before the instance is started.
pub fn set_baseline(path: &Path, devices: &[DeviceNumber]) -> Result<()> {
    let counted: Vec<Counters> = devices.iter().map(|device| counters(*device)).collect();
    let text = serde_json::to_vec(&counted).or_fault("serialising the block baseline")?;
    std::fs::write(path, text).or_fault(format_args!("writing {}", path.display()))
}

fn interfaces(parts: &HostParts, view: &View) -> Vec<InterfaceStats> {
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
