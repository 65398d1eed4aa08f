//! What content is, told from its bytes and never from a label.
//!
//! Pure: [`content`] looks at the first bytes, [`Members`] at the names in a
//! tar archive. Formats that berth does not boot are recognised too, so that
//! the refusal can name them; when one of them becomes bootable, its arm in
//! [`refusal`](super::refusal) goes and an importer takes its place.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How many first bytes [`content`] wants to see: the farthest magic number,
/// btrfs's, ends here.
pub const HEAD: usize = 65_536 + 72;

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// No bytes at all.
    Nothing,
    /// Only zeros, as far as was looked.
    Empty,
    /// A tar archive; [`Members`] tells of what.
    Tar,
    /// Something compressed; what, is seen after decompression.
    Compressed(Compression),
    /// A disk image.
    Disk(DiskFormat),
    /// A file system without partitions.
    FileSystem(FileSystem),
    /// Known, and nothing that can hold a root file system for berth.
    Other(Other),
    /// Nothing that is known.
    Unknown,
}

/// Compressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    /// gzip.
    Gzip,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
    /// bzip2: recognised, not read.
    Bzip2,
    /// lz4: recognised, not read.
    Lz4,
    /// lzip: recognised, not read.
    Lzip,
}

/// Disk images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskFormat {
    /// QEMU's.
    Qcow2,
    /// QEMU's enhanced disk.
    Qed,
    /// VMware's, sparse or stream-optimised.
    Vmdk,
    /// A VMDK descriptor, which names other files.
    VmdkDescriptor,
    /// Virtual PC's, dynamic.
    Vhd,
    /// Hyper-V's.
    Vhdx,
    /// VirtualBox's.
    Vdi,
    /// LUKS-encrypted.
    Luks,
    /// A physical volume of LVM.
    Lvm,
    /// A member of a RAID of Linux.
    Raid,
    /// Raw with a GUID partition table.
    RawGpt,
    /// Raw with a master boot record.
    RawMbr,
}

/// File systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileSystem {
    /// ext2, ext3 or ext4.
    Ext,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// SquashFS.
    Squashfs,
    /// EROFS.
    Erofs,
    /// ISO 9660.
    Iso9660,
}

/// Other known content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Other {
    /// A zip archive.
    Zip,
    /// A cpio archive, such as an initial ramdisk.
    Cpio,
    /// A program.
    Elf,
    /// An HTML page, such as a proxy's error.
    Html,
    /// JSON.
    Json,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Content::Nothing => "empty, without a single byte",
            Content::Empty => "nothing but zeros where it begins",
            Content::Tar => "a tar archive",
            Content::Compressed(compression) => match compression {
                Compression::Gzip => "gzip",
                Compression::Xz => "xz",
                Compression::Zstd => "zstd",
                Compression::Bzip2 => "bzip2",
                Compression::Lz4 => "lz4",
                Compression::Lzip => "lzip",
            },
            Content::Disk(disk) => match disk {
                DiskFormat::Qcow2 => "a qcow2 disk image",
                DiskFormat::Qed => "a QED disk image",
                DiskFormat::Vmdk => "a VMDK disk image",
                DiskFormat::VmdkDescriptor => "a VMDK descriptor, which names other files",
                DiskFormat::Vhd => "a VHD disk image",
                DiskFormat::Vhdx => "a VHDX disk image",
                DiskFormat::Vdi => "a VDI disk image",
                DiskFormat::Luks => "a LUKS-encrypted disk",
                DiskFormat::Lvm => "a physical volume of LVM",
                DiskFormat::Raid => "a member of a RAID",
                DiskFormat::RawGpt => "a raw disk with a GUID partition table",
                DiskFormat::RawMbr => "a raw disk with a master boot record",
            },
            Content::FileSystem(file_system) => match file_system {
                FileSystem::Ext => "an ext2/3/4 file system",
                FileSystem::Xfs => "an XFS file system",
                FileSystem::Btrfs => "a Btrfs file system",
                FileSystem::Squashfs => "a SquashFS file system",
                FileSystem::Erofs => "an EROFS file system",
                FileSystem::Iso9660 => "an ISO 9660 file system",
            },
            Content::Other(other) => match other {
                Other::Zip => "a zip archive",
                Other::Cpio => "a cpio archive",
                Other::Elf => "an ELF program",
                Other::Html => "an HTML page",
                Other::Json => "a JSON document",
            },
            Content::Unknown => "nothing that is known",
        })
    }
}

/// Tells content from its first [`HEAD`] bytes (fewer when there are no more).
pub fn content(head: &[u8]) -> Content {
    if head.is_empty() {
        return Content::Nothing;
    }
    if head.iter().all(|byte| *byte == 0) {
        return Content::Empty;
    }
    // A tar header is checked by its sum, so it cannot be taken for another
    // format; it goes first because a member's name may look like any magic.
    if is_tar(head) {
        return Content::Tar;
    }
    if let Some(compression) = after_skippable_frames(head) {
        return Content::Compressed(compression);
    }
    MAGICS
        .iter()
        .find(|(offset, magic, _)| head.get(*offset..).is_some_and(|rest| rest.starts_with(magic)))
        .map_or_else(|| text_or_disk(head), |(_, _, content)| *content)
}

const MAGICS: &[(usize, &[u8], Content)] = &[
    (0, b"\x1f\x8b", Content::Compressed(Compression::Gzip)),
    (0, b"\xfd7zXZ\0", Content::Compressed(Compression::Xz)),
    (0, b"\x28\xb5\x2f\xfd", Content::Compressed(Compression::Zstd)),
    (0, b"BZh", Content::Compressed(Compression::Bzip2)),
    (0, b"\x04\x22\x4d\x18", Content::Compressed(Compression::Lz4)),
    (0, b"LZIP", Content::Compressed(Compression::Lzip)),
    (0, b"QFI\xfb", Content::Disk(DiskFormat::Qcow2)),
    (0, b"QED\0", Content::Disk(DiskFormat::Qed)),
    (0, b"KDMV", Content::Disk(DiskFormat::Vmdk)),
    (0, b"COWD", Content::Disk(DiskFormat::Vmdk)),
    (0, b"# Disk DescriptorFile", Content::Disk(DiskFormat::VmdkDescriptor)),
    (0, b"conectix", Content::Disk(DiskFormat::Vhd)),
    (0, b"vhdxfile", Content::Disk(DiskFormat::Vhdx)),
    (0x40, b"\x7f\x10\xda\xbe", Content::Disk(DiskFormat::Vdi)),
    (0, b"LUKS\xba\xbe", Content::Disk(DiskFormat::Luks)),
    (0, b"LABELONE", Content::Disk(DiskFormat::Lvm)),
    (512, b"LABELONE", Content::Disk(DiskFormat::Lvm)),
    (1024, b"LABELONE", Content::Disk(DiskFormat::Lvm)),
    (1536, b"LABELONE", Content::Disk(DiskFormat::Lvm)),
    (0, b"\xfc\x4e\x2b\xa9", Content::Disk(DiskFormat::Raid)),
    (4096, b"\xfc\x4e\x2b\xa9", Content::Disk(DiskFormat::Raid)),
    (0, b"hsqs", Content::FileSystem(FileSystem::Squashfs)),
    (0, b"XFSB", Content::FileSystem(FileSystem::Xfs)),
    (1024, b"\xe2\xe1\xf5\xe0", Content::FileSystem(FileSystem::Erofs)),
    (1080, b"\x53\xef", Content::FileSystem(FileSystem::Ext)),
    (65_600, b"_BHRfS_M", Content::FileSystem(FileSystem::Btrfs)),
    (32_769, b"CD001", Content::FileSystem(FileSystem::Iso9660)),
    (512, b"EFI PART", Content::Disk(DiskFormat::RawGpt)),
    (4096, b"EFI PART", Content::Disk(DiskFormat::RawGpt)),
    (0, b"PK\x03\x04", Content::Other(Other::Zip)),
    (0, b"070701", Content::Other(Other::Cpio)),
    (0, b"070702", Content::Other(Other::Cpio)),
    (0, b"070707", Content::Other(Other::Cpio)),
    (0, b"\x7fELF", Content::Other(Other::Elf)),
];

/// What follows the frames that zstd and lz4 pass over, with which pzstd begins. Behind one that
/// goes on after the head, it is taken for zstd.
fn after_skippable_frames(head: &[u8]) -> Option<Compression> {
    const MAGIC: u32 = 0x184d_2a50;
    let word = |at: usize| Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?));
    let mut at = 0;
    while word(at).is_some_and(|magic| magic & !0xf == MAGIC) {
        at = at.saturating_add(8).saturating_add(word(at + 4)? as usize);
    }
    match head.get(at..) {
        _ if at == 0 => None,
        Some(rest) if rest.starts_with(b"\x04\x22\x4d\x18") => Some(Compression::Lz4),
        Some(rest) if rest.starts_with(b"\x28\xb5\x2f\xfd") => Some(Compression::Zstd),
        Some(rest) if !rest.is_empty() => None,
        _ => Some(Compression::Zstd),
    }
}

fn text_or_disk(head: &[u8]) -> Content {
    if head.get(510..512) == Some(b"\x55\xaa") {
        return Content::Disk(DiskFormat::RawMbr);
    }
    let text = head[..head.len().min(256)].trim_ascii_start();
    if [&b"<!doctype html"[..], b"<html"]
        .iter()
        .any(|tag| text.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag)))
    {
        Content::Other(Other::Html)
    } else if text.starts_with(b"{") {
        Content::Other(Other::Json)
    } else {
        Content::Unknown
    }
}

/// Whether the first block is a tar header, by its check sum. `ustar` at 257
/// is not asked for: archives older than POSIX have none.
fn is_tar(head: &[u8]) -> bool {
    let Some(block) = head.first_chunk::<512>() else { return false };
    let mut header = ::tar::Header::new_old();
    header.as_mut_bytes().copy_from_slice(block);
    header.cksum().is_ok_and(|sum| sum == checksum(block))
}

/// Sum of a tar header's bytes, its own field taken as spaces.
pub(super) fn checksum(block: &[u8; 512]) -> u32 {
    block[..148].iter().chain(&block[156..]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32
}

/// What a tar archive is an archive of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ArchiveKind {
    /// `docker save`.
    Docker,
    /// An OCI image layout.
    Oci,
    /// A root file system.
    Rootfs,
    /// A root file system below `rootfs/`, as Incus and LXC have it.
    RootfsBelow,
    /// What Incus says about an image whose root file system is another file.
    IncusMetadata,
    /// An OVF virtual machine.
    Ova,
    /// None of these.
    Other,
}

/// Collects an archive's member names until they tell what it is.
///
/// Members may come in any order, and both `docker save` and OCI writers put
/// the telling names last. A root file system is known at its first directory
/// of a root, since neither of the other two has one.
#[derive(Clone, Debug, Default)]
pub struct Members {
    rootfs: bool,
    below: bool,
    metadata: bool,
    docker: bool,
    oci_layout: bool,
    oci_index: bool,
    ova: bool,
}

/// Names at the top that only a root file system has.
const ROOT_NAMES: &[&[u8]] = &[
    b"bin", b"boot", b"dev", b"etc", b"home", b"lib", b"lib64", b"media", b"mnt", b"opt", b"proc",
    b"root", b"run", b"sbin", b"srv", b"sys", b"usr", b"var", b"init",
];

impl Members {
    /// Takes one more name; true when no further name can change the answer.
    pub fn add(&mut self, path: &[u8]) -> bool {
        let path = plain(path);
        let mut parts = path.split(|byte| *byte == b'/');
        let top = parts.next().unwrap_or_default();
        self.rootfs |= ROOT_NAMES.contains(&top);
        self.below |= top == b"rootfs" && parts.next().is_some_and(|p| ROOT_NAMES.contains(&p));
        self.metadata |= path == b"metadata.yaml";
        self.docker |= path == b"manifest.json";
        self.oci_layout |= path == b"oci-layout";
        self.oci_index |= path == b"index.json";
        self.ova |= !path.contains(&b'/') && path.ends_with(b".ovf");
        self.rootfs
    }

    /// What the names seen make it.
    pub fn archive(&self) -> ArchiveKind {
        match self {
            Members { rootfs: true, .. } => ArchiveKind::Rootfs,
            // New `docker save` writes both layouts over the same blobs.
            Members { docker: true, .. } => ArchiveKind::Docker,
            Members { oci_layout: true, oci_index: true, .. } => ArchiveKind::Oci,
            Members { below: true, .. } => ArchiveKind::RootfsBelow,
            Members { ova: true, .. } => ArchiveKind::Ova,
            Members { metadata: true, .. } => ArchiveKind::IncusMetadata,
            _ => ArchiveKind::Other,
        }
    }
}

/// A member's name without the `./` or `/` that some writers put before it.
pub fn plain(mut path: &[u8]) -> &[u8] {
    loop {
        path = match path {
            [b'.', b'/', rest @ ..] | [b'/', rest @ ..] => rest,
            [rest @ .., b'/'] => rest,
            _ => return path,
        }
    }
}

/// This host's architecture as images name it (GOARCH).
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: usize, magic: &[u8]) -> Vec<u8> {
        // Something that is not zero first, as boot code would be.
        let mut head = vec![0x90; 1];
        head.resize(HEAD, 0);
        head[offset..offset + magic.len()].copy_from_slice(magic);
        head
    }

    fn tar_header() -> Vec<u8> {
        let mut header = ::tar::Header::new_gnu();
        header.set_path("QFI\u{fb}").unwrap();
        header.set_size(0);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    #[test]
    fn first_bytes() {
        let table: &[(Vec<u8>, Content)] = &[
            (vec![], Content::Nothing),
            (
                b"\x50\x2a\x4d\x18\x04\0\0\0size\x28\xb5\x2f\xfd".to_vec(),
                Content::Compressed(Compression::Zstd),
            ),
            (
                b"\x5f\x2a\x4d\x18\0\0\0\0\x04\x22\x4d\x18".to_vec(),
                Content::Compressed(Compression::Lz4),
            ),
            (b"\x50\x2a\x4d\x18\xff\xff\xff\xff".to_vec(), Content::Compressed(Compression::Zstd)),
            (b"\x50\x2a\x4d\x18\x01\0\0\0xanything".to_vec(), Content::Unknown),
            (at(512, b"LABELONE"), Content::Disk(DiskFormat::Lvm)),
            (at(4096, b"\xfc\x4e\x2b\xa9"), Content::Disk(DiskFormat::Raid)),
            (vec![0; 1024], Content::Empty),
            (tar_header(), Content::Tar),
            (b"\x1f\x8b\x08\x00".to_vec(), Content::Compressed(Compression::Gzip)),
            (b"\xfd7zXZ\0\0".to_vec(), Content::Compressed(Compression::Xz)),
            (b"\x28\xb5\x2f\xfd\x04".to_vec(), Content::Compressed(Compression::Zstd)),
            (b"BZh9".to_vec(), Content::Compressed(Compression::Bzip2)),
            (b"QFI\xfb\0\0\0\x03".to_vec(), Content::Disk(DiskFormat::Qcow2)),
            (b"KDMV\x01".to_vec(), Content::Disk(DiskFormat::Vmdk)),
            (b"# Disk DescriptorFile\n".to_vec(), Content::Disk(DiskFormat::VmdkDescriptor)),
            (b"conectix".to_vec(), Content::Disk(DiskFormat::Vhd)),
            (b"vhdxfile".to_vec(), Content::Disk(DiskFormat::Vhdx)),
            (at(0x40, b"\x7f\x10\xda\xbe"), Content::Disk(DiskFormat::Vdi)),
            (at(510, b"\x55\xaa"), Content::Disk(DiskFormat::RawMbr)),
            (at(512, b"EFI PART"), Content::Disk(DiskFormat::RawGpt)),
            (at(1080, b"\x53\xef"), Content::FileSystem(FileSystem::Ext)),
            (at(65_600, b"_BHRfS_M"), Content::FileSystem(FileSystem::Btrfs)),
            (at(32_769, b"CD001"), Content::FileSystem(FileSystem::Iso9660)),
            (b"hsqs\0".to_vec(), Content::FileSystem(FileSystem::Squashfs)),
            (b"XFSB\0".to_vec(), Content::FileSystem(FileSystem::Xfs)),
            (b"PK\x03\x04".to_vec(), Content::Other(Other::Zip)),
            (b"070701".to_vec(), Content::Other(Other::Cpio)),
            (b"\x7fELF\x02".to_vec(), Content::Other(Other::Elf)),
            (b" <!DOCTYPE html>".to_vec(), Content::Other(Other::Html)),
            (b"{\"schemaVersion\":2}".to_vec(), Content::Other(Other::Json)),
            (b"hello".to_vec(), Content::Unknown),
        ];
        for (head, expected) in table {
            assert_eq!(content(head), *expected, "{:?}", &head[..head.len().min(16)]);
        }
    }

    #[test]
    fn a_tar_header_with_a_wrong_sum_is_no_tar() {
        let mut header = tar_header();
        header[0] ^= 1;
        assert_ne!(content(&header), Content::Tar);
    }

    #[test]
    fn archives_by_their_members() {
        let table: &[(&[&str], ArchiveKind)] = &[
            (&["./", "./bin/", "./bin/sh"], ArchiveKind::Rootfs),
            (&["a.json", "a/layer.tar", "manifest.json", "repositories"], ArchiveKind::Docker),
            (&["blobs/", "index.json", "manifest.json", "oci-layout"], ArchiveKind::Docker),
            (&["blobs/", "blobs/sha256/a", "index.json", "oci-layout"], ArchiveKind::Oci),
            (&["oci-layout", "./index.json"], ArchiveKind::Oci),
            (&["oci-layout"], ArchiveKind::Other),
            (&["manifest.json", "usr/bin/env"], ArchiveKind::Rootfs),
            (&["metadata.yaml", "rootfs/", "rootfs/etc/x"], ArchiveKind::RootfsBelow),
            (&["rootfs/etc/x", "etc/y"], ArchiveKind::Rootfs),
            (&["rootfs/readme"], ArchiveKind::Other),
            (&["metadata.yaml", "templates/x"], ArchiveKind::IncusMetadata),
            (&["vm.ovf", "vm.vmdk"], ArchiveKind::Ova),
            (&["docs/readme.txt"], ArchiveKind::Other),
            (&["sub/manifest.json"], ArchiveKind::Other),
            (&[], ArchiveKind::Other),
        ];
        for (names, expected) in table {
            let mut members = Members::default();
            let certain = names.iter().any(|name| members.add(name.as_bytes()));
            assert_eq!(members.archive(), *expected, "{names:?}");
            assert_eq!(certain, *expected == ArchiveKind::Rootfs, "{names:?}");
        }
    }
}
