//! Files of the volatile directory, which need not survive the host's fall.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Serialize;

use crate::fault::{OrFault, Result};

/// Writes a file, mode 0600. Nothing waits for a disk, should the directory be on one.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
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
