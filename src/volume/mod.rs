//! Volumes: block devices and files of the host as further disks of an instance.
//!
//! Between the instance and what holds the blocks is always a loop device of berth's. What the
//! instance opens is that device, which can be [taken away](Work::Empty) from whoever has it open
//! and is in use by nobody else; so a detached volume is out of reach, whatever is held open inside.
//! A device is known by its [`mark`], which the kernel keeps, so that it is found after any end of
//! the service.
//!
//! Whatever may have to wait for a volume's blocks is done by a [child](work), and waited for with
//! a limit.

mod device;
mod holders;
mod marks;
mod source;
pub mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::cgroup::DeviceNumber;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::runtime::disks::{Disk, VolumeDisk};
use crate::store::layout::InstanceLayout;
use crate::sys::loopdev;
use crate::types::Volume;

pub use holders::Holder;
pub use marks::{mark, marks};
pub use source::Seen;
pub use work::{Work, run};

/// What a device had counted before a volume had it, by the volume's mark: bytes read and written,
/// reads and writes. It counts on from one user to the next.
pub type Baselines = BTreeMap<String, [u64; 4]>;

/// Says that an instance may have loop devices of volumes; to be called before there is one.
pub fn note(layout: &InstanceLayout) -> Result<()> {
    if layout.volumes().exists() { Ok(()) } else { set_baselines(layout, &Baselines::new()) }
}

/// What the devices of an instance's volumes had counted before.
pub fn baselines(layout: &InstanceLayout) -> Baselines {
    // What cannot be read counts from the host's boot on.
    fs::read(layout.volumes())
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default()
}

/// Notes what the devices of an instance's volumes had counted before.
pub fn set_baselines(layout: &InstanceLayout, baselines: &Baselines) -> Result<()> {
    crate::store::volatile::write_json(&layout.volumes(), baselines)
}

/// The devices of an instance's volumes, with their marks.
pub fn devices(layout: &InstanceLayout) -> Result<Vec<(DeviceNumber, String)>> {
    if !layout.volumes().exists() {
        return Ok(Vec::new());
    }
    let found = loopdev::marked(&marks(layout.id()?)).or_fault("looking for its volumes")?;
    let number = |minor| DeviceNumber { major: loopdev::MAJOR, minor };
    Ok(found.into_iter().map(|(device, mark)| (number(device.number), mark)).collect())
}

/// Takes the devices of an instance's volumes down, of which no process is left; absence is success.
pub fn release(layout: &InstanceLayout) -> Result<()> {
    let marker = layout.volumes();
    if !marker.exists() {
        return Ok(());
    }
    for (device, mark) in devices(layout)? {
        if !run::<bool>(&Work::Clear { number: device.minor, mark, keep: false })? {
            return Err(Fault::new(
                FaultKind::VolumeBusy,
                format!("/dev/loop{} of a volume is still in use on the host", device.minor),
            ));
        }
    }
    crate::store::atomic::remove_file(&marker)
}

/// The names of volumes below `/dev`, of an instance with so many disks of its own: each the one that
/// was given to it, or another where a disk of the instance has that now.
pub fn names(own: usize, volumes: &[Volume]) -> Vec<String> {
    let mut taken: BTreeSet<u8> = (b'a'..=b'z').take(own).collect();
    let wanted: Vec<Option<u8>> = volumes
        .iter()
        .map(|volume| letter(&volume.device).filter(|letter| taken.insert(*letter)))
        .collect();
    let name = |given: Option<u8>| {
        let letter = given.or_else(|| (b'a'..=b'z').find(|letter| !taken.contains(letter)));
        let letter = letter.unwrap_or(b'z');
        taken.insert(letter);
        format!("vd{}", char::from(letter))
    };
    wanted.into_iter().map(name).collect()
}

/// The letter of `/dev/vdb` or `vdb`; none of anything else.
fn letter(device: &str) -> Option<u8> {
    let name = device.strip_prefix("/dev/").unwrap_or(device);
    match name.strip_prefix("vd")?.as_bytes() {
        [letter @ b'a'..=b'z'] => Some(*letter),
        _ => None,
    }
}

/// The name that a volume is to have: the one that is asked for, or the first that is free. A fault
/// of the field `device`.
pub fn choose_name(own: usize, volumes: &[Volume], wanted: Option<&str>) -> Result<String> {
    let names = names(own, volumes);
    let mut taken: BTreeSet<u8> = (b'a'..=b'z').take(own).collect();
    taken.extend(names.iter().filter_map(|name| letter(name)));
    taken.extend(volumes.iter().filter_map(|volume| letter(&volume.device)));
    let chosen = match wanted {
        None => (b'a'..=b'z').find(|letter| !taken.contains(letter)).ok_or_else(|| {
            Fault::new(
                FaultKind::ResourcesExhausted,
                "the instance has as many disks as it can: detach one",
            )
        })?,
        Some(wanted) => {
            let letter = letter(wanted).ok_or_else(|| {
                Fault::invalid("device", format!("{wanted:?} must be one of /dev/vdb to /dev/vdz"))
            })?;
            if taken.contains(&letter) {
                return Err(Fault::invalid(
                    "device",
                    format!("{wanted} is taken: name another, or none"),
                ));
            }
            letter
        }
    };
    Ok(format!("/dev/vd{}", char::from(chosen)))
}

/// What an instance sees of a volume whose device this is.
pub fn disk(name: String, device: DeviceNumber, volume: &Volume) -> Disk {
    Disk {
        name,
        device,
        serial: volume.serial.chars().take(crate::runtime::disks::SERIAL).collect(),
        volume: Some(VolumeDisk { read_only: volume.read_only }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{VolumeSource, VolumeStatus};
    use uuid::Uuid;

    fn volume(device: &str) -> Volume {
        Volume {
            id: Uuid::from_u128(7),
            device: device.into(),
            source: VolumeSource::Block { path: "/dev/sdb".into() },
            serial: "c2c1ae71-2e4c-4d2a-9d52-8e3d0f0c0a11".into(),
            read_only: false,
            multiattach: false,
            bytes: 1 << 20,
            status: VolumeStatus::Attached,
        }
    }

    #[test]
    fn a_name_is_kept_unless_a_disk_of_the_instance_has_it() {
        let both = [volume("/dev/vdb"), volume("/dev/vdd")];
        assert_eq!(names(1, &both), ["vdb", "vdd"]);
        // Rescued: the second is its own root.
        assert_eq!(names(2, &both), ["vdc", "vdd"]);
        assert_eq!(names(4, &both), ["vde", "vdf"]);
    }

    #[test]
    fn a_name_is_chosen_or_taken() {
        let one = [volume("/dev/vdb")];
        assert_eq!(choose_name(1, &[], None).unwrap(), "/dev/vdb");
        assert_eq!(choose_name(1, &one, None).unwrap(), "/dev/vdc");
        assert_eq!(choose_name(1, &one, Some("vdx")).unwrap(), "/dev/vdx");
        for bad in ["/dev/vda", "/dev/vdb", "sdb", "/dev/vdB", "/dev/vdaa", "../vdc", ""] {
            let fault = choose_name(1, &one, Some(bad)).unwrap_err();
            assert_eq!(fault.field.as_deref(), Some("device"), "{bad}: {fault}");
        }
        // The one that was recorded is free again after a rescue.
        assert_eq!(choose_name(2, &one, None).unwrap(), "/dev/vdd");
        let all: Vec<Volume> =
            (b'b'..=b'z').map(|c| volume(&format!("/dev/vd{}", char::from(c)))).collect();
        let fault = choose_name(1, &all, None).unwrap_err();
        assert_eq!(fault.kind, FaultKind::ResourcesExhausted);
    }

    #[test]
    fn twenty_characters_of_a_serial_are_seen() {
        let disk = disk("vdb".into(), DeviceNumber { major: 7, minor: 1 }, &volume("vdb"));
        assert_eq!(disk.id(), "virtio-c2c1ae71-2e4c-4d2a-9");
    }
}
