//! Takes an image archive apart: its members become numbered files, or parts
//! of the archive where that is plain.
//!
//! The names of a docker-archive or an OCI layout are only keys here, never
//! paths: the jail writes file 0, 1, 2… and reports which member each one is.
//! A member of a plain archive that is plain itself is read where it is, once
//! it is unpacked: its bytes are not written a second time.
//! Members may come in any order, and some writers store a layer that occurs
//! twice as a link; both is sorted out by [`Staged::find`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, ErrorKind, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::layer::Limits;
use super::recognise::{self, Archive, Content, Members, plain};
use super::tar_reader::{Kind, Member, TarReader, printable};
use crate::fault::{Fault, FaultKind, OrFault, Result};

/// Most members of an image archive that are kept.
const MAX_MEMBERS: usize = 100_000;

/// What an archive turned out to be, and where its members are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    /// What the plain bytes are.
    pub content: Content,
    /// When that is a tar archive, of what. After [`Archive::Rootfs`] nothing
    /// more was read, and the members are of no use.
    pub archive: Archive,
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

/// Reads plain bytes, recognises them, and writes the members of an image
/// archive into the directory `root`.
pub fn stage(root: &OwnedFd, mut source: impl Read, limits: Limits) -> Result<Staged> {
    let head = head(&mut source)?;
    let mut stage = Stage::new(root, limits, &head);
    if stage.staged.content == Content::Tar {
        stage.members(TarReader::new(Cursor::new(head).chain(source)))?;
    }
    Ok(stage.staged)
}

/// [`stage`] of a file that will be kept: what it has plain is not copied.
pub fn stage_in_place(root: &OwnedFd, mut source: File, limits: Limits) -> Result<Staged> {
    let doing = "reading the content";
    let head = head(&mut source)?;
    source.rewind().or_fault(doing)?;
    let mut stage = Stage::new(root, limits, &head);
    if stage.staged.content == Content::Tar {
        // They share the position.
        stage.in_place = Some(source.try_clone().or_fault(doing)?);
        stage.members(TarReader::seeking(source))?;
    }
    Ok(stage.staged)
}

fn head(source: &mut impl Read) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    source.take(recognise::HEAD as u64).read_to_end(&mut head).or_fault("reading the content")?;
    Ok(head)
}

struct Stage<'a> {
    root: &'a OwnedFd,
    limits: Limits,
    /// The archive, when its members may be read where they are.
    in_place: Option<File>,
    bytes: u64,
    names: Members,
    staged: Staged,
}

impl Stage<'_> {
    fn new<'a>(root: &'a OwnedFd, limits: Limits, head: &[u8]) -> Stage<'a> {
        let content = recognise::content(head);
        Stage {
            root,
            limits,
            in_place: None,
            bytes: 0,
            names: Members::default(),
            staged: Staged { content, archive: Archive::Other, members: BTreeMap::new() },
        }
    }

    fn members<R: Read>(&mut self, mut reader: TarReader<R>) -> Result<()> {
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

    fn member<R: Read>(&mut self, reader: &mut TarReader<R>, member: &Member) -> Result<()> {
        let Ok(name) = std::str::from_utf8(plain(&member.path)) else { return Ok(()) };
        let body = match member.kind {
            Kind::Regular => self.file(reader, member)?,
            Kind::Symlink => match resolve_link(name, &member.link) {
                Some(target) => Body::Link(target),
                None => return Err(leads_out(member)),
            },
            Kind::Hardlink => match resolve_link("", &member.link) {
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

    /// A member that can be read where it is.
    fn part(&mut self, member: &Member) -> Result<Option<Body>> {
        let doing = "reading the content";
        let Some(archive) = &mut self.in_place else { return Ok(None) };
        if !member.is_whole() {
            return Ok(None);
        }
        let offset = archive.stream_position().or_fault(doing)?;
        let mut head = vec![0; recognise::HEAD.min(usize::try_from(member.size).unwrap_or(0))];
        match archive.read_exact_at(&mut head, offset) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            other => other.or_fault(doing)?,
        }
        let compressed = matches!(recognise::content(&head), Content::Compressed(_));
        Ok((!compressed).then_some(Body::Part { offset, size: member.size }))
    }

    fn file<R: Read>(&mut self, reader: &mut TarReader<R>, member: &Member) -> Result<Body> {
        self.bytes = self.bytes.saturating_add(member.size);
        if self.bytes > self.limits.bytes {
            return Err(unacceptable(
                "the image archive holds more bytes than images.max_unpacked_bytes allows",
            ));
        }
        if let Some(part) = self.part(member)? {
            return Ok(part);
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

/// The member that a link in the directory of `name` means; `None` when it is
/// absolute or climbs out.
fn resolve_link(name: &str, link: &[u8]) -> Option<String> {
    let link = std::str::from_utf8(link).ok()?;
    if link.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
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

fn unacceptable(why: impl Into<String>) -> Fault {
    Fault::new(FaultKind::ImageUnacceptable, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { entries: 1000, bytes: 1 << 20 };

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
        let staged = stage(&fd, bytes, LIMITS);
        (directory, staged)
    }

    #[test]
    fn members_become_numbered_files_and_links_are_followed() {
        let bytes = archive(&[
            ("b/layer.tar", Err("../a/layer.tar")),
            ("a/layer.tar", Ok(b"layer")),
            ("manifest.json", Ok(b"[]")),
        ]);
        let (directory, staged) = run(&bytes);
        let staged = staged.unwrap();
        assert_eq!((staged.content, staged.archive), (Content::Tar, Archive::Docker));
        let Body::File { number, size: 5 } = staged.find("b/layer.tar").unwrap() else {
            panic!("no file of 5 bytes")
        };
        let file = directory.path().join(number.to_string());
        assert_eq!(std::fs::read(file).unwrap(), b"layer");
        assert!(staged.find("c").is_err());
    }

    #[test]
    fn a_root_file_system_stops_at_its_first_directory() {
        let (directory, staged) = run(&archive(&[("etc/x", Ok(b"1")), ("manifest.json", Ok(b""))]));
        assert_eq!(staged.unwrap().archive, Archive::Rootfs);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn links_out_loops_twins_and_bombs_are_refused() {
        let links: [&[TestMember<'_>]; 3] = [
            &[("a/x", Err("../../etc/passwd"))],
            &[("a/x", Err("/etc/passwd"))],
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

    #[test]
    fn other_content_is_told_not_read() {
        let (_directory, staged) = run(b"QFI\xfb\0\0\0\x03");
        assert_eq!(staged.unwrap().content, Content::Disk(recognise::Disk::Qcow2));
    }

    #[test]
    fn in_place_only_what_is_compressed_is_written() {
        let packed = [&b"\x1f\x8b"[..], &[7; 3000]].concat();
        let bytes = archive(&[
            ("a/layer.tar", Ok(&[5; 100_000])),
            ("b/layer.tar.gz", Ok(&packed)),
            ("manifest.json", Ok(b"[]")),
        ]);
        let directory = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(File::open(directory.path()).unwrap());
        let file = |length: usize| {
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, &bytes[..length]).unwrap();
            file.rewind().unwrap();
            file
        };
        let kept = file(bytes.len());
        let staged = stage_in_place(&fd, kept.try_clone().unwrap(), LIMITS).unwrap();
        let Body::Part { offset, size: 100_000 } = staged.find("a/layer.tar").unwrap() else {
            panic!("it was written")
        };
        let mut content = vec![0; 100_000];
        kept.read_exact_at(&mut content, *offset).unwrap();
        assert!(content.iter().all(|byte| *byte == 5));
        assert!(matches!(staged.find("b/layer.tar.gz").unwrap(), Body::File { size: 3002, .. }));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        // Stepping over a member does not step over its missing end.
        let fault = stage_in_place(&fd, file(50_000), LIMITS).unwrap_err();
        assert_eq!(fault.kind, FaultKind::ImageCorrupt);
    }
}
