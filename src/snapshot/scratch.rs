//! What a walk through a tree keeps, in a file: how much that is, the tree's
//! owner decides, and the service's memory is not his.

use std::cell::{Cell, OnceCell};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::fault::{OrFault, Result};

const DOING: &str = "keeping names below service.state_dir";

/// A file without a name, made when it is first needed.
pub(super) struct Scratch {
    directory: PathBuf,
    file: OnceCell<File>,
    end: Cell<u64>,
}

impl Scratch {
    pub fn new(directory: &Path) -> Scratch {
        Scratch { directory: directory.to_owned(), file: OnceCell::new(), end: Cell::new(0) }
    }

    /// Adds bytes; where they are.
    pub fn add(&self, bytes: &[u8]) -> Result<u64> {
        let at = self.end.get();
        self.file()?.write_all_at(bytes, at).or_fault(DOING)?;
        self.end.set(at + bytes.len() as u64);
        Ok(at)
    }

    /// Fills a buffer with what was added.
    pub fn read(&self, buffer: &mut [u8], at: u64) -> Result<()> {
        self.file()?.read_exact_at(buffer, at).or_fault(DOING)
    }

    fn file(&self) -> Result<&File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        // Not O_TMPFILE, which not every file system has.
        let path = self.directory.join(Uuid::new_v4().to_string());
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.or_fault(DOING)?;
        std::fs::remove_file(&path).or_fault(DOING)?;
        Ok(self.file.get_or_init(|| file))
    }
}
