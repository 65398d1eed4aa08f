//! What can be asked of an instance, with its details.

use uuid::Uuid;

use super::state::Verb;
use crate::types::{
    Migrate, Reboot, RebootType, Rescue, Resize, RevertMigration, SetPassword, Snapshot, Stop, Vif,
    VolumeAttach,
};

/// Who asks: what logs and events say about the cause.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// `X-Openstack-Request-Id`, or one that the service made.
    pub request_id: String,
}

/// An action on an existing instance.
#[derive(Clone, Debug)]
pub enum Action {
    /// Start it.
    Start,
    /// Stop it: gracefully within the timeout, then by force.
    Stop(Stop),
    /// Reboot it.
    Reboot(Reboot),
    /// Freeze it.
    Pause,
    /// Thaw it.
    Unpause,
    /// Freeze it and give its memory back.
    Suspend,
    /// Thaw it after a suspend.
    Resume,
    /// Change its flavor.
    Resize(Resize),
    /// Keep it as a resize made it.
    ConfirmResize,
    /// Make it what it was before a resize.
    RevertResize,
    /// Have another host have it.
    Migrate(Migrate),
    /// Take it back from another host.
    RevertMigration(RevertMigration),
    /// Attach an interface, or leave the same one undisturbed.
    AttachInterface(Vif),
    /// Detach the interface of this port.
    DetachInterface(Uuid),
    /// Attach a volume, or leave the same one undisturbed.
    AttachVolume(Uuid, VolumeAttach),
    /// Detach a volume.
    DetachVolume {
        /// Which.
        id: Uuid,
        /// Whether it is taken from programs that have it open, which are killed.
        force: bool,
    },
    /// Have a volume be as large as its source is by now.
    ExtendVolume(Uuid),
    /// Set a user's password inside it.
    SetPassword(SetPassword),
    /// Write what it is doing to its console.
    Dump,
    /// Freeze its disks.
    Quiesce,
    /// Thaw its disks.
    Unquiesce,
    /// Make an image of its root file system.
    Snapshot(Snapshot),
    /// Boot it from a rescue image.
    Rescue(Rescue),
    /// Boot it from its own root file system again.
    Unrescue,
    /// Destroy it.
    Delete,
}

impl Action {
    /// The action without its details.
    pub fn verb(&self) -> Verb {
        match self {
            Action::Start => Verb::Start,
            Action::Stop(_) => Verb::Stop,
            Action::Reboot(r) if r.reboot_type == RebootType::Soft => Verb::SoftReboot,
            Action::Reboot(_) => Verb::HardReboot,
            Action::Pause => Verb::Pause,
            Action::Unpause => Verb::Unpause,
            Action::Suspend => Verb::Suspend,
            Action::Resume => Verb::Resume,
            Action::Resize(_) => Verb::Resize,
            Action::ConfirmResize => Verb::ConfirmResize,
            Action::RevertResize => Verb::RevertResize,
            Action::Migrate(_) => Verb::Migrate,
            Action::RevertMigration(_) => Verb::RevertMigration,
            Action::AttachInterface(_) | Action::DetachInterface(_) => Verb::Network,
            Action::AttachVolume(..) | Action::DetachVolume { .. } | Action::ExtendVolume(_) => {
                Verb::Volume
            }
            Action::SetPassword(_) => Verb::SetPassword,
            Action::Dump => Verb::Dump,
            Action::Quiesce => Verb::Quiesce,
            Action::Unquiesce => Verb::Unquiesce,
            Action::Snapshot(_) => Verb::Snapshot,
            Action::Rescue(_) => Verb::Rescue,
            Action::Unrescue => Verb::Unrescue,
            Action::Delete => Verb::Delete,
        }
    }
}

/// Outcome of a create request that was taken.
#[derive(Clone, Debug)]
pub struct Created {
    /// The work, possibly long ended.
    pub operation: std::sync::Arc<super::operation::OperationHandle>,
    /// Whether the same request had been taken before.
    pub existed: bool,
}

/// A command to run inside an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment over the instance's own.
    pub env: std::collections::BTreeMap<String, String>,
    /// `user`, `uid`, `user:group` or `uid:gid`, as the instance's image knows
    /// them; root when absent.
    pub user: Option<String>,
    /// Whether it gets a terminal. Its standard input, output and error are
    /// then one pseudo-terminal, which the caller of the command provides.
    pub tty: bool,
}
