//! The console log's files, written and read.
//!
//! `console.first` holds the stream's first bytes as they came. `console.log`
//! and `console.log.1` each begin with a line of [`HEADER`] bytes that says
//! where in the stream they begin, so that a restarted monitor goes on
//! counting and a reader can tell how much lies between the parts.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use crate::fault::{OrFault, Result};
use crate::store::layout::InstanceLayout;

/// Bytes of the stream that are kept for ever.
pub const FIRST: u64 = 64 * 1024;

/// Bytes of a part's header: fifteen digits and a newline.
const HEADER: u64 = 16;

/// Where the log lies.
#[derive(Clone, Debug)]
pub struct ConsoleFiles {
    first: PathBuf,
    latest: PathBuf,
    before: PathBuf,
}

impl ConsoleFiles {
    /// The log of an instance.
    pub fn of(layout: &InstanceLayout) -> Self {
        let latest = layout.console_log();
        let before = latest.with_extension("log.1");
        ConsoleFiles { first: layout.console_first(), latest, before }
    }

    /// First, latest, and the part before the latest.
    pub fn into_paths(self) -> [PathBuf; 3] {
        [self.first, self.latest, self.before]
    }
}

/// The log, open for writing. It never fails its caller: what cannot be
/// written (a full disk) is counted and noted once writing works again.
#[derive(Debug)]
pub struct ConsoleLog {
    files: ConsoleFiles,
    first: Part,
    latest: Option<Part>,
    part_bytes: u64,
    lost: u64,
}

#[derive(Debug)]
struct Part {
    file: File,
    begin: u64,
    length: u64,
}

impl ConsoleLog {
    /// Opens the log to append to it. `bytes` bounds all that is kept, at least 128 KiB.
    pub fn open(files: ConsoleFiles, bytes: u64) -> Result<Self> {
        let doing = format_args!("opening {}", files.first.display()).to_string();
        let file = append(&files.first).or_fault(&doing)?;
        let length = file.metadata().or_fault(&doing)?.len();
        let latest = open_part(&files.latest)
            .or_fault(format_args!("opening {}", files.latest.display()))?;
        Ok(ConsoleLog {
            first: Part { file, begin: 0, length },
            latest,
            part_bytes: bytes.saturating_sub(FIRST).max(FIRST) / 2,
            files,
            lost: 0,
        })
    }

    /// Appends what the instance wrote.
    pub fn write(&mut self, bytes: &[u8]) {
        if self.lost > 0 {
            let note =
                format!("\r\n[\u{2026} {} bytes lost: the host's disk was full]\r\n", self.lost);
            if self.append(note.as_bytes()).is_err() {
                self.lost += bytes.len() as u64;
                return;
            }
            self.lost = 0;
        }
        if self.append(bytes).is_err() {
            self.lost += bytes.len() as u64;
        }
    }

    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let room = usize::try_from(FIRST.saturating_sub(self.first.length)).unwrap_or(0);
        let (head, tail) = bytes.split_at(room.min(bytes.len()));
        if !head.is_empty() {
            self.first.append(head)?;
        }
        bytes = tail;
        while !bytes.is_empty() {
            let part = self.part()?;
            let room = usize::try_from(part.1).unwrap_or(usize::MAX);
            let (head, tail) = bytes.split_at(room.min(bytes.len()));
            part.0.append(head)?;
            bytes = tail;
        }
        Ok(())
    }

    /// The part to append to and how much it may still take, at least one byte.
    fn part(&mut self) -> io::Result<(&mut Part, u64)> {
        let begin = match &self.latest {
            None => Some(self.first.length),
            Some(part) if part.length >= self.part_bytes => Some(part.begin + part.length),
            Some(_) => None,
        };
        if let Some(begin) = begin {
            if self.latest.is_some() {
                fs::rename(&self.files.latest, &self.files.before)?;
                self.latest = None;
            }
            let mut file = append(&self.files.latest)?;
            file.set_len(0)?;
            file.write_all(format!("{begin:015}\n").as_bytes())?;
            self.latest = Some(Part { file, begin, length: 0 });
        }
        match &mut self.latest {
            Some(part) => {
                let room = self.part_bytes - part.length;
                Ok((part, room))
            }
            None => Err(ErrorKind::NotFound.into()),
        }
    }
}

impl Part {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(bytes);
        // After a failure nobody knows how much was written, except the file.
        self.length = match &written {
            Ok(()) => self.length + bytes.len() as u64,
            Err(_) => {
                let header = if self.begin > 0 { HEADER } else { 0 };
                self.file.metadata()?.len().saturating_sub(header)
            }
        };
        written
    }
}

fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Opens a part to append to it; `None` when it is absent or its header is torn.
fn open_part(path: &PathBuf) -> io::Result<Option<Part>> {
    let mut file = match OpenOptions::new().read(true).append(true).open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let length = file.metadata()?.len();
    Ok(read_header(&mut file)?.map(|begin| Part { file, begin, length: length - HEADER }))
}

fn read_header(file: &mut File) -> io::Result<Option<u64>> {
    let mut header = [0; HEADER as usize];
    match file.read_exact(&mut header) {
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    Ok(std::str::from_utf8(&header).ok().and_then(|text| text.trim_end().parse().ok()))
}

/// A piece of what [`read`] gives.
enum Piece {
    Bytes { file: File, from: u64, length: u64 },
    Note(String),
}

impl Piece {
    fn length(&self) -> u64 {
        match self {
            Piece::Bytes { length, .. } => *length,
            Piece::Note(text) => text.len() as u64,
        }
    }
}

/// The log's first and latest bytes with a note of what is missing between
/// them; with `length`, only that many bytes from the end. No log is no bytes.
pub fn read(files: &ConsoleFiles, length: Option<u64>) -> Result<Vec<u8>> {
    let pieces = pieces(files).or_fault("opening the console log")?;
    let total: u64 = pieces.iter().map(Piece::length).sum();
    let mut skip = length.map_or(0, |length| total.saturating_sub(length));
    let mut output = Vec::with_capacity(usize::try_from(total - skip).unwrap_or(0));
    for piece in pieces {
        let from = skip.min(piece.length());
        skip -= from;
        copy(piece, from, &mut output).or_fault("reading the console log")?;
    }
    Ok(output)
}

fn copy(piece: Piece, skip: u64, output: &mut Vec<u8>) -> io::Result<()> {
    match piece {
        Piece::Bytes { mut file, from, length } => {
            file.seek(SeekFrom::Start(from + skip))?;
            file.take(length - skip).read_to_end(output)?;
        }
        // The skip may fall inside a character: these are bytes, as the rest is.
        Piece::Note(text) => {
            output.extend(text.bytes().skip(usize::try_from(skip).unwrap_or(usize::MAX)));
        }
    }
    Ok(())
}

fn pieces(files: &ConsoleFiles) -> io::Result<Vec<Piece>> {
    let Some(first) = open(&files.first)? else { return Ok(Vec::new()) };
    // The newest first: a rotation in between then shows the same part twice,
    // which the offsets tell, and never leaves one out.
    let mut parts = Vec::new();
    for path in [&files.latest, &files.before] {
        if let Some(mut file) = open(path)?
            && let Some(begin) = read_header(&mut file)?
            && parts.iter().all(|(other, _)| *other != begin)
        {
            parts.push((begin, file));
        }
    }
    parts.sort_by_key(|(begin, _)| *begin);
    let mut end = first.metadata()?.len();
    let mut pieces = vec![Piece::Bytes { file: first, from: 0, length: end }];
    for (begin, file) in parts {
        if begin > end {
            let note = format!("\r\n[\u{2026} {} bytes dropped \u{2026}]\r\n", begin - end);
            pieces.push(Piece::Note(note));
        }
        let length = file.metadata()?.len().saturating_sub(HEADER);
        end = begin + length;
        pieces.push(Piece::Bytes { file, from: HEADER, length });
    }
    Ok(pieces)
}

fn open(path: &PathBuf) -> io::Result<Option<File>> {
    match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        file => file.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::layout::Layout;

    fn files() -> (tempfile::TempDir, ConsoleFiles) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path(), dir.path()).instance(uuid::Uuid::nil());
        fs::create_dir_all(layout.state()).unwrap();
        let files = ConsoleFiles::of(&layout);
        (dir, files)
    }

    fn kept(files: &ConsoleFiles) -> u64 {
        [&files.first, &files.latest, &files.before]
            .iter()
            .filter_map(|p| fs::metadata(p).ok())
            .map(|m| m.len())
            .sum()
    }

    /// A stream in which every eight bytes say where they are.
    fn numbered(from: u64, to: u64) -> Vec<u8> {
        (from / 8..to / 8).flat_map(|n| format!("{n:07}\n").into_bytes()).collect()
    }

    #[test]
    fn nothing_written_is_nothing_read() {
        let (_dir, files) = files();
        assert_eq!(read(&files, None).unwrap(), b"");
        let _log = ConsoleLog::open(files.clone(), 131_072).unwrap();
        assert_eq!(read(&files, Some(10)).unwrap(), b"");
    }

    #[test]
    fn everything_is_there_while_it_fits_across_restarts() {
        let (_dir, files) = files();
        for n in 0..10 {
            let mut log = ConsoleLog::open(files.clone(), 131_072).unwrap();
            log.write(&numbered(n * 9_600, (n + 1) * 9_600));
        }
        assert!(read(&files, None).unwrap() == numbered(0, 96_000));
        assert_eq!(read(&files, Some(16)).unwrap(), numbered(95_984, 96_000));
    }

    #[test]
    fn first_and_latest_are_kept_and_the_gap_is_told() {
        let (_dir, files) = files();
        let bytes = 200_000;
        let total = 1_600_000;
        let mut log = ConsoleLog::open(files.clone(), bytes).unwrap();
        for from in (0..total).step_by(8_000) {
            log.write(&numbered(from, from + 8_000));
            assert!(kept(&files) <= bytes + 2 * HEADER);
        }
        let all = read(&files, None).unwrap();
        assert!(all.starts_with(&numbered(0, FIRST)));
        let text = String::from_utf8(all).unwrap();
        let note = text.find("\r\n[\u{2026} ").unwrap();
        assert_eq!(note as u64, FIRST);
        let dropped: u64 = text[note..].split(' ').nth(1).unwrap().parse().unwrap();
        let latest = text.split("dropped \u{2026}]\r\n").nth(1).unwrap();
        assert_eq!(FIRST + dropped + latest.len() as u64, total, "no byte is unaccounted for");
        assert!(latest.as_bytes() == numbered(total - latest.len() as u64, total));
        assert!(latest.len() as u64 >= (bytes - FIRST) / 2, "half of the room at least");
        for length in [0, 5, 8_000, 100_000, 1 << 30] {
            let tail = read(&files, Some(length)).unwrap();
            assert!(text.as_bytes().ends_with(&tail));
            assert_eq!(tail.len() as u64, length.min(text.len() as u64));
        }
    }

    #[test]
    fn a_torn_header_begins_a_new_part() {
        let (_dir, files) = files();
        ConsoleLog::open(files.clone(), 131_072).unwrap().write(&numbered(0, 80_000));
        fs::write(&files.latest, "00000").unwrap();
        ConsoleLog::open(files.clone(), 131_072).unwrap().write(b"after");
        assert!(read(&files, None).unwrap().ends_with(b"after"));
    }
}
