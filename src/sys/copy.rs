//! Copies of files without their holes: of one that is in use, most of it first
//! and what changed since when it must stand still.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{
    FallocateFlags, SeekFrom, copy_file_range, fallocate, fstat, ftruncate, ioctl_ficlone, seek,
};
use rustix::io::Errno;

/// Makes the empty file `to` a copy of `from`: shared extents where the file
/// system can, else only the data, so that holes stay holes.
pub fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    if share_extents(from, to) { Ok(()) } else { copy_data(from, to, &mut |_| true) }
}

/// Makes the empty file `to` a copy of `from` that takes no space; whether the
/// file system can.
pub fn share_extents(from: &File, to: &File) -> bool {
    ioctl_ficlone(to, from).is_ok()
}

/// Copies the data of `from` to the empty file `to`. `progress` is told of the
/// bytes as they are copied, and says whether to go on (`Interrupted` if not).
pub fn copy_data(from: &File, to: &File, progress: &mut dyn FnMut(u64) -> bool) -> io::Result<()> {
    let size = fstat(from)?.st_size.unsigned_abs();
    ftruncate(to, size)?;
    let mut at = 0;
    while let Some(Range { mut start, end: data_end }) = next_data(from, at, size)? {
        while start < data_end {
            let end = data_end.min(start + COPY_STEP);
            copy_range(from, to, start, end)?;
            if !progress(end - start) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            start = end;
        }
        at = data_end;
    }
    Ok(())
}

/// Where a file of this size has its next data from a place on.
pub fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<Range<u64>>> {
    if at >= size {
        return Ok(None);
    }
    match seek(file, SeekFrom::Data(at)) {
        Ok(start) => Ok(Some(start..seek(file, SeekFrom::Hole(start))?)),
        // No data from here to the end.
        Err(Errno::NXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Bytes after which a copy says how far it is.
const COPY_STEP: u64 = 64 << 20;

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut source, mut target) = (start, start);
    while source < end {
        let wanted = usize::try_from(end - source).unwrap_or(usize::MAX);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), wanted) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            // Across file systems, or one that cannot.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP) => {
                return copy_by_hand(from, to, source, end);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 17];
    while at < end {
        let wanted = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        from.read_exact_at(&mut buffer[..wanted], at)?;
        to.write_all_at(&buffer[..wanted], at)?;
        at += wanted as u64;
    }
    Ok(())
}

/// Bytes that one thread compares at a time.
const COMPARE_STEP: u64 = 1 << 20;
/// Bytes that are written when one of them differs.
const CHANGE: usize = 1 << 16;
/// Most threads that compare.
const MAX_THREADS: usize = 4;

/// Has `to`, once made a copy of `from`, be one again: writes only what
/// differs, which for most of a file takes reading both, from memory if it is
/// there still. The bytes that were written.
pub fn copy_changes(from: &File, to: &File) -> io::Result<u64> {
    let size = fstat(from)?.st_size.unsigned_abs();
    ftruncate(to, size)?;
    let mut pieces = Vec::new();
    let mut at = 0;
    loop {
        let data = next_data(from, at, size)?;
        let hole_end = data.as_ref().map_or(size, |data| data.start);
        // What was discarded since is no data any more.
        if next_data(to, at, hole_end)?.is_some_and(|old| old.start < hole_end) {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(to, flags, at, hole_end - at)?;
        }
        let Some(Range { mut start, end }) = data else { break };
        at = end;
        while start < end {
            let next = end.min(start + COMPARE_STEP);
            pieces.push(start..next);
            start = next;
        }
    }
    let pieces = Mutex::new(pieces.into_iter());
    let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
    let compare = || -> io::Result<u64> {
        let (mut new, mut old) = (vec![0; COMPARE_STEP as usize], vec![0; COMPARE_STEP as usize]);
        let mut written = 0;
        while let Some(piece) = next() {
            let length = (piece.end - piece.start) as usize;
            written +=
                copy_difference(from, to, piece.start, &mut new[..length], &mut old[..length])?;
        }
        Ok(written)
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(compare)).collect();
        others.into_iter().try_fold(compare()?, |sum, other| {
            let written = other.join().unwrap_or_else(|_| Err(io::Error::other("a defect")))?;
            Ok(sum + written)
        })
    })
}

fn copy_difference(
    from: &File,
    to: &File,
    at: u64,
    new: &mut [u8],
    old: &mut [u8],
) -> io::Result<u64> {
    from.read_exact_at(new, at)?;
    to.read_exact_at(old, at)?;
    let (mut offset, mut written) = (at, 0);
    for (new, old) in new.chunks(CHANGE).zip(old.chunks(CHANGE)) {
        if new != old {
            to.write_all_at(new, offset)?;
            written += new.len() as u64;
        }
        offset += new.len() as u64;
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_sparse_copy_has_the_data_and_the_holes() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let from = File::create_new(dir.path().join("a")).unwrap();
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"head", 0).unwrap();
        from.write_all_at(&[7; 9000], 32 << 20).unwrap();
        let from = File::open(dir.path().join("a")).unwrap();
        let to = File::create_new(dir.path().join("b")).unwrap();
        let mut copied = 0;
        copy_data(&from, &to, &mut |bytes| {
            copied += bytes;
            true
        })
        .unwrap();
        // Data lies in whole blocks.
        assert!((9004..100 << 10).contains(&copied), "{copied}");
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        assert!(std::fs::read(a).unwrap() == std::fs::read(&b).unwrap());
        assert!(std::fs::metadata(&b).unwrap().blocks() < 100);
        let stopped = copy_data(&from, &to, &mut |_| false).unwrap_err();
        assert_eq!(stopped.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn what_changed_is_copied_again_and_what_went_is_a_hole() {
        const MIB: u64 = 1 << 20;
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let open = |name: &str| {
            let mut options = File::options();
            options.read(true).write(true).create_new(true).open(dir.path().join(name)).unwrap()
        };
        let (from, to) = (open("a"), open("b"));
        from.set_len(64 * MIB).unwrap();
        for at in [0, 5 * MIB, 40 * MIB] {
            from.write_all_at(&vec![7; 2 * MIB as usize + 9000], at).unwrap();
        }
        copy_data(&from, &to, &mut |_| true).unwrap();
        assert_eq!(copy_changes(&from, &to).unwrap(), 0);
        // Changed, new in a hole, discarded, and longer.
        from.write_all_at(b"changed", 6 * MIB).unwrap();
        from.write_all_at(b"new", 20 * MIB).unwrap();
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&from, flags, 40 * MIB, 3 * MIB).unwrap();
        from.set_len(65 * MIB).unwrap();
        from.write_all_at(b"end", 65 * MIB - 3).unwrap();
        let written = copy_changes(&from, &to).unwrap();
        assert!((3..=3 * CHANGE as u64).contains(&written), "{written}");
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        assert!(std::fs::read(a).unwrap() == std::fs::read(&b).unwrap());
        assert_eq!(from.metadata().unwrap().blocks(), to.metadata().unwrap().blocks());
        // Then it is shorter.
        from.set_len(MIB + 1).unwrap();
        copy_changes(&from, &to).unwrap();
        assert_eq!(to.metadata().unwrap().len(), MIB + 1);
    }
}
