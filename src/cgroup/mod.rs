//! What an instance may use of CPUs, memory, processes and disks: its cgroup.
//!
//! berth writes the cgroup itself instead of leaving it to the runtime
//! program, so that limits, pause and statistics are the same whatever the
//! runtime. The runtime only joins the directory (`cgroupsPath` is
//! `/{parent}/{uuid}`) and sets the device filter.
//!
//! * [`Hierarchy`] knows where each controller lives: version 1, version 2, or both.
//! * [`CgroupLimits`] is the flavor in the kernel's terms, pure.
//! * [`CgroupPlan`] is what must be made before the first process joins, as data that
//!   the monitor can apply again when the guest reboots.
//! * [`Group`] is one instance's cgroup: change, freeze, measure, empty, remove.

mod entrance;
mod group;
mod hierarchy;
#[cfg(test)]
mod kernel_tests;
mod limits;
pub mod plan;
mod stats;
mod tasks;
mod tree;
mod v1;
mod v2;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use entrance::Entrance;
pub use group::Group;
pub use hierarchy::{CgroupLayout, Controller, Hierarchy, Place, Version};
pub use limits::{CgroupLimits, Cpu, CpuPolicy, DiskRates};
pub use plan::{CgroupPlan, Step};
pub use stats::{DeviceIo, GroupStats, device_io};
pub use tasks::{pids_below, remove_dir};

/// A block device as the kernel numbers it; as text `major:minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceNumber {
    /// The driver's number, e.g. 7 for loop devices.
    pub major: u32,
    /// The device's number within the driver.
    pub minor: u32,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}
