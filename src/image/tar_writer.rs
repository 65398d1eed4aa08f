//! Writes the tar archives that [`crate::image::tar_reader`] and everybody else
//! reads: POSIX headers, with pax records where these are too small.

use std::io::{self, Write};

use tar::{EntryType, Header};

use super::pax::{record, time};

/// Block size of the format.
const BLOCK: u64 = 512;
/// Bytes of a name in a header.
const NAME: usize = 100;
/// Largest size and time in a header.
const NUMBER: u64 = 0o777_7777_7777;

/// What a member's header says.
#[derive(Clone, Debug)]
pub struct Head<'a> {
    /// Its name.
    pub path: &'a [u8],
    /// Target of a link.
    pub link: &'a [u8],
    /// What it is.
    pub kind: EntryType,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub mtime: (i64, u32),
    /// Bytes of data that follow.
    pub size: u64,
    /// Further pax records.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<'a> Head<'a> {
    /// A regular file of root's, of no particular time.
    pub fn file(path: &'a str, size: u64) -> Head<'a> {
        Head {
            path: path.as_bytes(),
            link: b"",
            kind: EntryType::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size,
            records: Vec::new(),
        }
    }
}

/// An archive that is being written.
pub struct TarWriter<W> {
    sink: W,
    written: u64,
}

impl<W: Write> TarWriter<W> {
    /// An empty archive.
    pub fn new(sink: W) -> TarWriter<W> {
        TarWriter { sink, written: 0 }
    }

    /// Begins a member; its data comes next, then [`end`](Self::end).
    pub fn begin(&mut self, head: &Head<'_>) -> io::Result<()> {
        let mut records = head.records.clone();
        let mut add = |key: &str, value: &[u8]| records.push((key.into(), value.into()));
        if head.path.len() > NAME {
            add("path", head.path);
        }
        if head.link.len() > NAME {
            add("linkpath", head.link);
        }
        if head.size > NUMBER {
            add("size", head.size.to_string().as_bytes());
        }
        let plain_time = u64::try_from(head.mtime.0).ok().filter(|t| *t <= NUMBER);
        if plain_time.is_none() || head.mtime.1 != 0 {
            add("mtime", time(head.mtime).as_bytes());
        }
        if !records.is_empty() {
            let data: Vec<u8> = records.iter().flat_map(|(k, v)| record(k, v)).collect();
            let name = Head { kind: EntryType::XHeader, ..Head::file("pax", data.len() as u64) };
            self.put(header(&name).as_bytes())?;
            self.put(&data)?;
            self.end()?;
        }
        self.put(header(head).as_bytes())
    }

    /// Writes data of the present member.
    pub fn put(&mut self, data: &[u8]) -> io::Result<()> {
        self.written += data.len() as u64;
        self.sink.write_all(data)
    }

    /// Counts data of the present member without writing it.
    pub fn pass(&mut self, length: u64) {
        self.written += length;
    }

    /// Ends the present member.
    pub fn end(&mut self) -> io::Result<()> {
        let padding = self.written.next_multiple_of(BLOCK) - self.written;
        self.put(&[0; BLOCK as usize][..usize::try_from(padding).unwrap_or(0)])
    }

    /// A whole member.
    pub fn member(&mut self, head: &Head<'_>, data: &[u8]) -> io::Result<()> {
        self.begin(head)?;
        self.put(data)?;
        self.end()
    }

    /// Ends the archive and gives its size.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        self.put(&[0; 2 * BLOCK as usize])?;
        Ok((self.sink, self.written))
    }
}

fn header(head: &Head<'_>) -> Header {
    let mut header = Header::new_ustar();
    let bytes = header.as_mut_bytes();
    let path = &head.path[..head.path.len().min(NAME)];
    bytes[..path.len()].copy_from_slice(path);
    let link = &head.link[..head.link.len().min(NAME)];
    bytes[157..157 + link.len()].copy_from_slice(link);
    header.set_entry_type(head.kind);
    header.set_mode(head.mode);
    header.set_uid(head.uid.into());
    header.set_gid(head.gid.into());
    header.set_size(head.size);
    if matches!(head.kind, EntryType::Char | EntryType::Block) {
        // Only 0/0 is written. These cannot fail for a header of this kind.
        let _ = header.set_device_major(0).and_then(|()| header.set_device_minor(0));
    }
    header.set_mtime(u64::try_from(head.mtime.0).unwrap_or(0).min(NUMBER));
    header.set_cksum();
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tar_reader::TarReader;

    #[test]
    fn what_is_written_is_read_back() {
        let long = vec![b'p'; 300];
        let times =
            [(0, 0), (1_700_000_000, 123_456_789), (-2, 500_000_000), (-1, 0), (1 << 40, 0)];
        let mut writer = TarWriter::new(Vec::new());
        for (number, mtime) in times.into_iter().enumerate() {
            let path = if number == 0 { &long[..] } else { b"short" };
            let records = vec![(b"SCHILY.xattr.user.x".to_vec(), vec![b'v'; 80 + number])];
            let head = Head { path, mtime, mode: 0o4755, uid: 7, records, ..Head::file("", 3) };
            writer.member(&head, b"abc").unwrap();
        }
        let link = Head { kind: EntryType::Symlink, link: &long, ..Head::file("l", 0) };
        writer.member(&link, b"").unwrap();
        let (bytes, size) = writer.finish().unwrap();
        assert_eq!(bytes.len() as u64, size);
        let mut reader = TarReader::new(&bytes[..]);
        for (number, mtime) in times.into_iter().enumerate() {
            let member = reader.next().unwrap().unwrap();
            assert_eq!(member.path.len(), if number == 0 { 300 } else { 5 });
            assert_eq!((member.mtime, member.mode, member.uid), (mtime, 0o4755, 7));
            assert_eq!(member.xattrs[0].1.len(), 80 + number);
        }
        assert_eq!(reader.next().unwrap().unwrap().link, long);
        assert!(reader.next().unwrap().is_none());
    }
}
