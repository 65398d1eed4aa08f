//! Which action is possible in which state: pure, and tested as a table.
//!
//! The rules are Nova's: an action that is already fulfilled succeeds and does
//! nothing (Nova retries), and one that makes no sense is refused with the
//! state named.

use crate::fault::{Fault, FaultKind, Result};
use crate::types::{PowerState, TaskState};

/// What can be asked of an instance, without the details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Start it.
    Start,
    /// Stop it.
    Stop,
    /// Reboot it through its init.
    SoftReboot,
    /// Reboot it through the kernel.
    HardReboot,
    /// Freeze it.
    Pause,
    /// Thaw it.
    Unpause,
    /// Freeze it and take its memory.
    Suspend,
    /// Thaw it after a suspend.
    Resume,
    /// Change its flavor.
    Resize,
    /// Keep it as a resize made it.
    ConfirmResize,
    /// Make it what it was before a resize.
    RevertResize,
    /// Have another host have it.
    Migrate,
    /// Take it back from another host.
    RevertMigration,
    /// Attach or detach an interface.
    Network,
    /// Attach, detach or extend a volume.
    Volume,
    /// Set a user's password inside it.
    SetPassword,
    /// Write what it is doing to its console.
    Dump,
    /// Make an image of its root file system.
    Snapshot,
    /// Freeze its disks.
    Quiesce,
    /// Thaw its disks.
    Unquiesce,
    /// Boot it from a rescue image.
    Rescue,
    /// Boot it from its own root file system again.
    Unrescue,
    /// Destroy it.
    Delete,
}

/// What an admitted action amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Do it.
    Do,
    /// It is so already.
    Nothing,
}

impl Verb {
    /// The task state while it is under way.
    pub const fn task_state(self) -> TaskState {
        match self {
            Verb::Start => TaskState::Starting,
            Verb::Stop => TaskState::Stopping,
            Verb::SoftReboot | Verb::HardReboot => TaskState::Rebooting,
            Verb::Pause => TaskState::Pausing,
            Verb::Unpause => TaskState::Unpausing,
            Verb::Suspend => TaskState::Suspending,
            Verb::Resume => TaskState::Resuming,
            Verb::Resize => TaskState::Resizing,
            Verb::ConfirmResize => TaskState::ConfirmingResize,
            Verb::RevertResize => TaskState::RevertingResize,
            Verb::Migrate => TaskState::Migrating,
            Verb::RevertMigration => TaskState::RevertingMigration,
            Verb::Network => TaskState::Networking,
            Verb::Volume => TaskState::ChangingVolumes,
            Verb::SetPassword => TaskState::SettingPassword,
            Verb::Dump => TaskState::Dumping,
            Verb::Snapshot => TaskState::Snapshotting,
            Verb::Quiesce => TaskState::Quiescing,
            Verb::Unquiesce => TaskState::Unquiescing,
            Verb::Rescue => TaskState::Rescuing,
            Verb::Unrescue => TaskState::Unrescuing,
            Verb::Delete => TaskState::Deleting,
        }
    }

    /// Its name in operations, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Verb::Start => "instance.start",
            Verb::Stop => "instance.stop",
            Verb::SoftReboot | Verb::HardReboot => "instance.reboot",
            Verb::Pause => "instance.pause",
            Verb::Unpause => "instance.unpause",
            Verb::Suspend => "instance.suspend",
            Verb::Resume => "instance.resume",
            Verb::Resize => "instance.resize",
            Verb::ConfirmResize => "instance.resize.confirm",
            Verb::RevertResize => "instance.resize.revert",
            Verb::Migrate => "instance.migrate",
            Verb::RevertMigration => "instance.migrate.revert",
            Verb::Network => "instance.interface",
            Verb::Volume => "instance.volume",
            Verb::SetPassword => "instance.password",
            Verb::Dump => "instance.dump",
            Verb::Snapshot => "instance.snapshot",
            Verb::Quiesce => "instance.quiesce",
            Verb::Unquiesce => "instance.unquiesce",
            Verb::Rescue => "instance.rescue",
            Verb::Unrescue => "instance.unrescue",
            Verb::Delete => "instance.delete",
        }
    }

    /// Whether it needs the instance's disks to take changes, or processes
    /// that do not wait for one.
    pub const fn is_held_by_quiesce(self) -> bool {
        matches!(
            self,
            Verb::Pause
                | Verb::Suspend
                | Verb::Resize
                | Verb::SetPassword
                | Verb::Migrate
                | Verb::Volume
        )
    }

    /// Whether it cuts short a graceful stop that is under way, or a move.
    pub const fn is_urgent(self) -> bool {
        matches!(self, Verb::HardReboot | Verb::Delete | Verb::RevertMigration)
    }
}

/// Whether `verb` is possible in `state`.
pub fn admit(verb: Verb, state: PowerState) -> Result<Admission> {
    use Admission::{Do, Nothing};
    use PowerState::{Crashed, NoState, Paused, Running, Shutdown, Suspended};
    let admission = match (verb, state) {
        (Verb::Delete | Verb::Resize | Verb::Network | Verb::Volume | Verb::Snapshot, _) => Do,
        // Whether there is something to confirm or to revert, the record says.
        (Verb::ConfirmResize | Verb::RevertResize, _) => Do,
        (Verb::Migrate, _) => Do,
        // It is here.
        (Verb::RevertMigration, _) => Nothing,
        // Nova's hard reboot is the cure for every state.
        (Verb::HardReboot, _) => Do,
        // An unrescue of what is not rescued: one that is repeated.
        (Verb::Start | Verb::Unrescue, Shutdown | Crashed | NoState) => Do,
        (Verb::Start | Verb::Unrescue, Running) => Nothing,
        (Verb::Rescue, Shutdown | Crashed | NoState) => Do,
        (Verb::Stop, Running | Paused | Suspended) => Do,
        (Verb::Stop, Shutdown | Crashed | NoState) => Nothing,
        (Verb::SoftReboot | Verb::SetPassword, Running) => Do,
        (Verb::Dump, Running | Paused | Suspended) => Do,
        (Verb::Pause, Running) => Do,
        (Verb::Pause, Paused) => Nothing,
        (Verb::Unpause, Paused) => Do,
        (Verb::Unpause, Running) => Nothing,
        (Verb::Suspend, Running | Paused) => Do,
        (Verb::Suspend, Suspended) => Nothing,
        (Verb::Quiesce | Verb::Unquiesce, Running | Paused | Suspended) => Do,
        // Nobody writes to its disks.
        (Verb::Quiesce | Verb::Unquiesce, Shutdown | Crashed) => Nothing,
        (Verb::Resume, Suspended) => Do,
        (Verb::Resume, Running) => Nothing,
        _ => {
            let remedy = if verb == Verb::Rescue { "; stop it first" } else { "" };
            return Err(Fault::new(
                FaultKind::InstanceInvalidState,
                format!("{} is not possible while the instance is {state}{remedy}", verb.name()),
            ));
        }
    };
    Ok(admission)
}

/// Whether `verb` is possible in `state` of a rescued instance. What means its
/// own root file system as the one that runs is not. `again`: a rescue from
/// the image that it is rescued with.
pub fn admit_rescued(verb: Verb, state: PowerState, again: bool) -> Result<Admission> {
    match verb {
        Verb::Unrescue => Ok(Admission::Do),
        Verb::Rescue if again && state == PowerState::Running => Ok(Admission::Nothing),
        Verb::Resize
        | Verb::ConfirmResize
        | Verb::RevertResize
        | Verb::Snapshot
        | Verb::Migrate
        | Verb::Quiesce => Err(Fault::new(
            FaultKind::InstanceInvalidState,
            format!(
                "{} is not possible while the instance is rescued; unrescue it first",
                verb.name()
            ),
        )),
        _ => admit(verb, state),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rescued_instance_does() {
        use PowerState::*;
        for state in [NoState, Running, Paused, Shutdown, Crashed, Suspended] {
            assert_eq!(admit_rescued(Verb::Unrescue, state, false).unwrap(), Admission::Do);
            for verb in [Verb::Resize, Verb::RevertResize, Verb::Snapshot, Verb::Quiesce] {
                let fault = admit_rescued(verb, state, false).unwrap_err();
                assert!(fault.detail.contains("unrescue it first"), "{fault}");
            }
            for verb in [Verb::Start, Verb::Stop, Verb::HardReboot, Verb::Pause, Verb::Delete] {
                let rescued = admit_rescued(verb, state, false).ok();
                assert_eq!(rescued, admit(verb, state).ok(), "{verb:?} while {state}");
            }
        }
        let again = |state, again| admit_rescued(Verb::Rescue, state, again).ok();
        assert_eq!(again(Running, true), Some(Admission::Nothing));
        assert_eq!(again(Running, false), None);
        assert_eq!(again(Paused, true), None);
        assert_eq!(again(Shutdown, true), Some(Admission::Do));
    }

    #[test]
    fn the_table() {
        use PowerState::*;
        // One letter a state, in this order: D(o), N(othing), - (refused).
        let states = [NoState, Running, Paused, Shutdown, Crashed, Suspended];
        for (verb, row) in [
            (Verb::Start, "DN-DD-"),
            (Verb::Stop, "NDDNND"),
            (Verb::SoftReboot, "-D----"),
            (Verb::HardReboot, "DDDDDD"),
            (Verb::Pause, "-DN---"),
            (Verb::Unpause, "-ND---"),
            (Verb::Suspend, "-DD--N"),
            (Verb::Resume, "-N---D"),
            (Verb::Resize, "DDDDDD"),
            (Verb::ConfirmResize, "DDDDDD"),
            (Verb::RevertResize, "DDDDDD"),
            (Verb::Migrate, "DDDDDD"),
            (Verb::RevertMigration, "NNNNNN"),
            (Verb::Network, "DDDDDD"),
            (Verb::Volume, "DDDDDD"),
            (Verb::SetPassword, "-D----"),
            (Verb::Dump, "-DD--D"),
            (Verb::Snapshot, "DDDDDD"),
            (Verb::Quiesce, "-DDNND"),
            (Verb::Unquiesce, "-DDNND"),
            (Verb::Rescue, "D--DD-"),
            (Verb::Unrescue, "DN-DD-"),
            (Verb::Delete, "DDDDDD"),
        ] {
            for (state, expected) in states.into_iter().zip(row.chars()) {
                let found = match admit(verb, state) {
                    Ok(Admission::Do) => 'D',
                    Ok(Admission::Nothing) => 'N',
                    Err(fault) => {
                        assert_eq!(fault.kind, FaultKind::InstanceInvalidState);
                        '-'
                    }
                };
                assert_eq!(found, expected, "{verb:?} while {state}");
            }
        }
    }
}
