//! Reads QEMU's qcow2 disk images, versions 2 and 3, as hostile input.
//!
//! One image is one file here: a backing file and an external data file are
//! names of the host's files and are refused, whatever they name.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::io::Read;
use std::rc::Rc;

use libdeflater::Decompressor;

use super::blocks::{Blocks, check_range};
use crate::fault::{Fault, Result};
use crate::image::refusal::unacceptable;

/// Most bytes of the first table, as in QEMU: 2 PiB with clusters of 64 KiB.
const MAX_L1: u64 = 32 << 20;
/// Most bytes of tables and clusters that are kept at a time.
const CACHE: usize = 16 << 20;
/// Most of a zstd window, as a power of two: a cluster has at most 2 MiB.
const ZSTD_WINDOW: u32 = 21;

/// Bits of a table's entry that are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

/// Pieces of a cluster whose state an extended entry says one by one.
const SUBCLUSTERS: u32 = 32;
/// The smallest cluster that can have them, as a power of two: they have 512 bytes then.
const MIN_EXTENDED_BITS: u32 = 14;

/// What a reader must know to read the image at all.
mod incompatible {
    pub const DIRTY: u64 = 1;
    pub const CORRUPT: u64 = 2;
    pub const DATA_FILE: u64 = 4;
    pub const COMPRESSION: u64 = 8;
    pub const EXTENDED_L2: u64 = 16;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    Deflate,
    Zstd,
}

/// A disk in a qcow2 image.
pub struct Qcow2 {
    file: Rc<dyn Blocks>,
    size: u64,
    cluster_bits: u32,
    version: u32,
    compression: Compression,
    /// Entries of the second tables have a map of the cluster's pieces.
    extended: bool,
    l1: Vec<u64>,
    /// Clusters that hold the header and the tables, by number.
    tables: HashSet<u64>,
    cache: RefCell<Cache>,
}

/// Tables and decompressed clusters that were read last, by their offset.
#[derive(Default)]
struct Cache(VecDeque<(u64, Rc<Vec<u8>>)>);

impl Cache {
    fn get(&self, key: u64) -> Option<Rc<Vec<u8>>> {
        self.0.iter().find(|(other, _)| *other == key).map(|(_, bytes)| Rc::clone(bytes))
    }

    fn put(&mut self, key: u64, bytes: Vec<u8>) -> Rc<Vec<u8>> {
        if (self.0.len() + 1) * bytes.len() > CACHE {
            self.0.pop_front();
        }
        let bytes = Rc::new(bytes);
        self.0.push_back((key, Rc::clone(&bytes)));
        bytes
    }
}

/// Where a cluster or a part of it is.
enum Place {
    Zeros,
    Plain(u64),
    Compressed { offset: u64, length: u64 },
}

/// What the features of version 3 say about how the image is read.
struct Features {
    compression: Compression,
    extended: bool,
}

impl Qcow2 {
    /// Reads header and first table.
    pub fn open(file: Rc<dyn Blocks>) -> Result<Qcow2> {
        let mut header = vec![0; 112.min(file.size() as usize)];
        file.read_at(0, &mut header)?;
        let be32 = |at: usize| be64(&header, at) >> 32;
        let version = be32(4) as u32;
        if header.len() < 72 || !header.starts_with(b"QFI\xfb") || !matches!(version, 2 | 3) {
            return Err(corrupt("its header is of no known version"));
        }
        if be64(&header, 8) != 0 {
            return Err(unacceptable(
                "the qcow2 image has a backing file, which would be read from the host; flatten it \
                 with `qemu-img convert`",
            ));
        }
        if be32(32) != 0 {
            return Err(unacceptable("the qcow2 image is encrypted; give it decrypted"));
        }
        let Features { compression, extended } = match version {
            3 => features(&header)?,
            _ => Features { compression: Compression::Deflate, extended: false },
        };
        let cluster_bits = be32(20) as u32;
        if !(9..=21).contains(&cluster_bits) {
            return Err(corrupt("its clusters are smaller than 512 bytes or larger than 2 MiB"));
        }
        if extended && cluster_bits < MIN_EXTENDED_BITS {
            return Err(corrupt("its clusters are too small for subclusters"));
        }
        let mut image = Qcow2 {
            size: be64(&header, 24),
            cluster_bits,
            version,
            compression,
            extended,
            l1: Vec::new(),
            tables: HashSet::from([0]),
            cache: RefCell::default(),
            file,
        };
        image.read_l1(be64(&header, 40), be32(36))?;
        Ok(image)
    }

    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// How many entries a second table has, as a power of two.
    fn entries_bits(&self) -> u32 {
        self.cluster_bits - if self.extended { 4 } else { 3 }
    }

    /// Reads the first table, and checks that no two tables lie in one place.
    fn read_l1(&mut self, offset: u64, entries: u64) -> Result<()> {
        let covered = u128::from(self.cluster()) << self.entries_bits();
        if u128::from(entries) * covered < u128::from(self.size) || entries * 8 > MAX_L1 {
            return Err(unacceptable(format!(
                "the qcow2 image says it is a disk of {} bytes, with a first table of {entries} \
                 entries; these do not fit each other, or are beyond all use",
                self.size
            )));
        }
        if entries > 0 {
            self.claim(offset, entries * 8)?;
        }
        let mut bytes = vec![0; entries as usize * 8];
        self.file.read_at(offset, &mut bytes)?;
        self.l1 = bytes.chunks_exact(8).map(|entry| be64(entry, 0) & OFFSET).collect();
        for at in 0..self.l1.len() {
            if self.l1[at] != 0 {
                self.claim(self.l1[at], self.cluster())?;
            }
        }
        Ok(())
    }

    /// Notes that a table lies there, and nowhere where another does.
    fn claim(&mut self, offset: u64, length: u64) -> Result<()> {
        let end = offset.checked_add(length).filter(|end| *end <= self.file.size());
        let (Some(end), true) = (end, offset.is_multiple_of(self.cluster())) else {
            return Err(corrupt("a table lies beyond its end or across clusters"));
        };
        for cluster in offset >> self.cluster_bits..=(end - 1) >> self.cluster_bits {
            if !self.tables.insert(cluster) {
                return Err(corrupt("its tables lie over one another or lead in a circle"));
            }
        }
        Ok(())
    }

    /// Where the disk's byte is, and for how many bytes from it on, all in its
    /// cluster or without any, that is so.
    fn place(&self, guest: u64) -> Result<(Place, u64)> {
        let covered = self.cluster() << self.entries_bits();
        let table = usize::try_from(guest / covered).ok().and_then(|at| self.l1.get(at)).copied();
        let Some(table) = table.filter(|table| *table != 0) else {
            return Ok((Place::Zeros, covered - guest % covered));
        };
        let bytes = self.cached(table, || {
            let mut bytes = vec![0; self.cluster() as usize];
            self.file.read_at(table, &mut bytes)?;
            Ok(bytes)
        })?;
        let index = ((guest % covered) >> self.cluster_bits) as usize;
        let left = self.cluster() - guest % self.cluster();
        if !self.extended {
            return Ok((self.cluster_place(be64(&bytes, index * 8), ZERO)?, left));
        }
        let (entry, map) = (be64(&bytes, index * 16), be64(&bytes, index * 16 + 8));
        match self.cluster_place(entry, 0)? {
            // Its map says nothing.
            place @ Place::Compressed { .. } => Ok((place, left)),
            place => self.subcluster_place(place, map, guest % self.cluster()),
        }
    }

    /// What an entry says about its cluster; `zero` are the bits that say it is all zeros.
    fn cluster_place(&self, entry: u64, zero: u64) -> Result<Place> {
        if entry & COMPRESSED != 0 {
            let bits = 62 - (self.cluster_bits - 8);
            let offset = entry & ((1 << bits) - 1);
            let sectors = (entry & (COMPRESSED - 1)) >> bits;
            return Ok(Place::Compressed { offset, length: (sectors + 1) * 512 - offset % 512 });
        }
        let offset = entry & OFFSET;
        if offset == 0 || self.version >= 3 && entry & zero != 0 {
            return Ok(Place::Zeros);
        }
        if !offset.is_multiple_of(self.cluster()) {
            return Err(corrupt("a cluster lies across others"));
        }
        if self.tables.contains(&(offset >> self.cluster_bits)) {
            return Err(corrupt("a table is at the same time content"));
        }
        Ok(Place::Plain(offset))
    }

    /// What a cluster's map says from a byte inside it on: its lower half are
    /// the subclusters that are stored, its upper half those that are zeros.
    fn subcluster_place(&self, place: Place, map: u64, inside: u64) -> Result<(Place, u64)> {
        let (stored, zeros) = (map as u32, (map >> 32) as u32);
        if stored & zeros != 0 || matches!(place, Place::Zeros) && stored != 0 {
            return Err(corrupt("a subcluster is stored nowhere, or is zeros at the same time"));
        }
        let size = self.cluster() / u64::from(SUBCLUSTERS);
        let first = inside / size;
        let (is_stored, rest) = (stored >> first & 1 != 0, stored >> first);
        let alike = if is_stored { rest.trailing_ones() } else { rest.trailing_zeros() };
        let end = (first + u64::from(alike)).min(SUBCLUSTERS.into()) * size;
        Ok((if is_stored { place } else { Place::Zeros }, end - inside))
    }

    fn cached(&self, key: u64, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Rc<Vec<u8>>> {
        let found = self.cache.borrow().get(key);
        match found {
            Some(bytes) => Ok(bytes),
            None => Ok(self.cache.borrow_mut().put(key, make()?)),
        }
    }

    fn decompress(&self, offset: u64, length: u64) -> Result<Vec<u8>> {
        // The length counts whole sectors, of which the file may end within the last.
        let length = length.min(self.file.size().saturating_sub(offset));
        let mut packed = vec![0; length as usize];
        self.file.read_at(offset, &mut packed)?;
        let mut plain = vec![0; self.cluster() as usize];
        let whole = match self.compression {
            // A cluster is one stream, which this library decompresses at once and several times
            // as fast as those that take it in pieces.
            Compression::Deflate => Decompressor::new()
                .deflate_decompress(&packed, &mut plain)
                .is_ok_and(|length| length == plain.len()),
            Compression::Zstd => zstd::stream::read::Decoder::with_buffer(&packed[..])
                .and_then(|mut decoder| {
                    decoder.window_log_max(ZSTD_WINDOW)?;
                    decoder.read_exact(&mut plain)
                })
                .is_ok(),
        };
        if whole { Ok(plain) } else { Err(corrupt("a compressed cluster does not decompress")) }
    }

    /// Reads from one place, which is that of the byte at `guest`.
    fn read_place(&self, place: &Place, guest: u64, buffer: &mut [u8]) -> Result<()> {
        let inside = guest % self.cluster();
        match *place {
            Place::Zeros => buffer.fill(0),
            Place::Plain(offset) => {
                // QEMU ends the file within the last cluster when nothing follows there.
                let there = self.file.size().saturating_sub(offset + inside);
                let (data, rest) = buffer.split_at_mut(buffer.len().min(there as usize));
                if offset >= self.file.size() {
                    return Err(corrupt("a cluster lies beyond its end"));
                }
                if !data.is_empty() {
                    self.file.read_at(offset + inside, data)?;
                }
                rest.fill(0);
            }
            Place::Compressed { offset, length } => {
                // No table has an odd key.
                let key = offset << 1 | 1;
                let plain = self.cached(key, || self.decompress(offset, length))?;
                let start = inside as usize;
                buffer.copy_from_slice(&plain[start..start + buffer.len()]);
            }
        }
        Ok(())
    }
}

impl Blocks for Qcow2 {
    fn size(&self) -> u64 {
        self.size
    }

    fn hole(&self, offset: u64) -> u64 {
        match self.place(offset) {
            Ok((Place::Zeros, length)) => length.min(self.size.saturating_sub(offset)),
            // The fault comes when it is read.
            _ => 0,
        }
    }

    fn read_at(&self, offset: u64, mut buffer: &mut [u8]) -> Result<()> {
        check_range(self, offset, buffer.len())?;
        let mut guest = offset;
        while !buffer.is_empty() {
            let (place, left) = self.place(guest)?;
            let length = (buffer.len() as u64).min(left) as usize;
            let (piece, rest) = buffer.split_at_mut(length);
            self.read_place(&place, guest, piece)?;
            (guest, buffer) = (guest + length as u64, rest);
        }
        Ok(())
    }
}

/// Checks the features of version 3.
fn features(header: &[u8]) -> Result<Features> {
    let known = incompatible::DIRTY | incompatible::COMPRESSION | incompatible::EXTENDED_L2;
    let set = be64(header, 72);
    for (bit, why) in [
        (incompatible::DATA_FILE, "its content is in an external data file, on the host"),
        (incompatible::CORRUPT, "it is marked as corrupt; run `qemu-img check -r all`"),
        (!known, "it has features that are not known here"),
    ] {
        if set & bit != 0 {
            return Err(corrupt(why));
        }
    }
    let compression = match header.get(104) {
        Some(1) if set & incompatible::COMPRESSION != 0 => Compression::Zstd,
        Some(2..) if set & incompatible::COMPRESSION != 0 => {
            return Err(corrupt("its clusters are compressed in a way that is not known here"));
        }
        _ => Compression::Deflate,
    };
    Ok(Features { compression, extended: set & incompatible::EXTENDED_L2 != 0 })
}

/// A big-endian number; zero where the bytes end before it.
fn be64(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    for (to, from) in number.iter_mut().zip(bytes.get(at..).unwrap_or_default()) {
        *to = *from;
    }
    u64::from_be_bytes(number)
}

fn corrupt(why: &str) -> Fault {
    unacceptable(format!("the qcow2 image cannot be read: {why}"))
}
