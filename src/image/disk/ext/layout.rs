//! How a file system was made: what `mke2fs` must be told to make one that is
//! found by the same names and read by the same programs.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::file_system::Ext;
use crate::fault::Result;
use crate::image::disk::blocks::{le16, le32};
use crate::image::refusal::unacceptable;

/// The features that are made again, by the word of the superblock that they
/// are in, their bit, and the name that mke2fs has for them. The others are
/// states (a journal to replay), or forms of storing that a reader of the
/// original does not need (inline data, clusters, quota, encryption).
const FEATURES: [(Word, u32, &str); 19] = [
    (Word::Compatible, 0x4, "has_journal"),
    (Word::Compatible, 0x8, "ext_attr"),
    (Word::Compatible, 0x10, "resize_inode"),
    (Word::Compatible, 0x20, "dir_index"),
    (Word::Compatible, 0x1000, "orphan_file"),
    (Word::Incompatible, 0x2, "filetype"),
    (Word::Incompatible, 0x40, "extent"),
    (Word::Incompatible, 0x80, "64bit"),
    (Word::Incompatible, 0x200, "flex_bg"),
    (Word::Incompatible, 0x400, "ea_inode"),
    (Word::Incompatible, 0x2000, "metadata_csum_seed"),
    (Word::Incompatible, 0x4000, "large_dir"),
    (Word::ReadOnly, 0x1, "sparse_super"),
    (Word::ReadOnly, 0x2, "large_file"),
    (Word::ReadOnly, 0x8, "huge_file"),
    (Word::ReadOnly, 0x10, "uninit_bg"),
    (Word::ReadOnly, 0x20, "dir_nlink"),
    (Word::ReadOnly, 0x40, "extra_isize"),
    (Word::ReadOnly, 0x400, "metadata_csum"),
];

#[derive(Clone, Copy)]
enum Word {
    Compatible,
    Incompatible,
    ReadOnly,
}

/// How a file system was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Its `UUID`, as in fstab.
    pub uuid: Uuid,
    /// Its name.
    pub label: String,
    /// Bytes of a block.
    pub block: u64,
    /// Bytes of an inode.
    pub inode_size: u64,
    /// How many inodes it has.
    pub inodes: u32,
    /// Its features: compatible, incompatible, compatible for readers.
    pub features: [u32; 3],
}

impl Layout {
    /// Whether mke2fs can be told this.
    pub fn is_sound(&self) -> bool {
        matches!(self.block, 1024 | 2048 | 4096)
            && self.inode_size.is_power_of_two()
            && (128..=self.block).contains(&self.inode_size)
            && self.label.len() <= 16
            && !self.label.contains('\0')
    }

    /// What follows mke2fs's `-O`.
    pub fn feature_names(&self) -> String {
        let has = |word: Word, bit: u32| self.features[word as usize] & bit != 0;
        let names = FEATURES.iter().filter(|(word, bit, _)| has(*word, *bit));
        names.fold("none".to_owned(), |list, (.., name)| list + "," + name)
    }
}

impl Ext {
    /// How it was made.
    pub fn layout(&self) -> Result<Layout> {
        let mut sb = [0; 1024];
        self.disk.read_at(1024, &mut sb)?;
        let modern = le32(&sb, 76) >= 1;
        let text = sb[120..136].split(|byte| *byte == 0).next().unwrap_or_default();
        let Ok(label) = std::str::from_utf8(text) else {
            return Err(unacceptable("its file system's label is no UTF-8"));
        };
        if self.block > 4096 {
            return Err(unacceptable("its file system has blocks of more than 4096 bytes"));
        }
        Ok(Layout {
            uuid: Uuid::from_slice(&sb[104..120]).unwrap_or_default(),
            label: label.to_owned(),
            block: self.block,
            inode_size: if modern { le16(&sb, 88).into() } else { 128 },
            inodes: self.inodes,
            features: if modern { [92, 96, 100].map(|at| le32(&sb, at)) } else { [0; 3] },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let (uuid, label) = (Uuid::from_u128(1), "root".to_owned());
        Layout { uuid, label, block: 4096, inode_size: 256, inodes: 9, features: [0; 3] }
    }

    #[test]
    fn features_have_mke2fs_names_and_states_have_none() {
        assert_eq!(layout().feature_names(), "none");
        // A journal that holds changes, inline data, quota.
        let features = [0x4 | 0x20, 0x2 | 0x4 | 0x8000, 0x400 | 0x100];
        let made = Layout { features, ..layout() }.feature_names();
        assert_eq!(made, "none,has_journal,dir_index,filetype,metadata_csum");
    }

    #[test]
    fn what_a_hostile_superblock_says_never_reaches_mke2fs() {
        assert!(layout().is_sound());
        for bad in [
            Layout { block: 65_536, ..layout() },
            Layout { block: 3000, ..layout() },
            Layout { inode_size: 0, ..layout() },
            Layout { inode_size: 8192, ..layout() },
            Layout { label: "a\0b".into(), ..layout() },
            Layout { label: "seventeen letters".into(), ..layout() },
        ] {
            assert!(!bad.is_sound(), "{bad:?}");
        }
    }
}
