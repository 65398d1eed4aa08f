//! A file in chunks: which of them hold data, and which are another's already.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use openssl::sha::sha256;

use crate::sys::copy::next_data;

/// Bytes of a chunk; the last of a file may be shorter.
pub const CHUNK: u64 = 1 << 20;

/// Compared as memory, which is many times as fast as a look at each byte.
const ZEROS: [u8; 4096] = [0; 4096];

/// SHA-256.
pub type Hash = [u8; 32];

/// What the other side has of a file: the hash of each chunk by its number. Of those that
/// are not in it, it has zeros.
pub type Known = BTreeMap<u64, Hash>;

/// What is to be done about a chunk, to have the other side have it.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// These bytes, of this hash, go there.
    Send(Vec<u8>, Hash),
    /// So many zeros go there.
    Clear(u64),
}

/// The numbers of the chunks that may differ from what is known, in their order, and the
/// bytes of data in them.
pub fn plan(file: &File, known: &Known) -> io::Result<(Vec<u64>, u64)> {
    let size = file.metadata()?.len();
    let mut numbers: Vec<u64> = Vec::new();
    let mut at = 0;
    while let Some(data) = next_data(file, at, size)? {
        let first = data.start / CHUNK;
        let next = numbers.last().map_or(0, |last| last + 1);
        numbers.extend(first.max(next)..data.end.div_ceil(CHUNK));
        at = data.end;
    }
    // What was data and is none any more.
    numbers.extend(known.keys().filter(|number| **number * CHUNK < size));
    numbers.sort_unstable();
    numbers.dedup();
    let bytes = numbers.iter().map(|number| length(size, *number)).sum();
    Ok((numbers, bytes))
}

/// Bytes of a chunk of a file of this size.
pub fn length(size: u64, number: u64) -> u64 {
    size.saturating_sub(number * CHUNK).min(CHUNK)
}

/// What to do about a chunk.
pub fn step(file: &File, size: u64, number: u64, known: Option<&Hash>) -> io::Result<Step> {
    let length = length(size, number);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut bytes, number * CHUNK)?;
    if bytes.chunks(ZEROS.len()).all(|block| *block == ZEROS[..block.len()]) {
        return Ok(if known.is_some() { Step::Clear(length) } else { Step::Nothing });
    }
    let hash = sha256(&bytes);
    Ok(if known == Some(&hash) { Step::Nothing } else { Step::Send(bytes, hash) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_pass_sends_what_changed_and_clears_what_went() {
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.set_len(8 * CHUNK + 100).unwrap();
        for number in [1, 5, 8] {
            file.write_all_at(b"data", number * CHUNK + 50).unwrap();
        }
        let size = file.metadata().unwrap().len();
        let mut known = Known::new();
        let (numbers, bytes) = plan(&file, &known).unwrap();
        assert_eq!((numbers.as_slice(), bytes), (&[1, 5, 8][..], 2 * CHUNK + 100));
        for number in numbers {
            let Step::Send(bytes, hash) = step(&file, size, number, None).unwrap() else {
                panic!("{number} is not sent")
            };
            assert_eq!(&bytes[50..54], b"data");
            known.insert(number, hash);
        }
        assert_eq!(step(&file, size, 5, known.get(&5)).unwrap(), Step::Nothing);
        file.write_all_at(b"more", 5 * CHUNK).unwrap();
        file.write_all_at(&[0; 100], CHUNK).unwrap();
        file.write_all_at(&[0; 100], 3 * CHUNK).unwrap();
        assert!(matches!(step(&file, size, 5, known.get(&5)).unwrap(), Step::Send(..)));
        assert_eq!(step(&file, size, 1, known.get(&1)).unwrap(), Step::Clear(CHUNK));
        assert_eq!(step(&file, size, 3, None).unwrap(), Step::Nothing);
        // A hole where data was is looked at as well.
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, flags, 5 * CHUNK, CHUNK).unwrap();
        let (numbers, _) = plan(&file, &known).unwrap();
        assert!([1, 5, 8].iter().all(|number| numbers.contains(number)), "{numbers:?}");
        assert_eq!(step(&file, size, 5, known.get(&5)).unwrap(), Step::Clear(CHUNK));
    }
}
