//! The names in a directory, in the order of their bytes, each once: a few in
//! memory, many in a file, sorted there in pieces that are merged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::scratch::Scratch;
use crate::fault::Result;

/// Bytes of names that stay in memory, for each directory on the way, of which
/// there may be two thousand.
const FEW: usize = 4 << 10;
/// Bytes that are sorted at once.
const PIECE: usize = 1 << 20;
/// Pieces that are merged at once.
const FAN: usize = 256;
/// Bytes that are read of each of them at once: more than the longest name.
const READ: usize = 4 << 10;
/// Bytes of merged names that are written at once.
const WRITE: usize = 64 << 10;

/// Names, each after its length, that are yet to come.
pub(super) struct Names<'a> {
    scratch: &'a Scratch,
    /// What was read of them, from `at` on.
    held: Vec<u8>,
    at: usize,
    /// Where the rest is.
    rest: (u64, u64),
}

/// Names that come in any order.
pub(super) struct Unsorted<'a> {
    scratch: &'a Scratch,
    bytes: Vec<u8>,
    /// Where each begins and ends in `bytes`.
    names: Vec<(u32, u32)>,
    pieces: Vec<(u64, u64)>,
}

impl<'a> Unsorted<'a> {
    pub fn new(scratch: &'a Scratch) -> Unsorted<'a> {
        Unsorted { scratch, bytes: Vec::new(), names: Vec::new(), pieces: Vec::new() }
    }

    pub fn add(&mut self, name: &[u8]) -> Result<()> {
        // Far below 2³² bytes: a full piece goes to the file.
        let end = |bytes: &Vec<u8>| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let start = end(&self.bytes);
        self.bytes.extend_from_slice(name);
        self.names.push((start, end(&self.bytes)));
        if self.bytes.len() + 8 * self.names.len() >= PIECE { self.put_away() } else { Ok(()) }
    }

    pub fn sorted(mut self) -> Result<Names<'a>> {
        let scratch = self.scratch;
        if self.pieces.is_empty() && self.bytes.len() + self.names.len() <= FEW {
            let held = self.take();
            return Ok(Names { scratch, held, at: 0, rest: (0, 0) });
        }
        self.put_away()?;
        let mut pieces = self.pieces;
        while pieces.len() > 1 {
            pieces = pieces.chunks(FAN).map(|some| merge(scratch, some)).collect::<Result<_>>()?;
        }
        Ok(Names::of(scratch, pieces.first().copied().unwrap_or_default()))
    }

    fn put_away(&mut self) -> Result<()> {
        let bytes = self.take();
        let start = self.scratch.add(&bytes)?;
        self.pieces.push((start, start + bytes.len() as u64));
        Ok(())
    }

    /// Those in memory, sorted, each after its length.
    fn take(&mut self) -> Vec<u8> {
        let bytes = std::mem::take(&mut self.bytes);
        let name = |(start, end): &(u32, u32)| &bytes[*start as usize..*end as usize];
        let mut names = std::mem::take(&mut self.names);
        names.sort_unstable_by_key(|place| name(place));
        names.dedup_by_key(|place| name(place));
        let mut sorted = Vec::with_capacity(bytes.len() + names.len());
        names.iter().for_each(|place| put(&mut sorted, name(place)));
        sorted
    }
}

impl<'a> Names<'a> {
    fn of(scratch: &'a Scratch, rest: (u64, u64)) -> Names<'a> {
        Names { scratch, held: Vec::new(), at: 0, rest }
    }

    /// The next name; `None` after the last.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let whole =
            |held: &[u8]| held.first().is_some_and(|length| held.len() > usize::from(*length));
        let (start, end) = self.rest;
        if start < end && !whole(&self.held[self.at..]) {
            self.held.drain(..self.at);
            self.at = 0;
            let before = self.held.len();
            let more = usize::try_from(end - start).unwrap_or(READ).min(READ - before.min(READ));
            self.held.resize(before + more, 0);
            self.scratch.read(&mut self.held[before..], start)?;
            self.rest.0 += more as u64;
        }
        let Some((length, rest)) = self.held[self.at..].split_first() else { return Ok(None) };
        let name = rest[..usize::from(*length)].to_vec();
        self.at += 1 + name.len();
        Ok(Some(name))
    }
}

fn merge(scratch: &Scratch, pieces: &[(u64, u64)]) -> Result<(u64, u64)> {
    let mut sources: Vec<Names<'_>> =
        pieces.iter().map(|piece| Names::of(scratch, *piece)).collect();
    let mut next = BinaryHeap::new();
    for (number, source) in sources.iter_mut().enumerate() {
        next.extend(source.next()?.map(|name| Reverse((name, number))));
    }
    let (mut merged, mut last) = (Vec::with_capacity(WRITE), None);
    let mut place: Option<(u64, u64)> = None;
    // The sources are read between, and are elsewhere in the file: what is
    // added here follows each other.
    let mut write = |merged: &mut Vec<u8>| -> Result<()> {
        let at = scratch.add(merged)?;
        place = Some((place.map_or(at, |(start, _)| start), at + merged.len() as u64));
        merged.clear();
        Ok(())
    };
    while let Some(Reverse((name, number))) = next.pop() {
        next.extend(sources[number].next()?.map(|name| Reverse((name, number))));
        if last.as_ref() != Some(&name) {
            put(&mut merged, &name);
            last = Some(name);
        }
        if merged.len() >= WRITE {
            write(&mut merged)?;
        }
    }
    write(&mut merged)?;
    Ok(place.unwrap_or_default())
}

/// A name after its length: Linux has none longer than 255 bytes.
fn put(to: &mut Vec<u8>, name: &[u8]) {
    to.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
    to.extend_from_slice(name);
}

#[cfg(test)]
mod tests {
    use super::super::scratch::Scratches;
    use super::*;
    use std::collections::BTreeSet;

    fn check(names: impl Iterator<Item = Vec<u8>> + Clone) {
        let scratch = Scratch::new(&Scratches::within(&std::env::temp_dir()));
        let mut unsorted = Unsorted::new(&scratch);
        for name in names.clone() {
            unsorted.add(&name).unwrap();
        }
        let expected: BTreeSet<Vec<u8>> = names.collect();
        let mut sorted = unsorted.sorted().unwrap();
        assert!(sorted.held.capacity() <= 2 * FEW);
        for name in expected {
            assert_eq!(sorted.next().unwrap(), Some(name));
        }
        assert_eq!(sorted.next().unwrap(), None);
    }

    #[test]
    fn few_and_many_come_in_order_and_once() {
        // A generator of Lehmer's: any order, the same in every run.
        let scattered = |n: u64| n * 48_271 % 2_147_483_647 * 48_271 % 2_147_483_647;
        check(std::iter::empty());
        check((0..100).map(|n| (scattered(n) % 70).to_string().into_bytes()));
        let long = |n: u64| {
            let mut name = scattered(n % 30_000).to_string().into_bytes();
            name.resize(200 + usize::try_from(n % 56).unwrap(), b'-');
            name
        };
        check((0..30_000).map(long));
        check((0..200_000).map(|n| (scattered(n) % 150_000).to_string().into_bytes()));
    }

    #[test]
    fn more_pieces_than_are_merged_at_once() {
        let scratch = Scratch::new(&Scratches::within(&std::env::temp_dir()));
        let mut unsorted = Unsorted::new(&scratch);
        for n in (0..2 * FAN + 1).rev() {
            unsorted.add(format!("{n:05}").as_bytes()).unwrap();
            unsorted.put_away().unwrap();
        }
        let mut sorted = unsorted.sorted().unwrap();
        for n in 0..2 * FAN + 1 {
            assert_eq!(sorted.next().unwrap(), Some(format!("{n:05}").into_bytes()));
        }
        assert_eq!(sorted.next().unwrap(), None);
    }
}
