//! The directories of a tree that is being made: found or made by name, following links as
//! the tree has them, and what is in the way of a new file.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::extractor::{Directory, Existing, Extractor, TreeKind};
use super::names::{MAX_DEPTH, MAX_PATH, above, open_below, refused, split};
use crate::fault::{Fault, OrFault, Result};
use crate::image::refusal::{printable, unacceptable};
use crate::image::tar_reader::Member;

/// Links that one name may lead through, as in the kernel.
const MAX_LINKS: usize = 40;

impl Extractor {
    /// Runs `make`; when something is in the way, removes that and runs it again.
    pub(super) fn place<T>(
        &mut self,
        member: &Member,
        parent: &Directory,
        name: &[u8],
        make: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let fd = parent.fd.as_fd();
        match make(fd) {
            Err(Errno::EXIST) => {
                self.remove(member, parent, name)?;
                make(fd)
            }
            other => other,
        }
        .or_fault(format_args!("making {}", member.name()))
    }

    /// Removes what an earlier member made: the later one wins, but never over
    /// a directory that has something in it.
    fn remove(&mut self, member: &Member, parent: &Directory, name: &[u8]) -> Result<()> {
        let path = parent.child(name);
        // A cached directory may be the one that goes, or lie behind a link that goes.
        self.parent = None;
        match rustix::fs::unlinkat(&*parent.fd, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                match rustix::fs::unlinkat(&*parent.fd, name, AtFlags::REMOVEDIR) {
                    Err(Errno::NOTEMPTY | Errno::EXIST) => {
                        return Err(refused(
                            member,
                            "it would replace a directory that has something in it",
                        ));
                    }
                    other => other,
                }
            }
            other => other,
        }
        .or_fault(format_args!("replacing {}", member.name()))?;
        self.late.remove(&path);
        self.named.forget(&path);
        self.report.marks.forget(&path);
        Ok(())
    }

    /// The directory that a member goes into, made if need be.
    pub(super) fn parent(&mut self, parts: &[&[u8]], member: &Member) -> Result<Directory> {
        let name = parts.join(&b'/');
        if let Some((cached, directory)) = &self.parent
            && *cached == name
        {
            return Ok(directory.clone());
        }
        let found = self.walk(parts, member, true)?;
        let directory = found.ok_or_else(|| Fault::internal("unpacking", "no parent directory"))?;
        self.parent = Some((name, directory.clone()));
        Ok(directory)
    }

    /// Walks to a directory. The common case, no links and all there, is one call.
    pub(super) fn walk(
        &mut self,
        parts: &[&[u8]],
        member: &Member,
        make: bool,
    ) -> Result<Option<Directory>> {
        let name = parts.join(&b'/');
        match self.open(&name) {
            Ok(fd) => Ok(Some(Directory { name, fd: Rc::new(fd) })),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {
                self.walk_slowly(parts, member, make)
            }
            Err(error) => Err(error).or_fault(format_args!("opening {}", printable(&name))),
        }
    }

    fn open(&self, name: &[u8]) -> rustix::io::Result<OwnedFd> {
        open_below(self.root.as_fd(), name, OFlags::PATH | OFlags::DIRECTORY)
    }

    fn walk_slowly(
        &mut self,
        parts: &[&[u8]],
        member: &Member,
        make: bool,
    ) -> Result<Option<Directory>> {
        let mut todo: VecDeque<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
        let mut here = Directory { name: Vec::new(), fd: Rc::clone(&self.root) };
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            if part == b".." {
                let Some(above) = above(&here.name) else {
                    return Err(refused(member, "its directory is a link that leads out"));
                };
                here = self.directory_at(above.to_vec())?;
                continue;
            }
            let child = here.child(&part);
            match self.existing(&here.fd, &part).or_fault("looking into the layer")? {
                Some(Existing::Directory) => here = self.directory_at(child)?,
                Some(Existing::Other) => {
                    links += 1;
                    let target = read_link(&here, &part, member)?;
                    if links > MAX_LINKS {
                        return Err(refused(member, "its directory lies behind too many links"));
                    }
                    if target.starts_with(b"/") {
                        here = self.directory_at(Vec::new())?;
                    }
                    for part in split(&target).rev() {
                        todo.push_front(part.to_vec());
                    }
                }
                _ if !make => return Ok(None),
                existing => {
                    self.make_parent(&here, &part, existing == Some(Existing::Whiteout))?;
                    here = self.directory_at(child)?;
                }
            }
        }
        Ok(Some(here))
    }

    fn directory_at(&self, name: Vec<u8>) -> Result<Directory> {
        if name.len() > MAX_PATH || split(&name).count() > MAX_DEPTH {
            return Err(unacceptable("a name gets too long or too deep through links"));
        }
        let fd = self.open(&name).or_fault(format_args!("opening {}", printable(&name)))?;
        Ok(Directory { name, fd: Rc::new(fd) })
    }

    /// Makes a directory that the archive does not list, root's with 0755.
    fn make_parent(&mut self, here: &Directory, name: &[u8], deleted: bool) -> Result<()> {
        self.count_entry()?;
        let path = here.child(name);
        let make = || {
            if deleted {
                rustix::fs::unlinkat(&*here.fd, name, AtFlags::empty())?;
            }
            rustix::fs::mkdirat(&*here.fd, name, Mode::RWXU)?;
            let mode = Mode::from_raw_mode(0o755);
            rustix::fs::chmodat(&*here.fd, name, mode, AtFlags::empty())
        };
        make().or_fault(format_args!("making {}", printable(&path)))?;
        if deleted {
            self.report.marks.hide(path)?;
        }
        Ok(())
    }

    /// What has that name.
    pub(super) fn existing(
        &self,
        directory: &OwnedFd,
        name: &[u8],
    ) -> rustix::io::Result<Option<Existing>> {
        let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            other => other?,
        };
        let layer = self.kind != TreeKind::FileSystem;
        Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Existing::Directory,
            FileType::CharacterDevice if stat.st_rdev == 0 && layer => Existing::Whiteout,
            _ => Existing::Other,
        }))
    }
}

fn read_link(directory: &Directory, name: &[u8], member: &Member) -> Result<Vec<u8>> {
    match rustix::fs::readlinkat(&*directory.fd, name, Vec::new()) {
        Ok(target) => Ok(target.into_bytes()),
        Err(Errno::INVAL) => {
            let path = printable(&directory.child(name));
            Err(refused(member, format!("{path} is no directory")))
        }
        Err(error) => Err(error).or_fault("reading a link"),
    }
}
