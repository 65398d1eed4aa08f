//! The Unix socket's file, and whether it is still the one that was made.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The socket's file, removed when dropped if it is still the one that was made.
#[derive(Debug)]
pub(super) struct SocketFile {
    pub path: PathBuf,
    pub device_and_inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if device_and_inode(&self.path).ok() == Some(self.device_and_inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What tells a file from another that took its name.
pub(super) fn device_and_inode(path: &Path) -> std::io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}
