//! Reads tar archives as hostile input, one member at a time.
//!
//! The fields of a header are decoded by the `tar` crate; the iteration is
//! berth's own, for three reasons: extension headers are bounded in memory,
//! pax values may hold any byte (a file capability often contains a newline),
//! and sparse files come as a map of their data instead of a stream of zeros.
//!
//! Where tar programs disagree on the meaning of an archive it is refused
//! rather than guessed: a global header that renames members, two extension
//! headers of one kind. A size on a link or a directory counts for nothing, as
//! Docker, GNU tar and Python have it: the next header follows.
//!
//! GNU tar's label of a volume is passed over, and the lists of names in its
//! incremental archives are, of which the directories are directories.

mod sparse;

use std::io::{ErrorKind, Read, Seek, SeekFrom};

use ::tar::{EntryType, Header};

use super::acl::AccessList;
use super::pax::Pax;
use super::recognise::checksum;
use super::refusal::{malformed_tar as malformed, printable};
use crate::fault::{Fault, FaultKind, OrFault, Result};

/// Bytes of one block.
const BLOCK: u64 = 512;
/// Most bytes of one extension header: 64 KiB of each extended attribute the
/// kernel could take, several times over.
const MAX_EXTENSION: u64 = 1 << 20;
/// The record of a snapshot's name that would mean a deletion in a layer: other readers see
/// the file under a name that means none.
pub const NAME: &str = "BERTH.path";
/// The record of a name that does mean a deletion, in a directory with a name as [`NAME`]'s.
pub const DELETION: &str = "BERTH.deletion";
/// The record of a hard link's target with a name as [`NAME`]'s.
pub const LINK: &str = "BERTH.linkpath";
/// Types of members: a label of GNU tar's, a directory with a list of names, a part
/// of a member that begins on another volume, and Solaris' name for a pax header.
const VOLUME: u8 = b'V';
const DUMP_DIRECTORY: u8 = b'D';
const NEXT_VOLUME: u8 = b'M';
const SOLARIS_PAX: u8 = b'X';
/// Most bytes after the end of an archive: padding of the largest blocks that
/// any writer uses, and not a terabyte of zeros that nobody wants unpacked.
const MAX_TRAILER: u64 = 64 << 20;

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

/// What parts of a name are names, whatever they look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Literal {
    /// None.
    #[default]
    Nothing,
    /// All but the last.
    Parents,
    /// All.
    All,
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
    /// Who may do what with it, where that is said in text.
    pub access: Option<AccessList>,
    /// The same of new files in a directory.
    pub default: Option<AccessList>,
    /// What in its name is no deletion though it looks like one.
    pub literal: Literal,
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
            let size = field(header.entry_size(), &header.as_old().size, "size")?;
            match (header.entry_type(), header.entry_type().as_byte()) {
                (_, VOLUME) => {
                    self.expect(size)?;
                    (extensions, extended) = (Extensions::default(), false);
                }
                (_, NEXT_VOLUME) => {
                    return Err(malformed(
                        "it begins on another volume; put the volumes together with `cat`",
                    ));
                }
                (EntryType::GNULongName, _) => {
                    set(&mut extensions.long_path, nul_ended(self.extension(size)?))?;
                }
                (EntryType::GNULongLink, _) => {
                    set(&mut extensions.long_link, nul_ended(self.extension(size)?))?;
                }
                (EntryType::XHeader, _) | (_, SOLARIS_PAX) => {
                    set(&mut extensions.pax, Pax::parse(&self.extension(size)?)?)?;
                }
                (EntryType::XGlobalHeader, _) => {
                    check_global(&Pax::parse(&self.extension(size)?)?)?
                }
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
        let content =
            kind == MemberKind::Regular || header.entry_type().as_byte() == DUMP_DIRECTORY;
        let stored = if content { stored } else { 0 };
        self.expect(stored)?;
        let old = header.as_old();
        let mut member = Member {
            path,
            link: if matches!(kind, MemberKind::Symlink | MemberKind::Hardlink) {
                link
            } else {
                Vec::new()
            },
            kind,
            mode: field(header.mode(), &old.mode, "mode")? & 0o7777,
            uid: owner(pax.number("uid")?, header.uid(), &old.uid)?,
            gid: owner(pax.number("gid")?, header.gid(), &old.gid)?,
            mtime: pax.time("mtime")?.unwrap_or((
                header.mtime().ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0),
                0,
            )),
            size: if kind == MemberKind::Regular { stored } else { 0 },
            xattrs: pax.xattrs()?,
            access: pax.access_list("SCHILY.acl.access")?,
            default: pax.access_list("SCHILY.acl.default")?,
            literal: Literal::Nothing,
            pieces: vec![(0, stored)],
        };
        if kind == MemberKind::Regular {
            self.sparse(header, &pax, &mut member)?;
        }
        for (key, literal) in [(DELETION, Literal::Parents), (NAME, Literal::All)] {
            if let Some(name) = pax.get(key) {
                (member.path, member.literal) = (name.to_vec(), literal);
            }
        }
        if let Some(target) = pax.get(LINK) {
            member.link = target.to_vec();
        }
        Ok(member)
    }
}

fn kind(header: &Header, path: &[u8]) -> Result<MemberKind> {
    let device = || {
        let number = |value: std::io::Result<Option<u32>>, bytes: Option<&[u8; 8]>| match bytes {
            // A header older than POSIX has no place for it.
            None => Ok(0),
            Some(bytes) => field(value.map(Option::unwrap_or_default), bytes, "device number"),
        };
        let places = header.as_ustar().map(|header| (&header.dev_major, &header.dev_minor));
        let places =
            places.or(header.as_gnu().map(|header| (&header.dev_major, &header.dev_minor)));
        Ok::<_, Fault>((
            number(header.device_major(), places.map(|(major, _)| major))?,
            number(header.device_minor(), places.map(|(_, minor)| minor))?,
        ))
    };
    Ok(match header.entry_type() {
        // Archives older than POSIX tell a directory by the slash alone.
        EntryType::Regular if path.ends_with(b"/") => MemberKind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => MemberKind::Regular,
        EntryType::Directory => MemberKind::Directory,
        other if other.as_byte() == DUMP_DIRECTORY => MemberKind::Directory,
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

fn owner(pax: Option<u64>, header: std::io::Result<u64>, bytes: &[u8]) -> Result<u64> {
    pax.map_or_else(|| field(header, bytes, "owner"), Ok)
}

/// A number of a header. Some writers leave those at 0 empty.
fn field<T: Default>(value: std::io::Result<T>, bytes: &[u8], name: &str) -> Result<T> {
    match value {
        Ok(value) => Ok(value),
        Err(_) if bytes.iter().all(|byte| matches!(byte, b' ' | b'\0')) => Ok(T::default()),
        Err(_) => Err(malformed(format!("a member has no {name}"))),
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

#[cfg(test)]
mod tests;
