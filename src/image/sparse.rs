//! Files with holes where zeros would be.

use std::os::fd::AsFd;

#[cfg(any(feature = "service", test))]
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Zeros of this many bytes at this alignment become a hole.
const HOLE: usize = 4096;

/// Such a hole.
const ZEROS: [u8; HOLE] = [0; HOLE];

/// Writes the blocks that are not all zeros; returns how many bytes those were.
pub(crate) fn write_sparsely(file: impl AsFd, offset: u64, data: &[u8]) -> rustix::io::Result<u64> {
    let mut written = 0;
    let (mut start, mut at) = (None, 0);
    while at < data.len() {
        // Blocks are aligned in the file, not in the buffer.
        let aligned = HOLE - (offset as usize + at) % HOLE;
        let end = data.len().min(at + aligned);
        // As a comparison of memory, which is many times as fast as a look at each byte.
        let hole = data[at..end] == ZEROS;
        match (hole, start) {
            (false, None) => start = Some(at),
            (true, Some(from)) => {
                write_all(&file, offset + from as u64, &data[from..at])?;
                written += (at - from) as u64;
                start = None;
            }
            _ => {}
        }
        at = end;
    }
    if let Some(from) = start {
        write_all(&file, offset + from as u64, &data[from..])?;
        written += (data.len() - from) as u64;
    }
    Ok(written)
}

/// Whether a file has nothing but a hole in these bytes, of which none are written meanwhile.
#[cfg(any(feature = "service", test))]
pub(crate) fn is_hole(file: impl AsFd, offset: u64, length: usize) -> bool {
    match seek(file, SeekFrom::Data(offset)) {
        Ok(data) => data >= offset + length as u64,
        Err(error) => error == Errno::NXIO,
    }
}

fn write_all(file: impl AsFd, mut offset: u64, mut data: &[u8]) -> rustix::io::Result<()> {
    while !data.is_empty() {
        match rustix::io::pwrite(&file, data, offset) {
            Ok(n) => (data, offset) = (&data[n..], offset + n as u64),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn zeros_become_holes_and_are_known_for_them() {
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        let mut data = vec![0; 64 << 10];
        data[40 << 10] = 1;
        // Not aligned: the block that the data shares with what is before is written.
        data[0] = 1;
        let written = write_sparsely(&file, 100, &data).unwrap();
        assert!(written < 16 << 10, "{written}");
        file.set_len(1 << 20).unwrap();
        let mut read = vec![2; data.len()];
        file.read_exact_at(&mut read, 100).unwrap();
        assert_eq!(read, data);
        assert!(is_hole(&file, 8 << 10, 16 << 10));
        assert!(is_hole(&file, 512 << 10, 4096));
        assert!(!is_hole(&file, 0, 4096));
        assert!(!is_hole(&file, 8 << 10, 48 << 10));
    }
}
