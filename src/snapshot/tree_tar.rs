//! A tree, or several on each other, as a tar archive.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use tar::EntryType;

use super::tree::{Node, NodeKind, Tree, Visit};
use super::walk;
use crate::fault::{OrFault, Result};
use crate::image::acl::{ACCESS, AccessList, DEFAULT};
use crate::image::tar_reader::{DELETION, LINK, NAME};
use crate::image::tar_writer::{Head, TarWriter};
use crate::image::whiteout::{Meaning, meaning};

/// A key and a value of a pax header.
type PaxRecord = (Vec<u8>, Vec<u8>);

/// Bytes that are read at once.
const PIECE: usize = 1 << 17;

/// What an archive is written from.
#[derive(Clone, Copy)]
pub(super) enum Files<'a> {
    /// The last of trees, the lowest first, with its marks for what it hides of the others.
    Layer(&'a [Tree]),
    /// What trees, the lowest first, look like on each other.
    Merged(&'a [Tree]),
}

impl Files<'_> {
    /// A name as others see it, and the record of what it is, where in a layer it would
    /// delete something though it should not. `key` is the kind of name.
    fn shown(self, path: &[u8], key: &str) -> (Vec<u8>, Option<PaxRecord>) {
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        // The last part of a deletion does delete.
        let names = if key == DELETION { parts.len() - 1 } else { parts.len() };
        let looks = |part: &[u8]| meaning(part) != Meaning::Plain;
        if matches!(self, Files::Merged(_)) || !parts[..names].iter().any(|part| looks(part)) {
            return (path.to_vec(), None);
        }
        let show =
            |part: &[u8]| if looks(part) { [b"berth", part].concat() } else { part.to_vec() };
        let shown: Vec<_> = parts.iter().map(|part| show(part)).collect();
        (shown.join(&b'/'), Some((key.into(), path.to_vec())))
    }

    pub(super) fn walk(self, visit: &mut Visit<'_>) -> Result<()> {
        match self {
            Files::Layer(trees) => walk::layer(trees, visit),
            Files::Merged(trees) => walk::merged(trees, visit),
        }
    }
}

/// Size of the archive that [`write`] writes.
pub(super) fn size(files: Files<'_>) -> Result<u64> {
    let mut writer = TarWriter::new(io::sink());
    files.walk(&mut |node, file| member(&mut writer, files, node, file.map(|_| None)))?;
    writer.finish().map(|(_, size)| size).or_fault("measuring a layer")
}

/// Writes the files.
pub(super) fn write(files: Files<'_>, sink: impl Write) -> Result<u64> {
    let mut writer = TarWriter::new(sink);
    files.walk(&mut |node, file| member(&mut writer, files, node, file.map(Some)))?;
    writer.finish().map(|(_, size)| size).or_fault("writing a layer")
}

/// Writes a file. Content that is there but not given is only counted.
fn member<W: Write>(
    writer: &mut TarWriter<W>,
    files: Files<'_>,
    node: &Node,
    content: Option<Option<&File>>,
) -> Result<()> {
    let doing = "writing a layer";
    let (path, link) = names(node);
    let key = if node.kind == NodeKind::Whiteout { DELETION } else { NAME };
    let (shown, record) = files.shown(&path, key);
    let (shown_link, more) = match node.kind {
        NodeKind::Hardlink(_) => files.shown(&link, LINK),
        _ => (link, None),
    };
    let mut head = Head {
        path: &shown,
        link: &shown_link,
        kind: entry_type(&node.kind),
        mode: node.mode,
        uid: node.uid,
        gid: node.gid,
        mtime: node.mtime,
        size: 0,
        records: record.into_iter().chain(more).chain(node.xattrs.iter().map(attribute)).collect(),
    };
    let NodeKind::File { size, pieces } = &node.kind else {
        writer.member(&head, b"").or_fault(doing)?;
        if node.kind == (NodeKind::Directory { opaque: true }) {
            let path = [&path[..], b".wh..wh..opq"].concat();
            let (path, record) = files.shown(&path, DELETION);
            let records = record.into_iter().collect();
            let mark = Head { path: &path, mtime: node.mtime, records, ..Head::file("", 0) };
            writer.member(&mark, b"").or_fault(doing)?;
        }
        return Ok(());
    };
    head.size = pieces.iter().map(|(_, length)| length).sum();
    if head.size != *size {
        head.records.extend(sparse(&shown, *size, pieces));
    }
    writer.begin(&head).or_fault(doing)?;
    match content.flatten() {
        None => writer.pass(head.size),
        Some(file) => copy(writer, file, pieces).or_fault(doing)?,
    }
    writer.end().or_fault(doing)
}

/// The record of an attribute; of access lists in the text that every tar reads.
fn attribute((name, value): &(Vec<u8>, Vec<u8>)) -> (Vec<u8>, Vec<u8>) {
    let list = || AccessList::from_kernel(value).map(|list| list.to_text());
    match name.as_slice() {
        ACCESS => list().map(|text| (b"SCHILY.acl.access".to_vec(), text)),
        DEFAULT => list().map(|text| (b"SCHILY.acl.default".to_vec(), text)),
        _ => None,
    }
    .unwrap_or_else(|| ([b"SCHILY.xattr.", &name[..]].concat(), value.clone()))
}

fn names(node: &Node) -> (Vec<u8>, Vec<u8>) {
    let path = match &node.kind {
        NodeKind::Directory { .. } if node.path.is_empty() => b"./".to_vec(),
        NodeKind::Directory { .. } => [&node.path[..], b"/"].concat(),
        NodeKind::Whiteout => {
            let name = node.path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
            [&node.path[..name], b".wh.", &node.path[name..]].concat()
        }
        _ => node.path.clone(),
    };
    let link = match &node.kind {
        NodeKind::Symlink(target) | NodeKind::Hardlink(target) => target.clone(),
        _ => Vec::new(),
    };
    (path, link)
}

fn entry_type(kind: &NodeKind) -> EntryType {
    match kind {
        NodeKind::Directory { .. } => EntryType::Directory,
        NodeKind::File { .. } | NodeKind::Whiteout => EntryType::Regular,
        NodeKind::Symlink(_) => EntryType::Symlink,
        NodeKind::Hardlink(_) => EntryType::Link,
        NodeKind::Fifo => EntryType::Fifo,
        NodeKind::NoDevice => EntryType::Char,
    }
}

/// The records of a file with holes, format 0.1.
fn sparse(path: &[u8], size: u64, pieces: &[(u64, u64)]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut map: Vec<String> = pieces.iter().map(|(at, length)| format!("{at},{length}")).collect();
    if map.is_empty() {
        map.push(format!("{size},0"));
    }
    vec![
        (b"GNU.sparse.size".to_vec(), size.to_string().into_bytes()),
        (b"GNU.sparse.numblocks".to_vec(), map.len().to_string().into_bytes()),
        (b"GNU.sparse.map".to_vec(), map.join(",").into_bytes()),
        (b"GNU.sparse.name".to_vec(), path.to_vec()),
    ]
}

fn copy<W: Write>(writer: &mut TarWriter<W>, file: &File, pieces: &[(u64, u64)]) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    for (start, length) in pieces {
        let (mut at, end) = (*start, start + length);
        while at < end {
            let wanted = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            file.read_exact_at(&mut buffer[..wanted], at)?;
            writer.put(&buffer[..wanted])?;
            at += wanted as u64;
        }
    }
    Ok(())
}
