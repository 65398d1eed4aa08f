//! Replays a journal that was not empty when the image was made: what it holds
//! of blocks is read in their place.
//!
//! Nothing is written, and no block is kept: the overlay knows where in the
//! journal each block is. Every transaction must be whole and its check sums,
//! where the journal has them, right. Other than the kernel's, this reader
//! refuses a journal that is wrong anywhere before its end instead of taking
//! a part of it.

use std::collections::HashMap;
use std::rc::Rc;

use super::file_system::{Ext, corrupt};
use crate::fault::{Fault, Result};
use crate::image::disk::blocks::{Blocks, le32};
use crate::image::disk::file_tree::{Extent, FileKind};
use crate::image::disk::sums::{crc32_be, crc32c};

const MAGIC: [u8; 4] = 0xc03b_3998_u32.to_be_bytes();
/// Most blocks of a journal: mke2fs makes at most a quarter of that.
const MAX_BLOCKS: u64 = 1 << 20;
/// Most freed blocks that it may name.
const MAX_REVOKED: usize = 1 << 20;
/// Bytes of the header of each of the journal's own blocks.
const HEADER: usize = 12;

/// What kinds of blocks a journal has of its own.
mod kind {
    pub const DESCRIPTOR: u32 = 1;
    pub const COMMIT: u32 = 2;
    pub const SUPERBLOCK: u32 = 4;
    pub const REVOKE: u32 = 5;
}

/// A compatible feature: each commit has one check sum of all that its
/// transaction's descriptors and their blocks hold.
const SUM_V1: u32 = 0x1;
/// What such a commit says about its check sum: its kind, CRC-32, and its bytes.
const CRC32: [u8; 2] = [1, 4];

/// What a reader of the journal must know.
mod feature {
    pub const REVOKE: u32 = 0x1;
    pub const WIDE: u32 = 0x2;
    pub const ASYNC_COMMIT: u32 = 0x4;
    pub const SUM_V2: u32 = 0x8;
    pub const SUM_V3: u32 = 0x10;
    pub const FAST_COMMIT: u32 = 0x20;
}

/// Flags of a block that a descriptor names.
mod tag {
    pub const ESCAPED: u32 = 1;
    pub const SAME_UUID: u32 = 2;
    pub const LAST: u32 = 8;
}

/// A file system's bytes with its journal's blocks in their place.
struct Replayed {
    disk: Rc<dyn Blocks>,
    block: u64,
    found: HashMap<u64, Copy>,
}

/// A block's later content.
#[derive(Clone, Copy)]
struct Copy {
    /// Where it is on the disk.
    place: u64,
    /// It begins with the journal's magic number, which is left out there.
    escaped: bool,
    /// Number of its transaction.
    sequence: u32,
    /// Its check sum, as far as the journal has it.
    sum: Option<u32>,
}

struct Journal<'a> {
    ext: &'a Ext,
    extents: Vec<Extent>,
    features: u32,
    /// Its commits have check sums of their whole transactions.
    sums_v1: bool,
    /// Check sum of the journal's UUID, from which the others go on.
    seed: u32,
    first: u64,
    /// Blocks.
    length: u64,
}

/// What transactions say.
#[derive(Default)]
struct Log {
    /// Block numbers and their content.
    copies: Vec<(u64, Copy)>,
    /// Blocks that were freed, and the last transaction of whose copies that is true.
    revoked: HashMap<u64, u32>,
}

/// The file system's bytes as they are after its journal was replayed.
pub(super) fn replayed(ext: &Ext, number: u32) -> Result<Rc<dyn Blocks>> {
    let mut found = HashMap::new();
    if let Some((journal, start, sequence)) = Journal::open(ext, number)? {
        let log = journal.scan(start, sequence)?;
        let mut data = vec![0; ext.block as usize];
        for (block, copy) in log.copies {
            if log.revoked.get(&block).is_some_and(|last| !is_after(copy.sequence, *last)) {
                continue;
            }
            ext.block_offset_from_0(block)?;
            ext.disk.read_at(copy.place, &mut data)?;
            journal.check_data(&data, &copy)?;
            found.insert(block, copy);
        }
    }
    Ok(Rc::new(Replayed { disk: Rc::clone(&ext.disk), block: ext.block, found }))
}

/// Whether one number, which may have started from 0 again, is after another.
fn is_after(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() > 0
}

impl<'a> Journal<'a> {
    /// The journal, its first block in use and that block's number of a
    /// transaction; `None` when it is empty.
    fn open(ext: &'a Ext, number: u32) -> Result<Option<(Journal<'a>, u64, u32)>> {
        if number == 0 {
            return Err(broken("it is on another device"));
        }
        let inode = ext.inode(number)?;
        if inode.kind != FileKind::Regular {
            return Err(broken("it is no file"));
        }
        let mut journal = Journal {
            extents: ext.extents(&inode)?,
            features: 0,
            sums_v1: false,
            seed: 0,
            first: 0,
            length: inode.size / ext.block,
            ext,
        };
        let sb = journal.read(0)?;
        if !sb.starts_with(&MAGIC) || be32(&sb, 4) != kind::SUPERBLOCK {
            return Err(broken("it has no superblock"));
        }
        journal.features = be32(&sb, 40);
        journal.sums_v1 = be32(&sb, 36) & SUM_V1 != 0;
        journal.seed = crc32c(u32::MAX, &sb[48..64]);
        journal.check_features()?;
        if journal.has_sums() {
            let mut head = sb[..1024].to_vec();
            head[252..256].fill(0);
            journal.check_sum(crc32c(u32::MAX, &head), be32(&sb, 252))?;
        }
        let length = u64::from(be32(&sb, 16));
        let (first, start) = (u64::from(be32(&sb, 20)), u64::from(be32(&sb, 28)));
        if u64::from(be32(&sb, 12)) != ext.block
            || length > journal.length.min(MAX_BLOCKS)
            || first == 0
            || first >= length
        {
            return Err(broken("its superblock's sizes are impossible"));
        }
        (journal.first, journal.length) = (first, length);
        match start {
            0 => Ok(None),
            start if start < first || start >= length => Err(broken("it begins outside itself")),
            start => Ok(Some((journal, start, be32(&sb, 24)))),
        }
    }

    fn check_features(&self) -> Result<()> {
        let known = feature::REVOKE
            | feature::WIDE
            | feature::ASYNC_COMMIT
            | feature::SUM_V2
            | feature::SUM_V3;
        let both = feature::SUM_V2 | feature::SUM_V3;
        if self.has(feature::FAST_COMMIT) {
            return Err(broken("it has fast commits, which only the kernel replays"));
        }
        if self.features & !known != 0 || self.features & both == both {
            return Err(broken("it has features that are not known here"));
        }
        if self.sums_v1 && self.has_sums() {
            return Err(broken("it has check sums of two kinds"));
        }
        if self.has(feature::ASYNC_COMMIT) && !self.has_sums() && !self.sums_v1 {
            return Err(broken("without check sums nobody knows which of its blocks were written"));
        }
        Ok(())
    }

    fn has(&self, feature: u32) -> bool {
        self.features & feature != 0
    }

    fn has_sums(&self) -> bool {
        self.has(feature::SUM_V2 | feature::SUM_V3)
    }

    /// Where a block of the journal is on the disk.
    fn place(&self, block: u64) -> Result<u64> {
        let offset = block * self.ext.block;
        let at = self.extents.partition_point(|extent| extent.offset + extent.length <= offset);
        match self.extents.get(at) {
            Some(extent) if extent.offset <= offset => Ok(extent.place + (offset - extent.offset)),
            _ => Err(broken("a part of it is not stored")),
        }
    }

    fn read(&self, block: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.ext.block as usize];
        self.ext.disk.read_at(self.place(block)?, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads all whole transactions.
    fn scan(&self, start: u64, mut sequence: u32) -> Result<Log> {
        let (mut log, mut pending) = (Log::default(), Log::default());
        let mut at = start;
        let mut left = self.length - self.first;
        let mut sum = u32::MAX;
        let mut next = || {
            let here = at;
            at = if at + 1 >= self.length { self.first } else { at + 1 };
            left = left.checked_sub(1)?;
            Some(here)
        };
        while let Some(here) = next() {
            let block = self.read(here)?;
            if !block.starts_with(&MAGIC) || be32(&block, 8) != sequence {
                break;
            }
            match be32(&block, 4) {
                kind::DESCRIPTOR => {
                    self.check_tail(&block)?;
                    sum = self.sum_v1(sum, here)?;
                    for (number, flags, own) in self.tags(&block)? {
                        let here = next().ok_or_else(|| broken("it is longer than itself"))?;
                        let escaped = flags & tag::ESCAPED != 0;
                        let place = self.place(here)?;
                        sum = self.sum_v1(sum, here)?;
                        let copy = Copy { place, escaped, sequence, sum: own };
                        pending.copies.push((number, copy));
                    }
                }
                kind::REVOKE => {
                    self.check_tail(&block)?;
                    let numbers = self.revoked(&block)?;
                    pending.revoked.extend(numbers.into_iter().map(|number| (number, sequence)));
                    if pending.revoked.len() + log.revoked.len() > MAX_REVOKED {
                        return Err(broken("it frees more blocks than are kept in mind"));
                    }
                }
                kind::COMMIT => {
                    self.check_commit(&block, sum)?;
                    sum = u32::MAX;
                    log.copies.append(&mut pending.copies);
                    log.revoked.extend(pending.revoked.drain());
                    sequence = sequence.wrapping_add(1);
                }
                _ => return Err(broken("it has a block of an unknown kind")),
            }
        }
        Ok(log)
    }

    /// The blocks that a descriptor names: number, flags, check sum.
    fn tags(&self, block: &[u8]) -> Result<Vec<(u64, u32, Option<u32>)>> {
        let wide = self.has(feature::WIDE);
        let size = match (self.has(feature::SUM_V3), self.has(feature::SUM_V2)) {
            (true, _) => 16,
            (_, true) => 10 + if wide { 4 } else { 0 },
            _ => 8 + if wide { 4 } else { 0 },
        };
        let end = block.len() - if self.has_sums() { 4 } else { 0 };
        let (mut found, mut at) = (Vec::new(), HEADER);
        while at + size <= end {
            let bytes = &block[at..at + size];
            let high = if wide { u64::from(be32(bytes, 8)) << 32 } else { 0 };
            let number = u64::from(be32(bytes, 0)) | high;
            let (flags, sum) = match self.has(feature::SUM_V3) {
                true => (be32(bytes, 4), Some(be32(bytes, 12))),
                false => {
                    let sum = be32(bytes, 4) >> 16;
                    (be32(bytes, 4) & 0xffff, self.has(feature::SUM_V2).then_some(sum))
                }
            };
            found.push((number, flags, sum));
            at += size + if flags & tag::SAME_UUID == 0 { 16 } else { 0 };
            if flags & tag::LAST != 0 {
                return Ok(found);
            }
        }
        // A full descriptor needs no mark; one that is cut is broken all the same.
        if found.is_empty() { Err(broken("a descriptor describes nothing")) } else { Ok(found) }
    }

    fn revoked(&self, block: &[u8]) -> Result<Vec<u64>> {
        let end = be32(block, 12) as usize;
        if end < 16 || end > block.len() - if self.has_sums() { 4 } else { 0 } {
            return Err(broken("a list of freed blocks is longer than its block"));
        }
        let numbers = &block[16..end];
        Ok(match self.has(feature::WIDE) {
            true => numbers
                .chunks_exact(8)
                .map(|n| u64::from(be32(n, 0)) << 32 | u64::from(be32(n, 4)))
                .collect(),
            false => numbers.chunks_exact(4).map(|n| be32(n, 0).into()).collect(),
        })
    }

    /// Checks the sum at the end of one of the journal's own blocks.
    fn check_tail(&self, block: &[u8]) -> Result<()> {
        if !self.has_sums() {
            return Ok(());
        }
        let (bytes, stored) = block.split_at(block.len() - 4);
        self.check_sum(crc32c(crc32c(self.seed, bytes), &[0; 4]), be32(stored, 0))
    }

    /// A transaction's check sum, where there are such, goes on over a block of the journal.
    fn sum_v1(&self, sum: u32, block: u64) -> Result<u32> {
        if self.sums_v1 { Ok(crc32_be(sum, &self.read(block)?)) } else { Ok(sum) }
    }

    /// Checks a commit's own sum, or that of its transaction, which it may leave out.
    fn check_commit(&self, block: &[u8], transaction: u32) -> Result<()> {
        let (kind, stored) = (&block[12..14], be32(block, 16));
        if self.has_sums() {
            let mut bytes = block.to_vec();
            bytes[16..20].fill(0);
            return self.check_sum(crc32c(self.seed, &bytes), stored);
        }
        if !self.sums_v1 || kind == [0; 2] && stored == 0 {
            return Ok(());
        }
        if kind != CRC32 {
            return Err(broken("a check sum in it is of an unknown kind"));
        }
        self.check_sum(transaction, stored)
    }

    fn check_data(&self, data: &[u8], copy: &Copy) -> Result<()> {
        let Some(stored) = copy.sum else { return Ok(()) };
        let sum = crc32c(crc32c(self.seed, &copy.sequence.to_be_bytes()), data);
        let sum = if self.has(feature::SUM_V3) { sum } else { sum & 0xffff };
        self.check_sum(sum, stored)
    }

    fn check_sum(&self, computed: u32, stored: u32) -> Result<()> {
        if computed == stored { Ok(()) } else { Err(broken("a check sum in it is wrong")) }
    }
}

impl Replayed {
    /// Fills the buffer with a part of one block.
    fn read_copy(&self, copy: Copy, inside: u64, buffer: &mut [u8]) -> Result<()> {
        self.disk.read_at(copy.place + inside, buffer)?;
        if copy.escaped {
            let magic = MAGIC.iter().skip(inside as usize);
            buffer.iter_mut().zip(magic).for_each(|(to, from)| *to = *from);
        }
        Ok(())
    }
}

impl Blocks for Replayed {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        // Bounds are checked here, and what of it has no copy is right already.
        self.disk.read_at(offset, buffer)?;
        if self.found.is_empty() {
            return Ok(());
        }
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let inside = at % self.block;
            let length = rest.len().min((self.block - inside) as usize);
            let (piece, more) = rest.split_at_mut(length);
            if let Some(copy) = self.found.get(&(at / self.block)) {
                self.read_copy(*copy, inside, piece)?;
            }
            (at, rest) = (at + length as u64, more);
        }
        Ok(())
    }
}

/// A big-endian number; zero where the bytes end before it.
fn be32(bytes: &[u8], at: usize) -> u32 {
    le32(bytes, at).swap_bytes()
}

fn broken(why: &str) -> Fault {
    corrupt(format!(
        "it was not unmounted, and its journal cannot be replayed: {why}; run e2fsck on it first"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_transactions_start_again() {
        assert!(is_after(1, 0) && is_after(0, u32::MAX) && !is_after(5, 5) && !is_after(4, 5));
    }
}
