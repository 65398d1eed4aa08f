//! Files with holes where zeros would be.

use std::os::fd::AsFd;

use rustix::io::Errno;

/// Zeros of this many bytes at this alignment become a hole.
const HOLE: usize = 4096;

/// Writes the blocks that are not all zeros; returns how many bytes those were.
pub(super) fn write_sparsely(file: impl AsFd, offset: u64, data: &[u8]) -> rustix::io::Result<u64> {
    let mut written = 0;
    let (mut start, mut at) = (None, 0);
    while at < data.len() {
        // Blocks are aligned in the file, not in the buffer.
        let aligned = HOLE - (offset as usize + at) % HOLE;
        let end = data.len().min(at + aligned);
        let hole = end - at == HOLE && data[at..end].iter().all(|byte| *byte == 0);
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
