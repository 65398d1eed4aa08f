//! Directories. A hashed one is also a list: its index looks like entries
//! without a file.

use super::file_system::{Ext, Inode, corrupt, flag};
use crate::fault::Result;
use crate::image::disk::blocks::{le16, le32};
use crate::image::disk::file_tree::FileKind;
use crate::image::refusal::{printable, unacceptable};

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The name.
    pub name: Vec<u8>,
    /// Whose.
    pub inode: u32,
}

impl Ext {
    /// A directory's entries in the order of their names, without `.` and `..`.
    pub fn directory(&self, inode: &Inode, most: u64) -> Result<Vec<Entry>> {
        if inode.kind != FileKind::Directory {
            return Err(corrupt(format!("inode {} is no directory", inode.number)));
        }
        let mut entries = Vec::new();
        if inode.flags & flag::INLINE != 0 {
            // The parent's number first, then entries; so are those in the attribute.
            let bytes = self.inline(inode)?.unwrap_or_default();
            let (own, more) = bytes.split_at(bytes.len().min(60));
            self.entries(own.get(4..).unwrap_or_default(), &mut entries, most)?;
            self.entries(more, &mut entries, most)?;
        } else {
            let mut block = vec![0; self.block as usize];
            for extent in self.extents(inode)? {
                for start in (0..extent.length).step_by(block.len()) {
                    if extent.length - start < self.block {
                        return Err(corrupt("a directory ends within a block"));
                    }
                    self.read_data(extent.place + start, &mut block)?;
                    self.entries(&block, &mut entries, most)?;
                }
            }
        }
        entries.sort_unstable();
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
            let name = printable(&pair[0].name);
            return Err(corrupt(format!("a directory has the name {name} twice")));
        }
        Ok(entries)
    }

    fn entries(&self, mut bytes: &[u8], found: &mut Vec<Entry>, most: u64) -> Result<()> {
        while bytes.len() >= 8 {
            let length = match le16(bytes, 4) {
                // 65,536 does not fit the field.
                0 | u16::MAX if self.block == 65_536 => bytes.len(),
                length => usize::from(length),
            };
            let name_length = usize::from(bytes[6]);
            if length < 8 || length > bytes.len() || name_length > length - 8 {
                return Err(corrupt("a directory's entries do not fit into it"));
            }
            let (entry, rest) = bytes.split_at(length);
            bytes = rest;
            let inode = le32(entry, 0);
            let name = &entry[8..8 + name_length];
            if inode == 0 || matches!(name, b"." | b"..") {
                continue;
            }
            if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
                let name = printable(name);
                return Err(corrupt(format!("a directory has the impossible name {name:?}")));
            }
            if found.len() as u64 >= most {
                return Err(unacceptable(
                    "it holds more files than images.max_entries allows; raise that or take a \
                     smaller image",
                ));
            }
            found.push(Entry { name: name.to_vec(), inode });
        }
        Ok(())
    }
}
