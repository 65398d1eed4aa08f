//! What is remembered of a container: for `delete`, and for `exec` by another process.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::store::volatile;
use crate::sys::process::ProcessId;

/// A container, in a file of its name below the runtime's directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    /// Its first process; none: it had ended by the time that this was written.
    pub init: Option<ProcessId>,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its cgroups' directories.
    pub cgroups: Vec<PathBuf>,
}

impl State {
    fn file(root: &Path, id: &str) -> PathBuf {
        root.join(id)
    }

    /// Writes it.
    pub fn save(&self, root: &Path, id: &str) -> Result<()> {
        volatile::write_json(&State::file(root, id), self)
    }

    /// Reads it; none: there is no such container.
    pub fn load(root: &Path, id: &str) -> Result<Option<State>> {
        let file = State::file(root, id);
        let text = match fs::read(&file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.or_fault(format_args!("reading {}", file.display()))?,
        };
        serde_json::from_slice(&text).map(Some).or_fault(format_args!("reading {}", file.display()))
    }

    /// Forgets it; absence is success.
    pub fn forget(root: &Path, id: &str) -> Result<()> {
        crate::store::atomic::remove_file(&State::file(root, id))
    }

    /// The first process, if it lives.
    pub fn running(&self) -> Result<ProcessId> {
        self.init
            .filter(|init| init.is_alive())
            .ok_or_else(|| Fault::new(FaultKind::InstanceInvalidState, "the instance does not run"))
    }
}
