//! A part of a disk on its way out of the jail, without its zeros: pieces of
//! an offset and a length (both 8 bytes, little-endian) and that many bytes.

use std::fs::File;
use std::io::Write;

use super::blocks::{Blocks, Part, le64};
use super::open::{open, raw};
use crate::fault::{OrFault, Result};
use crate::image::refusal::unacceptable;

/// Most bytes of a piece.
pub const PIECE: usize = 1 << 16;
/// Bytes before those of a piece.
pub const HEAD: usize = 16;

/// Writes the part of the disk in an image.
pub fn write(image: File, start: u64, size: u64, mut sink: impl Write) -> Result<()> {
    let part = Part::new(open(raw(image)?)?, start, size)?;
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < size {
        let hole = part.hole(at);
        if hole > 0 {
            at += hole;
            continue;
        }
        // Up to a multiple, so that pieces and clusters lie on each other.
        let length = (PIECE as u64 - (start + at) % PIECE as u64).min(size - at);
        let piece = &mut buffer[..length as usize];
        part.read_at(at, piece)?;
        if piece.iter().any(|byte| *byte != 0) {
            let mut put = |bytes: &[u8]| sink.write_all(bytes).or_fault("giving the disk away");
            put(&at.to_le_bytes())?;
            put(&length.to_le_bytes())?;
            put(piece)?;
        }
        at += length;
    }
    sink.flush().or_fault("giving the disk away")
}

/// Offset and length of a piece; a fault when it is not in the `size` bytes of the part.
pub fn head(head: &[u8; HEAD], size: u64) -> Result<(u64, usize)> {
    let (offset, length) = (le64(head, 0), le64(head, 8));
    match usize::try_from(length) {
        Ok(bytes) if bytes <= PIECE && offset.checked_add(length).is_some_and(|e| e <= size) => {
            Ok((offset, bytes))
        }
        _ => Err(unacceptable("the disk's reader gave bytes that are not on the disk")),
    }
}

/// Refuses a Btrfs of several devices: the kernel would look for the others
/// among the host's.
pub(super) fn check_btrfs(blocks: &dyn Blocks) -> Result<()> {
    let mut devices = [0; 8];
    blocks.read_at(65_536 + 136, &mut devices)?;
    match u64::from_le_bytes(devices) {
        1 => Ok(()),
        count => Err(unacceptable(format!(
            "the Btrfs file system is on {count} devices, of which the image is one; give it on one"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Seek;
    use std::os::unix::fs::FileExt;

    #[test]
    fn only_what_is_not_zero_is_given_and_its_place_is_checked() {
        let mut image = tempfile::tempfile().unwrap();
        image.set_len(64 << 20).unwrap();
        image.write_all_at(&[7; 100_000], (1 << 20) + 512).unwrap();
        image.rewind().unwrap();
        let mut given = Vec::new();
        write(image, 1 << 20, 63 << 20, &mut given).unwrap();
        assert!(given.len() < 200_000);
        let mut part = vec![0; 200_000];
        let mut rest = &given[..];
        while let Some((first, more)) = rest.split_first_chunk::<HEAD>() {
            let (offset, length) = head(first, 63 << 20).unwrap();
            part[offset as usize..offset as usize + length].copy_from_slice(&more[..length]);
            rest = &more[length..];
        }
        assert!(part[..512].iter().all(|byte| *byte == 0));
        assert!(part[512..100_512].iter().all(|byte| *byte == 7));
        let bad = |offset: u64, length: u64| {
            let mut bytes = [0; HEAD];
            bytes[..8].copy_from_slice(&offset.to_le_bytes());
            bytes[8..].copy_from_slice(&length.to_le_bytes());
            head(&bytes, 1000).is_err()
        };
        assert!(bad(999, 2) && bad(u64::MAX, 2) && bad(0, 1 << 20) && !bad(998, 2));
    }
}
