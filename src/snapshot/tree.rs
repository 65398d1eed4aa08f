//! A tree of files as a layer sees it: read in a fixed order, overlayfs's own
//! marks taken for what they mean.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    Dir, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat, fgetxattr, flistxattr, fstat,
    openat2, readlinkat, seek,
};
use rustix::io::Errno;

use super::links::Links;
use super::names::Unsorted;
use super::scratch::{Scratch, Scratches};
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::image::refusal::printable;
use crate::image::whiteout::{
    self, DEVICE_VALUE, DEVICE_XATTR, OPAQUE_VALUE, OPAQUE_XATTR, REDIRECT_XATTR,
};
use crate::image::xattr;

/// Longest path that the kernel takes.
const LONGEST: usize = 4095;
/// Most pieces of a file with holes; one with more is read as if it had none.
const MOST_PIECES: usize = 4096;
/// Most bytes of a file's extended attributes, a little less than the reader of
/// archives takes in a header.
const MOST_ATTRIBUTES: usize = 960 << 10;
/// What each takes in a header besides its name and value, at most.
const RECORD: usize = 24;

/// Is shown each file, with its content.
pub(super) type Visit<'v> = dyn FnMut(&Node, Option<&File>) -> Result<()> + 'v;

/// A tree that no longer changes.
pub struct Tree {
    root: OwnedFd,
    left_out: BTreeSet<Vec<u8>>,
    scratch: Scratches,
    /// Whether directories may be renamed ones of lower trees.
    renames: bool,
}

/// One file of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    /// Below the root, without a slash at either end; empty for the root.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner, as an instance of the tree sees it.
    pub uid: u32,
    /// Group, as an instance of the tree sees it.
    pub gid: u32,
    /// Seconds and nanoseconds since the epoch.
    pub mtime: (i64, u32),
    /// Extended attributes that an image keeps, by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NodeKind {
    /// `opaque`: it hides what lower layers have there.
    Directory {
        opaque: bool,
    },
    /// Its size, and offset and length of its data between holes.
    File {
        size: u64,
        pieces: Vec<(u64, u64)>,
    },
    Symlink(Vec<u8>),
    /// To this path, which comes before.
    Hardlink(Vec<u8>),
    Fifo,
    /// A character device 0/0 that is data.
    NoDevice,
    /// It deletes what lower layers have there.
    Whiteout,
}

/// What a tree has at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Here {
    Nothing,
    /// It hides what lower trees have there.
    Whiteout,
    Directory {
        opaque: bool,
        /// Where lower trees have it: [`REDIRECT_XATTR`].
        renamed: Option<Vec<u8>>,
    },
    /// Anything else.
    File,
}

impl Tree {
    /// The tree below a directory. `left_out` are paths without a leading slash;
    /// `scratch` is for files without a name.
    pub fn new(root: OwnedFd, left_out: BTreeSet<Vec<u8>>, scratch: Scratches) -> Tree {
        Tree { root, left_out, scratch, renames: false }
    }

    /// The upper directory of an instance: the kernel alone writes its own marks there, and renames
    /// directories of the trees below it.
    #[must_use]
    pub fn upper(self) -> Tree {
        Tree { renames: true, ..self }
    }

    /// For what a walk keeps.
    pub(super) fn scratch(&self) -> Scratch {
        Scratch::new(&self.scratch)
    }

    /// What it has at a path.
    pub(super) fn here(&self, path: &[u8]) -> Result<Here> {
        if self.left_out.contains(path) {
            return Ok(Here::Nothing);
        }
        let look = || -> rustix::io::Result<Here> {
            let fd = match self.open(path, OFlags::PATH) {
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Here::Nothing),
                other => other?,
            };
            let stat = fstat(&fd)?;
            Ok(match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let fd = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
                    let renamed = if self.renames { redirect(&fd)? } else { None };
                    Here::Directory { opaque: is_opaque(&fd)?, renamed }
                }
                FileType::CharacterDevice if stat.st_rdev == 0 => Here::Whiteout,
                _ => Here::File,
            })
        };
        look().or_fault(format_args!("reading /{}", printable(path)))
    }

    /// The directory that it has at `at`, as one at `path`.
    pub(super) fn directory(&self, at: &[u8], path: &[u8], opaque: bool) -> Result<Node> {
        let doing = || format!("reading the directory /{}", printable(path));
        let directory = self.open(at, OFlags::RDONLY | OFlags::DIRECTORY).or_fault(doing())?;
        let stat = fstat(&directory).or_fault(doing())?;
        let xattrs = xattrs(&directory, path)?;
        Ok(Node::new(path, NodeKind::Directory { opaque }, &stat, xattrs))
    }

    /// Adds the names in a directory.
    pub(super) fn names(&self, at: &[u8], names: &mut Unsorted<'_>) -> Result<()> {
        let doing = || format!("reading the directory /{}", printable(at));
        let directory = self.open(at, OFlags::RDONLY | OFlags::DIRECTORY).or_fault(doing())?;
        for entry in Dir::read_from(&directory).or_fault(doing())? {
            let entry = entry.or_fault(doing())?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.add(name)?;
            }
        }
        Ok(())
    }

    /// Shows what it has at `at`, which is no directory, as at `path`.
    pub(super) fn file(
        &self,
        at: &[u8],
        path: &[u8],
        links: &mut Links<'_>,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        let doing = || format!("reading /{}", printable(path));
        let fd = self.open(at, OFlags::PATH).or_fault(doing())?;
        let stat = fstat(&fd).or_fault(doing())?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                if stat.st_nlink > 1
                    && let Some(first) = links.first((stat.st_dev, stat.st_ino), path)?
                {
                    let kind = NodeKind::Hardlink(first);
                    return visit(&Node::new(path, kind, &stat, Vec::new()), None);
                }
                let file = File::from(self.open(at, OFlags::RDONLY).or_fault(doing())?);
                let size = stat.st_size.unsigned_abs();
                if size == 0 && is_no_device(&file).or_fault(doing())? {
                    let node = Node::new(path, NodeKind::NoDevice, &stat, Vec::new());
                    return visit(&node, None);
                }
                let pieces = pieces(&file, &stat).or_fault(doing())?;
                let xattrs = xattrs(&file, path)?;
                let node = Node::new(path, NodeKind::File { size, pieces }, &stat, xattrs);
                return visit(&node, Some(&file));
            }
            FileType::Symlink => {
                let target = readlinkat(&fd, "", Vec::new()).or_fault(doing())?;
                NodeKind::Symlink(target.into_bytes())
            }
            FileType::Fifo => NodeKind::Fifo,
            FileType::CharacterDevice if stat.st_rdev == 0 => NodeKind::Whiteout,
            // Sockets end with their process; devices no instance can make.
            _ => return Ok(()),
        };
        visit(&Node::new(path, kind, &stat, Vec::new()), None)
    }

    fn open(&self, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        openat2(&self.root, path, flags, Mode::empty(), resolve)
    }
}

/// Refuses a path that no archive's reader could make.
pub(super) fn too_long(path: &[u8]) -> Result<()> {
    if path.len() <= LONGEST {
        return Ok(());
    }
    Err(Fault::new(
        FaultKind::InstanceUnsupported,
        format!("a path is longer than {LONGEST} bytes: {}…", printable(&path[..60])),
    ))
}

impl Node {
    fn new(path: &[u8], kind: NodeKind, stat: &Stat, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Node {
        Node {
            path: path.to_vec(),
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            xattrs,
        }
    }
}

fn is_opaque(directory: &impl AsFd) -> rustix::io::Result<bool> {
    match attribute(directory, OPAQUE_XATTR.as_bytes()) {
        Ok(value) => Ok(value == OPAQUE_VALUE),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Where lower trees have a directory that was renamed.
fn redirect(directory: &impl AsFd) -> rustix::io::Result<Option<Vec<u8>>> {
    match attribute(directory, REDIRECT_XATTR.as_bytes()) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether an empty file stands for a device 0/0.
fn is_no_device(file: &impl AsFd) -> rustix::io::Result<bool> {
    match attribute(file, DEVICE_XATTR.as_bytes()) {
        Ok(value) => Ok(value == DEVICE_VALUE),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(e),
    }
}

/// The attributes that an image keeps, and in the form that it keeps.
fn xattrs(file: &impl AsFd, path: &[u8]) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let doing = || format!("reading the extended attributes of /{}", printable(path));
    let mut list = vec![0; 1 << 16];
    let length = match flistxattr(file, &mut list[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        other => other.or_fault(doing())?,
    };
    let mut names: Vec<&[u8]> =
        list[..length].split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
    names.sort_unstable();
    let (mut kept, mut bytes) = (Vec::new(), 0);
    for name in names {
        // Overlayfs's own are not of the instance, but where they stand for data.
        let data = whiteout::from_data(name);
        if name.starts_with(b"trusted.") && data.is_none() {
            continue;
        }
        let value = attribute(file, name).or_fault(doing())?;
        let name = data.as_deref().unwrap_or(name);
        if let Ok(Some(value)) = xattr::kept(name, &value, path, u64::MAX) {
            bytes += name.len() + value.len() + RECORD;
            if bytes > MOST_ATTRIBUTES {
                return Err(Fault::new(
                    FaultKind::InstanceUnsupported,
                    format!(
                        "/{} has more than {} KiB of extended attributes, which no image holds; \
                         remove some",
                        printable(path),
                        MOST_ATTRIBUTES >> 10
                    ),
                ));
            }
            kept.push((name.to_vec(), value));
        }
    }
    Ok(kept)
}

fn attribute(file: &impl AsFd, name: &[u8]) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; 1 << 16];
    let length = fgetxattr(file, name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

/// The data between a file's holes.
fn pieces(file: &File, stat: &Stat) -> rustix::io::Result<Vec<(u64, u64)>> {
    let size = stat.st_size.unsigned_abs();
    let whole = vec![(0, size)];
    if stat.st_blocks.unsigned_abs() * 512 >= size {
        return Ok(whole);
    }
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size && pieces.len() <= MOST_PIECES {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e),
        };
        at = seek(file, SeekFrom::Hole(start))?.min(size);
        pieces.push((start, at - start));
    }
    let sparse = pieces.len() <= MOST_PIECES && pieces != whole;
    Ok(if sparse { pieces } else { whole })
}
