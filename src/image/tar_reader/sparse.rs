//! Files with holes: four ways in which archives say where their data goes.

use std::io::Read;

use ::tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{BLOCK, Member, TarReader};
use crate::fault::{Fault, Result};
use crate::image::pax::Pax;
use crate::image::refusal::malformed_tar as malformed;

/// Most pieces of data in a sparse file.
const MAX_PIECES: usize = 1 << 20;

impl<R: Read> TarReader<R> {
    /// Replaces size, pieces and possibly the name of a sparse file.
    pub(super) fn sparse(&mut self, header: &Header, pax: &Pax, member: &mut Member) -> Result<()> {
        let stored = member.size;
        let (pieces, size) = if header.entry_type().is_gnu_sparse() {
            let size = header.as_gnu().and_then(|gnu| gnu.real_size().ok());
            (self.gnu_map(header)?, size)
        } else if pax.get("GNU.sparse.major") == Some(b"1") {
            (self.map_in_content()?, pax.number("GNU.sparse.realsize")?)
        } else if let Some(map) = pax.sparse_map()? {
            let size = match pax.number("GNU.sparse.size")? {
                Some(size) => Some(size),
                None => pax.number("GNU.sparse.realsize")?,
            };
            (map, size)
        } else {
            return Ok(());
        };
        let size = size.ok_or_else(|| malformed("a sparse file has no size"))?;
        if let Some(name) = pax.get("GNU.sparse.name") {
            member.path = name.to_vec();
        }
        check_pieces(&pieces, size, self.content.min(stored))?;
        (member.pieces, member.size) = (pieces, size);
        Ok(())
    }

    /// The map of the old GNU format: in the header, and in blocks right after it.
    fn gnu_map(&mut self, header: &Header) -> Result<Vec<(u64, u64)>> {
        let gnu = header.as_gnu().ok_or_else(|| malformed("a sparse file without GNU header"))?;
        let mut pieces = Vec::new();
        add_pieces(&mut pieces, &gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            self.fill(block.as_mut_bytes())?;
            add_pieces(&mut pieces, &block.sparse)?;
            more = block.is_extended();
        }
        Ok(pieces)
    }

    /// The map of pax format 1.0: decimal lines at the content's start, padded to a block.
    fn map_in_content(&mut self) -> Result<Vec<(u64, u64)>> {
        let mut block = [0; BLOCK as usize];
        let mut used = block.len();
        let mut number = || -> Result<u64> {
            let mut value: Option<u64> = None;
            loop {
                if used == block.len() {
                    if self.content < BLOCK {
                        return Err(malformed("a sparse map is cut off"));
                    }
                    self.fill(&mut block)?;
                    self.content -= BLOCK;
                    used = 0;
                }
                let byte = block[used];
                used += 1;
                value = match (byte, value) {
                    (b'\n', Some(value)) => return Ok(value),
                    (b'0'..=b'9', value) => value
                        .unwrap_or(0)
                        .checked_mul(10)
                        .and_then(|v| v.checked_add(u64::from(byte - b'0'))),
                    _ => None,
                };
                if value.is_none() {
                    return Err(malformed("a sparse map holds something that is no number"));
                }
            }
        };
        let count = number()?;
        if count > MAX_PIECES as u64 {
            return Err(too_many_pieces());
        }
        (0..count).map(|_| Ok((number()?, number()?))).collect()
    }
}

fn add_pieces(pieces: &mut Vec<(u64, u64)>, headers: &[GnuSparseHeader]) -> Result<()> {
    for header in headers.iter().filter(|header| !header.is_empty()) {
        let bad = |_| malformed("a sparse map holds something that is no number");
        pieces.push((header.offset().map_err(bad)?, header.length().map_err(bad)?));
    }
    if pieces.len() > MAX_PIECES { Err(too_many_pieces()) } else { Ok(()) }
}

/// Pieces must ascend, lie inside the file and be exactly what the archive holds.
fn check_pieces(pieces: &[(u64, u64)], size: u64, stored: u64) -> Result<()> {
    let (mut end, mut total) = (0, 0);
    for (offset, length) in pieces {
        let next = offset.checked_add(*length);
        match next {
            Some(next) if *offset >= end && next <= size => end = next,
            _ => return Err(malformed("a sparse map overlaps itself or leaves the file")),
        }
        total += length;
    }
    if total == stored {
        Ok(())
    } else {
        Err(malformed("a sparse map does not match the data in the archive"))
    }
}

fn too_many_pieces() -> Fault {
    malformed("a sparse file has more than a million pieces")
}
