//! Makes the files of an archive, one member after the other.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};

use super::extractor::{BELOW, Directory, Existing, Extractor, TreeKind, UnpackReport};
use super::metadata::{own_and_mode, times};
use super::names::{MAX_PATH, open_below, parts, refused};
use crate::fault::{OrFault, Result};
use crate::image::refusal::{printable, unacceptable};
use crate::image::sparse::write_sparsely;
use crate::image::tar_reader::{Literal, Member, MemberKind, TarReader};
use crate::image::whiteout::{self, Meaning};

/// A file that stores this many bytes goes to the disk at once.
const LARGE: u64 = 1 << 20;

impl Extractor {
    pub(super) fn run(mut self, source: impl Read) -> Result<UnpackReport> {
        let mut reader = TarReader::new(source);
        while let Some(member) = reader.next()? {
            self.count(&member)?;
            self.member(&mut reader, &member)?;
        }
        reader.drain()?;
        self.finish_access_lists()?;
        self.finish_directories()?;
        Ok(self.report)
    }

    fn count(&mut self, member: &Member) -> Result<()> {
        self.count_entry()?;
        self.report.bytes = self.report.bytes.saturating_add(member.size);
        if self.report.bytes > self.limits.bytes {
            return Err(unacceptable(
                "it holds more bytes than images.max_unpacked_bytes allows; raise that or take a \
                 smaller image",
            ));
        }
        Ok(())
    }

    fn member<R: Read>(&mut self, reader: &mut TarReader<R>, member: &Member) -> Result<()> {
        let parts = parts(&member.path, member)?;
        let parts = match self.kind {
            TreeKind::RootBelow => match parts.split_first() {
                Some((first, rest)) if *first == BELOW => rest,
                _ => return Ok(()),
            },
            _ => &parts[..],
        };
        let Some((name, parents)) = parts.split_last() else { return self.root_member(member) };
        let means = |part: &&[u8]| whiteout::meaning(part) != Meaning::Plain;
        if self.kind != TreeKind::Layer || member.literal == Literal::All {
            self.report.own_kind |= member.literal != Literal::All && parts.iter().any(means);
            let parent = self.parent(parents, member)?;
            return self.create(reader, member, &parent, name);
        }
        if member.literal == Literal::Nothing {
            if parts.iter().any(|part| whiteout::meaning(part) == Meaning::Bookkeeping) {
                return Ok(());
            }
            if parents.iter().any(means) {
                return Err(refused(member, "it lies in a directory with the name of a deletion"));
            }
        }
        let parent = self.parent(parents, member)?;
        match whiteout::meaning(name) {
            Meaning::Plain => self.create(reader, member, &parent, name),
            Meaning::Opaque => self.report.marks.hide(parent.name),
            Meaning::Whiteout(target) => self.whiteout(member, &parent, target),
            Meaning::Bookkeeping => Ok(()),
            Meaning::Invalid => Err(refused(member, "it deletes nothing that has a name")),
        }
    }

    fn root_member(&mut self, member: &Member) -> Result<()> {
        if member.kind != MemberKind::Directory {
            return Err(refused(member, "the root must be a directory"));
        }
        self.directory_metadata(member, Vec::new(), Rc::clone(&self.root).as_fd())
    }

    fn create<R: Read>(
        &mut self,
        reader: &mut TarReader<R>,
        member: &Member,
        parent: &Directory,
        name: &[u8],
    ) -> Result<()> {
        match member.kind {
            MemberKind::Regular => self.regular(reader, member, parent, name),
            MemberKind::Directory => self.directory(member, parent, name),
            MemberKind::Hardlink => self.hardlink(member, parent, name),
            MemberKind::Symlink => self.symlink(member, parent, name),
            MemberKind::CharDevice { major: 0, minor: 0 } if self.kind != TreeKind::FileSystem => {
                self.no_device(member, parent, name)
            }
            MemberKind::CharDevice { major, minor } => {
                self.node(member, parent, name, FileType::CharacterDevice, (major, minor))
            }
            MemberKind::BlockDevice { major, minor } => {
                self.node(member, parent, name, FileType::BlockDevice, (major, minor))
            }
            MemberKind::Fifo => self.node(member, parent, name, FileType::Fifo, (0, 0)),
        }
    }

    /// A file that nobody else has open, without owner and mode yet.
    fn new_file(&mut self, member: &Member, parent: &Directory, name: &[u8]) -> Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        self.place(member, parent, name, |fd| {
            rustix::fs::openat(fd, name, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
        })
    }

    fn regular<R: Read>(
        &mut self,
        reader: &mut TarReader<R>,
        member: &Member,
        parent: &Directory,
        name: &[u8],
    ) -> Result<()> {
        let file = self.new_file(member, parent, name)?;
        let mut stored = 0;
        reader.copy(member, |offset, data| {
            stored += write_sparsely(&file, offset, data)
                .or_fault(format_args!("writing {}", member.name()))?;
            Ok(())
        })?;
        self.report.stored += stored;
        let finish = || {
            if member.size > 0 {
                rustix::fs::ftruncate(&file, member.size)?;
            }
            own_and_mode(&file, member, self.limits.ids)
        };
        finish().or_fault(format_args!("finishing {}", member.name()))?;
        self.set_xattrs(member, &parent.child(name), |name, value| {
            rustix::fs::fsetxattr(&file, name, value, XattrFlags::empty())
        })?;
        rustix::fs::futimens(&file, &times(member.mtime))
            .or_fault(format_args!("setting the time of {}", member.name()))?;
        if stored >= LARGE {
            // With too many waiting, it is written when all is.
            let _ = self.written.try_send(File::from(file));
        }
        Ok(())
    }

    fn directory(&mut self, member: &Member, parent: &Directory, name: &[u8]) -> Result<()> {
        let path = parent.child(name);
        match self.existing(&parent.fd, name).or_fault("looking into the layer")? {
            Some(Existing::Directory) => {}
            existing => {
                self.place(member, parent, name, |fd| rustix::fs::mkdirat(fd, name, Mode::RWXU))?;
                if existing == Some(Existing::Whiteout) {
                    // Deleted below and made anew here: nothing shines through.
                    self.report.marks.hide(path.clone())?;
                }
            }
        }
        let fd = open_below(parent.fd.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY)
            .or_fault(format_args!("opening {}", member.name()))?;
        self.directory_metadata(member, path, fd.as_fd())
    }

    fn hardlink(&mut self, member: &Member, parent: &Directory, name: &[u8]) -> Result<()> {
        let target = parts(&member.link, member)?;
        let target = match self.kind {
            TreeKind::RootBelow if target.first() == Some(&BELOW) => &target[1..],
            TreeKind::RootBelow => return Err(refused(member, "it links out of rootfs/")),
            _ => &target[..],
        };
        let missing = || {
            refused(member, format!("it links to {}, not in this layer", printable(&member.link)))
        };
        let Some((target_name, target_parents)) = target.split_last() else {
            return Err(refused(member, "it links to a directory"));
        };
        let target_parent = self.walk(target_parents, member, false)?.ok_or_else(missing)?;
        match self.existing(&target_parent.fd, target_name).or_fault("looking into the layer")? {
            None | Some(Existing::Whiteout) => return Err(missing()),
            Some(Existing::Directory) => return Err(refused(member, "it links to a directory")),
            Some(Existing::Other) => {}
        }
        if target_parent.name == parent.name && target_name == &name {
            return Err(refused(member, "it links to itself"));
        }
        self.place(member, parent, name, |fd| {
            rustix::fs::linkat(&*target_parent.fd, *target_name, fd, name, AtFlags::empty())
        })
    }

    fn symlink(&mut self, member: &Member, parent: &Directory, name: &[u8]) -> Result<()> {
        if member.link.is_empty() || member.link.len() > MAX_PATH || member.link.contains(&0) {
            return Err(refused(member, "its target is empty or longer than Linux takes"));
        }
        self.place(member, parent, name, |fd| {
            rustix::fs::symlinkat(member.link.as_slice(), fd, name)
        })?;
        self.special_metadata(member, parent, name)
    }

    fn node(
        &mut self,
        member: &Member,
        parent: &Directory,
        name: &[u8],
        kind: FileType,
        (major, minor): (u32, u32),
    ) -> Result<()> {
        if major >= 1 << 12 || minor >= 1 << 20 {
            return Err(refused(member, "its device number is beyond Linux's"));
        }
        let device = rustix::fs::makedev(major, minor);
        self.place(member, parent, name, |fd| {
            rustix::fs::mknodat(fd, name, kind, Mode::empty(), device)
        })?;
        // Nothing but this thread writes here, so the name is still the node.
        rustix::fs::chmodat(&*parent.fd, name, Mode::from_raw_mode(member.mode), AtFlags::empty())
            .or_fault(format_args!("setting the mode of {}", member.name()))?;
        self.special_metadata(member, parent, name)
    }

    /// A device 0/0, in the form in which it does nothing in an overlay.
    fn no_device(&mut self, member: &Member, parent: &Directory, name: &[u8]) -> Result<()> {
        let file = self.new_file(member, parent, name)?;
        own_and_mode(&file, member, self.limits.ids)
            .or_fault(format_args!("finishing {}", member.name()))?;
        let mark = whiteout::DEVICE_MARK.as_bytes();
        self.report.marks.add(&parent.child(name), mark, whiteout::DEVICE_VALUE)?;
        rustix::fs::futimens(&file, &times(member.mtime))
            .or_fault(format_args!("setting the time of {}", member.name()))
    }

    /// Deletes `target` of lower layers. What this layer itself has by that
    /// name stays, since deletions are about lower layers only.
    fn whiteout(&mut self, member: &Member, parent: &Directory, target: &[u8]) -> Result<()> {
        if member.kind == MemberKind::Directory {
            return Err(refused(member, "a deletion must be a file"));
        }
        match self.existing(&parent.fd, target).or_fault("looking into the layer")? {
            Some(Existing::Directory) => self.report.marks.hide(parent.child(target)),
            Some(Existing::Other | Existing::Whiteout) => Ok(()),
            None => {
                let kind = FileType::CharacterDevice;
                rustix::fs::mknodat(&*parent.fd, target, kind, Mode::empty(), 0)
                    .or_fault(format_args!("making the whiteout {}", member.name()))?;
                if !parent.name.is_empty() {
                    // In the root of a tree overlayfs looks for deletions in any case.
                    self.report.marks.delete_in(parent.name.clone())?;
                }
                Ok(())
            }
        }
    }
}
