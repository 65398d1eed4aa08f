//! Lays bytes into a small file system as the journal that it still has to
//! replay, so that a few hundred of them reach all of what reads one.
//!
//! The bytes are a flag, 1 when check sums shall stay as they are, and then
//! the journal's blocks, each as its length (two bytes, little-endian) and
//! what of it is not zeros at its end.

use std::collections::HashMap;

use super::sums::{crc32_be, crc32c};

/// A file system of which `/journal` is the journal; that is empty.
const FILE_SYSTEM: &[u8] = include_bytes!("journal.ext4");
const BLOCK: usize = 1024;
/// Where the journal's blocks are.
const PLACES: [std::ops::Range<usize>; 2] = [26..35, 38..53];
const MAGIC: [u8; 4] = 0xc03b_3998_u32.to_be_bytes();

/// A file system with a journal, and the same after that was replayed.
pub struct Laid {
    /// It has to be replayed.
    pub before: Vec<u8>,
    /// What a reader that refuses nothing makes of it, by writing.
    pub after: Vec<u8>,
}

/// A copy in the journal.
struct Copy {
    target: u64,
    escaped: bool,
    sequence: u32,
    data: Vec<u8>,
}

/// Lays the bytes in, with the sums that they should have.
pub fn lay(bytes: &[u8]) -> Laid {
    let (flag, rest) = bytes.split_first().unwrap_or((&0, &[]));
    let mut blocks = blocks(rest);
    let mut walk = Walk::new(&blocks[0], flag & 1 == 0);
    let (copies, revoked) = walk.run(&mut blocks);
    let mut before = FILE_SYSTEM.to_vec();
    for (place, block) in PLACES.into_iter().flatten().zip(&blocks) {
        before[place * BLOCK..][..BLOCK].copy_from_slice(block);
    }
    let mut after = before.clone();
    for mut copy in copies {
        // Numbers of transactions start again.
        let is_freed = |last: &u32| last.wrapping_sub(copy.sequence) < 1 << 31;
        let freed = revoked.get(&copy.target).is_some_and(is_freed);
        let target = usize::try_from(copy.target).unwrap_or(usize::MAX).saturating_mul(BLOCK);
        if let (false, Some(to)) = (freed, after.get_mut(target..target.saturating_add(BLOCK))) {
            if copy.escaped {
                copy.data[..4].copy_from_slice(&MAGIC);
            }
            to.copy_from_slice(&copy.data);
        }
    }
    // It needs no recovery now.
    after[1024 + 96] &= !4;
    Laid { before, after }
}

fn blocks(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let count = PLACES.into_iter().flatten().count();
    let next = || {
        let (length, rest) = bytes
            .split_first_chunk()
            .map_or((0, bytes), |(length, rest)| (usize::from(u16::from_le_bytes(*length)), rest));
        let (block, rest) = rest.split_at(length.min(BLOCK).min(rest.len()));
        bytes = rest;
        let mut block = block.to_vec();
        block.resize(BLOCK, 0);
        block
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// What the journal's superblock says.
struct Walk {
    mend: bool,
    first: usize,
    start: usize,
    length: usize,
    sequence: u32,
    wide: bool,
    v1: bool,
    v2: bool,
    v3: bool,
    seed: u32,
}

impl Walk {
    fn new(sb: &[u8], mend: bool) -> Walk {
        let incompatible = be32(sb, 40);
        Walk {
            mend,
            first: be32(sb, 20) as usize,
            start: be32(sb, 28) as usize,
            length: be32(sb, 16) as usize,
            sequence: be32(sb, 24),
            wide: incompatible & 2 != 0,
            v1: be32(sb, 36) & 1 != 0,
            v2: incompatible & 8 != 0,
            v3: incompatible & 16 != 0,
            seed: crc32c(u32::MAX, &sb[48..64]),
        }
    }

    fn tails(&self) -> bool {
        self.v2 || self.v3
    }

    /// Goes over the journal as a reader does, and rights the sums.
    fn run(&mut self, blocks: &mut [Vec<u8>]) -> (Vec<Copy>, HashMap<u64, u32>) {
        self.put(&mut blocks[0], 252, |block| crc32c(u32::MAX, block));
        let (mut copies, mut revoked) = (Vec::new(), HashMap::new());
        let (mut new_copies, mut new_revoked) = (Vec::new(), Vec::new());
        let last = self.length.min(blocks.len());
        if self.first == 0 || self.first >= last || !(self.first..last).contains(&self.start) {
            return (copies, revoked);
        }
        let around = (self.start..last).chain(self.first..self.start);
        let mut around = around.take(last - self.first);
        let mut sum = u32::MAX;
        while let Some(here) = around.next() {
            let block = blocks[here].clone();
            if !block.starts_with(&MAGIC) || be32(&block, 8) != self.sequence {
                break;
            }
            match be32(&block, 4) {
                1 => {
                    let mut places = Vec::new();
                    for (at, target, flags) in self.tags(&block) {
                        let Some(place) = around.next() else { return (copies, revoked) };
                        let data = blocks[place].clone();
                        self.put_data(&mut blocks[here], at, &data);
                        places.push(place);
                        let (escaped, sequence) = (flags & 1 != 0, self.sequence);
                        new_copies.push(Copy { target, escaped, sequence, data });
                    }
                    self.put_tail(&mut blocks[here]);
                    for at in std::iter::once(here).chain(places) {
                        sum = crc32_be(sum, &blocks[at]);
                    }
                }
                2 => {
                    let seed = self.seed;
                    self.put(&mut blocks[here], 16, |block| crc32c(seed, block));
                    if self.mend && self.v1 && block[12] == 1 {
                        blocks[here][16..20].copy_from_slice(&sum.to_be_bytes());
                    }
                    sum = u32::MAX;
                    copies.append(&mut new_copies);
                    revoked.extend(new_revoked.drain(..));
                    self.sequence = self.sequence.wrapping_add(1);
                }
                5 => {
                    self.put_tail(&mut blocks[here]);
                    let end = (be32(&block, 12) as usize).clamp(16, BLOCK);
                    let numbers = block[16..end].chunks_exact(if self.wide { 8 } else { 4 });
                    new_revoked.extend(numbers.map(|number| {
                        let number = number.iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
                        (number, self.sequence)
                    }));
                }
                _ => break,
            }
        }
        (copies, revoked)
    }

    /// Of each block that a descriptor names: where that is said, its number, its flags.
    fn tags(&self, block: &[u8]) -> Vec<(usize, u64, u32)> {
        let size = match (self.v3, self.v2, self.wide) {
            (true, ..) => 16,
            (_, true, wide) => 10 + usize::from(wide) * 4,
            (.., wide) => 8 + usize::from(wide) * 4,
        };
        let end = if self.tails() { BLOCK - 4 } else { BLOCK };
        let (mut found, mut at) = (Vec::new(), 12);
        while at + size <= end {
            let high = if self.wide { u64::from(be32(block, at + 8)) << 32 } else { 0 };
            let flags = be32(block, at + 4);
            let flags = if self.v3 { flags } else { flags & 0xffff };
            found.push((at, u64::from(be32(block, at)) | high, flags));
            if flags & 8 != 0 {
                break;
            }
            at += if flags & 2 != 0 { size } else { size + 16 };
        }
        found
    }

    /// Rights a block's own sum, which is computed with zeros in its place.
    fn put(&self, block: &mut [u8], at: usize, sum: impl Fn(&[u8]) -> u32) {
        if self.mend && self.tails() {
            block[at..at + 4].fill(0);
            let sum = sum(block).to_be_bytes();
            block[at..at + 4].copy_from_slice(&sum);
        }
    }

    fn put_tail(&self, block: &mut [u8]) {
        let seed = self.seed;
        self.put(block, BLOCK - 4, |block| crc32c(seed, block));
    }

    /// Rights the sum that a descriptor has of a block.
    fn put_data(&self, block: &mut [u8], at: usize, data: &[u8]) {
        let sum = crc32c(crc32c(self.seed, &self.sequence.to_be_bytes()), data).to_be_bytes();
        match (self.mend, self.v3, self.v2) {
            (true, true, _) => block[at + 12..at + 16].copy_from_slice(&sum),
            (true, _, true) => block[at + 4..at + 6].copy_from_slice(&sum[2..]),
            _ => {}
        }
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(*bytes[at..].first_chunk().unwrap())
}
