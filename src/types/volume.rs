//! Volumes: block devices that an instance has beside its own disks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Where a volume's blocks are, on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum VolumeSource {
    /// A block device.
    Block {
        /// Its absolute path, e.g. `/dev/disk/by-id/…`; nothing of the host may use it.
        #[schema(value_type = String)]
        path: PathBuf,
    },
    /// A file that holds the blocks as they are.
    File {
        /// Its absolute path; its bytes are a multiple of 512.
        #[schema(value_type = String)]
        path: PathBuf,
    },
}

/// Body of an attach. The same body again changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeAttach {
    /// Its name inside, `/dev/vdb` to `/dev/vdz`; when absent, the first that is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 3, max_length = 8)]
    pub device: Option<String>,
    /// Where its blocks are.
    pub source: VolumeSource,
    /// Its serial number inside, of which 20 characters are seen; when absent, its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64)]
    pub serial: Option<String>,
    /// Whether the instance may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// Whether other instances may have the same block device at the same time; all that have it
    /// must say so. What it holds must be made for that.
    #[serde(default)]
    pub multiattach: bool,
}

/// How far a volume's attachment is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeStatus {
    /// The instance has it, or will at its next start.
    #[default]
    Attached,
    /// It is being taken away, and cannot be opened any more.
    Detaching,
}

/// A volume of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Cinder's id.
    pub id: Uuid,
    /// Its name inside.
    pub device: String,
    /// Where its blocks are.
    pub source: VolumeSource,
    /// Its serial number; 20 characters of it are seen inside.
    pub serial: String,
    /// Whether the instance may only read it.
    pub read_only: bool,
    /// Whether other instances may have the same block device.
    pub multiattach: bool,
    /// Its size, bytes, when it was last attached, started with or extended.
    pub bytes: u64,
    /// How far it is.
    #[serde(default)]
    pub status: VolumeStatus,
}

impl VolumeSource {
    /// Its path on the host.
    pub fn path(&self) -> &std::path::Path {
        match self {
            VolumeSource::Block { path } | VolumeSource::File { path } => path,
        }
    }

    /// The request's field that names it.
    pub const fn field(&self) -> &'static str {
        match self {
            VolumeSource::Block { .. } => "source.block.path",
            VolumeSource::File { .. } => "source.file.path",
        }
    }
}
