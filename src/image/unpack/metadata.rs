//! Owners, modes, times, attributes and access lists of files.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, fstat,
};
use rustix::process::fchdir;

use super::extractor::{Directory, Extractor, Late, TreeKind};
use super::names::{above, open_below};
use crate::fault::{OrFault, Result};
use crate::image::acl::{ACCESS, AccessList, DEFAULT, Names};
use crate::image::refusal::{printable, unacceptable};
use crate::image::tar_reader::{Member, MemberKind};
use crate::image::{whiteout, xattr};

/// Most bytes of `/etc/passwd` and `/etc/group` that are read.
const MAX_ACCOUNTS: u64 = 4 << 20;

impl Extractor {
    pub(super) fn directory_metadata(
        &mut self,
        member: &Member,
        path: Vec<u8>,
        fd: BorrowedFd<'_>,
    ) -> Result<()> {
        own_and_mode(fd, member, self.limits.ids)
            .or_fault(format_args!("setting owner of {}", member.name()))?;
        let mut late = Late { mtime: Some(member.mtime), default_acl: None };
        self.named.forget(&path);
        self.set_xattrs(member, &path, |name, value| {
            if name == DEFAULT {
                late.default_acl = Some(value.to_vec());
                return Ok(());
            }
            rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
        })?;
        self.late.insert(path, late);
        Ok(())
    }

    /// Owner, access list and time of what cannot be opened.
    pub(super) fn special_metadata(
        &mut self,
        member: &Member,
        parent: &Directory,
        name: &[u8],
    ) -> Result<()> {
        let fd = &*parent.fd;
        let (uid, gid, _) = owner(member, self.limits.ids);
        rustix::fs::chownat(fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .or_fault(format_args!("setting the owner of {}", member.name()))?;
        if member.kind != MemberKind::Symlink {
            self.set_xattrs(member, &parent.child(name), |attribute, value| {
                // Linux has no other attributes on pipes and devices.
                if attribute != ACCESS {
                    return Ok(());
                }
                fchdir(fd)?;
                rustix::fs::lsetxattr(name, attribute, value, XattrFlags::empty())
            })?;
        }
        rustix::fs::utimensat(fd, name, &times(member.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .or_fault(format_args!("setting the time of {}", member.name()))
    }

    /// Sets the attributes that an image keeps, or notes them for later.
    pub(super) fn set_xattrs(
        &mut self,
        member: &Member,
        path: &[u8],
        mut set: impl FnMut(&[u8], &[u8]) -> rustix::io::Result<()>,
    ) -> Result<()> {
        let can_have_marks = matches!(member.kind, MemberKind::Regular | MemberKind::Directory);
        let mut set = |name: &[u8], value: &[u8]| {
            set(name, value).or_fault(format_args!(
                "setting the extended attribute {} of {}",
                printable(name),
                member.name()
            ))
        };
        for (name, value) in &member.xattrs {
            let Some(value) = xattr::kept(name, value, &member.path, self.limits.ids)? else {
                continue;
            };
            match name.starts_with(whiteout::OWN) {
                false => set(name, &value)?,
                true if !can_have_marks => {}
                true if self.kind == TreeKind::FileSystem => set(name, &value)?,
                true => self.report.marks.add(path, name, &value)?,
            }
        }
        let lists = [(ACCESS, &member.access), (DEFAULT, &member.default)];
        for (which, (name, list)) in lists.into_iter().enumerate() {
            let exact = member.xattrs.iter().any(|(other, _)| other == name);
            let directory = member.kind == MemberKind::Directory;
            let Some(list) = list.as_ref().filter(|list| !exact && !list.is_empty()) else {
                continue;
            };
            if name == DEFAULT && !directory {
                continue;
            }
            if list.has_names() {
                self.named.add(path, which, list)?;
            } else {
                set(name, &in_kernels_form(list, path, self.limits.ids)?)?;
            }
        }
        Ok(())
    }

    /// Sets the access lists that had names in them.
    pub(super) fn finish_access_lists(&mut self) -> Result<()> {
        let mut accounts = Accounts { root: &self.root, users: None, groups: None };
        for (path, lists) in std::mem::take(&mut self.named.lists) {
            for (name, list) in [ACCESS, DEFAULT].into_iter().zip(lists) {
                let Some(mut list) = list else { continue };
                list.look_up(&mut accounts).map_err(|fault| fault.context(printable(&path)))?;
                let value = in_kernels_form(&list, &path, self.limits.ids)?;
                if name == DEFAULT {
                    self.late.entry(path.clone()).or_default().default_acl = Some(value);
                    continue;
                }
                let parent = above(&path).unwrap_or_default();
                let file = path.get(parent.len()..).unwrap_or_default();
                let file = file.strip_prefix(b"/").unwrap_or(file);
                let file = if file.is_empty() { b"." } else { file };
                let set = || {
                    let flags = OFlags::PATH | OFlags::DIRECTORY;
                    fchdir(open_below(self.root.as_fd(), parent, flags)?)?;
                    rustix::fs::lsetxattr(file, name, &value, XattrFlags::empty())
                };
                set().or_fault(format_args!("setting the access list of {}", printable(&path)))?;
            }
        }
        Ok(())
    }

    pub(super) fn finish_directories(&mut self) -> Result<()> {
        for (name, late) in &self.late {
            let finish = || {
                let fd = open_below(self.root.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY)?;
                if let Some(acl) = &late.default_acl {
                    rustix::fs::fsetxattr(&fd, DEFAULT, acl, XattrFlags::empty())?;
                }
                late.mtime.map_or(Ok(()), |mtime| rustix::fs::futimens(&fd, &times(mtime)))
            };
            finish().or_fault(format_args!("finishing the directory {}", printable(name)))?;
        }
        Ok(())
    }
}

fn in_kernels_form(list: &AccessList, path: &[u8], ids: u64) -> Result<Vec<u8>> {
    list.to_kernel(ids).ok_or_else(|| {
        unacceptable(format!("{}: its access list is none that Linux takes", printable(path)))
    })
}

/// The ids of a tree's own names.
struct Accounts<'a> {
    root: &'a OwnedFd,
    users: Option<HashMap<Vec<u8>, u64>>,
    groups: Option<HashMap<Vec<u8>, u64>>,
}

impl Names for Accounts<'_> {
    fn user(&mut self, name: &[u8]) -> Result<Option<u64>> {
        id_of(&mut self.users, self.root, b"etc/passwd", name)
    }

    fn group(&mut self, name: &[u8]) -> Result<Option<u64>> {
        id_of(&mut self.groups, self.root, b"etc/group", name)
    }
}

/// The id of a name, in a file that is read once.
fn id_of(
    ids: &mut Option<HashMap<Vec<u8>, u64>>,
    root: &OwnedFd,
    path: &[u8],
    name: &[u8],
) -> Result<Option<u64>> {
    let ids = match ids {
        Some(ids) => ids,
        None => ids.insert(ids_of(root, path)?),
    };
    Ok(ids.get(name).copied())
}

/// Names and ids in a file like `/etc/passwd`; none without the file.
fn ids_of(root: &OwnedFd, path: &[u8]) -> Result<HashMap<Vec<u8>, u64>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let Ok(file) = open_below(root.as_fd(), path, flags).map(File::from) else {
        return Ok(HashMap::new());
    };
    let mut text = Vec::new();
    let stat = fstat(&file).or_fault("looking up names of the image")?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
        file.take(MAX_ACCOUNTS).read_to_end(&mut text).or_fault("looking up names of the image")?;
    }
    let entry = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b':');
        let (name, id) = (fields.next()?.to_vec(), fields.nth(1)?);
        Some((name, std::str::from_utf8(id).ok()?.parse().ok()?))
    };
    // Of a name that is there twice, the first counts, as in the C library.
    Ok(text.rsplit(|byte| *byte == b'\n').filter_map(entry).collect())
}

/// Owner, group and mode. An id that no instance has is nobody's, and nobody
/// becomes it by running the file.
pub(super) fn owner(member: &Member, ids: u64) -> (Uid, Gid, Mode) {
    let id = |id: u64| u32::try_from(id).ok().filter(|_| id < ids);
    let (uid, gid) = (id(member.uid), id(member.gid));
    let mut mode = Mode::from_raw_mode(member.mode);
    mode.set(Mode::SUID, mode.contains(Mode::SUID) && uid.is_some());
    mode.set(Mode::SGID, mode.contains(Mode::SGID) && gid.is_some());
    let nobody = xattr::NOBODY;
    (Uid::from_raw(uid.unwrap_or(nobody)), Gid::from_raw(gid.unwrap_or(nobody)), mode)
}

/// Owner first: changing it clears the set-id bits and file capabilities.
pub(super) fn own_and_mode(fd: impl AsFd, member: &Member, ids: u64) -> rustix::io::Result<()> {
    let (uid, gid, mode) = owner(member, ids);
    rustix::fs::fchown(&fd, Some(uid), Some(gid))?;
    rustix::fs::fchmod(&fd, mode)
}

pub(super) fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}
