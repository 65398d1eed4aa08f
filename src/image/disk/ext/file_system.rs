//! The superblock, the inodes, and what files hold.

use std::rc::Rc;

use crate::fault::{Fault, Result};
use crate::image::disk::blocks::{Blocks, le16, le32};
use crate::image::disk::file_tree::FileKind;
use crate::image::refusal::unacceptable;

/// The root directory's inode.
pub const ROOT: u32 = 2;

/// What a reader must know to read the file system at all.
pub(super) mod incompatible {
    pub const COMPRESSION: u32 = 0x1;
    pub const RECOVER: u32 = 0x4;
    pub const JOURNAL_DEVICE: u32 = 0x8;
    pub const META_BG: u32 = 0x10;
    pub const WIDE: u32 = 0x80;
    pub const DIRDATA: u32 = 0x1000;
    /// File types in directories, extents, wide numbers, multiple-mount
    /// protection, flexible groups, attributes in inodes, seeds of check sums,
    /// large directories, inline data, encryption (of single files), folded case.
    pub const KNOWN: u32 = 0x2
        | RECOVER
        | 0x40
        | META_BG
        | WIDE
        | 0x100
        | 0x200
        | 0x400
        | 0x2000
        | 0x4000
        | 0x8000
        | 0x10000
        | 0x20000;
}

/// Flags of an inode.
pub(super) mod flag {
    pub const ENCRYPTED: u32 = 0x800;
    pub const EXTENTS: u32 = 0x8_0000;
    pub const INLINE: u32 = 0x1000_0000;
}

/// An ext2, ext3 or ext4 file system.
pub struct Ext {
    pub(super) disk: Rc<dyn Blocks>,
    pub(super) block: u64,
    pub(super) blocks: u64,
    pub(super) inodes: u32,
    pub(super) blocks_per_group: u64,
    pub(super) inodes_per_group: u32,
    pub(super) inode_size: u64,
    pub(super) descriptor: u64,
    pub(super) first_block: u64,
    pub(super) incompatible: u32,
    pub(super) first_meta_bg: u64,
    /// Its name.
    pub label: String,
    /// Its `UUID`, as in fstab.
    pub uuid: String,
}

/// One file, whatever its names.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Its number.
    pub number: u32,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Modification time: seconds since the epoch, and nanoseconds.
    pub mtime: (i64, u32),
    /// How many names it has.
    pub links: u16,
    pub(super) flags: u32,
    /// The head of its map, or what it holds itself.
    pub(super) map: [u8; 60],
    /// Block of its extended attributes; 0 without.
    pub(super) attributes: u64,
    /// Its own room for extended attributes.
    pub(super) room: Vec<u8>,
}

impl Ext {
    /// What its superblock says, whether a journal is to be replayed or not.
    pub(super) fn new(disk: Rc<dyn Blocks>, sb: [u8; 1024]) -> Result<Ext> {
        if le16(&sb, 56) != 0xef53 {
            return Err(corrupt("it has no superblock"));
        }
        let modern = le32(&sb, 76) >= 1;
        let incompatible = if modern { le32(&sb, 96) } else { 0 };
        check_features(incompatible)?;
        let wide = incompatible & incompatible::WIDE != 0;
        let high = if wide { u64::from(le32(&sb, 336)) << 32 } else { 0 };
        let text = sb[120..136].split(|byte| *byte == 0).next().unwrap_or_default();
        let ext = Ext {
            block: 1024 << le32(&sb, 24).min(16),
            blocks: u64::from(le32(&sb, 4)) | high,
            inodes: le32(&sb, 0),
            blocks_per_group: le32(&sb, 32).into(),
            inodes_per_group: le32(&sb, 40),
            inode_size: if modern { le16(&sb, 88).into() } else { 128 },
            descriptor: if wide { le16(&sb, 254).into() } else { 32 },
            first_block: le32(&sb, 20).into(),
            incompatible,
            first_meta_bg: le32(&sb, 260).into(),
            label: String::from_utf8_lossy(text).into_owned(),
            uuid: uuid::Uuid::from_slice(&sb[104..120]).unwrap_or_default().to_string(),
            disk,
        };
        ext.check()?;
        Ok(ext)
    }

    fn check(&self) -> Result<()> {
        let power = |value: u64, most: u64| value.is_power_of_two() && value <= most;
        let sizes = power(self.block, 65_536)
            && power(self.inode_size, self.block)
            && self.inode_size >= 128
            && power(self.descriptor, 1024)
            && self.descriptor >= 32;
        let groups = self.blocks_per_group > 0
            && self.inodes_per_group > 0
            && self.first_block < self.blocks
            && self.first_block <= 1;
        if !sizes || !groups {
            return Err(corrupt("its superblock's sizes are impossible"));
        }
        match self.blocks.checked_mul(self.block) {
            Some(bytes) if bytes <= self.disk.size() => Ok(()),
            _ => Err(corrupt("it is larger than the disk that it is on; the image is cut off")),
        }
    }

    /// Bytes of all its blocks: more than its files can hold without sharing any.
    pub fn bytes(&self) -> u64 {
        self.blocks * self.block
    }

    /// Where a group's descriptor is.
    fn descriptor_at(&self, group: u64) -> u64 {
        let per_block = self.block / self.descriptor;
        let meta = group / per_block;
        if self.incompatible & incompatible::META_BG == 0 || meta < self.first_meta_bg {
            // In the block after the superblock's.
            return (1024 / self.block + 1) * self.block + group * self.descriptor;
        }
        // In the first group of those that it describes, after a superblock if one is there.
        let first = meta * per_block;
        let mut superblock = u64::from(self.has_superblock(first));
        if first == 0 && self.block == 1024 && self.first_block == 0 {
            superblock += 1;
        }
        let block = self.first_block + first * self.blocks_per_group + superblock;
        block * self.block + group % per_block * self.descriptor
    }

    /// Whether a group has a copy of the superblock: 0, 1 and powers of 3, 5 and 7.
    fn has_superblock(&self, group: u64) -> bool {
        let power_of = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        group <= 1 || [3, 5, 7].into_iter().any(power_of)
    }

    /// Reads an inode.
    pub fn inode(&self, number: u32) -> Result<Inode> {
        if number == 0 || number > self.inodes {
            return Err(corrupt(format!("inode {number} is none that it has")));
        }
        let group = u64::from((number - 1) / self.inodes_per_group);
        let index = u64::from((number - 1) % self.inodes_per_group);
        let mut descriptor = vec![0; self.descriptor as usize];
        self.disk.read_at(self.descriptor_at(group), &mut descriptor)?;
        let high = if self.descriptor >= 64 { u64::from(le32(&descriptor, 40)) << 32 } else { 0 };
        let table = u64::from(le32(&descriptor, 8)) | high;
        let mut raw = vec![0; self.inode_size as usize];
        let at = self.block_offset(table)?.checked_add(index * self.inode_size);
        self.disk.read_at(at.unwrap_or(u64::MAX), &mut raw)?;
        let inode = parse(number, &raw);
        if inode.flags & flag::ENCRYPTED != 0 {
            return Err(unacceptable("the file system holds encrypted files; give it decrypted"));
        }
        Ok(inode)
    }

    /// Where a block is, in bytes, of all blocks.
    pub(super) fn block_offset_from_0(&self, block: u64) -> Result<u64> {
        if block == 0 { Ok(0) } else { self.block_offset(block) }
    }

    /// Where a block that a file may have is, in bytes.
    pub(super) fn block_offset(&self, block: u64) -> Result<u64> {
        if block == 0 || block >= self.blocks {
            return Err(corrupt(format!("block {block} is none that it has")));
        }
        Ok(block * self.block)
    }

    pub(super) fn read_block(&self, block: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.block as usize];
        self.disk.read_at(self.block_offset(block)?, &mut bytes)?;
        Ok(bytes)
    }

    /// What an inode holds itself; `None` when blocks hold it.
    pub fn inline(&self, inode: &Inode) -> Result<Option<Vec<u8>>> {
        if inode.flags & flag::INLINE != 0 {
            let mut bytes = inode.map.to_vec();
            let rest = self.attributes(inode)?.into_iter();
            rest.filter(|(name, _)| name == b"system.data").for_each(|(_, v)| bytes.extend(v));
            bytes.truncate(usize::try_from(inode.size).unwrap_or(usize::MAX));
            return Ok(Some(bytes));
        }
        let short = inode.kind == FileKind::Symlink
            && inode.size < inode.map.len() as u64
            && inode.flags & flag::EXTENTS == 0;
        Ok(short.then(|| inode.map[..inode.size as usize].to_vec()))
    }

    /// Reads a file's content; a fault when that is more than `limit` bytes.
    pub fn read(&self, inode: &Inode, limit: u64) -> Result<Vec<u8>> {
        if inode.size > limit {
            return Err(corrupt(format!("inode {} is larger than it can be", inode.number)));
        }
        if let Some(bytes) = self.inline(inode)? {
            return Ok(bytes);
        }
        let mut bytes = vec![0; inode.size as usize];
        for extent in self.extents(inode)? {
            let start = extent.offset as usize;
            self.read_data(extent.place, &mut bytes[start..start + extent.length as usize])?;
        }
        Ok(bytes)
    }

    /// Reads data at its place on the disk.
    pub fn read_data(&self, place: u64, buffer: &mut [u8]) -> Result<()> {
        self.disk.read_at(place, buffer)
    }

    /// Target of a symbolic link.
    pub fn target(&self, inode: &Inode) -> Result<Vec<u8>> {
        self.read(inode, 4095)
    }
}

fn check_features(incompatible: u32) -> Result<()> {
    for (bit, why) in [
        (incompatible::COMPRESSION, "its files are compressed"),
        (incompatible::JOURNAL_DEVICE, "it is another file system's journal"),
        (incompatible::DIRDATA, "its directories hold data"),
        (!incompatible::KNOWN, "it has features that are not known here"),
    ] {
        if incompatible & bit != 0 {
            return Err(corrupt(why));
        }
    }
    Ok(())
}

fn parse(number: u32, raw: &[u8]) -> Inode {
    let mode = u32::from(le16(raw, 0));
    let extra = if raw.len() > 128 { usize::from(le16(raw, 128)) } else { 0 };
    let more = if extra >= 12 { le32(raw, 136) } else { 0 };
    let mut map = [0; 60];
    map.copy_from_slice(&raw[40..100]);
    let kind = match mode & 0o170_000 {
        0o100_000 => FileKind::Regular,
        0o040_000 => FileKind::Directory,
        0o120_000 => FileKind::Symlink,
        0o010_000 => FileKind::Fifo,
        // The number's two forms are in the map's first two words.
        0o020_000 if map[..8] == [0; 8] => FileKind::NoDevice,
        _ => FileKind::Other,
    };
    let wide =
        |low: usize, high: usize| u32::from(le16(raw, low)) | u32::from(le16(raw, high)) << 16;
    Inode {
        number,
        kind,
        mode: mode & 0o7777,
        uid: wide(2, 120),
        gid: wide(24, 122),
        size: u64::from(le32(raw, 4)) | u64::from(le32(raw, 108)) << 32,
        // Two bits more of seconds, above the 32 that are signed.
        mtime: (
            i64::from(le32(raw, 16).cast_signed()) + (i64::from(more & 3) << 32),
            (more >> 2).min(999_999_999),
        ),
        links: le16(raw, 26),
        flags: le32(raw, 32),
        map,
        attributes: u64::from(le32(raw, 104)) | u64::from(le16(raw, 118)) << 32,
        room: raw.get(128 + extra..).filter(|_| extra > 0).unwrap_or_default().to_vec(),
    }
}

pub(super) fn corrupt(why: impl std::fmt::Display) -> Fault {
    unacceptable(format!("the ext file system cannot be read: {why}"))
}
