//! Reads tar archives as hostile input, one member at a time.
//!
//! The fields of a header are decoded by the `tar` crate; the iteration is
//! berth's own, for three reasons: extension headers are bounded in memory,
//! pax values may hold any byte (a file capability often contains a newline),
//! and sparse files come as a map of their data instead of a stream of zeros.
//!
//! Where tar programs disagree on the meaning of an archive it is refused
//! rather than guessed: a size on a member that has no content, a global
//! header that renames members, two extension headers of one kind.

use std::io::{ErrorKind, Read, Seek, SeekFrom};

use ::tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::pax::Pax;
use super::recognise::checksum;
use super::refusal::malformed_tar as malformed;
use crate::fault::{Fault, FaultKind, OrFault, Result};

/// Bytes of one block.
const BLOCK: u64 = 512;
/// Most bytes of one extension header: 64 KiB of each extended attribute the
/// kernel could take, several times over.
const MAX_EXTENSION: u64 = 1 << 20;
/// Most bytes after the end of an archive: padding of the largest blocks that
/// any writer uses, and not a terabyte of zeros that nobody wants unpacked.
const MAX_TRAILER: u64 = 64 << 20;
/// Most pieces of data in a sparse file.
const MAX_PIECES: usize = 1 << 20;

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link to [`Member::link`].
    Symlink,
    /// A hard link to the earlier member [`Member::link`].
    Hardlink,
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// One member of an archive. Nothing in it is checked against a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name, as written.
    pub path: Vec<u8>,
    /// Target of a link; empty for others.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: MemberKind,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Owning group.
    pub gid: u64,
    /// Modification time: seconds since the epoch, and nanoseconds.
    pub mtime: (i64, u32),
    /// Bytes of a regular file, holes counted.
    pub size: u64,
    /// Extended attributes, names without the pax prefix.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Pieces of the file that are in the archive: offset and length, ascending.
    pieces: Vec<(u64, u64)>,
}

impl Member {
    /// The name, printable, for a fault.
    pub fn name(&self) -> String {
        printable(&self.path)
    }

    /// Whether its content lies in the archive as it is, without holes.
    pub fn is_whole(&self) -> bool {
        self.kind == MemberKind::Regular && self.pieces == [(0, self.size)]
    }
}

fn read_over<R: Read>(source: &mut R, amount: u64) -> std::io::Result<u64> {
    std::io::copy(&mut source.take(amount), &mut std::io::sink())
}

fn seek_over<R: Seek>(source: &mut R, amount: u64) -> std::io::Result<u64> {
    let here = source.stream_position()?;
    let end = source.seek(SeekFrom::End(0))?;
    let there = here.saturating_add(amount).min(end);
    source.seek(SeekFrom::Start(there))?;
    Ok(there.saturating_sub(here))
}

/// Bytes from an archive, printable and bounded, for a fault.
pub fn printable(bytes: &[u8]) -> String {
    let text = bytes[..bytes.len().min(256)].escape_ascii().to_string();
    if bytes.len() > 256 { format!("{text}…") } else { text }
}

/// An archive that is being read.
pub struct TarReader<R> {
    source: R,
    /// Steps over bytes of the source; gives how many there were.
    step: fn(&mut R, u64) -> std::io::Result<u64>,
    /// Bytes of the present member's content that were not read.
    content: u64,
    /// Bytes after it up to the next block.
    padding: u64,
}

/// What extension headers say about the member that follows them.
#[derive(Default)]
struct Extensions {
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Option<Pax>,
}

impl<R: Read> TarReader<R> {
    /// Reads an uncompressed archive.
    pub fn new(source: R) -> TarReader<R> {
        TarReader { source, step: read_over, content: 0, padding: 0 }
    }

    /// [`TarReader::new`] of a source that need not be read to be stepped over.
    pub fn seeking(source: R) -> TarReader<R>
    where
        R: Seek,
    {
        TarReader { source, step: seek_over, content: 0, padding: 0 }
    }

    /// Where the present member's content begins, before any of it is read.
    pub fn position(&mut self) -> Result<u64>
    where
        R: Seek,
    {
        self.source.stream_position().or_fault("reading the archive")
    }

    /// The next member; `None` at the end. Unread content of the one before is skipped.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Member>> {
        let mut extensions = Extensions::default();
        let mut extended = false;
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return if extended {
                    Err(malformed("it ends after an extension header"))
                } else {
                    Ok(None)
                };
            };
            extended = true;
            let size = header.entry_size().map_err(|_| malformed("a member has no size"))?;
            match header.entry_type() {
                EntryType::GNULongName => {
                    set(&mut extensions.long_path, nul_ended(self.extension(size)?))?;
                }
                EntryType::GNULongLink => {
                    set(&mut extensions.long_link, nul_ended(self.extension(size)?))?;
                }
                EntryType::XHeader => {
                    set(&mut extensions.pax, Pax::parse(&self.extension(size)?)?)?;
                }
                EntryType::XGlobalHeader => check_global(&Pax::parse(&self.extension(size)?)?)?,
                _ => return self.member(&header, extensions, size).map(Some),
            }
        }
    }

    /// Gives the present member's data to `sink` with its offset in the file.
    /// Holes are not given.
    pub fn copy(
        &mut self,
        member: &Member,
        mut sink: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut buffer = vec![0; 1 << 17];
        for (offset, length) in &member.pieces {
            let mut done = 0;
            while done < *length {
                let want = buffer.len().min(usize::try_from(length - done).unwrap_or(usize::MAX));
                self.fill(&mut buffer[..want])?;
                self.content = self.content.saturating_sub(want as u64);
                sink(offset + done, &buffer[..want])?;
                done += want as u64;
            }
        }
        Ok(())
    }

    /// Reads to the end of the source, so that whoever hashes it on the way saw all of it.
    pub fn drain(&mut self) -> Result<()> {
        let mut rest = self.source.by_ref().take(MAX_TRAILER + 1);
        let length =
            std::io::copy(&mut rest, &mut std::io::sink()).or_fault("reading the archive's end")?;
        if length > MAX_TRAILER {
            return Err(malformed("more than 64 MiB follow after its end"));
        }
        Ok(())
    }

    fn skip(&mut self) -> Result<()> {
        let amount = self.content + self.padding;
        let skipped = (self.step)(&mut self.source, amount).or_fault("reading the archive")?;
        (self.content, self.padding) = (0, 0);
        if skipped == amount { Ok(()) } else { Err(truncated()) }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.source.read_exact(buffer).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => truncated(),
            _ => Fault::internal("reading the archive", error),
        })
    }

    /// The next header block; `None` at the end, marked or not.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut block = [0; BLOCK as usize];
        let first = loop {
            match self.source.read(&mut block) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                other => break other.or_fault("reading the archive")?,
            }
        };
        if first == 0 {
            return Ok(None);
        }
        self.fill(&mut block[first..])?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let mut header = Header::new_old();
        header.as_mut_bytes().copy_from_slice(&block);
        match header.cksum() {
            Ok(sum) if sum == checksum(&block) => Ok(Some(header)),
            _ => Err(malformed("a header's check sum is wrong")),
        }
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(malformed("an extension header is larger than 1 MiB"));
        }
        self.expect(size)?;
        let mut bytes = vec![0; size as usize];
        self.fill(&mut bytes)?;
        self.content = 0;
        Ok(bytes)
    }

    /// Notes that `stored` bytes of content follow.
    fn expect(&mut self, stored: u64) -> Result<()> {
        let blocks = stored
            .checked_next_multiple_of(BLOCK)
            .ok_or_else(|| malformed("a size is beyond all bounds"))?;
        (self.content, self.padding) = (stored, blocks - stored);
        Ok(())
    }

    fn member(&mut self, header: &Header, extensions: Extensions, size: u64) -> Result<Member> {
        let pax = extensions.pax.unwrap_or_default();
        let stored = pax.number("size")?.unwrap_or(size);
        let path = extensions
            .long_path
            .or_else(|| pax.get("path").map(<[u8]>::to_vec))
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extensions
            .long_link
            .or_else(|| pax.get("linkpath").map(<[u8]>::to_vec))
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default();
        let kind = kind(header, &path)?;
        if kind != MemberKind::Regular && stored != 0 {
            return Err(malformed(format!(
                "{} has a size and is no regular file",
                printable(&path)
            )));
        }
        self.expect(stored)?;
        let mut member = Member {
            path,
            link: if matches!(kind, MemberKind::Symlink | MemberKind::Hardlink) {
                link
            } else {
                Vec::new()
            },
            kind,
            mode: header.mode().map_err(|_| malformed("a member has no mode"))? & 0o7777,
            uid: owner(pax.number("uid")?, header.uid())?,
            gid: owner(pax.number("gid")?, header.gid())?,
            mtime: pax.time("mtime")?.unwrap_or((
                header.mtime().ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0),
                0,
            )),
            size: stored,
            xattrs: pax.xattrs(),
            pieces: vec![(0, stored)],
        };
        if kind == MemberKind::Regular {
            self.sparse(header, &pax, &mut member)?;
        }
        Ok(member)
    }

    /// Replaces size, pieces and possibly the name of a sparse file.
    fn sparse(&mut self, header: &Header, pax: &Pax, member: &mut Member) -> Result<()> {
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

fn kind(header: &Header, path: &[u8]) -> Result<MemberKind> {
    let device = || {
        let field = |value: std::io::Result<Option<u32>>| {
            value.ok().flatten().ok_or_else(|| malformed("a device has no number"))
        };
        Ok::<_, Fault>((field(header.device_major())?, field(header.device_minor())?))
    };
    Ok(match header.entry_type() {
        // Archives older than POSIX tell a directory by the slash alone.
        EntryType::Regular if path.ends_with(b"/") => MemberKind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => MemberKind::Regular,
        EntryType::Directory => MemberKind::Directory,
        EntryType::Symlink => MemberKind::Symlink,
        EntryType::Link => MemberKind::Hardlink,
        EntryType::Fifo => MemberKind::Fifo,
        EntryType::Char => {
            device().map(|(major, minor)| MemberKind::CharDevice { major, minor })?
        }
        EntryType::Block => {
            device().map(|(major, minor)| MemberKind::BlockDevice { major, minor })?
        }
        other => {
            return Err(malformed(format!(
                "{} is of the unknown type {:?}",
                printable(path),
                char::from(other.as_byte())
            )));
        }
    })
}

fn owner(pax: Option<u64>, header: std::io::Result<u64>) -> Result<u64> {
    match pax {
        Some(id) => Ok(id),
        None => header.map_err(|_| malformed("a member has no owner")),
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

fn check_global(pax: &Pax) -> Result<()> {
    const MEANING: &[&str] = &["path", "linkpath", "size", "uid", "gid"];
    match MEANING.iter().find(|key| pax.get(key).is_some()) {
        Some(key) => Err(malformed(format!("a global header sets {key} of all members"))),
        None => Ok(()),
    }
}

fn set<T>(slot: &mut Option<T>, value: T) -> Result<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(malformed("two extension headers of one kind describe one member")),
    }
}

fn nul_ended(mut bytes: Vec<u8>) -> Vec<u8> {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

fn truncated() -> Fault {
    Fault::new(FaultKind::ImageCorrupt, "the tar archive is cut off")
}

fn too_many_pieces() -> Fault {
    malformed("a sparse file has more than a million pieces")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = ::tar::Builder::new(Vec::new());
        builder.append_pax_extensions(records.iter().copied()).unwrap();
        let mut header = Header::new_ustar();
        header.set_path("file").unwrap();
        header.set_size(0);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(7);
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
        builder.into_inner().unwrap()
    }

    fn only(bytes: &[u8]) -> Result<Member> {
        let mut reader = TarReader::new(bytes);
        let member = reader.next()?.expect("a member");
        assert!(reader.next()?.is_none());
        Ok(member)
    }

    #[test]
    fn pax_values_may_hold_newlines() {
        let value = b"\x01\n\n=5 a=b\n\xff";
        let member = only(&pax(&[("SCHILY.xattr.security.capability", value)])).unwrap();
        assert_eq!(member.xattrs, [(b"security.capability".to_vec(), value.to_vec())]);
    }

    #[test]
    fn times_keep_nanoseconds_on_both_sides_of_the_epoch() {
        for (text, expected) in [
            ("1700000000.123456789", (1_700_000_000, 123_456_789)),
            ("5", (5, 0)),
            ("5.5", (5, 500_000_000)),
            ("-1.25", (-2, 750_000_000)),
            ("-3", (-3, 0)),
            ("1.1234567891234", (1, 123_456_789)),
        ] {
            assert_eq!(only(&pax(&[("mtime", text.as_bytes())])).unwrap().mtime, expected);
        }
        assert!(only(&pax(&[("mtime", b"tomorrow")])).is_err());
        assert_eq!(only(&pax(&[])).unwrap().mtime, (7, 0));
    }

    #[test]
    fn a_pax_size_beyond_the_archive_is_a_cut_off_archive() {
        let bytes = pax(&[("size", b"99999999")]);
        let mut reader = TarReader::new(&bytes[..]);
        assert_eq!(reader.next().unwrap().unwrap().size, 99_999_999);
        assert_eq!(reader.next().unwrap_err().kind, FaultKind::ImageCorrupt);
        assert!(only(&pax(&[("size", b"18446744073709551615")])).is_err());
        assert!(only(&pax(&[("size", b"18446744073709551616")])).is_err());
    }

    #[test]
    fn sparse_maps_of_pax_0_1() {
        let mut bytes = pax(&[
            ("GNU.sparse.size", b"1048576"),
            ("GNU.sparse.map", b"4096,3,1048576,0"),
            ("GNU.sparse.name", b"real"),
            ("size", b"3"),
        ]);
        // The content goes between the member's header and the end's two zero blocks.
        let end = bytes.len() - 1024;
        bytes.splice(end..end, *b"abc");
        bytes.splice(end + 3..end + 3, vec![0; 509]);
        let mut reader = TarReader::new(&bytes[..]);
        let member = reader.next().unwrap().unwrap();
        assert_eq!((member.name().as_str(), member.size), ("real", 1_048_576));
        let mut seen = Vec::new();
        reader
            .copy(&member, |offset, data| {
                seen.push((offset, data.to_vec()));
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, [(4096, b"abc".to_vec())]);
        assert!(reader.next().unwrap().is_none());
    }

    #[test]
    fn lying_sparse_maps_are_refused() {
        for map in ["0,9", "5,3,2,1", "0,3,99999999,0", "0", "a,b", "18446744073709551615,3"] {
            let bytes = pax(&[
                ("GNU.sparse.size", b"1000"),
                ("GNU.sparse.map", map.as_bytes()),
                ("size", b"3"),
            ]);
            assert!(TarReader::new(&bytes[..]).next().is_err(), "{map}");
        }
    }

    #[test]
    fn an_extension_header_is_bounded() {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        let fault = TarReader::new(&header.as_bytes()[..]).next().unwrap_err();
        assert!(fault.detail.contains("1 MiB"), "{fault}");
    }
}
