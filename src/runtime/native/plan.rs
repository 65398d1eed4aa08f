//! What a start works with, opened by the monitor beforehand: it is the host's root.

use std::fs::File;
use std::path::PathBuf;

use oci_spec::runtime::LinuxNamespaceType;

use super::cgroups::{self, Cgroups, V1};
use super::config::Bundle;
use crate::fault::{OrFault, Result};
use crate::runtime::Create;

/// All that the stages work with, opened by the host's root.
pub(super) struct Plan {
    /// What is asked for.
    pub bundle: Bundle,
    /// Name of the session's keyring.
    pub id: String,
    /// The instance's cgroups.
    pub cgroups: Cgroups,
    /// The namespaces that are joined: of users, of the network.
    pub joined: [File; 2],
    /// Its `oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// The hierarchies of version 1, if the instance gets to see its cgroups there.
    pub v1: Vec<V1>,
}

impl Plan {
    /// Opens it all.
    pub fn prepare(create: &Create<'_>, dirs: &[PathBuf]) -> Result<Plan> {
        let bundle = Bundle::read(create.bundle)?;
        let cgroups = Cgroups::open(dirs, false)?;
        cgroups.hold_devices(&bundle.config.linux.resources.devices)?;
        let open = |kind| {
            let path = bundle.config.joined(kind)?;
            File::open(path).or_fault(format_args!("opening {}", path.display()))
        };
        let joined = [open(LinuxNamespaceType::User)?, open(LinuxNamespaceType::Network)?];
        let sees = bundle.config.mounts.iter().any(|mount| mount.kind.as_deref() == Some("cgroup"));
        Ok(Plan {
            id: create.id.to_owned(),
            cgroups,
            joined,
            oom_score_adj: bundle.config.process.oom_score_adj.or(create.setup.oom_score_adj),
            v1: if sees { cgroups::v1_hierarchies()? } else { Vec::new() },
            bundle,
        })
    }
}
