//! What a record says of moves between hosts.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::types::{InstanceMigration, MigrationState};

/// That an instance goes to another host, or has gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departure {
    /// Id of the move.
    pub move_id: Uuid,
    /// The other host's service.
    pub to: String,
    /// How far it is. From [`MigrationState::Committing`] on only the other host knows whose it is.
    pub state: MigrationState,
    /// Whether the instance ran before.
    pub ran: bool,
    /// Since when.
    pub since: DateTime<Utc>,
}

impl Departure {
    /// As the API shows it.
    pub fn shown(&self) -> InstanceMigration {
        InstanceMigration { to: self.to.clone(), state: self.state, since: self.since }
    }

    /// Whether the instance may be another host's: nothing may be done to it.
    pub fn is_away(&self) -> bool {
        self.state != MigrationState::Copying
    }
}

/// That an instance came from another host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// Id of the move.
    pub move_id: Uuid,
    /// When it was taken.
    pub at: DateTime<Utc>,
}
