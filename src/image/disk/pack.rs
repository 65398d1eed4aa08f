//! A file system as the tar archive of a layer, in an order that is always the same.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

use tar::EntryType;

use super::ext::{Entry, Ext, Extent, Inode, Kind, ROOT};
use super::unacceptable;
use crate::fault::{OrFault, Result};
use crate::image::layer::Limits;
use crate::image::tar_reader::printable;
use crate::image::tar_writer::{Head, TarWriter};
use crate::image::whiteout::{self, Meaning};

/// Bytes that are copied at once.
const PIECE: usize = 1 << 17;
/// Most pieces of a file with holes; one with more is written with zeros in them.
const MAX_HOLES: usize = 4096;
/// Deepest directory, as in a layer.
const MAX_DEPTH: usize = 256;
const DOING: &str = "writing the layer of a disk image";

/// Writes all that is in the file system.
pub(super) fn write(ext: &Ext, sink: impl Write, limits: Limits) -> Result<()> {
    let mut pack = Pack {
        ext,
        limits,
        writer: TarWriter::new(sink),
        entries: 0,
        bytes: 0,
        stored: 0,
        directories: HashSet::new(),
        names: HashMap::new(),
        buffer: vec![0; PIECE],
    };
    pack.tree()?;
    pack.writer.finish().map(drop).or_fault(DOING)
}

struct Pack<'a, W> {
    ext: &'a Ext,
    limits: Limits,
    writer: TarWriter<W>,
    entries: u64,
    bytes: u64,
    /// Bytes of data on the disk.
    stored: u64,
    /// Directories that were met.
    directories: HashSet<u32>,
    /// The first name of files with several.
    names: HashMap<u32, Vec<u8>>,
    buffer: Vec<u8>,
}

impl<W: Write> Pack<'_, W> {
    /// Each directory before what is in it.
    fn tree(&mut self) -> Result<()> {
        let root = self.ext.inode(ROOT)?;
        let mut open = vec![(Vec::new(), self.directory(&[], &root)?)];
        while let Some((parent, entries)) = open.last_mut() {
            let Some(entry) = entries.next() else {
                open.pop();
                continue;
            };
            let path = match parent.as_slice() {
                b"" => entry.name.clone(),
                parent => [parent, b"/", &entry.name].concat(),
            };
            if whiteout::meaning(&entry.name) != Meaning::Plain {
                return Err(unacceptable(format!(
                    "{}: in a layer, that name deletes others; rename it",
                    printable(&path)
                )));
            }
            let inode = self.ext.inode(entry.inode)?;
            if inode.kind != Kind::Directory {
                self.file(&path, &inode).map_err(|f| f.context(printable(&path)))?;
            } else if open.len() >= MAX_DEPTH {
                return Err(unacceptable("it has directories more than 256 deep"));
            } else {
                let entries =
                    self.directory(&path, &inode).map_err(|f| f.context(printable(&path)))?;
                open.push((path, entries));
            }
        }
        Ok(())
    }

    fn count(&mut self, bytes: u64) -> Result<()> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        let (key, over) = if self.entries > self.limits.entries {
            ("images.max_entries", "files")
        } else if self.bytes > self.limits.bytes {
            ("images.max_unpacked_bytes", "bytes")
        } else {
            return Ok(());
        };
        Err(unacceptable(format!(
            "it holds more {over} than {key} allows; raise that or take a smaller image"
        )))
    }

    fn directory(&mut self, path: &[u8], inode: &Inode) -> Result<std::vec::IntoIter<Entry>> {
        if !self.directories.insert(inode.number) {
            return Err(unacceptable("a directory has two names, or is in itself"));
        }
        self.count(0)?;
        let entries = self.ext.directory(inode, self.limits.entries)?;
        let path = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
        let head = self.head(&path, inode, EntryType::Directory)?;
        self.writer.member(&head, b"").or_fault(DOING)?;
        Ok(entries.into_iter())
    }

    fn file(&mut self, path: &[u8], inode: &Inode) -> Result<()> {
        if inode.kind == Kind::Other {
            // Sockets end with their process; devices no instance can open.
            return Ok(());
        }
        if inode.links > 1
            && let Some(first) = self.names.get(&inode.number)
        {
            let head = Head { kind: EntryType::Link, link: first, path, ..Head::file("", 0) };
            self.writer.member(&head, b"").or_fault(DOING)?;
            return self.count(0);
        }
        match inode.kind {
            Kind::Regular => self.regular(path, inode)?,
            Kind::Symlink => {
                self.count(0)?;
                let target = self.ext.target(inode)?;
                let head = self.head(path, inode, EntryType::Symlink)?;
                self.writer.member(&Head { link: &target, ..head }, b"").or_fault(DOING)?;
            }
            _ => {
                self.count(0)?;
                let head = self.head(path, inode, EntryType::Fifo)?;
                self.writer.member(&head, b"").or_fault(DOING)?;
            }
        }
        if inode.links > 1 {
            self.names.insert(inode.number, path.to_vec());
        }
        Ok(())
    }

    fn head<'a>(&self, path: &'a [u8], inode: &Inode, kind: EntryType) -> Result<Head<'a>> {
        let mut records = Vec::new();
        // Linux has none on links and pipes that an image keeps.
        if matches!(kind, EntryType::Regular | EntryType::Directory) {
            for (name, value) in self.ext.attributes(inode)? {
                // Part of the content.
                if name == b"system.data" {
                    continue;
                }
                if name.contains(&b'=') {
                    return Err(unacceptable("an extended attribute has a '=' in its name"));
                }
                records.push(([b"SCHILY.xattr.", &name[..]].concat(), value));
            }
        }
        Ok(Head {
            path,
            link: b"",
            kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            size: 0,
            records,
        })
    }

    fn regular(&mut self, path: &[u8], inode: &Inode) -> Result<()> {
        self.count(inode.size)?;
        let mut head = self.head(path, inode, EntryType::Regular)?;
        if let Some(bytes) = self.ext.inline(inode)? {
            // What it holds may end in a hole.
            head.size = inode.size;
            self.writer.begin(&head).or_fault(DOING)?;
            self.writer.put(&bytes).or_fault(DOING)?;
            self.zeros(inode.size - bytes.len() as u64)?;
            return self.writer.end().or_fault(DOING);
        }
        let extents = self.ext.extents(inode)?;
        let stored: u64 = extents.iter().map(|extent| extent.length).sum();
        self.stored += stored;
        if self.stored > self.ext.bytes() {
            return Err(unacceptable(
                "its files hold more than the whole file system; blocks belong to several files",
            ));
        }
        if stored == inode.size || extents.len() > MAX_HOLES {
            head.size = inode.size;
            self.writer.begin(&head).or_fault(DOING)?;
            self.dense(inode, &extents)?;
        } else {
            let map = sparse_map(&extents, inode.size);
            head.size = map.len() as u64 + stored;
            head.records.extend(sparse_records(path, inode.size));
            self.writer.begin(&head).or_fault(DOING)?;
            self.writer.put(&map).or_fault(DOING)?;
            extents.iter().try_for_each(|extent| self.copy(extent))?;
        }
        self.writer.end().or_fault(DOING)
    }

    /// Data with zeros in the holes.
    fn dense(&mut self, inode: &Inode, extents: &[Extent]) -> Result<()> {
        let mut at = 0;
        for extent in extents {
            self.zeros(extent.offset - at)?;
            self.copy(extent)?;
            at = extent.offset + extent.length;
        }
        self.zeros(inode.size - at)
    }

    fn zeros(&mut self, count: u64) -> Result<()> {
        let zeros =
            io::copy(&mut io::Read::take(io::repeat(0), count), &mut Sink(&mut self.writer));
        zeros.map(drop).or_fault(DOING)
    }

    fn copy(&mut self, extent: &Extent) -> Result<()> {
        let mut done = 0;
        while done < extent.length {
            let length = PIECE.min(usize::try_from(extent.length - done).unwrap_or(usize::MAX));
            let piece = &mut self.buffer[..length];
            self.ext.read_data(extent.place + done, piece)?;
            self.writer.put(piece).or_fault(DOING)?;
            done += length as u64;
        }
        Ok(())
    }
}

/// The present member of an archive, as something to write to.
struct Sink<'a, W>(&'a mut TarWriter<W>);

impl<W: Write> Write for Sink<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.put(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The map of a file with holes, pax format 1.0: decimal lines, padded to a block.
fn sparse_map(extents: &[Extent], size: u64) -> Vec<u8> {
    // An empty piece at the end, for readers to whom the last piece is the end.
    let mut map = format!("{}\n", extents.len() + 1);
    for extent in extents {
        map += &format!("{}\n{}\n", extent.offset, extent.length);
    }
    map += &format!("{size}\n0\n");
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(512), 0);
    map
}

fn sparse_records(path: &[u8], size: u64) -> [(Vec<u8>, Vec<u8>); 4] {
    [
        (b"GNU.sparse.major".to_vec(), b"1".to_vec()),
        (b"GNU.sparse.minor".to_vec(), b"0".to_vec()),
        (b"GNU.sparse.name".to_vec(), path.to_vec()),
        (b"GNU.sparse.realsize".to_vec(), size.to_string().into_bytes()),
    ]
}
