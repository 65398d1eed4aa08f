//! What changed: the event stream's entries.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::PowerState;

/// Something that happened to an instance.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Grows by one from event to event; the stream's `id:`, to resume from.
    pub sequence: u64,
    /// What happened.
    pub kind: EventKind,
    /// To which instance.
    pub instance_id: Uuid,
    /// Its power state then.
    pub power_state: PowerState,
    /// When.
    pub at: DateTime<Utc>,
    /// The request that caused it, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// What happened. The first five are Nova's lifecycle transitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// It runs.
    Started,
    /// It no longer runs. Withheld during a reboot from inside.
    Stopped,
    /// It was frozen.
    Paused,
    /// It was thawed.
    Resumed,
    /// It was frozen and its memory given back.
    Suspended,
    /// It rebooted itself.
    GuestRebooted,
    /// The kernel killed processes of it for want of memory; its statistics count them.
    OutOfMemory,
    /// lxcfs does not answer, so that `/proc/meminfo` and the like of it cannot be read or are the host's.
    LxcfsLost,
    /// They are its own again.
    LxcfsRestored,
    /// It was made; it does not run yet.
    Created,
    /// Its limits, interfaces or volumes changed.
    Updated,
    /// It is gone.
    Deleted,
}
