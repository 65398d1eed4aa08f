//! An instance's disks as it sees them: names as a machine with virtio has, and what the kernel's
//! files say of them; pure.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::hidden::Replaced;
use crate::cgroup::DeviceNumber;

/// Most characters of a serial number, as virtio has it.
pub const SERIAL: usize = 20;

/// What is on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The rescue image's root file system.
    Rescue,
    /// The instance's own.
    Root,
    /// A flavor's `ephemeral_gb`.
    Ephemeral,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its name below `/dev`.
    pub name: String,
    /// The host's device. What is mounted of one of the instance's own is the host's as well, whose
    /// kernel trusts what it has read: nobody inside may write to the blocks.
    pub device: DeviceNumber,
    /// What tells it from others.
    pub serial: String,
    /// If it is a volume: then the host has nothing mounted of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeDisk>,
}

/// What a volume is beyond a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeDisk {
    /// Whether it is only read.
    pub read_only: bool,
}

/// The kinds of an instance's disks, in the order in which they have their names: what it boots
/// from is the first.
pub fn kinds(rescued: bool, ephemeral: bool) -> impl Iterator<Item = Kind> {
    let rescue = rescued.then_some(Kind::Rescue);
    rescue.into_iter().chain([Kind::Root]).chain(ephemeral.then_some(Kind::Ephemeral))
}

/// The place below `/dev` of a disk of one of these kinds.
pub fn path(kinds: impl Iterator<Item = Kind>, wanted: Kind) -> PathBuf {
    let before = kinds.take_while(|kind| *kind != wanted).count();
    PathBuf::from(format!("/dev/{}", name(before)))
}

/// An instance's disks, of their kinds and devices in the order of [`kinds`].
pub fn disks(
    instance: Uuid,
    kinds: impl Iterator<Item = Kind>,
    devices: &[DeviceNumber],
) -> Vec<Disk> {
    let disk = |(number, (kind, device)): (usize, (Kind, &DeviceNumber))| Disk {
        name: name(number),
        device: *device,
        serial: serial(instance, kind),
        volume: None,
    };
    kinds.zip(devices).enumerate().map(disk).collect()
}

/// `vda`, `vdb`; an instance has fewer disks than there are letters.
fn name(number: usize) -> String {
    let letter = u8::try_from(number).map_or(b'z', |number| b'a'.saturating_add(number));
    format!("vd{}", char::from(letter.min(b'z')))
}

fn serial(instance: Uuid, kind: Kind) -> String {
    let kind = match kind {
        Kind::Rescue => "rescue",
        Kind::Root => "root",
        Kind::Ephemeral => "ephemeral0",
    };
    let mut serial = format!("{kind}-{}", instance.simple());
    serial.truncate(SERIAL);
    serial
}

impl Disk {
    /// Whether programs inside may write to its blocks.
    pub fn is_writable(&self) -> bool {
        self.volume.is_some_and(|volume| !volume.read_only)
    }

    /// Its name below `/dev/disk/by-id`.
    pub fn id(&self) -> String {
        format!("virtio-{}", self.serial)
    }

    /// Its `uevent` in sysfs.
    pub fn uevent(&self) -> String {
        let Disk { name, device: DeviceNumber { major, minor }, .. } = self;
        format!("MAJOR={major}\nMINOR={minor}\nDEVNAME={name}\nDEVTYPE=disk\n")
    }

    /// Its `stat` in sysfs.
    pub fn counts() -> String {
        format!("{COUNTS}\n")
    }
}

/// What a disk has done, by the 17 counts of Documentation/admin-guide/iostats.rst: the host's device
/// counts on from one instance to the next.
const COUNTS: &str = "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0";

/// The tables that the kernel has of disks. `sizes` are those of the disks, in sectors.
pub(super) fn tables(disks: &[Disk], sizes: &[u64]) -> [Replaced; 2] {
    let mut partitions = String::from("major minor  #blocks  name\n\n");
    let mut counts = String::new();
    for (Disk { name, device: DeviceNumber { major, minor }, .. }, sectors) in
        disks.iter().zip(sizes)
    {
        partitions += &format!("{major:4}  {minor:7} {:10} {name}\n", sectors / 2);
        counts += &format!("{major:4} {minor:7} {name} {COUNTS}\n");
    }
    [
        Replaced { path: "partitions", content: partitions },
        Replaced { path: "diskstats", content: counts },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(count: u32) -> Vec<DeviceNumber> {
        (0..count).map(|minor| DeviceNumber { major: 7, minor: 8 + minor }).collect()
    }

    #[test]
    fn what_boots_is_the_first_disk() {
        for (rescued, ephemeral, expected) in [
            (false, false, &[("vda", "root-000000000000000")][..]),
            (false, true, &[("vda", "root-000000000000000"), ("vdb", "ephemeral0-000000000")]),
            (true, false, &[("vda", "rescue-0000000000000"), ("vdb", "root-000000000000000")]),
            (
                true,
                true,
                &[
                    ("vda", "rescue-0000000000000"),
                    ("vdb", "root-000000000000000"),
                    ("vdc", "ephemeral0-000000000"),
                ],
            ),
        ] {
            let devices = devices(3);
            let disks = disks(Uuid::nil(), kinds(rescued, ephemeral), &devices);
            let seen: Vec<_> =
                disks.iter().map(|disk| (disk.name.as_str(), disk.serial.as_str())).collect();
            assert_eq!(seen, expected);
            assert!(disks.iter().zip(&devices).all(|(disk, device)| disk.device == *device));
            let last = if ephemeral { Kind::Ephemeral } else { Kind::Root };
            let path = path(kinds(rescued, ephemeral), last);
            assert_eq!(path.to_str(), disks.last().map(|d| format!("/dev/{}", d.name)).as_deref());
        }
        assert_eq!(name(300), "vdz");
    }

    #[test]
    fn the_tables_are_the_kernels() {
        let disks = disks(Uuid::nil(), kinds(false, true), &devices(2));
        let [partitions, counts] = tables(&disks, &[2_097_152, 4]);
        let expected = "major minor  #blocks  name\n\n\
                        \x20  7        8    1048576 vda\n   7        9          2 vdb\n";
        assert_eq!(partitions.content, expected);
        let lines: Vec<Vec<&str>> =
            counts.content.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][..3], ["7", "9", "vdb"]);
        assert!(lines.len() == 2 && lines.iter().all(|line| line.len() == 20), "{lines:?}");
    }
}
