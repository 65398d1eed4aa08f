//! What is told of the host: whether instances can work on it, what it has,
//! and what instances have of that.

use chrono::{DateTime, Utc};

use super::host_parts::{HostParts, monitor_program};
use super::record::KeptResize;
use super::registry::Registry;
use crate::config::Config;
use crate::fault::Result;
use crate::host::{self, Trials, Usage};
use crate::rootfs::idmap;
use crate::runtime::probe;
use crate::types::{Capabilities, Check, HostInfo, ImageFormat};

/// Probes the host as `serve` and `berth check` do.
pub fn probe(config: &Config) -> Vec<Check> {
    let overlay = || crate::rootfs::trial(&config.storage, config.instances.id_map_first);
    let native = || probe::native_trial(idmap::trial(&config.instances), &monitor_program(config)?);
    let runtime = &host::check::runtime_trial;
    host::probe(config, &Trials { overlay: &overlay, runtime, native: &native })
}

/// The host and the service on it.
pub fn describe(
    parts: &HostParts,
    registry: &Registry,
    checks: &[Check],
    service_started_at: DateTime<Utc>,
) -> Result<HostInfo> {
    let disk_reserved_gb = parts.room.reserved()?.div_ceil(1 << 30);
    let usage = Usage { disk_reserved_gb, ..usage(registry) };
    Ok(HostInfo {
        hypervisor_hostname: host::hypervisor_hostname(&parts.config)?,
        hypervisor_type: "berth".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        hypervisor_version: version_number(env!("CARGO_PKG_VERSION")),
        api_version: "v1".into(),
        architecture: host::architecture()?,
        kernel: host::kernel_release()?,
        uptime: host::uptime()?,
        service_started_at,
        inventory: host::inventory(&parts.config, parts.layout.state(), &usage)?,
        capabilities: Capabilities {
            cgroup_layout: parts.hierarchy.layout().to_string(),
            runtime: parts.runtime_info.clone(),
            storage_backend: "loop".into(),
            image_formats: vec![
                ImageFormat::DockerArchive,
                ImageFormat::OciArchive,
                ImageFormat::RootfsTar,
                ImageFormat::Qcow2,
                ImageFormat::Raw,
                ImageFormat::Vmdk,
                ImageFormat::Vhd,
                ImageFormat::Vhdx,
                ImageFormat::Vdi,
            ],
            lxcfs: parts.lxcfs().is_some(),
            swap_limit: parts.hierarchy.limits_swap(),
            buffered_write_limit: parts.hierarchy.limits_buffered_writes(),
            checks: checks.to_vec(),
        },
    })
}

/// What instances have of the inventory.
fn usage(registry: &Registry) -> Usage {
    let mut usage = Usage::default();
    for handle in registry.all() {
        handle.with_view(|view| {
            let flavor = &view.record.definition.flavor;
            match &view.record.pinned_cpus {
                Some(cpus) => usage.pcpus += u32::try_from(cpus.len()).unwrap_or(u32::MAX),
                None => usage.vcpus += flavor.vcpus,
            }
            usage.memory_mb += flavor.memory_mb;
            usage.local_gb += flavor.root_gb + flavor.ephemeral_gb + flavor.swap_mb.div_ceil(1024);
            if let Some(KeptResize::Unconfirmed { flavor, .. }) = &view.record.resize {
                usage.local_gb += flavor.root_gb + flavor.ephemeral_gb;
            }
            usage.instances += 1;
            usage.running += u32::from(view.init.is_some());
        });
    }
    usage
}

/// The version as Nova's number: major × 1,000,000 + minor × 1,000 + patch.
fn version_number(version: &str) -> u32 {
    version
        .split(['.', '-', '+'])
        .take(3)
        .fold(0, |number, part| number * 1000 + part.parse::<u32>().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_nova_numbers() {
        assert_eq!(version_number("0.1.0"), 1_000);
        assert_eq!(version_number("12.3.4-rc1"), 12_003_004);
    }
}
