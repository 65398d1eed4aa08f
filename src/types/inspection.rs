//! What the service would make of an image, said before it is imported.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    ImageConfig, ImageDisk, ImageFormat, ImageHash, ImageSource, ImageVerification,
    SupervisorProgram,
};
use crate::fault::FaultKind;

/// A request to say what an image would become. The same as for an import, with the id in it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageInspect {
    /// Glance's id of the image. A file needs none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// Where its content is.
    pub source: ImageSource,
    /// Glance's `os_hash_algo` and `os_hash_value`; when given, content with another hash is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<ImageHash>,
    /// Size of the content in bytes; when given, other content is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// As an import tells of it: with it, `images.kernel_mounts = "signed"` lets the host's
    /// kernel read the file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verification: Option<ImageVerification>,
}

/// What an import of an image would come to, and of one that would be refused what was found
/// before that. Nothing of it is in the store.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct ImageInspection {
    /// Why an import would be refused; absent where it would not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<ImageRefusal>,
    /// What the plain content was recognised as, if that is something berth reads.
    pub format: Option<ImageFormat>,
    /// How all of the content is compressed, if it is.
    pub compression: Option<ImageCompression>,
    /// Name of the disk image in the archive that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// Bytes of the content, as it came; absent where it was not read to its end.
    pub size: Option<u64>,
    /// Its SHA-512, the same.
    pub hash: Option<ImageHash>,
    /// What its first program that was found runs on, in the words of `uname -m`.
    pub architecture: Option<String>,
    /// What an instance of it is, unless it is given another command.
    pub role: Option<ImageRole>,
    /// How it starts.
    pub config: Option<ImageConfig>,
    /// Programs found beside its inits that only watch over an application.
    #[serde(default)]
    pub supervisors: Vec<SupervisorProgram>,
    /// The layers that were unpacked, lowest first.
    pub layers: Vec<LayerInspection>,
    /// Files, directories and links in them all.
    pub entries: u64,
    /// Bytes that their files take, holes left out, those counted that are in the store already.
    pub unpacked_size: u64,
    /// Of a disk image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskInspection>,
}

/// Why an image is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageRefusal {
    /// The code of the fault that its import would end with.
    pub code: FaultKind,
    /// Its words.
    pub detail: String,
}

/// A compression that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImageCompression {
    /// gzip.
    Gzip,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
}

/// What instances of an image are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImageRole {
    /// It boots an init, with a machine's worth of services.
    System,
    /// It runs one program.
    Application,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LayerInspection {
    /// Its address, `sha256:…`; absent of a disk that was not read to its end.
    pub digest: Option<String>,
    /// Bytes of it in the image, compressed or not; absent where it is all of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed_size: Option<u64>,
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes that its files take, holes left out.
    pub unpacked_size: u64,
}

/// What is on a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskInspection {
    /// Bytes of the disk that a machine would see.
    pub size: u64,
    /// Its partitions, or its one file system without a table.
    pub partitions: Vec<DiskPartition>,
    /// What the root's `/etc/fstab` mounts at or below `/usr`, `/var`, `/srv`, `/opt` and `/home`.
    pub mounts: Vec<DiskMount>,
    /// What would be kept to make such a disk again, of one that is read without the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<ImageDisk>,
}

/// A partition, or a disk that is one file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskPartition {
    /// Its number, as Linux counts; absent of a disk without a table.
    pub number: Option<u32>,
    /// Its first byte.
    pub start: u64,
    /// Its bytes.
    pub size: u64,
    /// Its type: a GUID, or two hexadecimal digits of a master boot record.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// What that type is for, of those that are well known.
    pub purpose: Option<String>,
    /// Its name in a GUID table.
    pub name: String,
    /// The label of its file system.
    pub label: String,
    /// What its first bytes are, in words.
    pub content: String,
    /// The directory at which the system has it; absent where it is not read.
    pub place: Option<String>,
    /// What says so.
    pub reason: Option<PlaceReason>,
}

/// By what a partition is taken for what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PlaceReason {
    /// Its type in the partition table.
    Type,
    /// Its label, or its name in the table.
    Label,
    /// An fstab on the disk.
    Fstab,
    /// It alone has an init.
    Init,
    /// No other can be it.
    Only,
}

/// A line of an fstab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskMount {
    /// The device, as it is named there.
    pub source: String,
    /// The directory.
    pub place: String,
    /// Number of the partition that it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// The subvolume of the root's Btrfs that it is. Neither: it is not there, and `nofail`
    /// has it left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subvolume: Option<String>,
}
