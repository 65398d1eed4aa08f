//! The monitor: one small process beside every running instance.
//!
//! It has the runtime program create the instance, holds the console's master,
//! keeps the console's log, reaps the first process, starts it again when the
//! guest reboots, and writes down how it ended. It is a process of its own so
//! that the service can stop, crash and be replaced while instances run.
//!
//! * [`client`] is the service's side: [`launch`] and [`Monitor`].
//! * [`program`] is the other, what `berth-monitor` runs.
//! * [`protocol`] is what they say to each other.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::cgroup::plan::CgroupPlan;
use crate::fault::{OrFault, Result};
use crate::runtime::cli::CliRuntime;
use crate::store::layout::{InstanceLayout, Layout};
use crate::sys::ids::IdBlock;

pub mod client;
mod container;
mod peer;
pub mod program;
pub mod protocol;
mod serve;
mod strays;

pub use client::{ConsoleStream, Monitor, launch};
pub use protocol::{ExitAction, ExitKind, ExitRecord, Message, MonitorStatus, Phase};
pub use strays::{end_strays, end_unrecorded};

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
    /// The runtime program. The bundle is the layout's.
    pub runtime: CliRuntime,
    /// The instance's cgroups and limits; applied before every start, and again
    /// after the runtime's `create`, which on some runtimes resets limits.
    pub plan: CgroupPlan,
    /// `cgroup.procs` files of existing cgroups, one in each hierarchy, that the
    /// monitor enters itself, away from the service's.
    pub own_cgroups: Vec<PathBuf>,
    /// `cgroup.procs` files that the runtime's `create` enters, and the first
    /// process with it: for the unified hierarchy of a hybrid host, of which
    /// runtimes may know nothing. Empty on v2, where the runtime wants the
    /// cgroup empty.
    pub join_cgroups: Vec<PathBuf>,
    /// Files with a line `oom_kill N` (v2 `memory.events`, v1 `memory.oom_control`).
    pub oom_counters: Vec<PathBuf>,
    /// Bound of the console log, bytes.
    pub console_log_bytes: u64,
    /// The instance's ids, if its console is to be a machine's: see
    /// [`crate::runtime::init::logs_in_at_serial_line`].
    #[serde(default)]
    pub serial_line: Option<IdBlock>,
}

impl MonitorSpec {
    /// The instance's paths.
    pub fn layout(&self) -> InstanceLayout {
        Layout::new(&self.state_dir, &self.run_dir).instance(self.instance)
    }
}

/// Writes a file of the volatile directory, mode 0600. It need not survive the
/// host's fall, so nothing waits for a disk, should the directory be on one.
fn write_volatile<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let doing = || format!("writing {}", path.display());
    let bytes = serde_json::to_vec(value).or_fault(doing())?;
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(&bytes))
        .or_fault(doing())
}
