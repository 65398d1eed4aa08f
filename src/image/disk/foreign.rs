//! Other programs' disk formats, which `qemu-img` reads, jailed as the readers here are.
//!
//! Before it sees an image, the image's own header is looked at: it must be of
//! the one kind that holds all of its content itself. QEMU would open whatever
//! a descriptor names.

use std::path::Path;

use super::blocks::{Blocks, le16, le32, le64};
use super::vhdx;
use crate::fault::{Fault, FaultKind, Result};
use crate::image::recognise::{Content, DiskFormat};
use crate::image::refusal::{of_disk as refused, unacceptable};

/// The program.
pub const PROGRAM: &str = "/usr/bin/qemu-img";
/// The image's name in the jail.
pub const IMAGE: &str = "image";
/// The converted disk's name in the jail.
pub const DISK: &str = "disk";

const SECTOR: u64 = 512;
/// Where a VMDK's descriptor begins: QEMU looks there whatever the header says.
const DESCRIPTOR: u64 = 1;
/// Sectors that QEMU takes for the descriptor.
const DESCRIPTOR_SECTORS: u64 = 20;
/// Most sectors of a descriptor.
const MAX_DESCRIPTOR: u64 = 2048;
/// Where a VMDK's header says that its tables' place is in a copy of it at the end.
const AT_END: u64 = u64::MAX;

/// QEMU's name of a format that is converted.
pub fn driver(disk: DiskFormat) -> Option<&'static str> {
    match disk {
        DiskFormat::Vmdk => Some("vmdk"),
        DiskFormat::Vhd => Some("vpc"),
        DiskFormat::Vhdx => Some("vhdx"),
        DiskFormat::Vdi => Some("vdi"),
        _ => None,
    }
}

/// Glance's name of such a format.
pub fn label(disk: DiskFormat) -> Option<&'static str> {
    match disk {
        DiskFormat::Vhd => Some("vhd"),
        other => driver(other),
    }
}

/// A fault for a host without the program.
pub fn check_program() -> Result<()> {
    if Path::new(PROGRAM).exists() {
        return Ok(());
    }
    Err(Fault::new(
        FaultKind::HostUnsupported,
        format!("this host has no {PROGRAM}, which converts the image; install qemu-utils"),
    ))
}

/// Refuses an image that is not of a kind that holds all of its content, or of
/// a disk of more than `most` bytes.
pub fn check(image: &dyn Blocks, disk: DiskFormat, most: u64) -> Result<()> {
    let size = match disk {
        DiskFormat::Vmdk => vmdk(image)?,
        DiskFormat::Vhd => vhd(image)?,
        DiskFormat::Vdi => vdi(image)?,
        DiskFormat::Vhdx => vhdx::size(image)?,
        _ => return Err(refused(disk, "nothing converts it")),
    };
    if size > most {
        return Err(unacceptable(format!(
            "the content is {} of {size} bytes, more than images.max_unpacked_bytes allows",
            Content::Disk(disk)
        )));
    }
    Ok(())
}

/// Of a header, what decides what QEMU opens.
#[derive(PartialEq, Eq)]
struct VmdkHeader {
    sectors: u64,
    descriptor: u64,
    descriptor_sectors: u64,
    tables: u64,
}

impl VmdkHeader {
    fn read(image: &dyn Blocks, offset: u64) -> Result<VmdkHeader> {
        let mut head = [0; SECTOR as usize];
        image.read_at(offset, &mut head)?;
        if !head.starts_with(b"KDMV") || !(1..=3).contains(&le32(&head, 4)) {
            return Err(refused(DiskFormat::Vmdk, "it is of no known kind"));
        }
        Ok(VmdkHeader {
            sectors: le64(&head, 12),
            descriptor: le64(&head, 28),
            descriptor_sectors: le64(&head, 36),
            tables: le64(&head, 56),
        })
    }

    /// Without a size of its own, a header only announces a descriptor of other files.
    fn check(&self) -> Result<()> {
        if self.sectors == 0
            || self.descriptor != DESCRIPTOR
            || !(1..=MAX_DESCRIPTOR).contains(&self.descriptor_sectors)
        {
            return Err(refused(
                DiskFormat::Vmdk,
                "its header leads to a descriptor of other files, or to none",
            ));
        }
        Ok(())
    }
}

/// The size of the disk in a VMDK image.
fn vmdk(image: &dyn Blocks) -> Result<u64> {
    let header = VmdkHeader::read(image, 0)?;
    header.check()?;
    if header.tables == AT_END {
        // The copy is followed by one sector, the mark of the end.
        let at = image.size().checked_sub(2 * SECTOR).filter(|at| at % SECTOR == 0);
        let at = at.ok_or_else(|| refused(DiskFormat::Vmdk, "it is cut off"))?;
        let copy = VmdkHeader::read(image, at)?;
        copy.check()?;
        if (VmdkHeader { tables: AT_END, ..copy }) != header {
            return Err(refused(DiskFormat::Vmdk, "its two headers disagree"));
        }
    }
    let sectors = header.descriptor_sectors.max(DESCRIPTOR_SECTORS);
    let end = (sectors * SECTOR + SECTOR).min(image.size());
    let mut text = vec![0; (end - SECTOR.min(end)) as usize];
    image.read_at(SECTOR, &mut text)?;
    vmdk_descriptor(&text)?;
    header
        .sectors
        .checked_mul(SECTOR)
        .ok_or_else(|| refused(DiskFormat::Vmdk, "its size is impossible"))
}

/// Refuses a descriptor that names anything but the file that it is in.
fn vmdk_descriptor(bytes: &[u8]) -> Result<()> {
    let bad = |why: &str| Err(refused(DiskFormat::Vmdk, why));
    let hint = b"parentfilenamehint";
    if bytes.windows(hint.len()).any(|window| window.eq_ignore_ascii_case(hint)) {
        return bad("it has a parent, a file of the host");
    }
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    let Ok(text) = std::str::from_utf8(text) else { return bad("its descriptor is no text") };
    let (mut kind, mut extents) = ("", 0);
    for line in text.lines().map(str::trim) {
        let value = |key: &str| {
            let (name, value) = line.split_once('=')?;
            name.trim().eq_ignore_ascii_case(key).then(|| value.trim().trim_matches('"'))
        };
        if let Some(value) = value("createType") {
            if !kind.is_empty() {
                return bad("its descriptor says twice what it is");
            }
            kind = value;
        }
        if value("parentCID").is_some_and(|parent| !parent.eq_ignore_ascii_case("ffffffff")) {
            return bad("it has a parent, a file of the host");
        }
        let mut words = line.split_whitespace();
        if !words.next().is_some_and(|word| matches!(word, "RW" | "RDONLY" | "NOACCESS")) {
            continue;
        }
        extents += 1;
        let sparse = words.nth(1) == Some("SPARSE");
        let name = words.collect::<Vec<_>>().join(" ");
        if !sparse || name.contains(['/', '\\', ':']) {
            return bad("its descriptor names a file of the host");
        }
    }
    if !matches!(kind, "monolithicSparse" | "streamOptimized") {
        return bad("only monolithicSparse and streamOptimized hold all of their content");
    }
    if extents == 1 { Ok(()) } else { bad("its descriptor names several files, or none") }
}

/// The size of the disk in a VHD image.
fn vhd(image: &dyn Blocks) -> Result<u64> {
    let mut footer = [0; SECTOR as usize];
    image.read_at(0, &mut footer)?;
    let be32 = |at| le32(&footer, at).swap_bytes();
    match be32(60) {
        3 => Ok(le64(&footer, 48).swap_bytes()),
        4 => Err(refused(DiskFormat::Vhd, "it has a parent, a file of the host")),
        _ => Err(refused(DiskFormat::Vhd, "it is of no known kind")),
    }
}

/// The size of the disk in a VDI image.
fn vdi(image: &dyn Blocks) -> Result<u64> {
    let mut header = [0; SECTOR as usize];
    image.read_at(0, &mut header)?;
    // Dynamic and static; the others are differences to a parent.
    match (le16(&header, 70), le32(&header, 76)) {
        (1, 1 | 2) => Ok(le64(&header, 368)),
        (1, _) => Err(refused(DiskFormat::Vdi, "it has a parent, a file of the host")),
        _ => Err(refused(DiskFormat::Vdi, "it is of no known version")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n\
         createType=\"monolithicSparse\"\n\nRW 8 SPARSE \"a disk.vmdk\"\n";

    fn image(descriptor: &str, patches: &[(usize, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; 64 << 10];
        bytes[..8].copy_from_slice(b"KDMV\x01\0\0\0");
        for (at, value) in [(12, 8), (28, 1), (36, 20)].iter().chain(patches) {
            bytes[*at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes[512..512 + descriptor.len()].copy_from_slice(descriptor.as_bytes());
        bytes
    }

    #[test]
    fn a_vmdk_that_holds_its_content() {
        assert_eq!(vmdk(&image(GOOD, &[])).unwrap(), 4096);
        let mut stream =
            image(&GOOD.replace("monolithicSparse", "streamOptimized"), &[(56, AT_END)]);
        assert!(vmdk(&stream).is_err(), "there is no copy");
        let copy = stream[..512].to_vec();
        let at = stream.len() - 1024;
        stream[at..at + 512].copy_from_slice(&copy);
        stream[at + 56..at + 64].copy_from_slice(&40_u64.to_le_bytes());
        assert_eq!(vmdk(&stream).unwrap(), 4096);
        stream[at + 12] = 0;
        assert!(vmdk(&stream).is_err(), "the copy announces a descriptor");
        assert!(check(&image(GOOD, &[]), DiskFormat::Vmdk, 4095).is_err());
    }

    #[test]
    fn a_vmdk_that_leads_elsewhere() {
        for (from, to) in [
            ("\"a disk.vmdk\"", "\"/etc/shadow\""),
            ("\"a disk.vmdk\"", "\"nbd:host:1\""),
            ("SPARSE", "FLAT"),
            ("monolithicSparse", "monolithicFlat"),
            ("ffffffff", "12345678"),
            ("CID=1\n", "CID=1\nparentFileNameHint=\"/etc/shadow\"\n"),
            ("RW 8", "RW 8 SPARSE \"x\"\nRW 8"),
            ("RW 8", "# RW 8"),
            ("version=1\n", "createType=\"vmfs\"\n"),
        ] {
            let descriptor = GOOD.replace(from, to);
            assert_ne!(descriptor, GOOD);
            assert!(vmdk(&image(&descriptor, &[])).is_err(), "{to}");
        }
        for patch in [(12, 0), (28, 2), (36, 0), (36, 1 << 40), (4, 9)] {
            assert!(vmdk(&image(GOOD, &[patch])).is_err(), "{patch:?}");
        }
        let mut hidden = image(GOOD, &[]);
        hidden[9000..9018].copy_from_slice(b"parentFileNameHint");
        assert!(vmdk(&hidden).is_err(), "QEMU would find it");
    }

    #[test]
    fn others_with_a_parent() {
        let patched = |at: usize, value: &[u8]| {
            let mut bytes = vec![0; 1024];
            bytes[at..at + value.len()].copy_from_slice(value);
            bytes
        };
        assert!(vhd(&patched(63, &[3])).is_ok() && vhd(&patched(63, &[4])).is_err());
        assert!(vdi(&patched(70, &[1, 0, 0, 0, 0, 0, 1])).is_ok());
        assert!(vdi(&patched(70, &[1, 0, 0, 0, 0, 0, 4])).is_err());
        assert!(vdi(&patched(70, &[2, 0, 0, 0, 0, 0, 1])).is_err());
    }
}
