//! What a walk through a tree keeps, in a file: how much that is, the tree's
//! owner decides, and neither the service's memory nor others' disk space is his.

use std::cell::{Cell, OnceCell};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

use crate::fault::{OrFault, Result};
use crate::store::room::{Claim, Room};

const DOING: &str = "keeping names below service.state_dir";
const WHAT: &str = "keeping the names in the instance's tree";
/// Most bytes that room is asked for at once.
const STEP: u64 = 16 << 20;

/// Where such files are made.
#[derive(Clone)]
pub struct Scratches {
    /// The directory, below the state directory.
    pub directory: PathBuf,
    /// The space there.
    pub room: Arc<Room>,
}

/// A file without a name, made when it is first needed.
pub(super) struct Scratch {
    place: Scratches,
    file: OnceCell<(File, Claim)>,
    end: Cell<u64>,
    /// Bytes that may be written before room is asked for again.
    left: Cell<u64>,
}

impl Scratch {
    pub fn new(place: &Scratches) -> Scratch {
        let (end, left) = (Cell::new(0), Cell::new(0));
        Scratch { place: place.clone(), file: OnceCell::new(), end, left }
    }

    /// Adds bytes; where they are.
    pub fn add(&self, bytes: &[u8]) -> Result<u64> {
        let (file, claim) = self.file()?;
        let length = bytes.len() as u64;
        if self.left.get() < length {
            self.left.set(claim.raise_towards(length, length.max(STEP), WHAT)?);
        }
        let at = self.end.get();
        file.write_all_at(bytes, at).or_fault(DOING)?;
        claim.spend(length);
        self.left.set(self.left.get() - length);
        self.end.set(at + length);
        Ok(at)
    }

    /// Fills a buffer with what was added.
    pub fn read(&self, buffer: &mut [u8], at: u64) -> Result<()> {
        self.file()?.0.read_exact_at(buffer, at).or_fault(DOING)
    }

    fn file(&self) -> Result<&(File, Claim)> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let claim = self.place.room.for_files(0, vec![], WHAT)?;
        // Not O_TMPFILE, which not every file system has.
        let path = self.place.directory.join(Uuid::new_v4().to_string());
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.or_fault(DOING)?;
        std::fs::remove_file(&path).or_fault(DOING)?;
        Ok(self.file.get_or_init(|| (file, claim)))
    }
}

#[cfg(test)]
impl Scratches {
    /// In a directory with all the room that there is.
    pub fn within(directory: &std::path::Path) -> Scratches {
        use crate::config::Storage;
        use crate::store::layout::Layout;
        let layout = Layout::new(directory, directory);
        let config = Storage { reserved_host_disk_mb: 0, ..Storage::default() };
        Scratches { directory: directory.to_owned(), room: Room::open(&layout, &config) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Storage;
    use crate::fault::FaultKind;
    use crate::store::layout::Layout;

    #[test]
    fn what_is_promised_to_others_it_does_not_take() {
        let dir = tempfile::tempdir().unwrap();
        let free = rustix::fs::statvfs(dir.path()).unwrap();
        let free = (free.f_bavail * free.f_frsize) >> 20;
        // A few pieces may be had.
        let config = Storage { reserved_host_disk_mb: free - 32, ..Storage::default() };
        let room = Room::open(&Layout::new(dir.path(), dir.path()), &config);
        let scratch = Scratch::new(&Scratches { directory: dir.path().to_owned(), room });
        let piece = vec![7; 4 << 20];
        let fault = (0..1000).find_map(|_| scratch.add(&piece).err()).unwrap();
        assert_eq!(fault.kind, FaultKind::ResourcesExhausted, "{fault}");
        assert!(fault.detail.starts_with(WHAT), "{fault}");
        let scratch = Scratch::new(&Scratches::within(dir.path()));
        for n in 0..10u64 {
            assert_eq!(scratch.add(&piece).unwrap(), n * (4 << 20));
        }
        let mut byte = [0];
        scratch.read(&mut byte, 40 * (1 << 20) - 1).unwrap();
        assert_eq!(byte, [7]);
    }
}
