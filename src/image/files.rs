//! Files and directories that only root enters, and their end.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::fault::{OrFault, Result};

/// Makes a directory of that mode.
pub(super) fn make_directory(path: &Path, mode: u32) -> Result<()> {
    // Set and not only asked for: the service's umask takes nothing away.
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .or_fault(format_args!("making {}", path.display()))
}

/// Makes a file, to be written and read.
pub(super) fn create_file(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .or_fault(format_args!("making {}", path.display()))
}

/// What is in a directory.
pub(super) fn entries(directory: &Path) -> Result<Vec<fs::DirEntry>> {
    fs::read_dir(directory)
        .and_then(Iterator::collect)
        .or_fault(format_args!("listing {}", directory.display()))
}

/// Removes all that is in a directory.
pub(super) fn empty(directory: &Path) -> Result<()> {
    entries(directory)?.iter().try_for_each(|entry| remove_tree(&entry.path()))
}

/// Removes a file or a directory with all that is in it; absence is success.
pub(super) fn remove_tree(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).or_fault(format_args!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
