//! The compute host: what it has, what it can do, what it uses.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The host and the service on it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// Nova's `hypervisor_hostname`; it never changes while instances exist.
    pub hypervisor_hostname: String,
    /// Always `berth`.
    pub hypervisor_type: String,
    /// berth's version, e.g. `0.1.0`.
    pub version: String,
    /// The version as Nova's number: major × 1,000,000 + minor × 1,000 + patch.
    pub hypervisor_version: u32,
    /// Version of the HTTP API, `v1`.
    pub api_version: String,
    /// Machine architecture, e.g. `x86_64`.
    pub architecture: String,
    /// Kernel release.
    pub kernel: String,
    /// Seconds since the host booted.
    pub uptime: u64,
    /// Since when the service runs.
    pub service_started_at: DateTime<Utc>,
    /// What there is to give.
    pub inventory: Inventory,
    /// What instances can have.
    pub capabilities: Capabilities,
}

/// What the host has to give, and how much of it is given.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Inventory {
    /// CPUs for instances that share (Placement's VCPU).
    pub vcpus: u32,
    /// CPUs for `hw:cpu_policy=dedicated` (Placement's PCPU).
    pub pcpus: u32,
    /// Memory, MiB.
    pub memory_mb: u64,
    /// Disk, GiB: of the file system that holds the instances.
    pub local_gb: u64,
    /// Sum of the instances' `vcpus` that share.
    pub vcpus_used: u32,
    /// Number of dedicated CPUs in use.
    pub pcpus_used: u32,
    /// Sum of the instances' `memory_mb`, MiB.
    pub memory_mb_used: u64,
    /// Sum of the instances' disks, GiB.
    pub local_gb_used: u64,
    /// GiB free on that file system now (Nova's `disk_available_least`).
    pub disk_available_gb: u64,
    /// GiB that no disk can be promised: the reserve, images, and what is not
    /// berth's (Placement's `reserved`).
    #[serde(default)]
    pub disk_reserved_gb: u64,
    /// Number of instances.
    pub instances: u32,
    /// Number of instances that run.
    pub running_instances: u32,
    /// Model name of the CPUs.
    pub cpu_model: String,
    /// Vendor of the CPUs.
    pub cpu_vendor: String,
    /// Flags of the CPUs, as /proc/cpuinfo names them.
    pub cpu_flags: Vec<String>,
    /// Sockets.
    pub cpu_sockets: u32,
    /// Cores in a socket.
    pub cpu_cores: u32,
    /// Threads in a core.
    pub cpu_threads: u32,
}

/// What instances on this host can have.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Capabilities {
    /// `v1`, `hybrid` or `v2`.
    pub cgroup_layout: String,
    /// The OCI runtime program in use.
    pub runtime: RuntimeInfo,
    /// The storage back end that holds `root_gb`.
    pub storage_backend: String,
    /// Image formats that can be imported.
    pub image_formats: Vec<super::ImageFormat>,
    /// Whether /proc and /sys inside show the flavor (lxcfs).
    pub lxcfs: bool,
    /// Whether swap can be limited apart from memory.
    pub swap_limit: bool,
    /// Whether disk rates hold for buffered writes as well as for direct I/O.
    pub buffered_write_limit: bool,
    /// Every probe's outcome, as `berth check` prints it.
    pub checks: Vec<Check>,
}

/// An OCI runtime program and what it can do, as probed.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct RuntimeInfo {
    /// Its name, e.g. `crun`.
    pub name: String,
    /// Its path.
    pub path: String,
    /// First line of `--version`.
    pub version: String,
    /// Whether it applies seccomp profiles.
    pub seccomp: bool,
    /// Whether it joins an existing user namespace.
    pub user_namespace_path: bool,
    /// Whether it checkpoints through CRIU.
    pub checkpoint: bool,
}

/// One probe of the host.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// What was probed, e.g. `overlayfs on idmapped layers`.
    pub name: String,
    /// How it came out.
    pub status: CheckStatus,
    /// What was found.
    pub found: String,
    /// What to do about it, unless it is fine.
    pub remedy: Option<String>,
}

/// Outcome of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// Fine.
    Ok,
    /// Instances work; something is missing.
    Warning,
    /// Instances cannot work; `serve` refuses to start.
    Failed,
}

/// What the host uses now.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct HostStats {
    /// CPU time in the kernel since boot, nanoseconds.
    pub cpu_kernel_ns: u64,
    /// CPU time in user mode since boot, nanoseconds.
    pub cpu_user_ns: u64,
    /// Idle CPU time since boot, nanoseconds.
    pub cpu_idle_ns: u64,
    /// CPU time waiting for I/O since boot, nanoseconds.
    pub cpu_iowait_ns: u64,
    /// CPU frequency, MHz.
    pub cpu_mhz: u32,
    /// Memory, bytes.
    pub memory_total: u64,
    /// Memory that could be had without swapping, bytes.
    pub memory_available: u64,
    /// Load averages of 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Memory of the service itself, resident, bytes.
    pub service_memory: u64,
}
