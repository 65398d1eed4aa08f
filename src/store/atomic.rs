//! Durable writes: temporary file, fsync, rename, fsync of the directory.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Serialize, de::DeserializeOwned};

use crate::fault::{Fault, OrFault, Result};

/// Suffix of a file that is being written; [`read_json`] never sees it and a
/// start of the service removes it.
pub const TEMPORARY: &str = ".new";

/// Replaces `path` with `bytes`, mode 0600, so that a crash leaves the old or the new.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    let temporary = Path::new(&temporary);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(temporary, path)?;
        sync_parent(path)
    })();
    written.or_fault(format_args!("writing {}", path.display())).inspect_err(|_| {
        // The rename did not happen, or happened and only its sync failed:
        // in the first case the temporary file must not stay.
        let _ = fs::remove_file(temporary);
    })
}

/// [`write`] of a value as JSON.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .or_fault(format_args!("serialising {}", path.display()))?;
    bytes.push(b'\n');
    write(path, &bytes)
}

/// Reads a value; `None` when there is no such file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).or_fault(format_args!("reading {}", path.display())),
    };
    let mut deserializer = serde_json::Deserializer::from_slice(&bytes);
    serde_path_to_error::deserialize(&mut deserializer)
        .map(Some)
        .map_err(|e| Fault::internal(format_args!("reading {}", path.display()), e))
}

/// Makes a rename or removal in `path`'s directory durable.
pub fn sync_parent(path: &Path) -> std::io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Removes a file; its absence is success.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).or_fault(format_args!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_and_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        write_json(&path, &1).unwrap();
        // A directory in the temporary's place makes the write fail.
        fs::create_dir(dir.path().join("record.json.new")).unwrap();
        assert!(write_json(&path, &2).is_err());
        assert_eq!(read_json::<i32>(&path).unwrap(), Some(1));
    }

    #[test]
    fn reading_nothing_is_none_and_rubbish_is_a_fault() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        assert_eq!(read_json::<i32>(&path).unwrap(), None);
        fs::write(&path, b"{").unwrap();
        assert!(read_json::<i32>(&path).is_err());
    }
}
