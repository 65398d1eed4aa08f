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
            "berth reads ext2, ext3 and ext4, and others by the host's kernel where \
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
            "a tar archive without a docker-archive's manifest.json, an OCI layout's index.json, a \
             root's bin, etc or usr at its top or in rootfs/, or one disk image among up to 64 \
             members"
        }
    };
    unacceptable(format!("the content is {what}"))
}

/// The fault for a tar archive of several disks.
#[cfg(feature = "service")]
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
    use crate::image::recognise::Other;

    /// What Nova leaves of a server's fault: 255 bytes, of which its own words take the others.
    const SHOWN: usize = 191;

    #[test]
    fn refusals_name_what_was_seen_and_are_one_kind() {
        let fault = of_content(Content::Disk(DiskFormat::Qcow2));
        assert_eq!(fault.kind, FaultKind::ImageUnacceptable);
        assert!(fault.detail.contains("qcow2"), "{fault}");
    }

    #[test]
    fn a_servers_fault_has_room_for_the_words_and_the_remedy() {
        let disks = [
            DiskFormat::Qed,
            DiskFormat::VmdkDescriptor,
            DiskFormat::Luks,
            DiskFormat::Lvm,
            DiskFormat::Raid,
        ];
        let file_systems = [
            FileSystem::Xfs,
            FileSystem::Btrfs,
            FileSystem::Squashfs,
            FileSystem::Erofs,
            FileSystem::Iso9660,
        ];
        let compressions = [Compression::Bzip2, Compression::Lz4, Compression::Gzip];
        let others = [Content::Nothing, Content::Empty, Content::Unknown];
        let contents = disks
            .map(Content::Disk)
            .into_iter()
            .chain(file_systems.map(Content::FileSystem))
            .chain(compressions.map(Content::Compressed))
            .chain(
                [Other::Zip, Other::Cpio, Other::Elf, Other::Html, Other::Json].map(Content::Other),
            )
            .chain(others);
        let archives = [ArchiveKind::Ova, ArchiveKind::IncusMetadata, ArchiveKind::Other];
        for fault in contents.map(of_content).chain(archives.map(of_archive)) {
            assert!(fault.detail.len() <= SHOWN, "{}: {}", fault.detail.len(), fault.detail);
        }
    }
}
