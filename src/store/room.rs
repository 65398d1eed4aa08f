//! The one admission for the space below the state directory.
//!
//! A disk is a sparse file whose length is promised to its instance, and most
//! of it is not taken yet. Whoever is about to write asks here first, and gets
//! nothing that is promised to another: a full file system would hit them all.
//!
//! ```text
//! file system = used by others + taken by disks + reserve + held for writers
//!             + promised to disks and not yet taken + what may be had
//! ```
//!
//! What was promised lies on the disk itself, as the files' lengths, so a
//! service that starts knows it at once. Only what is being written is
//! remembered, by [`Claim`]s.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::statvfs;
use uuid::Uuid;

use super::layout::Layout;
use crate::config::Storage;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::sys::copy::share_extents;

const MIB: u64 = 1 << 20;
/// Files that tell whether a copy shares its original's blocks.
const TRIAL: [&str; 2] = ["shares-extents", "shares-extents.copy"];

/// Who may still write how much.
pub struct Room {
    layout: Layout,
    reserve: u64,
    ratio: f64,
    /// A copy's blocks may be its original's: what it may come to take is held
    /// for it as long as it is there.
    copies_share: bool,
    claims: Mutex<Claims>,
}

/// What is being written.
#[derive(Default)]
struct Claims {
    next: u64,
    open: BTreeMap<u64, Claimed>,
}

struct Claimed {
    /// To become a disk of that size, or else to be written.
    disk: bool,
    bytes: u64,
    /// Where what was written of it lies.
    files: Vec<PathBuf>,
}

/// Leave to write so many bytes; what was not used is given back with it.
pub struct Claim {
    room: Arc<Room>,
    key: u64,
}

/// How the file system's space is given away.
#[derive(Default)]
struct Space {
    /// Bytes that can be written.
    free: u64,
    /// Bytes promised to disks.
    promised: u64,
    /// Those of them that are taken.
    taken: u64,
    /// Bytes that others were given and did not write yet.
    held: u64,
}

impl Room {
    /// The room below the state directory, which need not exist yet.
    pub fn open(layout: &Layout, config: &Storage) -> Arc<Room> {
        Arc::new(Room {
            layout: layout.clone(),
            reserve: config.reserved_host_disk_mb.saturating_mul(MIB),
            ratio: config.disk_allocation_ratio,
            copies_share: copies_share(layout.state()),
            claims: Mutex::default(),
        })
    }

    /// Room for `bytes` more of disks. What is written of them before they have
    /// their name lies in `files`.
    pub fn for_disk(
        self: &Arc<Self>,
        bytes: u64,
        files: Vec<PathBuf>,
        what: impl std::fmt::Display,
    ) -> Result<Claim> {
        self.claim(Claimed { disk: true, bytes, files }, what)
    }

    /// Room for `bytes` in `files`, or, without any, for bytes that go somewhere.
    pub fn for_files(
        self: &Arc<Self>,
        bytes: u64,
        files: Vec<PathBuf>,
        what: impl std::fmt::Display,
    ) -> Result<Claim> {
        self.claim(Claimed { disk: false, bytes, files }, what)
    }

    /// Room for a copy of `bytes` in `file`. Where files share extents, a copy
    /// takes space only as the original changes, and may for as long as it lives.
    pub fn for_copy(
        self: &Arc<Self>,
        bytes: u64,
        file: &Path,
        what: impl std::fmt::Display,
    ) -> Result<Claim> {
        let files = if self.copies_share { vec![] } else { vec![file.to_owned()] };
        self.claim(Claimed { disk: false, bytes, files }, what)
    }

    /// Whether a copy may take space after it was made.
    pub fn copies_share(&self) -> bool {
        self.copies_share
    }

    /// Bytes of the file system that no disk can be promised, whatever it is
    /// that has them: the reserve, images, and what is not berth's.
    pub fn reserved(&self) -> Result<u64> {
        let space = self.space(&Claims::default())?;
        let whole = statvfs(existing(self.layout.state())).or_fault(LOOKING)?;
        let for_disks = space.capacity(self.reserve);
        Ok((whole.f_blocks * whole.f_frsize).saturating_sub(for_disks))
    }

    fn claim(self: &Arc<Self>, wanted: Claimed, what: impl std::fmt::Display) -> Result<Claim> {
        let mut claims = self.lock();
        let available = self.available(&claims, wanted.disk)?;
        if wanted.bytes > available {
            return Err(self.refusal(wanted.bytes, available, what));
        }
        claims.next += 1;
        let key = claims.next;
        claims.open.insert(key, wanted);
        Ok(Claim { room: Arc::clone(self), key })
    }

    fn lock(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn available(&self, claims: &Claims, disk: bool) -> Result<u64> {
        Ok(self.space(claims)?.available(self.reserve, self.ratio, disk))
    }

    fn space(&self, claims: &Claims) -> Result<Space> {
        let found = statvfs(existing(self.layout.state())).or_fault(LOOKING)?;
        let mut space = Space { free: found.f_bavail * found.f_frsize, ..Space::default() };
        for id in self.instances()? {
            let paths = self.layout.instance(id);
            for disk in [paths.root_disk(), paths.ephemeral_disk(), paths.rescue_disk()] {
                if let Some((size, blocks)) = sizes(&disk)? {
                    space.promised += size;
                    space.taken += blocks.min(size);
                }
            }
            if self.copies_share {
                for kept in [paths.root_disk_kept(), paths.ephemeral_disk_kept()] {
                    space.held += sizes(&kept)?.map_or(0, |(_, blocks)| blocks);
                }
            }
        }
        for claimed in claims.open.values() {
            let mut written = 0;
            for file in &claimed.files {
                written += sizes(file)?.map_or(0, |(_, blocks)| blocks);
            }
            if claimed.disk {
                space.promised += claimed.bytes;
                space.taken += written.min(claimed.bytes);
            } else {
                space.held += claimed.bytes.saturating_sub(written);
            }
        }
        Ok(space)
    }

    fn instances(&self) -> Result<Vec<Uuid>> {
        let entries = match fs::read_dir(self.layout.instances()) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
            other => other.or_fault(LOOKING)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.or_fault(LOOKING)?.file_name();
            ids.extend(name.to_str().and_then(|name| name.parse::<Uuid>().ok()));
        }
        Ok(ids)
    }

    fn refusal(&self, wanted: u64, available: u64, what: impl std::fmt::Display) -> Fault {
        Fault::new(
            FaultKind::ResourcesExhausted,
            format!(
                "{what} takes {} MiB in the file system of {}, of which {} MiB are neither used, \
                 promised to instances nor reserved: make room (delete instances, or images with \
                 `berth image delete`), or give it a larger file system; \
                 storage.reserved_host_disk_mb and storage.disk_allocation_ratio say how much \
                 may be given",
                wanted.div_ceil(MIB),
                self.layout.state().display(),
                available / MIB,
            ),
        )
    }
}

impl Space {
    /// Bytes that all disks together can have come to take.
    fn capacity(&self, reserve: u64) -> u64 {
        (self.free + self.taken).saturating_sub(reserve.saturating_add(self.held))
    }

    /// Bytes that one more may have.
    fn available(&self, reserve: u64, ratio: f64, disk: bool) -> u64 {
        let now = self.free.saturating_sub(reserve.saturating_add(self.held));
        let capacity = self.capacity(reserve);
        if now == 0 {
            0
        } else if disk {
            ((capacity as f64 * ratio) as u64).saturating_sub(self.promised)
        } else {
            capacity.saturating_sub((self.promised as f64 / ratio) as u64).min(now)
        }
    }
}

impl Claim {
    /// Has it be for `bytes` in all, or changes nothing.
    pub fn raise(&self, bytes: u64, what: impl std::fmt::Display) -> Result<()> {
        self.raise_towards(bytes, bytes, what).map(drop)
    }

    /// The same for any number from `least` to `most`: fewer where less is free,
    /// so that nobody holds much of the last space. What it became.
    pub fn raise_towards(
        &self,
        least: u64,
        most: u64,
        what: impl std::fmt::Display,
    ) -> Result<u64> {
        let mut claims = self.room.lock();
        let Some(claimed) = claims.open.get(&self.key) else { return Ok(0) };
        let (disk, before) = (claimed.disk, claimed.bytes);
        if least <= before {
            return Ok(before);
        }
        let available = self.room.available(&claims, disk)?;
        let step = (available / 4).max(least - before).min(most.max(least) - before);
        if step > available {
            return Err(self.room.refusal(step, available, what));
        }
        let bytes = before + step;
        if let Some(claimed) = claims.open.get_mut(&self.key) {
            claimed.bytes = bytes;
        }
        Ok(bytes)
    }

    /// So many bytes are written, or are not needed any more.
    pub fn spend(&self, bytes: u64) {
        if let Some(claimed) = self.room.lock().open.get_mut(&self.key) {
            claimed.bytes = claimed.bytes.saturating_sub(bytes);
        }
    }

    /// Does what shows the claim's bytes to be a disk's or used: from then on
    /// they are found where they are. What fails gives them back.
    pub fn settle<T, E>(self, done: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let mut claims = self.room.lock();
        let outcome = done();
        claims.open.remove(&self.key);
        outcome
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.room.lock().open.remove(&self.key);
    }
}

const LOOKING: &str = "looking for space in the state directory";

/// The length of a file and the bytes that it takes; `None` without it.
fn sizes(file: &Path) -> Result<Option<(u64, u64)>> {
    match fs::symlink_metadata(file) {
        Ok(found) => Ok(Some((found.len(), found.blocks() * 512))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).or_fault(LOOKING),
    }
}

fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

/// Whether a copy there shares what it can with its original.
fn copies_share(directory: &Path) -> bool {
    if !directory.is_dir() {
        return true;
    }
    let [from, to] = TRIAL.map(|name| directory.join(name));
    let tried = (|| {
        fs::write(&from, [7; 4096])?;
        Ok::<_, std::io::Error>(share_extents(&File::open(&from)?, &File::create(&to)?))
    })();
    for file in [from, to] {
        // One that could not be made is not there.
        let _ = fs::remove_file(file);
    }
    // A full disk says nothing of it: the careful answer then.
    tried.unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn what_is_promised_or_reserved_is_nobody_elses() {
        let empty = Space { free: 10 * GIB, ..Space::default() };
        let promised = Space { free: 10 * GIB, promised: 6 * GIB, ..Space::default() };
        // The same disks, half of them taken.
        let taken = Space { free: 7 * GIB, promised: 6 * GIB, taken: 3 * GIB, held: 0 };
        let held = Space { free: 7 * GIB, promised: 6 * GIB, taken: 3 * GIB, held: GIB };
        let full = Space { free: GIB, promised: 6 * GIB, taken: GIB, held: 0 };
        for (space, ratio, disk, files) in [
            (&empty, 1.0, 9, 9),
            (&empty, 2.0, 18, 9),
            (&promised, 1.0, 3, 3),
            (&promised, 2.0, 12, 6),
            (&taken, 1.0, 3, 3),
            (&taken, 2.0, 12, 6),
            (&held, 1.0, 2, 2),
            (&held, 2.0, 10, 5),
            // Not even with overcommit: what is not there cannot be begun.
            (&full, 8.0, 0, 0),
        ] {
            let shown = (space.free / GIB, space.promised / GIB, space.held / GIB, ratio);
            assert_eq!(space.available(GIB, ratio, true), disk * GIB, "{shown:?}");
            assert_eq!(space.available(GIB, ratio, false), files * GIB, "{shown:?}");
        }
    }

    fn sparse(path: &Path, size: u64) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(path).unwrap().set_len(size).unwrap();
    }

    #[test]
    fn a_new_service_knows_what_disks_were_promised() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path(), dir.path());
        let open = || Room::open(&layout, &Storage::default());
        let promised = |room: &Room| room.space(&room.lock()).unwrap().promised;
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        sparse(&layout.instance(one).root_disk(), 5 * GIB);
        sparse(&layout.instance(one).ephemeral_disk(), GIB);
        sparse(&layout.instance(other).rescue_disk(), 2 * GIB);
        // A copy that is kept takes what it has and no more.
        sparse(&layout.instance(other).root_disk_kept(), 7 * GIB);
        assert_eq!(promised(&open()), 8 * GIB);
        fs::remove_file(layout.instance(one).root_disk()).unwrap();
        assert_eq!(promised(&open()), 3 * GIB);
    }

    #[test]
    fn a_claim_counts_until_what_it_was_for_does() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path(), dir.path());
        let config = Storage { reserved_host_disk_mb: 0, ..Storage::default() };
        let room = Room::open(&layout, &config);
        let counts = |room: &Room| {
            let space = room.space(&room.lock()).unwrap();
            (space.promised, space.held)
        };
        let file = layout.instance(Uuid::from_u128(1)).root_disk();
        let claim = room.for_disk(64 * MIB, vec![], "a disk").unwrap();
        assert_eq!(counts(&room), (64 * MIB, 0));
        let done = claim.settle(|| {
            sparse(&file, 64 * MIB);
            Ok::<_, ()>(())
        });
        assert_eq!(done, Ok(()));
        assert_eq!(counts(&room), (64 * MIB, 0));
        let copy = dir.path().join("copy");
        let claim = room.for_files(3 * MIB, vec![copy.clone()], "a copy").unwrap();
        assert_eq!(counts(&room), (64 * MIB, 3 * MIB));
        fs::write(&copy, vec![7; 2 << 20]).unwrap();
        assert_eq!(counts(&room), (64 * MIB, MIB));
        claim.raise(4 * MIB, "a copy").unwrap();
        assert_eq!(counts(&room).1, 2 * MIB);
        let fault = claim.raise(u64::MAX >> 1, "a copy").unwrap_err();
        assert_eq!(fault.kind, FaultKind::ResourcesExhausted);
        assert!(fault.detail.starts_with("a copy takes "), "{fault}");
        assert_eq!(counts(&room).1, 2 * MIB, "what is refused changes nothing");
        drop(claim);
        assert_eq!(counts(&room).1, 0);
        let none = room.for_disk(u64::MAX >> 1, vec![], "a disk").err().unwrap();
        assert!(none.detail.contains("storage.disk_allocation_ratio"), "{none}");
        assert_eq!(counts(&room), (64 * MIB, 0));
    }
}
