//! An instance's way to another host: what is asked for, and what two services tell each other.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Flavor;

/// Body of the migrate action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// The other host's service: `https://host:port`, as its certificate names the host.
    pub to: String,
    /// The flavor that it has there; when absent, the one that it has. Disks only grow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flavor: Option<Flavor>,
    /// Seconds that the init may take before it is killed, 0 (at once) to 3,600; default 60, as Nova's `shutdown_timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 3600)]
    pub timeout: Option<u32>,
}

/// Body of the revert of a migration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RevertMigration {
    /// Do not ask the other host whether it has the instance: for one that will never
    /// come back. If it does, both have it.
    pub force: bool,
}

/// That an instance is no longer this host's, or may not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceMigration {
    /// The other host's service.
    pub to: String,
    /// How far it is.
    pub state: MigrationState,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// How far the move of an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MigrationState {
    /// It is on its way, and this host's.
    Copying,
    /// The other host was told to take it, and has not said whether it did.
    Committing,
    /// It is the other host's. What is here is kept for a revert, until it is deleted.
    Moved,
}

/// An instance on its way here, from another host's service.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IncomingInstance {
    /// Version of what the sender tells.
    pub format: u32,
    /// Nova's id of the instance.
    pub instance_id: Uuid,
    /// The sender's record of it, as far as it goes along.
    #[schema(value_type = Object)]
    pub instance: serde_json::Value,
    /// The sender's record of its image.
    #[schema(value_type = Object)]
    pub image: serde_json::Value,
    /// The flavor that it is to have here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flavor: Option<Flavor>,
    /// Bytes of data that its disks hold.
    pub bytes: u64,
}

impl std::fmt::Debug for IncomingInstance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The record holds the key of the instance's seals.
        f.debug_struct("IncomingInstance")
            .field("instance_id", &self.instance_id)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// What is made ready for an instance, and what is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Incoming {
    /// Digests of layers that this host lacks.
    pub missing_layers: Vec<String>,
    /// Whether it lacks what is kept of the image's disk.
    pub missing_image_disk: bool,
}

/// A file of an instance that is moved.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum IncomingFile {
    /// Its root disk.
    Root,
    /// Its ephemeral disk.
    Ephemeral,
    /// What is kept of the disk that its image is.
    ImageDisk,
    /// First part of its console's output.
    ConsoleFirst,
    /// Latest part of its console's output.
    ConsoleLog,
    /// The part before.
    ConsoleBefore,
}

impl IncomingFile {
    /// As it stands in a path.
    pub const fn name(self) -> &'static str {
        match self {
            IncomingFile::Root => "root",
            IncomingFile::Ephemeral => "ephemeral",
            IncomingFile::ImageDisk => "image-disk",
            IncomingFile::ConsoleFirst => "console-first",
            IncomingFile::ConsoleLog => "console-log",
            IncomingFile::ConsoleBefore => "console-before",
        }
    }
}

/// How a move ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IncomingEnd {
    /// Whose the instance is.
    pub outcome: IncomingOutcome,
}

/// Whose an instance is when its move has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum IncomingOutcome {
    /// This host's: it was taken.
    Committed,
    /// The sender's: nothing of it is here, and nothing of this move will be.
    Aborted,
}
