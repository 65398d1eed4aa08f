//! Takes an image archive apart: its members are found in it, to be read where
//! they are, so that their bytes are not written a second time.
//!
//! The names of a docker-archive or an OCI layout are only keys here, never
//! paths. A member with holes is not there in one piece: the jail writes file
//! 0, 1, 2… and reports which member each one is.
//! Members may come in any order, and some writers store a layer that occurs
//! twice as a link; both is sorted out by [`Staged::find`].

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::recognise::{ArchiveKind, Members, plain};
use super::refusal::{printable, unacceptable};
use super::tar_reader::{Member, MemberKind, TarReader};
use super::unpack::UnpackLimits;
use crate::fault::{Fault, OrFault, Result};

/// Most members of an image archive that are kept.
const MAX_MEMBERS: usize = 100_000;

/// What an archive turned out to be, and where its members are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// Of what it is an archive. After [`ArchiveKind::Rootfs`] nothing more was read,
    /// and the members are of no use.
    pub archive: ArchiveKind,
    /// Regular files and links, by name.
    pub members: BTreeMap<String, Body>,
}

/// Where a member's content is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// In the file of this number.
    File {
        /// Name of the file.
        number: u32,
        /// Its bytes.
        size: u64,
    },
    /// In the archive itself.
    Part {
        /// Where it begins.
        offset: u64,
        /// Its bytes.
        size: u64,
    },
    /// In the member of this name.
    Link(String),
}

impl Staged {
    /// Where the member `name` is: never a link.
    pub fn find(&self, name: &str) -> Result<&Body> {
        let mut name = name.to_owned();
        for _ in 0..8 {
            match self.members.get(&name) {
                Some(Body::Link(target)) => name.clone_from(target),
                Some(body) => return Ok(body),
                None => break,
            }
        }
        Err(unacceptable(format!(
            "the archive lacks the member {}, which its manifest names",
            printable(name.as_bytes())
        )))
    }
}

/// Whether the beginning of an archive shows that it is a root file system.
/// False means nothing: it may be one yet, or no archive at all.
pub fn is_root_file_system(beginning: impl Read) -> bool {
    let mut reader = TarReader::new(beginning);
    let mut names = Members::default();
    while let Ok(Some(member)) = reader.next() {
        if names.add(&member.path) {
            return true;
        }
    }
    false
}

/// Reads a plain archive that will be kept, and finds its members in it. What
/// is not there in one piece is written into the directory `root`.
pub fn stage(root: &OwnedFd, archive: impl Read + Seek, limits: UnpackLimits) -> Result<Staged> {
    let mut stage = Stage {
        root,
        limits,
        bytes: 0,
        names: Members::default(),
        staged: Staged { archive: ArchiveKind::Other, members: BTreeMap::new() },
    };
    stage.members(TarReader::seeking(archive))?;
    Ok(stage.staged)
}

struct Stage<'a> {
    root: &'a OwnedFd,
    limits: UnpackLimits,
    bytes: u64,
    names: Members,
    staged: Staged,
}

impl Stage<'_> {
    fn members<R: Read + Seek>(&mut self, mut reader: TarReader<R>) -> Result<()> {
        while let Some(member) = reader.next()? {
            let certain = self.names.add(&member.path);
            self.staged.archive = self.names.archive();
            if certain {
                return Ok(());
            }
            self.member(&mut reader, &member)?;
        }
        reader.drain()
    }

    fn member<R: Read + Seek>(&mut self, reader: &mut TarReader<R>, member: &Member) -> Result<()> {
        let Ok(name) = std::str::from_utf8(plain(&member.path)) else { return Ok(()) };
        if name.starts_with("rootfs/") {
            // No image archive has that; it is a tree, which may have many files.
            return Ok(());
        }
        let body = match member.kind {
            MemberKind::Regular => self.file(reader, member)?,
            MemberKind::Symlink => match resolve_link(name, &member.link) {
                Some(target) => Body::Link(target),
                None => return Err(leads_out(member)),
            },
            MemberKind::Hardlink => match resolve_link("", &member.link) {
                Some(target) => Body::Link(target),
                None => return Err(leads_out(member)),
            },
            _ => return Ok(()),
        };
        if self.staged.members.len() >= MAX_MEMBERS {
            return Err(unacceptable("the image archive has more than 100000 members"));
        }
        if self.staged.members.insert(name.to_owned(), body).is_some() {
            return Err(unacceptable(format!("the archive has {} twice", member.name())));
        }
        Ok(())
    }

    fn file<R: Read + Seek>(&mut self, reader: &mut TarReader<R>, member: &Member) -> Result<Body> {
        self.bytes = self.bytes.saturating_add(member.size);
        if self.bytes > self.limits.bytes {
            return Err(unacceptable(
                "the image archive holds more bytes than images.max_unpacked_bytes allows",
            ));
        }
        if member.is_whole() {
            return Ok(Body::Part { offset: reader.position()?, size: member.size });
        }
        // MAX_MEMBERS bounds the number.
        let number = self.staged.members.len() as u32;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.root, number.to_string(), flags, Mode::RUSR)
            .or_fault("making a staged file")?;
        reader.copy(member, |offset, mut data| {
            let mut offset = offset;
            while !data.is_empty() {
                let n = rustix::io::pwrite(&file, data, offset).or_fault("staging a member")?;
                (data, offset) = (&data[n..], offset + n as u64);
            }
            Ok(())
        })?;
        rustix::fs::ftruncate(&file, member.size).or_fault("staging a member")?;
        Ok(Body::File { number, size: member.size })
    }
}

/// The member that a link in the directory of `name` means; `None` when it climbs
/// out. A leading slash is the archive's top.
fn resolve_link(name: &str, link: &[u8]) -> Option<String> {
    let link = std::str::from_utf8(link).ok()?;
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    if link.starts_with('/') {
        parts.clear();
    }
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn leads_out(member: &Member) -> Fault {
    unacceptable(format!("{} links to something outside the image archive", member.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::FaultKind;
    use std::io::Cursor;

    const LIMITS: UnpackLimits = UnpackLimits { entries: 1000, bytes: 1 << 20, ids: 65_536 };

    /// A file's content, or a link's target.
    type TestMember<'a> = (&'a str, Result<&'a [u8], &'a str>);

    fn archive(members: &[TestMember<'_>]) -> Vec<u8> {
        let mut builder = ::tar::Builder::new(Vec::new());
        for (name, body) in members {
            let mut header = ::tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            match body {
                Ok(bytes) => {
                    header.set_size(bytes.len() as u64);
                    builder.append_data(&mut header, name, *bytes).unwrap();
                }
                Err(link) => {
                    header.set_entry_type(::tar::EntryType::Symlink);
                    header.set_size(0);
                    builder.append_link(&mut header, name, link).unwrap();
                }
            }
        }
        builder.into_inner().unwrap()
    }

    fn run(bytes: &[u8]) -> (tempfile::TempDir, Result<Staged>) {
        let directory = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(std::fs::File::open(directory.path()).unwrap());
        let staged = stage(&fd, Cursor::new(bytes), LIMITS);
        (directory, staged)
    }

    #[test]
    fn members_are_found_where_they_are_and_links_are_followed() {
        let bytes = archive(&[
            ("b/layer.tar", Err("../a/layer.tar")),
            ("c/layer.tar", Err("/a/layer.tar")),
            ("rootfs/x", Err("../../anywhere")),
            ("a/layer.tar", Ok(b"layer")),
            ("manifest.json", Ok(b"[]")),
        ]);
        let (directory, staged) = run(&bytes);
        let staged = staged.unwrap();
        assert_eq!(staged.archive, ArchiveKind::Docker);
        let Body::Part { offset, size: 5 } = staged.find("b/layer.tar").unwrap() else {
            panic!("no part of 5 bytes")
        };
        let offset = usize::try_from(*offset).unwrap();
        assert_eq!(&bytes[offset..offset + 5], b"layer");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert_eq!(staged.find("c/layer.tar").unwrap(), staged.find("a/layer.tar").unwrap());
        assert!(staged.find("c").is_err() && staged.find("rootfs/x").is_err());
        // Stepping over a member does not step over its missing end.
        let (_directory, staged) = run(&bytes[..offset + 3]);
        assert_eq!(staged.unwrap_err().kind, FaultKind::ImageCorrupt);
    }

    #[test]
    fn a_member_with_holes_becomes_a_file() {
        let sparse = super::super::testing::Archive::new()
            .pax(&[
                ("GNU.sparse.major", b"0"),
                ("GNU.sparse.minor", b"1"),
                ("GNU.sparse.size", b"8192"),
                ("GNU.sparse.map", b"4096,3"),
            ])
            .file("a/layer.tar", b"abc")
            .bytes();
        let (directory, staged) = run(&sparse);
        let Body::File { number, size: 8192 } = *staged.unwrap().find("a/layer.tar").unwrap()
        else {
            panic!("no file of 8192 bytes")
        };
        let content = std::fs::read(directory.path().join(number.to_string())).unwrap();
        assert_eq!((content.len(), &content[4096..4099]), (8192, &b"abc"[..]));
    }

    #[test]
    fn a_beginning_tells_a_root_file_system_and_nothing_else() {
        let root = archive(&[("readme", Ok(b"1")), ("etc/x", Ok(&[1; 5000]))]);
        assert!(is_root_file_system(&root[..2000]));
        assert!(!is_root_file_system(&root[..1000]));
        assert!(!is_root_file_system(&archive(&[("manifest.json", Ok(b""))])[..]));
        assert!(!is_root_file_system(&[7; 2000][..]));
    }

    #[test]
    fn a_root_file_system_stops_at_its_first_directory() {
        let (directory, staged) = run(&archive(&[("etc/x", Ok(b"1")), ("manifest.json", Ok(b""))]));
        assert_eq!(staged.unwrap().archive, ArchiveKind::Rootfs);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn links_out_loops_twins_and_bombs_are_refused() {
        let links: [&[TestMember<'_>]; 3] = [
            &[("a/x", Err("../../etc/passwd"))],
            &[("a/x", Err("/../etc/passwd"))],
            &[("a", Ok(b"1")), ("./a", Ok(b"2"))],
        ];
        for members in links {
            let (_directory, staged) = run(&archive(members));
            assert_eq!(staged.unwrap_err().kind, FaultKind::ImageUnacceptable);
        }
        let (_directory, staged) = run(&archive(&[("a", Err("b")), ("b", Err("a"))]));
        assert!(staged.unwrap().find("a").is_err());
        let (_directory, staged) = run(&archive(&[("a", Ok(&vec![1; 2 << 20]))]));
        assert!(staged.unwrap_err().detail.contains("max_unpacked_bytes"));
    }
}
