//! What a tree in the making is, and what it becomes.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::mpsc::SyncSender;

use serde::{Deserialize, Serialize};

use super::marks::Marks;
use crate::fault::Result;
use crate::image::acl::AccessList;
use crate::image::refusal::unacceptable;

/// The directory of Incus' and LXC's images in which the root file system is.
pub const BELOW: &[u8] = b"rootfs";
/// Most bytes of access lists with names that wait for their ids.
const MAX_NAMED: usize = 16 << 20;

/// What an archive is unpacked as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TreeKind {
    /// A layer of an image: OCI's names of deletions act.
    Layer,
    /// A root file system: every name is a name, and deletes nothing.
    Root,
    /// What is below [`BELOW`] is that; all else is left out.
    RootBelow,
    /// A root file system that no overlay will have as a layer: overlayfs's marks in it,
    /// which are data, are what they were. Takes the capability `SYS_ADMIN`, too.
    FileSystem,
}

/// What a layer may need at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackLimits {
    /// Files and directories.
    pub entries: u64,
    /// Bytes of all files, holes counted.
    pub bytes: u64,
    /// Ids that instances have: a higher one becomes nobody's.
    pub ids: u64,
}

/// What a layer turned out to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackReport {
    /// Members of the archive.
    pub entries: u64,
    /// Bytes of all files, holes counted.
    pub bytes: u64,
    /// Bytes that were written, holes left out.
    pub stored: u64,
    /// What is to be set on its files.
    pub marks: Marks,
    /// As a layer of an image, the same archive would be another tree: it has names that
    /// would delete, or is not all of it unpacked.
    pub own_kind: bool,
}

/// A tree in the making.
pub(super) struct Extractor {
    pub root: Rc<OwnedFd>,
    pub kind: TreeKind,
    pub limits: UnpackLimits,
    pub report: UnpackReport,
    /// What is set on directories at the end.
    pub late: BTreeMap<Vec<u8>, Late>,
    /// Access lists with names in them, for when the files that tell their ids are there.
    pub named: Named,
    /// The last parent, by the name that the archive used for it.
    pub parent: Option<(Vec<u8>, Directory)>,
    /// Where large files go when they are whole.
    pub written: SyncSender<File>,
}

impl Extractor {
    pub(super) fn new(
        root: OwnedFd,
        kind: TreeKind,
        limits: UnpackLimits,
        written: SyncSender<File>,
    ) -> Extractor {
        Extractor {
            root: Rc::new(root),
            kind,
            limits,
            report: UnpackReport {
                own_kind: kind == TreeKind::RootBelow,
                ..UnpackReport::default()
            },
            late: BTreeMap::new(),
            named: Named::default(),
            parent: None,
            written,
        }
    }

    pub(super) fn count_entry(&mut self) -> Result<()> {
        self.report.entries += 1;
        if self.report.entries > self.limits.entries {
            return Err(unacceptable(
                "it holds more files than images.max_entries allows; raise that or take a smaller \
                 image",
            ));
        }
        Ok(())
    }
}

/// What is set on directories after all that is in them was made.
#[derive(Default)]
pub(super) struct Late {
    pub mtime: Option<(i64, u32)>,
    /// Set last, or berth's own creations below it would inherit it.
    pub default_acl: Option<Vec<u8>>,
}

/// Access lists with names, by file: that of the file, and its default.
#[derive(Default)]
pub(super) struct Named {
    pub lists: BTreeMap<Vec<u8>, [Option<AccessList>; 2]>,
    weight: usize,
}

impl Named {
    pub(super) fn add(&mut self, path: &[u8], which: usize, list: &AccessList) -> Result<()> {
        self.weight += path.len() + list.weight();
        if self.weight > MAX_NAMED {
            return Err(unacceptable(
                "it has more than 16 MiB of access lists with names; write it with \
                 `--numeric-owner`",
            ));
        }
        self.lists.entry(path.to_vec()).or_default()[which] = Some(list.clone());
        Ok(())
    }

    pub(super) fn forget(&mut self, path: &[u8]) {
        self.lists.remove(path);
    }
}

/// A directory in the layer: its name without any link in it, and itself.
#[derive(Clone)]
pub(super) struct Directory {
    pub name: Vec<u8>,
    pub fd: Rc<OwnedFd>,
}

impl Directory {
    pub(super) fn child(&self, name: &[u8]) -> Vec<u8> {
        if self.name.is_empty() { name.to_vec() } else { [&self.name, &b"/"[..], name].concat() }
    }
}

/// What has a name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    Directory,
    Whiteout,
    Other,
}
