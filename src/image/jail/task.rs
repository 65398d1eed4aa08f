//! What parent and child of the jail say to each other.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::fault::FaultKind;
use crate::image::disk::Found;
use crate::image::disk::frame::{Frame, Patch};
use crate::image::recognise::{Compression, DiskFormat, FileSystem};
use crate::image::stage::Staged;
use crate::image::unpack::{TreeKind, UnpackLimits, UnpackReport};
use crate::types::DiskMount;

/// The hidden first argument by which the program knows that it is the jail.
pub const COMMAND: &str = "unpack";

/// What the child is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The work itself.
    pub work: Work,
    /// The directory that becomes all that there is, or that what does is mounted on, in private.
    pub directory: PathBuf,
}

/// What there is to do in the jail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Standard input to standard output, decompressed.
    Decompress {
        /// How it is compressed.
        compression: Compression,
        /// Bytes of it, when standard input goes on after them.
        size: Option<u64>,
    },
    /// Whether the beginning of a plain tar archive, on standard input, is that of a
    /// root file system.
    Look,
    /// The disk image that standard input is to standard output, as the tar
    /// archive of its root file system.
    Disk {
        /// Most that may be in it.
        limits: UnpackLimits,
    },
    /// Find the root file system on the disk image that standard input is.
    FindRoot,
    /// A part of the disk whose image standard input is to standard output, as
    /// [`part`](crate::image::disk::part) writes it.
    DiskPart {
        /// Where it begins on the disk.
        start: u64,
        /// Its bytes.
        size: u64,
    },
    /// Mount a file system in private, and write it to standard output as a tar archive.
    Mounted {
        /// The block device that it is on.
        device: PathBuf,
        /// What it is.
        file_system: FileSystem,
        /// Most that may be in it.
        limits: UnpackLimits,
    },
    /// Become `qemu-img`, which converts the image that standard input is too.
    Convert {
        /// The image.
        image: PathBuf,
        /// What it was recognised as.
        format: DiskFormat,
        /// The file that the raw disk is written to, which the jail's user owns.
        disk: PathBuf,
        /// Most that may be written.
        limits: UnpackLimits,
    },
    /// What the disk image that standard input is has outside its root file
    /// system, to standard output.
    Frame,
    /// How the disk that standard input is changes when its root partition grows.
    Grow {
        /// Where the partition begins.
        start: u64,
        /// Bytes to grow by.
        by: u64,
    },
    /// Unpack the plain archive on standard input into a new file system.
    Fill {
        /// The block device with an empty ext2, ext3 or ext4, which berth made.
        device: PathBuf,
    },
    /// Take the plain image archive that standard input is apart. It is a file, and
    /// its members stay in it.
    Stage {
        /// Most that may be written.
        limits: UnpackLimits,
    },
    /// Unpack the plain layer on standard input.
    Layer {
        /// What it is.
        kind: TreeKind,
        /// Most that may be written.
        limits: UnpackLimits,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// All was decompressed.
    Decompressed,
    /// It is a root file system's, or it may be anything.
    Looked(bool),
    /// All of the root file system was written.
    Disk,
    /// All of the mounted system was written, with what of its fstab belongs to it.
    Mounted(Vec<DiskMount>),
    /// The root file system was looked for.
    Root(Found),
    /// All of the part was written.
    DiskPart,
    /// All outside the root file system was written.
    Frame(Frame),
    /// What the disk looks like, where it changes.
    Grown(Vec<Patch>),
    /// All was unpacked and is on the device.
    Filled,
    /// All was staged.
    Staged(Staged),
    /// All was unpacked.
    Layer(UnpackReport),
}

/// The last word of the child, as JSON on standard error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Verdict {
    /// It worked.
    Done(Outcome),
    /// It did not.
    Failed {
        /// The kind of the fault.
        kind: FaultKind,
        /// Its detail.
        detail: String,
    },
}
