//! Volumes of an existing instance: attach, detach and extend, running or not.
//!
//! While it runs each has a loop device; a stopped one's volumes are in its record alone. The
//! record says that a volume is there before anything of it is made, and that it is gone after
//! everything of it is: what was cut short in between is finished at the next start.

use std::time::Duration;

use uuid::Uuid;

use crate::cgroup::{DeviceNumber, Group};
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::instance::host_parts::HostParts;
use crate::instance::record::Record;
use crate::instance::stats;
use crate::instance::teardown::{Teardown, undone};
use crate::monitor::Monitor;
use crate::runtime::disks::{self, Disk};
use crate::sys::loopdev;
use crate::sys::process::PidFd;
use crate::types::{Volume, VolumeAttach, VolumeSource, VolumeStatus};
use crate::volume::{self, Holder, Seen, Work, run};

/// Most characters of a serial number.
const SERIAL: usize = 64;

/// Most holders that a fault names.
const NAMED: usize = 8;

/// How often programs that have a volume open are looked for and killed.
const ROUNDS: u32 = 5;

/// How long killed ones may take to end.
const END: Duration = Duration::from_secs(10);

/// What a volume to be attached is to be. The same one again is left undisturbed, and of a stopped
/// instance's only its source may be another one: a block device has another name each time that it
/// comes over a network. `others` are the volumes of other instances, with these.
pub fn plan(
    parts: &HostParts,
    record: &Record,
    (id, wanted): (Uuid, &VolumeAttach),
    others: &[(Uuid, Volume)],
    running: bool,
) -> Result<Volume> {
    let seen = look(parts, record, (id, wanted), others);
    if let Some(known) = record.volumes.iter().find(|volume| volume.id == id) {
        let elsewhere = Volume { source: wanted.source.clone(), ..known.clone() };
        if !running
            && known.status == VolumeStatus::Attached
            && known.source != wanted.source
            && asks_for_the_same(&elsewhere, wanted)
        {
            return Ok(Volume { bytes: seen?.bytes, ..elsewhere });
        }
        if known.status == VolumeStatus::Attached && asks_for_the_same(known, wanted) {
            return Ok(Volume {
                bytes: seen.map_or(known.bytes, |seen| seen.bytes),
                ..known.clone()
            });
        }
        let why = match known.status {
            VolumeStatus::Attached => "is attached with another definition; detach it first",
            VolumeStatus::Detaching => "is being detached; repeat that first",
        };
        return Err(Fault::new(FaultKind::VolumeExists, format!("volume {id} {why}")));
    }
    let seen = seen?;
    let serial = wanted.serial.clone().unwrap_or_else(|| id.to_string());
    check_serial(&serial, &record.volumes)?;
    let own = record.disk_kinds().count();
    Ok(Volume {
        id,
        device: volume::choose_name(own, &record.volumes, wanted.device.as_deref())?,
        source: wanted.source.clone(),
        serial,
        read_only: wanted.read_only,
        multiattach: wanted.multiattach,
        bytes: seen.bytes,
        status: VolumeStatus::Attached,
    })
}

/// Looks at the source, and whether somebody else has it.
fn look(
    parts: &HostParts,
    record: &Record,
    (id, wanted): (Uuid, &VolumeAttach),
    others: &[(Uuid, Volume)],
) -> Result<Seen> {
    if wanted.multiattach && matches!(wanted.source, VolumeSource::File { .. }) {
        return Err(Fault::invalid(
            "multiattach",
            "only a block device can be several instances' at the same time",
        ));
    }
    let own = record.volumes.iter().filter(|volume| volume.id != id);
    let own = own.map(|volume| (record.id, volume.clone()));
    let others: Vec<(Uuid, Volume)> = others.iter().cloned().chain(own).collect();
    let seen: Seen = run(&Work::Look {
        source: wanted.source.clone(),
        read_only: wanted.read_only,
        mark: volume::mark(record.id, id),
        own: vec![parts.layout.state().into(), parts.layout.run().into()],
        others: others.iter().map(|(_, volume)| volume.source.clone()).collect(),
    })?;
    let same_source = seen.same.iter().filter_map(|index| others.get(*index));
    let same_id = others.iter().filter(|(_, volume)| volume.id == id);
    for (instance, other) in same_source.chain(same_id) {
        let shared = wanted.multiattach && other.multiattach && *instance != record.id;
        if !shared {
            let fault = Fault::new(
                FaultKind::VolumeExists,
                format!(
                    "{} is volume {} of instance {instance}; detach it there, or attach a block \
                     device with multiattach at both",
                    wanted.source.path().display(),
                    other.id
                ),
            );
            return Err(Fault { field: Some(wanted.source.field().into()), ..fault });
        }
    }
    Ok(seen)
}

fn check_serial(serial: &str, others: &[Volume]) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !(1..=SERIAL).contains(&serial.len()) || !serial.chars().all(good) {
        return Err(Fault::invalid(
            "serial",
            format!("must be 1 to {SERIAL} letters, digits, -, _ or ."),
        ));
    }
    let seen = |serial: &str| serial.chars().take(disks::SERIAL).collect::<String>();
    if let Some(other) = others.iter().find(|other| seen(&other.serial) == seen(serial)) {
        return Err(Fault::invalid(
            "serial",
            format!("its first {} characters are those of volume {}", disks::SERIAL, other.id),
        ));
    }
    Ok(())
}

/// Whether a repeated request is the one that made `known`: a name that berth gave is not in it.
fn asks_for_the_same(known: &Volume, asked: &VolumeAttach) -> bool {
    let plain = |name: &str| name.strip_prefix("/dev/").unwrap_or(name).to_owned();
    known.source == asked.source
        && known.read_only == asked.read_only
        && known.multiattach == asked.multiattach
        && asked.device.as_deref().is_none_or(|name| plain(name) == plain(&known.device))
        && asked
            .serial
            .as_ref()
            .map_or(known.serial == known.id.to_string(), |s| *s == known.serial)
}

/// The record with the volume in it.
pub fn with(record: &Record, volume: &Volume) -> Record {
    let mut record = record.clone();
    match record.volumes.iter_mut().find(|known| known.id == volume.id) {
        Some(known) => known.clone_from(volume),
        None => record.volumes.push(volume.clone()),
    }
    record
}

/// Attaches a volume that [`plan`] gave.
pub fn attach(
    parts: &HostParts,
    record: &mut Record,
    volume: &Volume,
    running: bool,
) -> Result<()> {
    let before = record.clone();
    let mut new = with(record, volume);
    if new.volumes != record.volumes {
        new.save(&parts.paths(&new))?;
    }
    *record = new;
    if !running {
        return Ok(());
    }
    let Err(fault) = apply(parts, record) else { return Ok(()) };
    if before.volumes.iter().any(|known| known.id == volume.id) {
        return Err(fault);
    }
    record.volumes = before.volumes;
    let mut teardown = Teardown::default();
    teardown.step("giving its disks back", apply(parts, record));
    teardown.step("letting go of the volume", let_go(parts, record, volume.id, false));
    teardown.step("recording that", record.save(&parts.paths(record)));
    Err(undone(fault, "detaching it again", teardown.into_result()))
}

/// Gives each volume of an instance that boots, and is to have it, its device.
pub fn attach_all(parts: &HostParts, record: &Record) -> Result<Vec<Disk>> {
    let there: Vec<&Volume> = there(record).collect();
    if there.is_empty() {
        return Ok(Vec::new());
    }
    let paths = parts.paths(record);
    volume::note(&paths)?;
    let names = volume::names(record.disk_kinds().count(), &record.volumes);
    let named = record.volumes.iter().zip(names);
    let named = named.filter(|(volume, _)| volume.status == VolumeStatus::Attached);
    let disks = named.map(|(volume, name)| {
        let minor: u32 = run(&Work::Attach {
            source: volume.source.clone(),
            read_only: volume.read_only,
            mark: volume::mark(record.id, volume.id),
        })
        .map_err(|fault| fault.context(format_args!("volume {}", volume.id)))?;
        let device = DeviceNumber { major: loopdev::MAJOR, minor };
        Ok((volume::mark(record.id, volume.id), volume::disk(name, device, volume)))
    });
    let disks = disks.collect::<Result<Vec<_>>>()?;
    let known = volume::baselines(&paths);
    let counted = disks.iter().map(|(mark, disk)| {
        let before = known.get(mark).copied();
        (mark.clone(), before.unwrap_or_else(|| stats::counters(disk.device)))
    });
    volume::set_baselines(&paths, &counted.collect())?;
    Ok(disks.into_iter().map(|(_, disk)| disk).collect())
}

fn there(record: &Record) -> impl Iterator<Item = &Volume> {
    record.volumes.iter().filter(|volume| volume.status == VolumeStatus::Attached)
}

/// Has a running instance have the volumes that its record says, now and when it boots again.
fn apply(parts: &HostParts, record: &Record) -> Result<()> {
    let paths = parts.paths(record);
    let volumes = attach_all(parts, record)?;
    let own = parts.devices(&paths);
    let mut disks = disks::disks(record.id, record.disk_kinds(), &own);
    disks.extend(volumes);
    let devices: Vec<_> = disks.iter().map(|disk| disk.device).collect();
    let limits = parts.limits(record)?;
    let group = parts.group(record);
    group.update(&limits, &devices)?;
    // Without one it ended in between: the next start has them.
    if let Some(monitor) = Monitor::connect(&paths.monitor_socket())? {
        monitor.update_disks(&disks)?;
        monitor.update_plan(&group.plan(&limits, &devices, record.id_block)?)?;
    }
    Ok(())
}

fn index_of(record: &Record, id: Uuid) -> Result<usize> {
    record.volumes.iter().position(|volume| volume.id == id).ok_or_else(|| {
        Fault::new(FaultKind::VolumeNotFound, format!("instance {} has no volume {id}", record.id))
    })
}

/// Detaches a volume. Unless it is to be taken by force, one that programs have open stays.
pub fn detach(
    parts: &HostParts,
    record: &mut Record,
    (id, force): (Uuid, bool),
    running: bool,
) -> Result<()> {
    let index = index_of(record, id)?;
    let paths = parts.paths(record);
    if running {
        if record.volumes[index].status == VolumeStatus::Attached {
            if !force {
                // Nothing is changed if that is known beforehand.
                let_be(&holders(parts, record, id)?, id)?;
            }
            record.volumes[index].status = VolumeStatus::Detaching;
            if let Err(fault) = record.save(&paths) {
                record.volumes[index].status = VolumeStatus::Attached;
                return Err(fault);
            }
        }
        let gone = apply(parts, record).and_then(|()| let_go(parts, record, id, force));
        match gone {
            Ok(()) => {}
            Err(fault) if force => return Err(fault),
            Err(fault) => {
                record.volumes[index].status = VolumeStatus::Attached;
                let saved = record.save(&paths);
                let back = saved.and_then(|()| apply(parts, record));
                return Err(undone(fault, "giving it back", back));
            }
        }
    }
    let volume = record.volumes.remove(index);
    record.save(&paths).inspect_err(|_| record.volumes.insert(index, volume))
}

/// Takes a volume that the instance no longer opens from whoever still has it open, and frees its
/// device. Without force nobody may have it open.
fn let_go(parts: &HostParts, record: &Record, id: Uuid, force: bool) -> Result<()> {
    let Some((device, mark)) = device(parts, record, id)? else { return Ok(()) };
    let number = device.minor;
    // While it is still this instance's.
    parts.group(record).forget(&[device])?;
    let mut emptied = false;
    if force {
        emptied = run(&Work::Empty { number, mark: mark.clone() })?;
        end_holders(parts, record, device)?;
        if !emptied {
            emptied = run(&Work::Empty { number, mark: mark.clone() })?;
        }
    } else {
        let_be(&holders(parts, record, id)?, id)?;
    }
    if run(&Work::Clear { number, mark, keep: !emptied })? {
        return Ok(());
    }
    if emptied {
        // Who it is keeps a device without blocks, which ends with it.
        tracing::warn!(instance = %record.id, volume = %id, device = %format_args!("/dev/loop{number}"),
            "a detached volume's device is still open somewhere; it is empty");
        return Ok(());
    }
    Err(Fault::new(
        FaultKind::VolumeBusy,
        format!(
            "volume {id} is open as /dev/loop{number}, in a descriptor that no process inside \
             shows, or by a program of the host's: end it, stop the instance, or detach by force"
        ),
    ))
}

/// The volume's device and mark, if it has one.
fn device(parts: &HostParts, record: &Record, id: Uuid) -> Result<Option<(DeviceNumber, String)>> {
    let wanted = volume::mark(record.id, id);
    Ok(volume::devices(&parts.paths(record))?.into_iter().find(|(_, mark)| *mark == wanted))
}

/// Who inside has it open.
fn holders(parts: &HostParts, record: &Record, id: Uuid) -> Result<Vec<Holder>> {
    match device(parts, record, id)? {
        Some((device, _)) => run(&Work::Holders { device, pids: parts.group(record).pids()? }),
        None => Ok(Vec::new()),
    }
}

fn let_be(holders: &[Holder], id: Uuid) -> Result<()> {
    if holders.is_empty() {
        return Ok(());
    }
    let mut named: Vec<String> = holders.iter().take(NAMED).map(ToString::to_string).collect();
    if holders.len() > NAMED {
        named.push(format!("{} more", holders.len() - NAMED));
    }
    Err(Fault::new(
        FaultKind::VolumeBusy,
        format!(
            "volume {id} is in use inside by {}: end what uses it, or detach by force, which \
             kills that",
            named.join(", ")
        ),
    ))
}

/// Kills whoever inside has a device open, save the first process, without which the rest ends.
fn end_holders(parts: &HostParts, record: &Record, device: DeviceNumber) -> Result<()> {
    let group = parts.group(record);
    for _ in 0..ROUNDS {
        // While they stand still none hands it to another.
        let frozen = record.frozen.is_none();
        if frozen {
            group.freeze()?;
        }
        let found = kill_holders(&group, device);
        if frozen {
            group.thaw()?;
        }
        let killed = found?;
        if killed.is_empty() || !frozen {
            // Of a frozen instance they end when it is thawed.
            return Ok(());
        }
        for handle in killed {
            handle.wait(END).or_fault("waiting for a process")?;
        }
    }
    Ok(())
}

fn kill_holders(group: &Group, device: DeviceNumber) -> Result<Vec<PidFd>> {
    let doing = "killing what has a volume open";
    let holders: Vec<Holder> = run(&Work::Holders { device, pids: group.pids()? })?;
    // A number that the kernel gave to another process meanwhile is not in here.
    let members = group.pids()?;
    let mut killed = Vec::new();
    for holder in holders.iter().filter(|holder| holder.inside != 1) {
        if let Some(handle) = holder.process.open_any_thread().or_fault(doing)?
            && members.contains(&holder.process.pid)
        {
            tracing::info!(%holder, "{doing}");
            handle.signal(libc::SIGKILL).or_fault(doing)?;
            killed.push(handle);
        }
    }
    Ok(killed)
}

/// Has a volume be as large as its source is by now.
pub fn extend(parts: &HostParts, record: &mut Record, id: Uuid, running: bool) -> Result<()> {
    let volume = &record.volumes[index_of(record, id)?];
    let seen: Seen = run(&Work::Look {
        source: volume.source.clone(),
        read_only: volume.read_only,
        mark: volume::mark(record.id, id),
        own: vec![],
        others: vec![],
    })?;
    if seen.bytes < volume.bytes {
        return Err(Fault::new(
            FaultKind::InstanceInvalidState,
            format!(
                "{} has {} bytes, less than the {} that volume {id} has: a volume only grows",
                volume.source.path().display(),
                seen.bytes,
                volume.bytes
            ),
        ));
    }
    let larger = Volume { bytes: seen.bytes, ..volume.clone() };
    if running {
        if let Some((device, mark)) = device(parts, record, id)? {
            run::<()>(&Work::Resize { number: device.minor, mark })?;
        }
        apply(parts, record)?;
    }
    let mut new = with(record, &larger);
    new.save(&parts.paths(&new))?;
    *record = new;
    Ok(())
}

/// After the service was away: an instance that stands still because a volume was being taken from
/// it goes on.
pub fn let_run(parts: &HostParts, record: &Record) -> Result<()> {
    let mut volumes = record.volumes.iter();
    let detaching = volumes.any(|volume| volume.status == VolumeStatus::Detaching);
    let group = parts.group(record);
    if detaching && record.frozen.is_none() && group.exists() { group.thaw() } else { Ok(()) }
}

/// After the service was away, brings a running instance to what its record says of volumes.
pub fn restore(parts: &HostParts, record: &mut Record) -> Result<()> {
    let paths = parts.paths(record);
    if record.volumes.is_empty() && !paths.volumes().exists() {
        return Ok(());
    }
    let mut teardown = Teardown::default();
    let known: Vec<String> =
        record.volumes.iter().map(|volume| volume::mark(record.id, volume.id)).collect();
    teardown.step("giving it its volumes", apply(parts, record));
    for (device, mark) in volume::devices(&paths)? {
        if !known.contains(&mark) {
            // Of an attach that was undone; nobody inside can open it by now.
            let number = device.minor;
            let emptied = run::<bool>(&Work::Empty { number, mark: mark.clone() });
            let freed =
                emptied.and_then(|_| run::<bool>(&Work::Clear { number, mark, keep: false }));
            teardown.step("letting go of a volume", freed.map(drop));
        }
    }
    let detaching = |volume: &&Volume| volume.status == VolumeStatus::Detaching;
    let unfinished: Vec<Uuid> =
        record.volumes.iter().filter(detaching).map(|volume| volume.id).collect();
    for id in unfinished {
        // One that is in use again or still is given back: whoever wanted it asks again.
        teardown.step("finishing a detach", detach(parts, record, (id, false), true));
    }
    teardown.into_result()
}

/// Of an instance of which nothing runs: what was being detached is.
pub fn finish_detached(parts: &HostParts, record: &mut Record) -> Result<()> {
    let before = record.volumes.len();
    record.volumes.retain(|volume| volume.status == VolumeStatus::Attached);
    if record.volumes.len() == before { Ok(()) } else { record.save(&parts.paths(record)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Volume {
        let id = Uuid::from_u128(9);
        Volume {
            id,
            device: "/dev/vdb".into(),
            source: VolumeSource::Block { path: "/dev/sdb".into() },
            serial: id.to_string(),
            read_only: false,
            multiattach: false,
            bytes: 512,
            status: VolumeStatus::Attached,
        }
    }

    #[test]
    fn a_repeated_request_is_known_by_what_it_asks() {
        let asked = VolumeAttach {
            device: None,
            source: known().source,
            serial: None,
            read_only: false,
            multiattach: false,
        };
        assert!(asks_for_the_same(&known(), &asked));
        let named = |name: &str| VolumeAttach { device: Some(name.into()), ..asked.clone() };
        assert!(asks_for_the_same(&known(), &named("vdb")));
        assert!(!asks_for_the_same(&known(), &named("/dev/vdc")));
        assert!(!asks_for_the_same(&known(), &VolumeAttach { read_only: true, ..asked.clone() }));
        assert!(!asks_for_the_same(&Volume { serial: "other".into(), ..known() }, &asked));
    }

    #[test]
    fn a_serial_is_a_name_that_no_other_has() {
        check_serial("abc-1_2.3", &[known()]).unwrap();
        for bad in ["", "a/b", "a b", "ä", "a\n", &"x".repeat(65), &known().serial[..20]] {
            let fault = check_serial(bad, &[known()]).unwrap_err();
            assert_eq!(fault.field.as_deref(), Some("serial"), "{bad:?}");
        }
    }

    #[test]
    fn holders_are_named_up_to_a_number() {
        let holder = |pid| Holder {
            process: crate::sys::process::ProcessId { pid, start_time: 1 },
            inside: pid - 100,
            name: "evil\u{1b}[2J".into(),
        };
        let all: Vec<Holder> = (101..111).map(holder).collect();
        let fault = let_be(&all, known().id).unwrap_err();
        assert_eq!(fault.kind, FaultKind::VolumeBusy);
        assert!(fault.detail.contains("(pid 1 inside, 101 on the host)"), "{fault}");
        assert!(fault.detail.contains("2 more") && !fault.detail.contains('\u{1b}'), "{fault}");
        let_be(&[], known().id).unwrap();
    }
}
