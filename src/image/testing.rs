//! Archives for tests, hostile ones too: names go into headers unchecked.

use std::os::fd::OwnedFd;

use ::tar::{EntryType, Header};

use super::unpack::{TreeKind, UnpackLimits, UnpackReport, extract};
use crate::fault::Result;

/// An archive under construction.
#[derive(Clone, Default)]
pub struct Archive(Vec<u8>);

/// A member's header with every field open.
pub fn header(kind: EntryType, name: &str, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header
}

impl Archive {
    pub fn new() -> Archive {
        Archive::default()
    }

    /// A member with this header and data.
    pub fn raw(mut self, mut header: Header, data: &[u8]) -> Archive {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, data: &[u8]) -> Archive {
        self.raw(header(EntryType::Regular, name, data.len() as u64), data)
    }

    pub fn dir(self, name: &str) -> Archive {
        self.raw(header(EntryType::Directory, name, 0), b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Archive {
        self.link(EntryType::Symlink, name, target)
    }

    pub fn hardlink(self, name: &str, target: &str) -> Archive {
        self.link(EntryType::Link, name, target)
    }

    fn link(self, kind: EntryType, name: &str, target: &str) -> Archive {
        let mut header = header(kind, name, 0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self.raw(header, b"")
    }

    pub fn node(self, kind: EntryType, name: &str, major: u32, minor: u32) -> Archive {
        let mut header = header(kind, name, 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.raw(header, b"")
    }

    /// A GNU header for a long name of the next member.
    pub fn long_name(self, name: &str) -> Archive {
        let header = header(EntryType::GNULongName, "././@LongLink", name.len() as u64 + 1);
        self.raw(header, [name.as_bytes(), b"\0"].concat().as_slice())
    }

    /// A pax header for the next member.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Archive {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest + 1..).find(|n| n.to_string().len() + rest == *n).unwrap();
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(header(EntryType::XHeader, "pax", data.len() as u64), &data)
    }

    /// The bytes, with the end's mark.
    pub fn bytes(self) -> Vec<u8> {
        [self.0, vec![0; 1024]].concat()
    }

    /// Unpacks it into `root`, without the jail.
    pub fn extract(self, root: &std::path::Path) -> Result<UnpackReport> {
        extract_bytes(&self.bytes(), root, LIMITS)
    }

    /// The same as what it may be besides a layer.
    pub fn extract_as(self, kind: TreeKind, root: &std::path::Path) -> Result<UnpackReport> {
        let root = OwnedFd::from(std::fs::File::open(root).unwrap());
        extract(root, &self.bytes()[..], kind, LIMITS)
    }
}

/// UnpackLimits that only a bomb meets.
pub const LIMITS: UnpackLimits = UnpackLimits { entries: 2000, bytes: 64 << 20, ids: 65_536 };

pub fn extract_bytes(
    bytes: &[u8],
    root: &std::path::Path,
    limits: UnpackLimits,
) -> Result<UnpackReport> {
    let root = OwnedFd::from(std::fs::File::open(root).unwrap());
    extract(root, bytes, TreeKind::Layer, limits)
}
