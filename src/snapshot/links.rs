//! Where each file with several names was met first, kept in a file.
//!
//! A table of fixed size holds the head of each chain; entries name the one
//! before, and their directory by a record of its own, which files that are met
//! one after the other share. So the file is no larger than the directories of
//! the tree, which its owner's disk has paid for.

use std::hash::{BuildHasher, RandomState};

use super::scratch::Scratch;
use crate::fault::Result;

/// Chains. The table takes 2 MiB, and with ten million files a look goes along
/// forty entries.
const CHAINS: usize = 1 << 18;
/// Bytes of an entry before its name: the entry before, device, inode, directory, length.
const HEAD: usize = 34;
/// Where nothing is: the file's first byte belongs to no entry.
const NONE: u64 = 0;

/// The first path of each inode.
pub(super) struct Links<'a> {
    scratch: &'a Scratch,
    // No tenant knows which inodes share a chain.
    hasher: RandomState,
    chains: Vec<u64>,
    /// The last directory, and where it is written.
    directory: (Vec<u8>, u64),
}

impl Links<'_> {
    pub fn new(scratch: &Scratch) -> Links<'_> {
        let directory = (Vec::new(), NONE);
        Links { scratch, hasher: RandomState::new(), chains: Vec::new(), directory }
    }

    /// The path that the inode was met at first; `None` when that is this one.
    pub fn first(&mut self, inode: (u64, u64), path: &[u8]) -> Result<Option<Vec<u8>>> {
        if self.chains.is_empty() {
            self.chains = vec![NONE; CHAINS];
            self.scratch.add(&[0])?;
        }
        let chain = usize::try_from(self.hasher.hash_one(inode)).unwrap_or(0) % CHAINS;
        let mut at = self.chains[chain];
        while at != NONE {
            let mut head = [0; HEAD];
            self.scratch.read(&mut head, at)?;
            let number =
                |n: usize| u64::from_le_bytes(*head[8 * n..].first_chunk().unwrap_or(&[0; 8]));
            if (number(1), number(2)) == inode {
                return self.path(number(3), at + 32).map(Some);
            }
            at = number(0);
        }
        let slash = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (directory, name) = path.split_at(slash);
        let directory = self.directory(directory)?;
        let mut entry = Vec::with_capacity(HEAD + name.len());
        for number in [self.chains[chain], inode.0, inode.1, directory] {
            entry.extend(number.to_le_bytes());
        }
        entry.extend(text(name));
        self.chains[chain] = self.scratch.add(&entry)?;
        Ok(None)
    }

    /// Where a directory, with its slash, is written.
    fn directory(&mut self, path: &[u8]) -> Result<u64> {
        if self.directory.1 == NONE || self.directory.0 != path {
            self.directory = (path.to_vec(), self.scratch.add(&text(path))?);
        }
        Ok(self.directory.1)
    }

    fn path(&self, directory: u64, name: u64) -> Result<Vec<u8>> {
        let mut path = Vec::new();
        for at in [directory, name] {
            let mut length = [0; 2];
            self.scratch.read(&mut length, at)?;
            let before = path.len();
            path.resize(before + usize::from(u16::from_le_bytes(length)), 0);
            self.scratch.read(&mut path[before..], at + 2)?;
        }
        Ok(path)
    }
}

/// A text with its length before it. No path is longer than 4095 bytes.
fn text(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&length.to_le_bytes(), bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::super::scratch::Scratches;
    use super::*;

    #[test]
    fn every_inode_is_found_where_it_was_met_first() {
        let scratch = Scratch::new(&Scratches::within(&std::env::temp_dir()));
        let mut links = Links::new(&scratch);
        let path = |n: u64| match n % 3 {
            0 => format!("top{n}").into_bytes(),
            1 => [b"d/".as_slice(), &[b'x'; 200], n.to_string().as_bytes()].concat(),
            _ => [&b"long/".repeat(700), n.to_string().as_bytes()].concat(),
        };
        // Of two devices, and more than there are chains of one.
        for n in 0..3000 {
            assert_eq!(links.first((n % 2, n), &path(n)).unwrap(), None);
        }
        for n in 0..3000 {
            assert_eq!(links.first((n % 2, n), b"elsewhere").unwrap(), Some(path(n)));
        }
        assert_eq!(links.first((7, 0), b"new").unwrap(), None);
    }
}
