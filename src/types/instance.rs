//! Instances: what is asked for, and what is.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Flavor, Vif, Volume};

/// The definition of an instance. The same body again is the same instance;
/// another body under the same id is a conflict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceCreate {
    /// Nova's `instance.name`, e.g. `instance-0000002a`; 1 to 255 characters.
    #[schema(min_length = 1, max_length = 255)]
    pub name: String,
    /// Host name inside, an RFC 1123 label or dotted name, at most 64
    /// characters (the kernel's limit); when absent, made of `name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 64)]
    pub hostname: Option<String>,
    /// Id of an image that this host's store has.
    pub image_id: Uuid,
    /// What it gets of the host.
    pub flavor: Flavor,
    /// Its interfaces, in the order of `eth0`, `eth1`, …
    #[serde(default)]
    #[schema(max_items = 64)]
    pub vifs: Vec<Vif>,
    /// Name servers for `/etc/resolv.conf`; when absent the image's own file stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// Environment of the first process, over the image's.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Command instead of the image's (`Cmd`; the image's `Entrypoint` stays).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Files written into the root file system once, before the first start.
    /// Nothing of what is in them is kept beside it, given back or logged.
    #[serde(default)]
    #[schema(max_items = 256)]
    pub files: Vec<InjectedFile>,
    /// Kept and given back, without meaning: names and values for the client.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

impl InstanceCreate {
    /// What is kept of it, and the files, which are not.
    pub fn into_parts(self) -> (Definition, Vec<InjectedFile>) {
        let InstanceCreate {
            name,
            hostname,
            image_id,
            flavor,
            vifs,
            dns,
            environment,
            command,
            files,
            metadata,
        } = self;
        let definition = Definition {
            name,
            hostname,
            image_id,
            flavor,
            vifs,
            dns,
            environment,
            command,
            metadata,
        };
        (definition, files)
    }
}

/// What is kept of [`InstanceCreate`]: all but the files. Its fields stand there again, since serde
/// refuses unknown fields of no structure that has another flattened into it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Definition {
    /// Nova's `instance.name`, e.g. `instance-0000002a`.
    pub name: String,
    /// Host name inside; when absent, made of `name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Id of the image that it was made from.
    pub image_id: Uuid,
    /// What it gets of the host.
    pub flavor: Flavor,
    /// Its interfaces, in the order of `eth0`, `eth1`, …
    #[serde(default)]
    pub vifs: Vec<Vif>,
    /// Name servers for `/etc/resolv.conf`; when absent the image's own file stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// Environment of the first process, over the image's.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Command instead of the image's (`Cmd`; the image's `Entrypoint` stays).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// The client's names and values, as it gave them.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

/// Resolver configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Dns {
    /// Addresses of name servers, IPv4 or IPv6.
    #[serde(default)]
    pub nameservers: Vec<String>,
    /// Search domains.
    #[serde(default)]
    pub search: Vec<String>,
}

/// A file to write into the root file system.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InjectedFile {
    /// Absolute path inside the instance; missing directories are made.
    pub path: String,
    /// Content, base64.
    pub content: String,
    /// Permission bits, e.g. 420 (0o644), the default; at most 4095 (0o7777).
    #[serde(default = "default_mode")]
    #[schema(maximum = 4095)]
    pub mode: u32,
}

fn default_mode() -> u32 {
    0o644
}

impl std::fmt::Debug for InjectedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The content may be a password.
        let InjectedFile { path, content: _, mode } = self;
        let mut shown = f.debug_struct("InjectedFile");
        shown.field("path", path).field("mode", mode).finish_non_exhaustive()
    }
}

/// Nova's power states, with the numbers Nova gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum PowerState {
    /// 0: unknown, or not yet made.
    NoState,
    /// 1.
    Running,
    /// 3: frozen.
    Paused,
    /// 4: not running; its file system is kept.
    Shutdown,
    /// 6: its first process ended by a signal or with a failure.
    Crashed,
    /// 7: frozen, its memory given back as far as the host can.
    Suspended,
}

impl PowerState {
    /// Nova's number for it (`nova.objects.fields.InstancePowerState`).
    pub const fn number(self) -> u8 {
        match self {
            PowerState::NoState => 0,
            PowerState::Running => 1,
            PowerState::Paused => 3,
            PowerState::Shutdown => 4,
            PowerState::Crashed => 6,
            PowerState::Suspended => 7,
        }
    }
}

impl std::fmt::Display for PowerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            PowerState::NoState => "NOSTATE",
            PowerState::Running => "RUNNING",
            PowerState::Paused => "PAUSED",
            PowerState::Shutdown => "SHUTDOWN",
            PowerState::Crashed => "CRASHED",
            PowerState::Suspended => "SUSPENDED",
        })
    }
}

/// What is being done to an instance now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Being made.
    Creating,
    /// Being started.
    Starting,
    /// Being stopped.
    Stopping,
    /// Being rebooted, on request or from inside.
    Rebooting,
    /// Being frozen.
    Pausing,
    /// Being thawed.
    Unpausing,
    /// Being frozen, memory given back.
    Suspending,
    /// Being thawed after a suspend.
    Resuming,
    /// Limits being changed.
    Resizing,
    /// What was kept for a revert being removed.
    ConfirmingResize,
    /// Being made what it was before a resize.
    RevertingResize,
    /// On its way to another host.
    Migrating,
    /// Being taken back from another host.
    RevertingMigration,
    /// An interface being attached or detached.
    Networking,
    /// A volume being attached, detached or extended.
    ChangingVolumes,
    /// A user's password being set.
    SettingPassword,
    /// What it is doing being written to its console.
    Dumping,
    /// Its disk being copied for a snapshot.
    Snapshotting,
    /// Disks being frozen.
    Quiescing,
    /// Disks being thawed.
    Unquiescing,
    /// Being booted from a rescue image.
    Rescuing,
    /// Being booted from its own root file system again.
    Unrescuing,
    /// Being destroyed.
    Deleting,
}

/// How the first process last ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExitStatus {
    /// Exit code, when it exited.
    pub code: Option<i32>,
    /// Signal number, when a signal ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of the instance for want of memory.
    #[serde(default)]
    pub oom_killed: bool,
    /// When it ended.
    pub at: DateTime<Utc>,
}

/// An instance as it is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// Nova's id.
    pub id: Uuid,
    /// The definition, with later changes of flavor and interfaces.
    #[serde(flatten)]
    pub definition: Definition,
    /// Its volumes, each with the name that it has inside.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Its power state.
    pub power_state: PowerState,
    /// Nova's number of the power state.
    pub power_state_number: u8,
    /// What is being done to it now.
    pub task_state: Option<TaskState>,
    /// Whether its disks are frozen: whoever writes to them waits, all else runs.
    pub quiesced: bool,
    /// The resize that awaits confirm or revert, while one does.
    pub unconfirmed_resize: Option<UnconfirmedResize>,
    /// That it moves to another host, or has.
    #[serde(default)]
    pub migration: Option<super::InstanceMigration>,
    /// The image that it boots instead of its own root file system, while it
    /// is rescued: RUNNING is then that image, running.
    pub rescue_image_id: Option<Uuid>,
    /// The fault of the last failed operation; absent after a success.
    pub fault: Option<super::Problem>,
    /// Process id of its first process, as the host sees it, while it runs.
    pub pid: Option<i32>,
    /// First host user id of its block; root inside is this id outside.
    pub id_map_first: u32,
    /// Number of ids in its block.
    pub id_map_size: u32,
    /// CPUs it is bound to, when `hw:cpu_policy` is `dedicated`.
    pub pinned_cpus: Option<Vec<u32>>,
    /// How the first process last ended.
    pub exit: Option<ExitStatus>,
    /// Number of times it rebooted itself since it was last started.
    pub guest_reboots: u32,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last started.
    pub started_at: Option<DateTime<Utc>>,
    /// Number of the record's last change.
    pub generation: u64,
}

/// Body of the stop action.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Stop {
    /// Seconds that the init may take before it is killed, 0 (at once) to 3,600; default 60, as Nova's `shutdown_timeout`.
    #[schema(maximum = 3600)]
    pub timeout: Option<u32>,
}

/// Body of the reboot action.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reboot {
    /// Soft asks the init and turns hard after `timeout`; hard starts anew at once.
    #[serde(rename = "type")]
    pub reboot_type: RebootType,
    /// Seconds for a soft reboot, 0 to 3,600; default 60.
    #[serde(default)]
    #[schema(maximum = 3600)]
    pub timeout: Option<u32>,
}

/// Nova's reboot types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum RebootType {
    /// Through the init program.
    Soft,
    /// Through the kernel: everything but the file system is made anew.
    Hard,
}

/// Body of the resize action.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// The new flavor. Disks only grow; all else changes while it runs.
    pub flavor: Flavor,
    /// Keep what the instance is, its flavor and a copy of its disks, until
    /// the resize is confirmed or reverted. One that runs is stopped, and
    /// started again if the resize fails.
    #[serde(default)]
    pub keep: bool,
    /// With `keep`: seconds that the init may take before it is killed, 0 (at once) to 3,600; default 60, as Nova's `shutdown_timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 3600)]
    pub timeout: Option<u32>,
}

/// A resize that awaits confirm or revert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UnconfirmedResize {
    /// The flavor that a revert brings back, with the disks as they were.
    pub flavor: Flavor,
    /// When the instance was resized.
    pub since: DateTime<Utc>,
}

/// Body of the rescue action.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rescue {
    /// Id of an image that this host's store has. It boots as itself: not with
    /// the instance's command.
    pub image_id: Uuid,
    /// Environment of its first process, over the image's; when absent, the instance's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<BTreeMap<String, String>>,
    /// Files written into its root file system. Never kept, never logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 256)]
    pub files: Option<Vec<InjectedFile>>,
}

impl std::fmt::Debug for Rescue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The files may hold a password.
        f.debug_struct("Rescue").field("image_id", &self.image_id).finish_non_exhaustive()
    }
}

/// Body of the password action.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetPassword {
    /// The user, as the instance's `/etc/passwd` has it.
    #[schema(min_length = 1, max_length = 32)]
    pub user: String,
    /// Its new password: one line of at most 511 bytes. Never kept, never logged.
    #[schema(min_length = 1, max_length = 511)]
    pub password: String,
}

impl std::fmt::Debug for SetPassword {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SetPassword").field("user", &self.user).finish_non_exhaustive()
    }
}
