//! Unpacks one layer's archive into a directory.
//!
//! No name in the archive can reach outside that directory: every file is
//! made relative to a directory that was opened below the root without
//! following a link, names with `..` or a leading `/` are refused, and a
//! symbolic link in the middle of a name is followed by this code, one step at
//! a time, and refused where it climbs out. That holds with the jail around it
//! ([`super::jail`]) and without.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::mpsc::{SyncSender, sync_channel};

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::refusal::unacceptable;
use super::sparse::write_sparsely;
use super::tar_reader::{Member, MemberKind, TarReader, printable};
use super::whiteout::{self, Meaning};
use super::xattr;
use crate::fault::{Fault, OrFault, Result};
use crate::sys::fs::begin_writeback;

/// Longest name of a member, and longest target of a link (`PATH_MAX` less its end).
const MAX_PATH: usize = 4095;
/// Longest part of a name.
const MAX_NAME: usize = 255;
/// Deepest directory. Removal of a tree holds a descriptor for each level.
const MAX_DEPTH: usize = 256;
/// Links that one name may lead through, as in the kernel.
const MAX_LINKS: usize = 40;
/// A file that stores this many bytes goes to the disk at once.
const LARGE: u64 = 1 << 20;
/// Files that wait for that.
const WRITTEN: usize = 16;

/// Access list for new files of a directory: set last, or berth's own
/// creations below it would inherit it.
const DEFAULT_ACL: &str = "system.posix_acl_default";

/// What a layer may need at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackLimits {
    /// Files and directories.
    pub entries: u64,
    /// Bytes of all files, holes counted.
    pub bytes: u64,
}

/// What a layer turned out to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpackReport {
    /// Members of the archive.
    pub entries: u64,
    /// Bytes of all files, holes counted.
    pub bytes: u64,
    /// Bytes that were written, holes left out.
    pub stored: u64,
    /// Directories that hide what is below them in lower layers, relative to
    /// the root (which is the empty name). They are marked by whoever called
    /// the jail, since the mark needs a privilege that the jail has not.
    #[serde(with = "hex_names")]
    pub opaque: BTreeSet<Vec<u8>>,
}

/// Unpacks the plain archive `source` into the directory `root`.
///
/// Needs the capabilities `CHOWN`, `DAC_OVERRIDE`, `FOWNER`, `FSETID`,
/// `MKNOD` and `SETFCAP`. What a failure leaves is for the caller to remove.
pub fn extract(
    root: OwnedFd,
    source: impl Read + Send,
    limits: UnpackLimits,
) -> Result<UnpackReport> {
    // A thread of its own, because extended attributes of files that cannot be
    // opened are set relative to the working directory.
    std::thread::scope(|scope| {
        let (written, files) = sync_channel(WRITTEN);
        // The disk works while the rest is unpacked, and the sync at the end is short.
        scope.spawn(|| files.into_iter().for_each(|file: File| begin_writeback(&file)));
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS).or_fault("taking a working directory of one's own")?;
            Extractor::new(root, limits, written).run(source)
        });
        thread.join().unwrap_or_else(|_| Err(Fault::internal("unpacking a layer", "a defect")))
    })
}

/// Marks the directories of [`UnpackReport::opaque`] below `root`.
pub fn mark_opaque(root: BorrowedFd<'_>, names: &BTreeSet<Vec<u8>>) -> Result<()> {
    for name in names {
        let mark = || {
            let directory = open_below(root, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
            rustix::fs::fsetxattr(
                &directory,
                whiteout::OPAQUE_XATTR,
                whiteout::OPAQUE_VALUE,
                XattrFlags::empty(),
            )
        };
        mark().or_fault(format_args!("marking {} as opaque", printable(name)))?;
    }
    Ok(())
}

/// Opens a name below a directory, following no link on the way.
fn open_below(root: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let name = if name.is_empty() { b"." } else { name };
    rustix::fs::openat2(
        root,
        name,
        flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

/// A directory in the layer: its name without any link in it, and itself.
#[derive(Clone)]
struct Directory {
    name: Vec<u8>,
    fd: Rc<OwnedFd>,
}

impl Directory {
    fn child(&self, name: &[u8]) -> Vec<u8> {
        if self.name.is_empty() { name.to_vec() } else { [&self.name, &b"/"[..], name].concat() }
    }
}

/// What is set on directories after all that is in them was made.
#[derive(Default)]
struct Late {
    mtime: Option<(i64, u32)>,
    default_acl: Option<Vec<u8>>,
}

struct Extractor {
    root: Rc<OwnedFd>,
    limits: UnpackLimits,
    report: UnpackReport,
    late: BTreeMap<Vec<u8>, Late>,
    /// The last parent, by the name that the archive used for it.
    parent: Option<(Vec<u8>, Directory)>,
    /// Where large files go when they are whole.
    written: SyncSender<File>,
}

impl Extractor {
    fn new(root: OwnedFd, limits: UnpackLimits, written: SyncSender<File>) -> Extractor {
        Extractor {
            root: Rc::new(root),
            limits,
            report: UnpackReport::default(),
            late: BTreeMap::new(),
            parent: None,
            written,
        }
    }

    fn run(mut self, source: impl Read) -> Result<UnpackReport> {
        let mut reader = TarReader::new(source);
        while let Some(member) = reader.next()? {
            self.count(&member)?;
            self.member(&mut reader, &member)?;
        }
        reader.drain()?;
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

    fn count_entry(&mut self) -> Result<()> {
        self.report.entries += 1;
        if self.report.entries > self.limits.entries {
            return Err(unacceptable(
                "it holds more files than images.max_entries allows; raise that or take a smaller \
                 image",
            ));
        }
        Ok(())
    }

    fn member<R: Read>(&mut self, reader: &mut TarReader<R>, member: &Member) -> Result<()> {
        let parts = parts(&member.path, member)?;
        if member.uid >= xattr::IDS || member.gid >= xattr::IDS {
            return Err(refused(member, "its owner is no id below 65536"));
        }
        let Some((name, parents)) = parts.split_last() else { return self.root_member(member) };
        if parts.iter().any(|part| whiteout::meaning(part) == Meaning::Bookkeeping) {
            return Ok(());
        }
        if parents.iter().any(|part| whiteout::meaning(part) != Meaning::Plain) {
            return Err(refused(member, "it lies in a directory with the name of a deletion"));
        }
        let parent = self.parent(parents, member)?;
        match whiteout::meaning(name) {
            Meaning::Plain => self.create(reader, member, &parent, name),
            Meaning::Opaque => {
                self.report.opaque.insert(parent.name);
                Ok(())
            }
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
            MemberKind::CharDevice { major: 0, minor: 0 } => {
                Err(refused(member, "a character device 0/0 is overlayfs's mark of a deletion"))
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

    fn regular<R: Read>(
        &mut self,
        reader: &mut TarReader<R>,
        member: &Member,
        parent: &Directory,
        name: &[u8],
    ) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = self.place(member, parent, name, |fd| {
            rustix::fs::openat(fd, name, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
        })?;
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
            own_and_mode(&file, member)
        };
        finish().or_fault(format_args!("finishing {}", member.name()))?;
        set_xattrs(member, |name, value| {
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
        match kind_of(&parent.fd, name).or_fault("looking into the layer")? {
            Some(Existing::Directory) => {}
            existing => {
                self.place(member, parent, name, |fd| rustix::fs::mkdirat(fd, name, Mode::RWXU))?;
                if existing == Some(Existing::Whiteout) {
                    // Deleted below and made anew here: nothing shines through.
                    self.report.opaque.insert(path.clone());
                }
            }
        }
        let fd = open_below(parent.fd.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY)
            .or_fault(format_args!("opening {}", member.name()))?;
        self.directory_metadata(member, path, fd.as_fd())
    }

    fn directory_metadata(
        &mut self,
        member: &Member,
        path: Vec<u8>,
        fd: BorrowedFd<'_>,
    ) -> Result<()> {
        own_and_mode(fd, member).or_fault(format_args!("setting owner of {}", member.name()))?;
        let mut late = Late { mtime: Some(member.mtime), default_acl: None };
        set_xattrs(member, |name, value| {
            if name == DEFAULT_ACL.as_bytes() {
                late.default_acl = Some(value.to_vec());
                return Ok(());
            }
            rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
        })?;
        self.late.insert(path, late);
        Ok(())
    }

    fn hardlink(&mut self, member: &Member, parent: &Directory, name: &[u8]) -> Result<()> {
        let target = parts(&member.link, member)?;
        let missing = || {
            refused(member, format!("it links to {}, not in this layer", printable(&member.link)))
        };
        let Some((target_name, target_parents)) = target.split_last() else {
            return Err(refused(member, "it links to a directory"));
        };
        let target_parent = self.walk(target_parents, member, false)?.ok_or_else(missing)?;
        match kind_of(&target_parent.fd, target_name).or_fault("looking into the layer")? {
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

    /// Owner, access list and time of what cannot be opened.
    fn special_metadata(&self, member: &Member, parent: &Directory, name: &[u8]) -> Result<()> {
        let fd = &*parent.fd;
        let (uid, gid) = ids(member);
        rustix::fs::chownat(fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .or_fault(format_args!("setting the owner of {}", member.name()))?;
        if member.kind != MemberKind::Symlink {
            set_xattrs(member, |attribute, value| {
                // Linux has no other attributes on pipes and devices.
                if attribute != b"system.posix_acl_access" {
                    return Ok(());
                }
                rustix::process::fchdir(fd)?;
                rustix::fs::lsetxattr(name, attribute, value, XattrFlags::empty())
            })?;
        }
        rustix::fs::utimensat(fd, name, &times(member.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .or_fault(format_args!("setting the time of {}", member.name()))
    }

    /// Deletes `target` of lower layers. What this layer itself has by that
    /// name stays, since deletions are about lower layers only.
    fn whiteout(&mut self, member: &Member, parent: &Directory, target: &[u8]) -> Result<()> {
        if member.kind == MemberKind::Directory {
            return Err(refused(member, "a deletion must be a file"));
        }
        match kind_of(&parent.fd, target).or_fault("looking into the layer")? {
            Some(Existing::Directory) => {
                self.report.opaque.insert(parent.child(target));
                Ok(())
            }
            Some(Existing::Other | Existing::Whiteout) => Ok(()),
            None => {
                let kind = FileType::CharacterDevice;
                rustix::fs::mknodat(&*parent.fd, target, kind, Mode::empty(), 0)
                    .or_fault(format_args!("making the whiteout {}", member.name()))
            }
        }
    }

    /// Runs `make`; when something is in the way, removes that and runs it again.
    fn place<T>(
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
        self.report.opaque.remove(&path);
        Ok(())
    }

    /// The directory that a member goes into, made if need be.
    fn parent(&mut self, parts: &[&[u8]], member: &Member) -> Result<Directory> {
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
    fn walk(&mut self, parts: &[&[u8]], member: &Member, make: bool) -> Result<Option<Directory>> {
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
            match kind_of(&here.fd, &part).or_fault("looking into the layer")? {
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
            self.report.opaque.insert(path);
        }
        Ok(())
    }

    fn finish_directories(&mut self) -> Result<()> {
        for (name, late) in &self.late {
            let finish = || {
                let fd = open_below(self.root.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY)?;
                if let Some(acl) = &late.default_acl {
                    rustix::fs::fsetxattr(&fd, DEFAULT_ACL, acl, XattrFlags::empty())?;
                }
                late.mtime.map_or(Ok(()), |mtime| rustix::fs::futimens(&fd, &times(mtime)))
            };
            finish().or_fault(format_args!("finishing the directory {}", printable(name)))?;
        }
        Ok(())
    }
}

/// What has a name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Existing {
    Directory,
    Whiteout,
    Other,
}

fn kind_of(directory: &OwnedFd, name: &[u8]) -> rustix::io::Result<Option<Existing>> {
    let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        other => other?,
    };
    Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Existing::Directory,
        FileType::CharacterDevice if stat.st_rdev == 0 => Existing::Whiteout,
        _ => Existing::Other,
    }))
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

fn above(name: &[u8]) -> Option<&[u8]> {
    if name.is_empty() {
        return None;
    }
    Some(name.iter().rposition(|byte| *byte == b'/').map_or(&[], |slash| &name[..slash]))
}

fn split(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}

/// The parts of a member's name, or the reason why it is refused.
fn parts<'a>(path: &'a [u8], member: &Member) -> Result<Vec<&'a [u8]>> {
    if path.is_empty() || path.len() > MAX_PATH || path.contains(&0) {
        return Err(refused(member, "a name is empty, holds a zero or is longer than 4095 bytes"));
    }
    if path.starts_with(b"/") {
        return Err(refused(member, "a name is absolute"));
    }
    let parts: Vec<_> = split(path).collect();
    if parts.contains(&&b".."[..]) {
        return Err(refused(member, "a name contains '..'"));
    }
    if parts.len() > MAX_DEPTH {
        return Err(refused(member, "it lies more than 256 directories deep"));
    }
    if parts.iter().any(|part| part.len() > MAX_NAME) {
        return Err(refused(member, "a part of a name is longer than 255 bytes"));
    }
    Ok(parts)
}

fn ids(member: &Member) -> (Uid, Gid) {
    // Both were checked to be below 65536.
    (Uid::from_raw(member.uid as u32), Gid::from_raw(member.gid as u32))
}

/// Owner first: changing it clears the set-id bits and file capabilities.
fn own_and_mode(fd: impl AsFd, member: &Member) -> rustix::io::Result<()> {
    let (uid, gid) = ids(member);
    rustix::fs::fchown(&fd, Some(uid), Some(gid))?;
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(member.mode))
}

fn set_xattrs(
    member: &Member,
    mut set: impl FnMut(&[u8], &[u8]) -> rustix::io::Result<()>,
) -> Result<()> {
    for (name, value) in &member.xattrs {
        if let Some(value) = xattr::kept(name, value, &member.path)? {
            set(name, &value).or_fault(format_args!(
                "setting the extended attribute {} of {}",
                printable(name),
                member.name()
            ))?;
        }
    }
    Ok(())
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}

fn refused(member: &Member, why: impl std::fmt::Display) -> Fault {
    unacceptable(format!("{}: {why}", member.name()))
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

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
