//! What a monitor is told at its launch.

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cgroup::plan::CgroupPlan;
use crate::runtime::chosen::Chosen;
use crate::runtime::dev::Extra;
use crate::runtime::disks::Disk;
use crate::store::layout::{InstanceLayout, Layout};
use crate::sys::ids::IdBlock;
use crate::types::InitKind;

/// All that a monitor needs to know, in `monitor.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MonitorSpec {
    /// The instance.
    pub instance: Uuid,
    /// The service's durable directory.
    pub state_dir: PathBuf,
    /// The service's volatile directory.
    pub run_dir: PathBuf,
    /// The runtime. The bundle is the layout's.
    pub runtime: Chosen,
    /// The instance's cgroups and limits; applied before every start, and again
    /// after the runtime's `create`, which on some runtimes resets limits.
    pub plan: CgroupPlan,
    /// `cgroup.procs` files of existing cgroups, one in each hierarchy, that the
    /// monitor enters itself, away from the service's.
    pub own_cgroups: Vec<PathBuf>,
    /// `cgroup.procs` files that the runtime's `create` enters, and the first
    /// process with it. For the native runtime all of the instance's; for a
    /// program those that it leaves alone: for the unified hierarchy of a hybrid host, of which
    /// runtimes may know nothing. Empty on v2, where the runtime wants the
    /// cgroup empty.
    pub join_cgroups: Vec<PathBuf>,
    /// Files with a line `oom_kill N` (v2 `memory.events`, v1 `memory.oom_control`).
    pub oom_counters: Vec<PathBuf>,
    /// Bound of the console log, bytes.
    pub console_log_bytes: u64,
    /// The instance's ids.
    pub block: IdBlock,
    /// Its init, if it is to have a machine's lines: see [`crate::runtime::init::of_lines`].
    pub init: Option<InitKind>,
    /// Of an instance with systemd, its memory, MiB: see [`crate::runtime::tmpfs`].
    #[serde(default)]
    pub systemd_memory_mb: Option<u64>,
    /// Its disks, in its `/dev` and in what it is shown.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// What its `/dev` has beside what every instance's has.
    #[serde(default)]
    pub devices: Vec<Extra>,
    /// Its cgroup of devices: of version 1 the controller's, of version 2 all of it.
    pub device_cgroup: PathBuf,
    /// Where lxcfs is mounted when it is; empty: the bundle has nothing of it.
    #[serde(default)]
    pub lxcfs: PathBuf,
    /// What it is shown of the kernel's files; none: what the runtime program mounts.
    #[serde(default)]
    pub view: Option<ViewSpec>,
}

/// What does not change from boot to boot of [`crate::runtime::view::View`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ViewSpec {
    /// What `/proc/cmdline` says.
    pub command_line: String,
    /// Whether root inside can neither uncover what is hidden nor mount proc and sysfs anew.
    pub locked: bool,
}

/// The runtime of an instance that has been launched, whatever the service's is by now.
pub fn launched_by(layout: &InstanceLayout) -> Option<Chosen> {
    #[derive(Deserialize)]
    struct Part {
        runtime: Chosen,
    }
    read::<Part>(layout).map(|part| part.runtime)
}

/// The ids of an instance that has been launched.
pub fn ids_of(layout: &InstanceLayout) -> Option<IdBlock> {
    #[derive(Deserialize)]
    struct Part {
        block: IdBlock,
    }
    read::<Part>(layout).map(|part| part.block)
}

/// Some of what the monitor was told.
fn read<P: DeserializeOwned>(layout: &InstanceLayout) -> Option<P> {
    crate::store::atomic::read_json(&layout.monitor_spec()).ok().flatten()
}

impl MonitorSpec {
    /// The instance's paths.
    pub fn layout(&self) -> InstanceLayout {
        Layout::new(&self.state_dir, &self.run_dir).instance(self.instance)
    }
}
