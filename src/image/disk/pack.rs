//! A file system as the tar archive of a layer, in an order that is always the same.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

use tar::EntryType;

use super::file_tree::{About, Extent, FileKind, FileTree};
use crate::fault::{OrFault, Result};
use crate::image::refusal::{printable, unacceptable};
use crate::image::tar_writer::{Head, TarWriter};
use crate::image::unpack::UnpackLimits;

/// Bytes that are copied at once.
const PIECE: usize = 1 << 17;
/// Most pieces of a file with holes; one with more is written with zeros in them.
const MAX_HOLES: usize = 4096;
/// Deepest directory, as in a layer.
const MAX_DEPTH: usize = 256;
const DOING: &str = "writing the layer of a disk image";

/// Writes all that is in the file system.
pub(super) fn write(files: &impl FileTree, sink: impl Write, limits: UnpackLimits) -> Result<()> {
    let mut pack = Pack {
        files,
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

/// A directory that is being walked: its path, itself, the names that are left.
type Open<T> = (Vec<u8>, <T as FileTree>::Node, std::vec::IntoIter<<T as FileTree>::Entry>);

struct Pack<'a, T, W> {
    files: &'a T,
    limits: UnpackLimits,
    writer: TarWriter<W>,
    entries: u64,
    bytes: u64,
    /// Bytes of data on the disk.
    stored: u64,
    /// Directories that were met.
    directories: HashSet<(u64, u64)>,
    /// The first name of files with several.
    names: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
}

impl<T: FileTree, W: Write> Pack<'_, T, W> {
    /// Each directory before what is in it.
    fn tree(&mut self) -> Result<()> {
        let root = self.files.root()?;
        let mut open = vec![self.directory(Vec::new(), root)?];
        while let Some((parent, directory, entries)) = open.last_mut() {
            let Some(entry) = entries.next() else {
                open.pop();
                continue;
            };
            let name = self.files.name(&entry);
            let path = match parent.as_slice() {
                b"" => name.to_vec(),
                parent => [parent, b"/", name].concat(),
            };
            let shown = printable(&path);
            let node = self.files.file(directory, &entry).map_err(|f| f.context(&shown))?;
            if self.files.about(&node).kind != FileKind::Directory {
                self.file(&path, &node).map_err(|f| f.context(shown))?;
            } else if open.len() >= MAX_DEPTH {
                return Err(unacceptable("it has directories more than 256 deep"));
            } else {
                open.push(self.directory(path, node).map_err(|f| f.context(shown))?);
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

    fn directory(&mut self, path: Vec<u8>, node: T::Node) -> Result<Open<T>> {
        let about = self.files.about(&node);
        if !self.directories.insert(about.identity) {
            return Err(unacceptable("a directory has two names, or is in itself"));
        }
        self.count(0)?;
        let entries = self.files.list(&node, self.limits.entries)?;
        let name = if path.is_empty() { b"./".to_vec() } else { [&path[..], b"/"].concat() };
        let records = self.records(&node)?;
        let head = Head { records, ..head(&name, &about, EntryType::Directory) };
        self.writer.member(&head, b"").or_fault(DOING)?;
        Ok((path, node, entries.into_iter()))
    }

    fn file(&mut self, path: &[u8], node: &T::Node) -> Result<()> {
        let about = self.files.about(node);
        if about.kind == FileKind::Other {
            // Sockets end with their process; devices no instance can open.
            return Ok(());
        }
        if about.links > 1
            && let Some(first) = self.names.get(&about.identity)
        {
            let head = Head { kind: EntryType::Link, link: first, path, ..Head::file("", 0) };
            self.writer.member(&head, b"").or_fault(DOING)?;
            return self.count(0);
        }
        match about.kind {
            FileKind::Regular => self.regular(path, node, &about)?,
            FileKind::Symlink => {
                self.count(0)?;
                let target = self.files.target(node)?;
                let head = Head { link: &target, ..head(path, &about, EntryType::Symlink) };
                self.writer.member(&head, b"").or_fault(DOING)?;
            }
            kind => {
                self.count(0)?;
                let device = kind == FileKind::NoDevice;
                let kind = if device { EntryType::Char } else { EntryType::Fifo };
                let head = head(path, &about, kind);
                self.writer.member(&head, b"").or_fault(DOING)?;
            }
        }
        if about.links > 1 {
            self.names.insert(about.identity, path.to_vec());
        }
        Ok(())
    }

    /// The records of a file's extended attributes. Linux has none on links
    /// and pipes that an image keeps.
    fn records(&self, node: &T::Node) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut records = Vec::new();
        for (name, value) in self.files.attributes(node)? {
            if name.contains(&b'=') {
                return Err(unacceptable("an extended attribute has a '=' in its name"));
            }
            records.push(([b"SCHILY.xattr.", &name[..]].concat(), value));
        }
        Ok(records)
    }

    fn regular(&mut self, path: &[u8], node: &T::Node, about: &About) -> Result<()> {
        let size = about.size;
        self.count(size)?;
        let mut head =
            Head { records: self.records(node)?, ..head(path, about, EntryType::Regular) };
        if let Some(bytes) = self.files.inline(node)? {
            // What it holds may end in a hole.
            head.size = size;
            self.writer.begin(&head).or_fault(DOING)?;
            self.writer.put(&bytes).or_fault(DOING)?;
            self.zeros(size - bytes.len() as u64)?;
            return self.writer.end().or_fault(DOING);
        }
        let extents = self.files.extents(node)?;
        let stored: u64 = extents.iter().map(|extent| extent.length).sum();
        self.stored = self.stored.saturating_add(stored);
        if self.stored > self.files.capacity() {
            return Err(unacceptable(
                "its files hold more than the whole file system; blocks belong to several files",
            ));
        }
        if stored == size || extents.len() > MAX_HOLES {
            head.size = size;
            self.writer.begin(&head).or_fault(DOING)?;
            self.dense(node, size, &extents)?;
        } else {
            let map = sparse_map(&extents, size);
            head.size = map.len() as u64 + stored;
            head.records.extend(sparse_records(path, size));
            self.writer.begin(&head).or_fault(DOING)?;
            self.writer.put(&map).or_fault(DOING)?;
            extents.iter().try_for_each(|extent| self.copy(node, extent))?;
        }
        self.writer.end().or_fault(DOING)
    }

    /// Data with zeros in the holes.
    fn dense(&mut self, node: &T::Node, size: u64, extents: &[Extent]) -> Result<()> {
        let mut at = 0;
        for extent in extents {
            self.zeros(extent.offset - at)?;
            self.copy(node, extent)?;
            at = extent.offset + extent.length;
        }
        self.zeros(size - at)
    }

    fn zeros(&mut self, count: u64) -> Result<()> {
        let zeros =
            io::copy(&mut io::Read::take(io::repeat(0), count), &mut Sink(&mut self.writer));
        zeros.map(drop).or_fault(DOING)
    }

    fn copy(&mut self, node: &T::Node, extent: &Extent) -> Result<()> {
        let mut done = 0;
        while done < extent.length {
            let length = PIECE.min(usize::try_from(extent.length - done).unwrap_or(usize::MAX));
            let piece = &mut self.buffer[..length];
            self.files.read(node, extent.place + done, piece)?;
            self.writer.put(piece).or_fault(DOING)?;
            done += length as u64;
        }
        Ok(())
    }
}

fn head<'a>(path: &'a [u8], about: &About, kind: EntryType) -> Head<'a> {
    Head {
        path,
        link: b"",
        kind,
        mode: about.mode,
        uid: about.uid,
        gid: about.gid,
        mtime: about.mtime,
        size: 0,
        records: Vec::new(),
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
