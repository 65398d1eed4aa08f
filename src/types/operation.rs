//! Long work that outlives the connection that asked for it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::Problem;

/// A piece of work under way or lately ended.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its id.
    pub id: Uuid,
    /// What is done, e.g. `instance.start` or `image.import`.
    pub kind: String,
    /// Id of the instance or image it is done to.
    pub target: Uuid,
    /// The request id of the call that asked for it.
    pub request_id: String,
    /// Where it stands.
    pub status: OperationStatus,
    /// Share done, 0 to 100, where it can be known.
    pub progress: Option<u8>,
    /// Bytes to move, where it moves any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<OperationBytes>,
    /// What it is doing now, in words.
    pub stage: String,
    /// Why it failed.
    pub fault: Option<Problem>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

/// How far a move of bytes is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationBytes {
    /// All that are to be moved, as far as is known.
    pub total: u64,
    /// Those that are moved.
    pub processed: u64,
    /// Those that are not yet.
    pub remaining: u64,
}

/// Where an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OperationStatus {
    /// Waiting for an earlier operation on the same target.
    Queued,
    /// Under way.
    Running,
    /// Ended well.
    Succeeded,
    /// Ended with a fault.
    Failed,
}
