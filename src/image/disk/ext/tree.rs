//! The file system as [`FileTree`] shows it.

use super::directory::Entry;
use super::file_system::{Ext, Inode, ROOT};
use crate::fault::Result;
use crate::image::disk::file_tree::{About, Attributes, Extent, FileTree};

impl FileTree for Ext {
    type Entry = Entry;
    type Node = Inode;

    fn root(&self) -> Result<Inode> {
        self.inode(ROOT)
    }

    fn list(&self, directory: &Inode, most: u64) -> Result<Vec<Entry>> {
        self.directory(directory, most)
    }

    fn name<'a>(&self, entry: &'a Entry) -> &'a [u8] {
        &entry.name
    }

    fn file(&self, _: &Inode, entry: &Entry) -> Result<Inode> {
        self.inode(entry.inode)
    }

    fn about(&self, inode: &Inode) -> About {
        About {
            identity: (0, inode.number.into()),
            kind: inode.kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            size: inode.size,
            mtime: inode.mtime,
            links: inode.links.into(),
        }
    }

    fn attributes(&self, inode: &Inode) -> Result<Attributes> {
        let mut found = Ext::attributes(self, inode)?;
        // Part of the content.
        found.retain(|(name, _)| name != b"system.data");
        Ok(found)
    }

    fn target(&self, inode: &Inode) -> Result<Vec<u8>> {
        Ext::target(self, inode)
    }

    fn inline(&self, inode: &Inode) -> Result<Option<Vec<u8>>> {
        Ext::inline(self, inode)
    }

    fn extents(&self, inode: &Inode) -> Result<Vec<Extent>> {
        Ext::extents(self, inode)
    }

    fn read(&self, _: &Inode, place: u64, buffer: &mut [u8]) -> Result<()> {
        self.read_data(place, buffer)
    }

    fn capacity(&self) -> u64 {
        self.bytes()
    }
}
