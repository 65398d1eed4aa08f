//! What an instance uses.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// Statistics of one instance, read from its cgroup and devices.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceStats {
    /// The instance.
    pub id: Uuid,
    /// When they were read.
    pub at: DateTime<Utc>,
    /// Seconds since it was last started.
    pub uptime: u64,
    /// CPU time.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Processes and threads.
    pub pids: PidsStats,
    /// Block devices: the rescue image's while rescued, the root file system's, the ephemeral one's,
    /// volumes.
    pub block: Vec<BlockStats>,
    /// Interfaces, in the order of the definition.
    pub interfaces: Vec<InterfaceStats>,
    /// Pressure stall information, where the kernel keeps it.
    pub pressure: Option<PressureStats>,
}

/// CPU time of an instance.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CpuStats {
    /// Total, nanoseconds.
    pub usage_ns: u64,
    /// In user mode, nanoseconds.
    pub user_ns: u64,
    /// In the kernel, nanoseconds.
    pub system_ns: u64,
    /// Times the quota stopped it.
    pub throttled_periods: u64,
    /// How long the quota stopped it, nanoseconds.
    pub throttled_ns: u64,
}

/// Memory of an instance, bytes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct MemoryStats {
    /// All that is charged to it.
    pub usage: u64,
    /// Its limit.
    pub limit: u64,
    /// Most that was ever charged.
    pub peak: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Page cache.
    pub cache: u64,
    /// Swap used.
    pub swap: u64,
    /// Processes the kernel killed for want of memory.
    pub oom_kills: u64,
}

/// Processes and threads of an instance.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct PidsStats {
    /// How many there are.
    pub current: u64,
    /// How many there may be.
    pub limit: u64,
}

/// One block device of an instance.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct BlockStats {
    /// `rescue`, `root` or `ephemeral`; of a volume its name inside, as `vdb`.
    pub name: String,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub read_ops: u64,
    /// Writes.
    pub write_ops: u64,
    /// Bytes the file system holds; of a volume its size.
    pub used: u64,
    /// Bytes it can hold.
    pub size: u64,
}

/// One interface of an instance, seen from inside.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct InterfaceStats {
    /// Name of the host's end.
    pub devname: String,
    /// MAC address.
    pub address: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Receive errors.
    pub rx_errors: u64,
    /// Packets dropped on receipt.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Send errors.
    pub tx_errors: u64,
    /// Packets dropped on sending.
    pub tx_dropped: u64,
}

/// Share of the last ten seconds, percent, in which some task waited for the resource.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct PressureStats {
    /// For a CPU.
    pub cpu: f64,
    /// For memory.
    pub memory: f64,
    /// For a disk.
    pub io: f64,
}
