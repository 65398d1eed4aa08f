//! Why an image is refused, and what would help.

use super::recognise::{ArchiveKind, Compression, Content, DiskFormat, FileSystem};
use crate::fault::{Fault, FaultKind};

/// The fault for an image that berth does not take.
pub(super) fn unacceptable(why: impl Into<String>) -> Fault {
    Fault::new(FaultKind::ImageUnacceptable, why)
}

/// The fault for a tar archive that is none, or that readers take for different things.
pub(super) fn malformed_tar(what: impl std::fmt::Display) -> Fault {
    unacceptable(format!("the tar archive is malformed: {what}"))
}

/// The fault for content that berth does not boot.
pub fn of_content(content: Content) -> Fault {
    let remedy = match content {
        Content::Disk(DiskFormat::VmdkDescriptor) => {
            "it has no content of its own, and the files that it names are the host's; convert the \
             disk with `qemu-img convert -O qcow2`"
        }
        Content::Disk(DiskFormat::Luks) => "give it decrypted",
        Content::Disk(DiskFormat::Lvm | DiskFormat::Raid) => {
            "what is in it is not read; give the image with its root on a partition of its own, or \
             as a tar archive"
        }
        Content::Nothing => "look at the upload, and at what was to be uploaded",
        Content::Disk(_) => "convert it with `qemu-img convert -O qcow2`",
        Content::FileSystem(FileSystem::Iso9660) => {
            "it is for installing from; give an image of what it installs"
        }
        Content::FileSystem(_) => {
            "berth reads ext2, ext3 and ext4 itself, and lets the host's kernel read others where \
             images.kernel_mounts allows it; give the image with ext4 or as a tar archive"
        }
        Content::Compressed(Compression::Bzip2 | Compression::Lz4 | Compression::Lzip) => {
            "compress it with gzip, xz or zstd"
        }
        Content::Compressed(_) => "it is compressed more than once; compress the archive once",
        _ => {
            "give a disk image (qcow2 or raw, with ext2, ext3 or ext4), or a docker-archive, an \
             OCI layout or a root file system as a tar archive"
        }
    };
    unacceptable(format!("the content is {content}: {remedy}"))
}

/// The fault for an image in another program's disk format.
pub(super) fn of_disk(disk: DiskFormat, why: &str) -> Fault {
    let content = Content::Disk(disk);
    unacceptable(format!(
        "the content is {content}: {why}; convert it with `qemu-img convert -O qcow2`"
    ))
}

/// The fault for a tar archive of something else.
pub fn of_archive(archive: ArchiveKind) -> Fault {
    let what = match archive {
        ArchiveKind::Ova => {
            "an OVA, a virtual machine, without a disk image in it that berth reads; give the disk"
        }
        ArchiveKind::IncusMetadata => {
            "what Incus says about an image (metadata.yaml), without the image; give its root file \
             system (rootfs.tar.xz or rootfs.squashfs), or Incus' unified tarball"
        }
        _ => {
            "a tar archive that is no docker-archive (no manifest.json), no OCI layout (no \
             oci-layout and index.json), no root file system (no directory such as bin, etc or \
             usr at its top or below rootfs/), and has no disk image in it, for which one with more \
             than 64 members is not looked through"
        }
    };
    unacceptable(format!("the content is {what}"))
}

/// The fault for a tar archive of several disks.
pub(super) fn of_disks(names: &[&str]) -> Fault {
    let shown: Vec<_> = names.iter().take(8).map(|name| printable(name.as_bytes())).collect();
    unacceptable(format!(
        "the content is a tar archive with {} disk images ({}); give the one that holds the system",
        names.len(),
        shown.join(", ")
    ))
}

/// Bytes from an archive, printable and bounded, for a fault.
pub fn printable(bytes: &[u8]) -> String {
    let text = bytes[..bytes.len().min(256)].escape_ascii().to_string();
    if bytes.len() > 256 { format!("{text}…") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_what_was_seen_and_are_one_kind() {
        let fault = of_content(Content::Disk(DiskFormat::Qcow2));
        assert_eq!(fault.kind, FaultKind::ImageUnacceptable);
        assert!(fault.detail.contains("qcow2"), "{fault}");
    }
}
