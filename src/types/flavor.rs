//! A Nova flavor: what an instance gets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Nova's extra specs: names and values as strings, as Nova stores them.
///
/// berth obeys `quota:cpu_*`, `quota:disk_*`, `quota:vif_*` and `hw:cpu_policy`, its own
/// (`berth:*`), and keeps every other name without meaning: Nova's driver refuses those that ask
/// for what an instance would not get.
pub type ExtraSpecs = BTreeMap<String, String>;

/// What an instance gets of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Flavor {
    /// The flavor's name, for people.
    #[serde(default)]
    pub name: String,
    /// Number of CPUs' worth of time, 1 to 1024. The quota is this many whole CPUs.
    #[schema(minimum = 1, maximum = 1024)]
    pub vcpus: u32,
    /// Memory limit in MiB, 16 to 16,777,216.
    #[schema(minimum = 16, maximum = 16_777_216)]
    pub memory_mb: u64,
    /// Hard size of the root file system in GiB, 0 to 65,536; 0 takes the
    /// image's own size plus the configured slack, as Nova does.
    #[schema(maximum = 65_536)]
    pub root_gb: u64,
    /// Size of the ephemeral file system in GiB, 0 (none) to 65,536; it is mounted at `/mnt`.
    #[serde(default)]
    #[schema(maximum = 65_536)]
    pub ephemeral_gb: u64,
    /// Swap in MiB that the instance may use of the host's beyond `memory_mb`, 0 (none) to 16,777,216.
    #[serde(default)]
    #[schema(maximum = 16_777_216)]
    pub swap_mb: u64,
    /// Nova's extra specs.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub extra_specs: ExtraSpecs,
}
