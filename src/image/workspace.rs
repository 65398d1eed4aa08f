//! Where images and disks are made.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::files::{make_directory, remove_tree};
use crate::fault::Result;

/// The directory of an import, or of a disk in the making: gone when this value is.
pub struct Workspace(PathBuf);

impl Workspace {
    pub(super) fn new(parent: &Path) -> Result<Workspace> {
        let path = parent.join(Uuid::new_v4().to_string());
        make_directory(&path, 0o700)?;
        let workspace = Workspace(path);
        for name in ["staged", "empty"] {
            make_directory(&workspace.0.join(name), 0o700)?;
        }
        Ok(workspace)
    }

    /// The directory itself.
    pub(super) fn top(&self) -> &Path {
        &self.0
    }

    /// Path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where the jail puts what does not lie in an archive in one piece.
    pub(super) fn staged(&self) -> PathBuf {
        self.path("staged")
    }

    /// A directory with nothing in it.
    pub fn empty(&self) -> PathBuf {
        self.path("empty")
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if let Err(fault) = remove_tree(&self.0) {
            tracing::warn!(fault = %fault.in_full(), "a temporary directory stays until the next start");
        }
    }
}
