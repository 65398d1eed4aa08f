//! The room that an import takes: as much as its content has, where that lies on the disk as it
//! comes, and then, since nobody knows what content becomes, a little more before each next step.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::fault::Result;
use crate::store::room::{Claim, Room};

/// Most bytes asked for at once.
const STEP: u64 = 64 << 20;
/// Bytes that may be on their way to the disk: a pipe full of the smallest members.
const ON_ITS_WAY: u64 = UNPACKED << 20;
/// What the smallest member of an archive, half a KiB, can take on the disk: a block.
const UNPACKED: u64 = 8;
/// Bytes that are held ahead of a file that another program writes.
const AHEAD: u64 = 128 << 20;
const WHAT: &str = "the next part of the image";

/// The room of one import.
pub(super) struct Space {
    room: Arc<Room>,
    /// Leave to write, and how much of it is yet to be used.
    state: Mutex<(Claim, u64)>,
}

impl Space {
    /// Asks for what may be on its way, before the first byte.
    pub fn new(room: &Arc<Room>) -> Result<Space> {
        let claim = room.for_files(ON_ITS_WAY, vec![], "the image")?;
        Ok(Space { room: Arc::clone(room), state: Mutex::new((claim, 0)) })
    }

    /// Asks for what the content has, before any of it is written.
    pub fn expect(&self, size: u64) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (claim, left) = &mut *state;
        claim.raise(size + ON_ITS_WAY, "the image")?;
        *left = size;
        Ok(())
    }

    /// Asks for bytes that are written next.
    pub fn take(&self, bytes: u64) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (claim, left) = &mut *state;
        if *left < bytes {
            // What was asked for before is written, but for what is on its way.
            let most = bytes.max(STEP) + ON_ITS_WAY;
            *left = claim.raise_towards(bytes + ON_ITS_WAY, most, WHAT)? - ON_ITS_WAY;
        }
        *left -= bytes;
        claim.spend(bytes);
        Ok(())
    }

    /// Asks for what an archive of so many bytes unpacks to.
    pub fn take_unpacked(&self, bytes: u64) -> Result<()> {
        self.take(bytes.saturating_mul(UNPACKED))
    }

    /// Holds room for work that writes at most so much, as long as the claim lives.
    pub fn hold(&self, bytes: u64) -> Result<Claim> {
        self.room.for_files(bytes, vec![], WHAT)
    }

    /// Holds room for a file of which nobody knows how fast it grows.
    pub fn follow(&self, file: &Path) -> Result<Follow> {
        let claim = self.room.for_files(AHEAD, vec![file.to_owned()], WHAT)?;
        Ok(Follow { claim, file: file.to_owned() })
    }
}

/// Room that goes ahead of a file that another program writes.
pub(super) struct Follow {
    claim: Claim,
    file: PathBuf,
}

impl Follow {
    /// Asks for more; to be called often.
    pub fn keep_ahead(&self) -> Result<()> {
        let taken = fs::metadata(&self.file).map_or(0, |found| found.blocks() * 512);
        self.claim.raise(taken + AHEAD, WHAT)
    }
}
