//! What an unpacked layer needs besides its files: attributes of overlayfs, which
//! take a privilege that the jail has not. Whoever called the jail sets them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{FileType, OFlags, XattrFlags, fstat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::names::open_below;
use crate::fault::{OrFault, Result};
use crate::image::refusal::{printable, unacceptable};
use crate::image::whiteout;

/// Most bytes of names and values of [`Marks::attributes`].
const MAX_ATTRIBUTES: usize = 16 << 20;
/// Most bytes of all of [`Marks`]: written as hexadecimal digits they are twice as many, and
/// fit into what the jail may say.
const MAX_BYTES: usize = 31 << 20;

/// Files and directories, relative to the root (which is the empty name).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Directories that hide what is below them in lower layers.
    #[serde(with = "hex_names")]
    pub opaque: BTreeSet<Vec<u8>>,
    /// Directories in which something of lower layers is deleted.
    #[serde(with = "hex_names")]
    pub deleting: BTreeSet<Vec<u8>>,
    /// Regular files and directories with attributes `trusted.overlay.*` that are data.
    #[serde(with = "hex_attributes")]
    pub attributes: BTreeMap<Vec<u8>, Attributes>,
    /// Bytes of the attributes, and of all; what was forgotten counts.
    #[serde(skip)]
    pub(super) weights: (usize, usize),
}

/// Names and values.
pub type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

impl Marks {
    /// Notes an attribute of a file.
    pub(super) fn add(&mut self, path: &[u8], name: &[u8], value: &[u8]) -> Result<()> {
        let weight = path.len() + name.len() + value.len() + 64;
        self.weights.0 += weight;
        if self.weights.0 > MAX_ATTRIBUTES {
            return Err(unacceptable(
                "it has more than 16 MiB of attributes trusted.overlay.*; leave out the layers \
                 that a container runtime keeps in it",
            ));
        }
        self.count(weight)?;
        let attributes = self.attributes.entry(path.to_vec()).or_default();
        attributes.push((name.to_vec(), value.to_vec()));
        Ok(())
    }

    /// Notes a directory that hides what is below it.
    pub(super) fn hide(&mut self, path: Vec<u8>) -> Result<()> {
        let weight = path.len() + 2;
        if self.opaque.insert(path) { self.count(weight) } else { Ok(()) }
    }

    /// Notes a directory in which something is deleted.
    pub(super) fn delete_in(&mut self, path: Vec<u8>) -> Result<()> {
        let weight = path.len() + 2;
        if self.deleting.insert(path) { self.count(weight) } else { Ok(()) }
    }

    fn count(&mut self, weight: usize) -> Result<()> {
        self.weights.1 += weight;
        if self.weights.1 > MAX_BYTES {
            return Err(unacceptable(
                "the names of its directories that delete something of lower layers have more \
                 than 31 MiB together; give the image in one layer",
            ));
        }
        Ok(())
    }

    /// Forgets what a later member of the archive took the place of.
    pub(super) fn forget(&mut self, path: &[u8]) {
        self.opaque.remove(path);
        self.deleting.remove(path);
        self.attributes.remove(path);
    }

    /// Sets them below `root`.
    pub fn set(&self, root: BorrowedFd<'_>) -> Result<()> {
        for path in &self.opaque {
            set(root, path, whiteout::OPAQUE_XATTR.as_bytes(), whiteout::OPAQUE_VALUE)?;
        }
        for path in &self.deleting {
            set(root, path, whiteout::ORIGIN_XATTR.as_bytes(), b"")?;
        }
        for (path, attributes) in &self.attributes {
            for (name, value) in attributes {
                set(root, path, &whiteout::as_data(name), value)?;
            }
        }
        Ok(())
    }
}

fn set(root: BorrowedFd<'_>, path: &[u8], name: &[u8], value: &[u8]) -> Result<()> {
    let set = || {
        // Looked at and never opened: what made it can make devices, and to open one is to use it.
        let file = open_below(root, path, OFlags::PATH)?;
        match FileType::from_raw_mode(fstat(&file)?.st_mode) {
            FileType::RegularFile | FileType::Directory => {}
            _ => return Err(Errno::INVAL),
        }
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::setxattr(link, name, value, XattrFlags::empty())
    };
    set().or_fault(format_args!("marking {}", printable(path)))
}

/// Names of any bytes, in JSON.
mod hex_names {
    use std::collections::BTreeSet;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(names: &BTreeSet<Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(names.iter().map(hex::encode))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<Vec<u8>>, D::Error> {
        let names = Vec::<String>::deserialize(from)?;
        names.iter().map(|name| hex::decode(name).map_err(D::Error::custom)).collect()
    }
}

/// The same of names with attributes.
mod hex_attributes {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::image::unpack::marks::Attributes;

    type Files = BTreeMap<Vec<u8>, Attributes>;

    pub fn serialize<S: Serializer>(files: &Files, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(files.iter().map(|(path, attributes)| {
            let hex = |(name, value)| (hex::encode(name), hex::encode(value));
            (hex::encode(path), attributes.iter().map(|(n, v)| hex((n, v))).collect::<Vec<_>>())
        }))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Files, D::Error> {
        let bytes = |text: String| hex::decode(text).map_err(D::Error::custom);
        let files = BTreeMap::<String, Vec<(String, String)>>::deserialize(from)?;
        let file = |(path, attributes): (String, Vec<(String, String)>)| {
            let attributes = attributes.into_iter().map(|(n, v)| Ok((bytes(n)?, bytes(v)?)));
            Ok((bytes(path)?, attributes.collect::<Result<_, D::Error>>()?))
        };
        files.into_iter().map(file).collect()
    }
}
