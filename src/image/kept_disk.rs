//! What the store keeps of a disk image besides its root file system's files:
//! the bytes outside that, in a sparse file of the disk's size.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::digest::{Algorithm, Hasher};
use super::disk::frame::{BOOT_BLOCK, Frame, MOST_KEPT, PIECE, Patch};
use super::files::create_file;
use super::jail::{Input, Jail, Outcome, Running, Work};
use super::space::Space;
use super::sparse::write_sparsely;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::store::atomic;

const KEEPING: &str = "keeping a disk's layout";

/// What is known about a kept frame; part of an image's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeptFrame {
    /// The disk's layout.
    pub frame: Frame,
    /// Hash of the kept bytes and their places.
    pub digest: String,
    /// Bytes that they take.
    pub stored: u64,
}

/// A kept frame, to make a disk of. It stays when its image goes.
pub struct KeptDisk {
    /// The disk's layout.
    pub frame: Frame,
    digest: String,
    file: File,
}

/// Has the jail read what a disk image has outside its root, and keeps it in
/// the new file at `path`. A disk of which no other can be made is
/// [`FaultKind::ImageUnacceptable`].
pub(super) fn keep_frame(
    jail: &Jail,
    empty: PathBuf,
    image: File,
    path: &Path,
    space: &Space,
) -> Result<KeptFrame> {
    let mut jail = jail.start(empty, Work::Frame, Input::File(image))?;
    let file = create_file(path)?;
    let mut hasher = Hasher::new(Algorithm::Sha256)?;
    let received = receive(&mut Output(&mut jail), &file, &mut hasher, space);
    // Its own word on why it ended goes first.
    let outcome = jail.finish();
    let (Ok(Outcome::Frame(frame)), Ok(end)) = (&outcome, &received) else {
        outcome?;
        return Err(received.err().unwrap_or_else(wrong_answer));
    };
    frame.check()?;
    if *end > frame.size {
        return Err(wrong_answer());
    }
    file.set_len(frame.size).map_err(|error| match error.raw_os_error() {
        Some(libc::EFBIG) => Fault::new(
            FaultKind::ImageUnacceptable,
            "the host's file system has no files of the disk's size",
        ),
        _ => Fault::internal(KEEPING, error),
    })?;
    file.sync_all().or_fault(KEEPING)?;
    let stored = file.metadata().or_fault(KEEPING)?.blocks() * 512;
    Ok(KeptFrame { frame: frame.clone(), digest: hasher.finish()?.to_string(), stored })
}

/// Moves what is kept to its place, before the record that names it.
pub(super) fn put_in_place(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).or_fault(format_args!("moving a disk to {}", to.display()))?;
    atomic::sync_parent(to).or_fault("writing a disk's layout to disk")
}

/// Keeps the pieces that the jail gives; where the last of them ends.
fn receive(source: &mut impl Read, file: &File, hasher: &mut Hasher, space: &Space) -> Result<u64> {
    let (mut end, mut bytes) = (0, 0);
    let mut piece = vec![0; PIECE];
    loop {
        let mut head = [0; 12];
        match source.read_exact(&mut head) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(end),
            other => other.or_fault(KEEPING)?,
        }
        let [a, b, c, d, e, f, g, h, i, j, k, l] = head;
        let at = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let length = u32::from_le_bytes([i, j, k, l]) as usize;
        bytes += length as u64;
        // What the jail's code never does.
        if at < end || !at.is_multiple_of(PIECE as u64) || length > PIECE || bytes > MOST_KEPT {
            return Err(wrong_answer());
        }
        let piece = &mut piece[..length];
        source.read_exact(piece).or_fault(KEEPING)?;
        hasher.update(&at.to_le_bytes())?;
        hasher.update(piece)?;
        space.take(length as u64)?;
        write_sparsely(file, at, piece).or_fault(KEEPING)?;
        end = at + length as u64;
    }
}

fn wrong_answer() -> Fault {
    Fault::internal(KEEPING, "the jail answered another question")
}

/// What a child gives.
struct Output<'a>(&'a mut Running);

impl Read for Output<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.take(buffer).map_err(io::Error::other)
    }
}

impl KeptDisk {
    pub(super) fn open(kept: &KeptFrame, path: &Path) -> Result<KeptDisk> {
        let file = File::open(path).or_fault("opening a disk's layout")?;
        Ok(KeptDisk { frame: kept.frame.clone(), digest: kept.digest.clone(), file })
    }

    /// Makes `disk`, an empty file, a disk of this layout whose root partition
    /// is `by` bytes larger and without content. A fault when what was kept is
    /// not what it was.
    pub fn lay_out(&self, jail: &Jail, empty: PathBuf, disk: &File, by: u64) -> Result<()> {
        let doing = "laying out a disk";
        let patches = if by > 0 { self.grown(jail, empty, by)? } else { Vec::new() };
        let size = self.frame.size + by;
        disk.set_len(size).or_fault(doing)?;
        let mut hasher = Hasher::new(Algorithm::Sha256)?;
        // What lies behind the root is only the table's second copy, when that moves.
        let most = if by > 0 { self.frame.root_end() } else { size };
        self.pieces(&mut |at, piece| {
            hasher.update(&at.to_le_bytes())?;
            hasher.update(piece)?;
            let length = usize::try_from(most.saturating_sub(at)).unwrap_or(usize::MAX);
            let piece = &piece[..piece.len().min(length)];
            write_sparsely(disk, at, piece).or_fault(doing).map(drop)
        })?;
        if hasher.finish()?.to_string() != self.digest {
            return Err(Fault::new(
                FaultKind::ImageCorrupt,
                "what the store keeps of the base image's disk was altered; delete the image and \
                 import it again",
            ));
        }
        for Patch { offset, bytes } in &patches {
            if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > size) {
                return Err(wrong_answer());
            }
            disk.write_all_at(bytes, *offset).or_fault(doing)?;
        }
        Ok(())
    }

    /// Puts the boot code that lies in the root file system's first block back.
    pub fn write_boot_block(&self, disk: &File) -> Result<()> {
        let doing = "writing the boot block";
        let mut block = [0; BOOT_BLOCK as usize];
        self.file.read_exact_at(&mut block, self.frame.root_start).or_fault(doing)?;
        disk.write_all_at(&block, self.frame.root_start).or_fault(doing)
    }

    /// How the disk changes when its root partition grows.
    fn grown(&self, jail: &Jail, directory: PathBuf, by: u64) -> Result<Vec<Patch>> {
        let input = self.file.try_clone().or_fault("opening a disk's layout")?;
        let work = Work::Grow { start: self.frame.root_start, by };
        match jail.start(directory, work, Input::File(input))?.finish()? {
            Outcome::Grown(patches) => Ok(patches),
            _ => Err(wrong_answer()),
        }
    }

    /// Shows the pieces that are not all zeros.
    fn pieces(&self, visit: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let doing = "reading a disk's layout";
        let (step, size) = (PIECE as u64, self.frame.size);
        let mut buffer = vec![0; PIECE];
        let mut at = 0;
        while at < size {
            at = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data / step * step,
                Err(Errno::NXIO) => return Ok(()),
                Err(error) => return Err(error).or_fault(doing),
            };
            let length = buffer.len().min(usize::try_from(size - at).unwrap_or(usize::MAX));
            let piece = &mut buffer[..length];
            self.file.read_exact_at(piece, at).or_fault(doing)?;
            if piece.iter().any(|byte| *byte != 0) {
                visit(at, piece)?;
            }
            at += step;
        }
        Ok(())
    }
}
