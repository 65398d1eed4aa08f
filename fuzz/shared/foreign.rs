//! Makes an image in another program's format of a few bytes.
//!
//! The first of them chooses the format. Of all but VHDX the others are the
//! image itself. Of a VHDX they are pieces for the places that matter, far
//! from each other: each a length (two bytes, little-endian) and that many.

use super::sums::crc32c;
use super::{Blocks, DiskFormat, Fault, FaultKind};

const AREA: usize = 64 << 10;
/// QEMU's place for the metadata.
pub const METADATA: usize = 48 * AREA;
/// The two tables of regions, the metadata, and its items.
const PLACES: [usize; 4] = [3 * AREA, 4 * AREA, METADATA, METADATA + AREA];

/// An image of a size, zeros but for these pieces.
pub struct Image {
    pub pieces: Vec<(usize, Vec<u8>)>,
    size: usize,
}

impl Blocks for Image {
    fn size(&self) -> u64 {
        self.size as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > self.size()) {
            return Err(Fault::new(FaultKind::ImageUnacceptable, "bytes beyond its end"));
        }
        buffer.fill(0);
        for (place, piece) in &self.pieces {
            let from = (offset as usize).max(*place);
            let to = (offset as usize + buffer.len()).min(place + piece.len());
            if from < to {
                let inside = from - offset as usize..to - offset as usize;
                buffer[inside].copy_from_slice(&piece[from - place..to - place]);
            }
        }
        Ok(())
    }
}

/// The format that the first byte chooses, and the image.
pub fn image(bytes: &[u8]) -> (DiskFormat, Image) {
    let (first, rest) = bytes.split_first().unwrap_or((&0, &[]));
    let whole = || Image { pieces: vec![(0, rest.to_vec())], size: rest.len() };
    match first % 4 {
        0 => (DiskFormat::Vmdk, whole()),
        1 => (DiskFormat::Vhd, whole()),
        2 => (DiskFormat::Vdi, whole()),
        // The fifth bit leaves the sums as they are, the sixth the second table.
        _ => (DiskFormat::Vhdx, vhdx(rest, first & 16 == 0, first & 32 == 0)),
    }
}

fn vhdx(mut bytes: &[u8], mend: bool, twice: bool) -> Image {
    let mut next = || {
        let (length, rest) = bytes.split_first_chunk().unwrap_or((&[0; 2], &[]));
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        bytes = rest;
        piece.to_vec()
    };
    let mut pieces = PLACES.map(|_| next());
    if twice {
        pieces[1] = pieces[0].clone();
    }
    for table in &mut pieces[..2] {
        if mend && table.len() >= 8 {
            table.resize(AREA, 0);
            table[4..8].fill(0);
            let sum = !crc32c(u32::MAX, table);
            table[4..8].copy_from_slice(&sum.to_le_bytes());
        }
    }
    Image { pieces: PLACES.into_iter().zip(pieces).collect(), size: METADATA + 2 * AREA }
}
