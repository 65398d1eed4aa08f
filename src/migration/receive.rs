//! What comes of a file that another host sends.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use openssl::sha::sha256;
use rustix::fs::{FallocateFlags, fallocate};

use super::chunks::CHUNK;
use crate::fault::{Fault, OrFault, Result};
use crate::image::sparse::{is_hole, write_sparsely};

/// A chunk, as it comes.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// Where it belongs.
    pub offset: u64,
    /// Its bytes, and their hash in hexadecimal digits; without, so many zeros.
    pub content: Content,
}

/// What a chunk holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// These bytes, which have this hash.
    Bytes(Vec<u8>, String),
    /// So many zeros.
    Zeros(u64),
}

impl Chunk {
    fn length(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes, _) => bytes.len() as u64,
            Content::Zeros(length) => *length,
        }
    }

    /// Refuses one that is not what it should be, or goes beyond `most` bytes.
    pub fn check(&self, most: u64) -> Result<()> {
        let length = self.length();
        if length == 0 || length > CHUNK || !self.offset.is_multiple_of(CHUNK) {
            return Err(Fault::invalid("offset", "a chunk is 1 MiB, at a multiple of that"));
        }
        if self.offset.checked_add(length).is_none_or(|end| end > most) {
            return Err(Fault::invalid("offset", format!("the file ends at {most} bytes")));
        }
        match &self.content {
            Content::Bytes(bytes, hash) if hex::encode(sha256(bytes)) != *hash => {
                Err(Fault::invalid("sha256", "the chunk has another hash: send it again"))
            }
            _ => Ok(()),
        }
    }

    /// Writes it. The same again changes nothing.
    pub fn write(&self, file: &Path) -> Result<()> {
        let doing = || format!("writing {}", file.display());
        let to = open(file).or_fault(doing())?;
        let end = self.offset + self.length();
        let length = usize::try_from(self.length()).unwrap_or(usize::MAX);
        if !is_hole(&to, self.offset, length) {
            // Of what was there before nothing is left.
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&to, flags, self.offset, self.length()).or_fault(doing())?;
        }
        if to.metadata().or_fault(doing())?.len() < end {
            to.set_len(end).or_fault(doing())?;
        }
        match &self.content {
            Content::Bytes(bytes, _) => {
                write_sparsely(&to, self.offset, bytes).map(drop).or_fault(doing())
            }
            Content::Zeros(_) => Ok(()),
        }
    }
}

fn open(file: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn chunk(offset: u64, bytes: &[u8]) -> Chunk {
        let hash = hex::encode(sha256(bytes));
        Chunk { offset, content: Content::Bytes(bytes.to_vec(), hash) }
    }

    #[test]
    fn a_file_grows_by_chunks_and_keeps_its_holes() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("disk");
        let mut bytes = vec![0; CHUNK as usize];
        bytes[8192..8196].copy_from_slice(b"data");
        chunk(4 * CHUNK, &bytes).write(&path).unwrap();
        chunk(4 * CHUNK, &bytes).write(&path).unwrap();
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!(found.len(), 5 * CHUNK);
        assert!(found.blocks() <= 64, "{}", found.blocks());
        let content = std::fs::read(&path).unwrap();
        assert_eq!(&content[4 * CHUNK as usize..], bytes);
        Chunk { offset: 4 * CHUNK, content: Content::Zeros(CHUNK) }.write(&path).unwrap();
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_is_not_what_it_should_be_is_refused() {
        chunk(0, b"x").check(1).unwrap();
        let mut other = chunk(0, b"x");
        other.content = Content::Bytes(b"y".to_vec(), hex::encode(sha256(b"x")));
        assert_eq!(other.check(1).unwrap_err().field.as_deref(), Some("sha256"));
        for bad in [chunk(1, b"x"), chunk(0, b""), chunk(CHUNK, b"x"), chunk(0, b"xy")] {
            assert_eq!(bad.check(1).unwrap_err().field.as_deref(), Some("offset"));
        }
        let far = Chunk { offset: u64::MAX / CHUNK * CHUNK, content: Content::Zeros(CHUNK) };
        assert!(far.check(u64::MAX).is_err());
    }
}
