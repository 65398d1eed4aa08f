//! Plain bytes out of a file in an import's directory, in which they may be compressed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Take};
use std::path::{Path, PathBuf};

use super::assembly::{Assembly, PIECE, wrong_answer};
use crate::fault::{OrFault, Result};
use crate::image::digest::{Algorithm, Digest, Hasher};
use crate::image::jail::decompress::compression;
use crate::image::jail::{Input, Running, Work};
use crate::image::progress::Meter;
use crate::image::recognise;

/// Where bytes lie: in a file, or in a part of one.
pub(super) struct Place {
    path: PathBuf,
    part: Option<(u64, u64)>,
}

impl Place {
    pub(super) fn whole(path: &Path) -> Place {
        Place { path: path.to_owned(), part: None }
    }

    pub(super) fn part(path: &Path, offset: u64, size: u64) -> Place {
        Place { path: path.to_owned(), part: Some((offset, size)) }
    }

    pub(super) fn open(&self) -> Result<Take<File>> {
        let doing = "opening the content";
        let mut file = File::open(&self.path).or_fault(doing)?;
        let (offset, size) = self.part.unwrap_or((0, u64::MAX));
        file.seek(SeekFrom::Start(offset)).or_fault(doing)?;
        Ok(file.take(size))
    }
}

/// A stream of plain bytes, from a file that may be compressed.
pub(super) struct Plain<'a> {
    /// Shares its position with the decompressing child.
    file: Take<File>,
    jail: Option<Running>,
    /// Bytes that were given, where the position says nothing.
    given: Option<u64>,
    meter: Meter<'a>,
    /// Where it begins in the file.
    start: u64,
}

impl<'a> Plain<'a> {
    pub(super) fn open(
        assembly: &Assembly<'_>,
        place: &Place,
        meter: Meter<'a>,
    ) -> Result<Plain<'a>> {
        let mut head = Vec::new();
        place
            .open()?
            .take(recognise::HEAD as u64)
            .read_to_end(&mut head)
            .or_fault("reading the content")?;
        let file = place.open()?;
        let jail = match compression(&head)? {
            None => None,
            Some(compression) => {
                let input = file.get_ref().try_clone().or_fault("opening the content")?;
                let size = place.part.map(|(_, size)| size);
                let work = Work::Decompress { compression, size };
                Some(assembly.start(work, Input::File(input))?)
            }
        };
        let start = place.part.map_or(0, |(offset, _)| offset);
        Ok(Plain { file, jail, given: None, meter, start })
    }

    /// What work in the jail makes of a disk image: how much that will be is not known.
    pub(super) fn of_work(
        assembly: &Assembly<'_>,
        path: &Path,
        work: Work,
        meter: Meter<'a>,
    ) -> Result<Plain<'a>> {
        let file = File::open(path).or_fault("opening the disk image")?;
        let input = file.try_clone().or_fault("opening the disk image")?;
        let jail = Some(assembly.start(work, Input::File(input))?);
        Ok(Plain { file: file.take(u64::MAX), jail, given: Some(0), meter, start: 0 })
    }

    /// Takes bytes; 0 at the end, after which all of it was good.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let n = match &mut self.jail {
            None => self.file.read(buffer).or_fault("reading the content")?,
            Some(jail) => jail.take(buffer)?,
        };
        if n == 0
            && let Some(jail) = self.jail.take()
        {
            jail.finish()?;
        }
        if let Some(given) = &mut self.given {
            *given += n as u64;
            self.meter.at(*given, None);
        } else if let Ok(position) = self.file.get_mut().stream_position() {
            self.meter.at(position.saturating_sub(self.start), None);
        }
        Ok(n)
    }

    /// Fills the buffer; false when the bytes ended before its first.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(wrong_answer()),
                n => filled += n,
            }
        }
        Ok(true)
    }

    /// Hashes the rest.
    pub(super) fn hash(mut self) -> Result<Digest> {
        let mut hasher = Hasher::new(Algorithm::Sha256)?;
        let mut buffer = vec![0; PIECE];
        loop {
            match self.read(&mut buffer)? {
                0 => return hasher.finish(),
                n => hasher.update(&buffer[..n])?,
            }
        }
    }
}
