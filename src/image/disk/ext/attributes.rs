//! Extended attributes, in the inode and in a block of their own.

use super::file_system::{Ext, Inode, corrupt};
use crate::fault::Result;
use crate::image::disk::blocks::{le16, le32};
use crate::image::disk::file_tree::Attributes;

const MAGIC: u32 = 0xea02_0000;
/// Most bytes of a value, as in the kernel.
const MAX_VALUE: u64 = 65_536;
/// Bytes before the entries in a block.
const BLOCK_HEADER: usize = 32;

impl Ext {
    /// All attributes of an inode, access lists in the kernel's form.
    pub fn attributes(&self, inode: &Inode) -> Result<Attributes> {
        let mut found = Vec::new();
        if le32(&inode.room, 0) == MAGIC {
            let room = &inode.room[4..];
            self.attribute_entries(room, room, &mut found)?;
        }
        if inode.attributes != 0 {
            let block = self.read_block(inode.attributes)?;
            if le32(&block, 0) != MAGIC {
                return Err(corrupt("a block of extended attributes is none"));
            }
            self.attribute_entries(&block[BLOCK_HEADER..], &block, &mut found)?;
        }
        Ok(found)
    }

    /// Reads entries; their values are at offsets from the start of `base`.
    fn attribute_entries(
        &self,
        mut entries: &[u8],
        base: &[u8],
        found: &mut Attributes,
    ) -> Result<()> {
        let bad = || corrupt("an extended attribute lies outside its block");
        while le32(entries, 0) != 0 {
            let length = usize::from(entries[0]);
            let name = entries.get(16..16 + length).ok_or_else(bad)?;
            let (offset, owner) = (usize::from(le16(entries, 2)), le32(entries, 4));
            let size = le32(entries, 8) as usize;
            let value = match owner {
                0 => {
                    let end = offset.checked_add(size).ok_or_else(bad)?;
                    base.get(offset..end).ok_or_else(bad)?.to_vec()
                }
                number => self.read(&self.inode(number)?, MAX_VALUE)?,
            };
            let prefix: &[u8] = match entries[1] {
                0 => b"",
                1 => b"user.",
                2 => b"system.posix_acl_access",
                3 => b"system.posix_acl_default",
                4 => b"trusted.",
                6 => b"security.",
                7 => b"system.",
                8 => b"system.richacl",
                _ => return Err(corrupt("an extended attribute is of an unknown kind")),
            };
            let value = match entries[1] {
                2 | 3 => access_list(&value).ok_or_else(|| corrupt("an access list is broken"))?,
                _ => value,
            };
            found.push(([prefix, name].concat(), value));
            entries = entries.get((16 + length).next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

/// An access list as the kernel gives it to programs, from the shorter form on the disk.
fn access_list(mut stored: &[u8]) -> Option<Vec<u8>> {
    const NAMED: [u16; 2] = [0x02, 0x08];
    if le32(stored, 0) != 1 {
        return None;
    }
    let mut list = 2u32.to_le_bytes().to_vec();
    stored = stored.get(4..)?;
    while !stored.is_empty() {
        let length = if NAMED.contains(&le16(stored, 0)) { 8 } else { 4 };
        list.extend_from_slice(stored.get(..length)?);
        if length == 4 {
            list.extend_from_slice(&u32::MAX.to_le_bytes());
        }
        stored = &stored[length..];
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_lists_get_an_id_in_every_entry() {
        let stored = [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 232, 3, 0, 0, 0x20, 0, 4, 0];
        let none = [255; 4];
        let whole = [&[2, 0, 0, 0, 1, 0, 6, 0][..], &none, &[2, 0, 4, 0, 232, 3, 0, 0]].concat();
        let whole = [&whole[..], &[0x20, 0, 4, 0], &none].concat();
        assert_eq!(access_list(&stored).unwrap(), whole);
        assert!(access_list(&stored[..14]).is_none());
        assert!(access_list(&[2, 0, 0, 0]).is_none());
    }
}
