//! A file system that the host's kernel reads, mounted read-only as all that
//! this process sees, as [`pack`](super::pack) walks it.
//!
//! What the kernel says about a stranger's file system is believed no more
//! than the file system: limits are counted, and errors are the image's.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fgetxattr, flistxattr, fstat, openat,
    readlinkat, seek, statat,
};
use rustix::io::Errno;

use super::file_tree::{About, Attributes, Extent, FileKind, FileTree, MAX_PIECES};
use super::fstab;
use super::joined::{self, Joined};
use crate::fault::{Fault, FaultKind, Result};
use crate::image::recognise::{Content, FileSystem};
use crate::image::refusal::unacceptable;
use crate::types::DiskMount;

/// Names of the subvolume that distributions have their root in, when it is
/// not the one that is mounted by default.
const SUBVOLUMES: [&str; 4] = ["root", "@", "@rootfs", "rootfs"];
/// Directories of which a root has one.
const TOP: [&str; 3] = ["usr", "etc", "bin"];
/// Most bytes of an attribute, and of the list of their names, as in the kernel.
const MAX_ATTRIBUTE: usize = 1 << 16;

/// The kernel's name of a file system that it may be asked to read.
pub fn driver(file_system: FileSystem) -> Option<&'static str> {
    match file_system {
        FileSystem::Xfs => Some("xfs"),
        FileSystem::Btrfs => Some("btrfs"),
        FileSystem::Squashfs => Some("squashfs"),
        FileSystem::Erofs => Some("erofs"),
        FileSystem::Ext | FileSystem::Iso9660 => None,
    }
}

/// What the kernel must be told: another file system with the same UUID may
/// be mounted, since images are copied.
pub fn options(file_system: FileSystem) -> Option<&'static str> {
    (file_system == FileSystem::Xfs).then_some("nouuid")
}

/// Why the kernel did not mount it.
pub fn not_mounted(file_system: FileSystem, errno: nix::errno::Errno) -> Fault {
    let name = driver(file_system).unwrap_or_default();
    let what = Content::FileSystem(file_system);
    match errno {
        nix::errno::Errno::ENODEV => Fault::new(
            FaultKind::HostUnsupported,
            format!("the content is {what}: this host's kernel has no {name}; load its module"),
        ),
        nix::errno::Errno::ENOMEM => {
            Fault::new(FaultKind::ResourcesExhausted, format!("mounting {what}: {errno}"))
        }
        _ => unacceptable(format!(
            "this host's kernel does not mount {what} ({errno}): it is corrupt, incomplete, or \
             newer than the kernel"
        )),
    }
}

/// The tree below a directory.
pub(super) struct Mounted {
    root: OwnedFd,
}

/// A file; directories and regular files are open.
pub(super) struct Node {
    fd: Option<OwnedFd>,
    stat: Stat,
}

impl Mounted {
    /// What is mounted at `top`, or the subvolume in it that is a root.
    pub fn new(top: OwnedFd) -> Result<Mounted> {
        if is_root(&top) {
            return Ok(Mounted { root: top });
        }
        let open = |name: &&str| openat(&top, *name, directory(), Mode::empty()).ok();
        let mut found = SUBVOLUMES.iter().filter_map(open).filter(is_root);
        let root = found.next();
        drop(found);
        Ok(Mounted { root: root.unwrap_or(top) })
    }
}

/// The system in what is mounted at `top`, with the subvolumes that its fstab mounts, of those
/// below `all`.
pub(super) fn system(
    top: OwnedFd,
    all: Option<OwnedFd>,
) -> Result<(Joined<Mounted>, Vec<DiskMount>)> {
    let root = Mounted::new(top)?;
    let text = match joined::find(&root, "etc/fstab")? {
        Some(file) if root.about(&file).kind == FileKind::Regular => {
            let size = root.about(&file).size.min(fstab::MAX_BYTES);
            let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
            root.read(&file, 0, &mut bytes)?;
            String::from_utf8_lossy(&bytes).into_owned()
        }
        _ => String::new(),
    };
    let (mut files, mut mounts) = (Joined::new(root), Vec::new());
    let device = fstab::root(&text).map(|device| fstab::tag(device).ok_or(device));
    for line in fstab::parts(&text)? {
        // Another Btrfs may have a subvolume of the same name.
        let own = device == Some(fstab::tag(&line.what).ok_or(&line.what));
        let subvolume = all.as_ref().zip(line.value("subvol")).filter(|_| own);
        let found = subvolume.and_then(|(all, path)| Some((below(all, path)?, path.to_owned())));
        let (root, path) = found.unzip();
        mounts.push(DiskMount {
            source: line.what.clone(),
            place: format!("/{}", line.place),
            partition: None,
            subvolume: path,
        });
        match root {
            Some(root) => files.mount(&line.place, Mounted { root })?,
            None if line.has("nofail") => {}
            None => return Err(line.elsewhere()),
        }
    }
    Ok((files, mounts))
}

/// A directory below another, by a path without links.
fn below(top: &OwnedFd, path: &str) -> Option<OwnedFd> {
    let names = path.split('/').filter(|name| !matches!(*name, "" | "."));
    let mut names = names.map(|name| (name != "..").then_some(name));
    let here = top.try_clone().ok()?;
    names.try_fold(here, |here, name| openat(&here, name?, directory(), Mode::empty()).ok())
}

fn is_root(directory: &OwnedFd) -> bool {
    let is_directory = |name: &&str| {
        statat(directory, *name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    };
    TOP.iter().any(is_directory)
}

fn directory() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

impl Node {
    fn fd(&self) -> Result<&OwnedFd> {
        self.fd.as_ref().ok_or_else(|| unacceptable("the file system changes its mind"))
    }
}

impl FileTree for Mounted {
    type Entry = Vec<u8>;
    type Node = Node;

    fn root(&self) -> Result<Node> {
        let fd = self.root.try_clone().map_err(|error| unreadable(&error))?;
        let stat = fstat(&fd).map_err(|error| unreadable(&error))?;
        Ok(Node { fd: Some(fd), stat })
    }

    fn list(&self, directory: &Node, most: u64) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(directory.fd()?).map_err(|error| unreadable(&error))? {
            let entry = entry.map_err(|error| unreadable(&error))?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            if name.is_empty() || name.contains(&b'/') {
                return Err(unacceptable("a directory has an impossible name"));
            }
            if names.len() as u64 >= most {
                return Err(unacceptable(
                    "it holds more files than images.max_entries allows; raise that or take a \
                     smaller image",
                ));
            }
            names.push(name.to_vec());
        }
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(unacceptable("a directory has a name twice"));
        }
        Ok(names)
    }

    fn name<'a>(&self, entry: &'a Vec<u8>) -> &'a [u8] {
        entry
    }

    fn file(&self, parent: &Node, name: &Vec<u8>) -> Result<Node> {
        let look = || -> rustix::io::Result<Node> {
            let parent = parent.fd.as_ref().ok_or(Errno::NOTDIR)?;
            let stat = statat(parent, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
            let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let flags = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => directory(),
                FileType::RegularFile => flags | OFlags::RDONLY | OFlags::NONBLOCK,
                FileType::Symlink => flags | OFlags::PATH,
                _ => return Ok(Node { fd: None, stat }),
            };
            Ok(Node { fd: Some(openat(parent, name.as_slice(), flags, Mode::empty())?), stat })
        };
        look().map_err(|error| unreadable(&error))
    }

    fn about(&self, node: &Node) -> About {
        let stat = &node.stat;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => FileKind::Directory,
            FileType::RegularFile => FileKind::Regular,
            FileType::Symlink => FileKind::Symlink,
            FileType::Fifo => FileKind::Fifo,
            FileType::CharacterDevice if stat.st_rdev == 0 => FileKind::NoDevice,
            _ => FileKind::Other,
        };
        About {
            identity: (stat.st_dev, stat.st_ino),
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or(u64::MAX),
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            links: u64::from(stat.st_nlink > 1) + 1,
        }
    }

    fn attributes(&self, node: &Node) -> Result<Attributes> {
        let fd = node.fd()?;
        let mut list = vec![0; MAX_ATTRIBUTE];
        let length = match flistxattr(fd, &mut list[..]) {
            Err(Errno::OPNOTSUPP) => 0,
            other => other.map_err(|error| unreadable(&error))?,
        };
        let mut names: Vec<&[u8]> =
            list[..length].split(|b| *b == 0).filter(|n| !n.is_empty()).collect();
        names.sort_unstable();
        let read = |name: &[u8]| -> rustix::io::Result<_> {
            let mut value = vec![0; MAX_ATTRIBUTE];
            let length = fgetxattr(fd, name, &mut value[..])?;
            value.truncate(length);
            Ok((name.to_vec(), value))
        };
        // No image keeps `trusted.*`, and only a privileged process reads them.
        let names = names.into_iter().filter(|name| !name.starts_with(b"trusted."));
        names.map(|name| read(name).map_err(|error| unreadable(&error))).collect()
    }

    fn target(&self, node: &Node) -> Result<Vec<u8>> {
        let target = readlinkat(node.fd()?, "", Vec::new()).map_err(|error| unreadable(&error))?;
        Ok(target.into_bytes())
    }

    fn inline(&self, _: &Node) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn extents(&self, node: &Node) -> Result<Vec<Extent>> {
        let size = self.about(node).size;
        let extent = |start: u64, end| Extent { offset: start, place: start, length: end - start };
        let whole = if size > 0 { vec![extent(0, size)] } else { Vec::new() };
        if u64::try_from(node.stat.st_blocks).unwrap_or(0).saturating_mul(512) >= size {
            return Ok(whole);
        }
        let fd = node.fd()?;
        let (mut found, mut at) = (Vec::new(), 0);
        while at < size {
            let start = match seek(fd, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(whole),
                Err(error) => return Err(unreadable(&error)),
            };
            let end = seek(fd, SeekFrom::Hole(start)).map_err(|error| unreadable(&error))?;
            let end = end.min(size);
            if start < at || end <= start {
                return Err(unacceptable("a file's map of holes turns back"));
            }
            if found.len() >= MAX_PIECES {
                return Ok(whole);
            }
            found.push(extent(start, end));
            at = end;
        }
        Ok(found)
    }

    fn read(&self, node: &Node, place: u64, buffer: &mut [u8]) -> Result<()> {
        let fd = node.fd()?.as_fd().try_clone_to_owned().map_err(|error| unreadable(&error))?;
        File::from(fd).read_exact_at(buffer, place).map_err(|error| unreadable(&error))
    }

    fn capacity(&self) -> u64 {
        // Compressed, or shared by files, as the file system likes; the limits count.
        u64::MAX
    }
}

fn unreadable(error: &dyn std::fmt::Display) -> Fault {
    unacceptable(format!("this host's kernel cannot read it ({error}); it is corrupt"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::unpack::UnpackLimits;
    use std::fs;

    fn members(directory: &std::path::Path) -> Vec<String> {
        let mounted = Mounted::new(OwnedFd::from(File::open(directory).unwrap())).unwrap();
        let mut tar = Vec::new();
        let limits = UnpackLimits { entries: 100, bytes: 1 << 20, ids: 65_536 };
        super::super::pack::write(&mounted, &mut tar, limits).unwrap();
        let mut archive = tar::Archive::new(&tar[..]);
        let name = |e: tar::Entry<'_, _>| e.path().unwrap().display().to_string();
        archive.entries().unwrap().map(|entry| name(entry.unwrap())).collect()
    }

    #[test]
    fn the_subvolume_that_is_a_root_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("@/etc")).unwrap();
        fs::create_dir_all(dir.path().join("home/user")).unwrap();
        assert_eq!(members(dir.path()), ["./", "etc/"]);
        fs::create_dir(dir.path().join("usr")).unwrap();
        assert_eq!(members(dir.path()), ["./", "@/", "@/etc/", "home/", "home/user/", "usr/"]);
    }

    #[test]
    fn the_subvolumes_of_the_fstab_are_mounted() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["@/etc", "@/var", "@/home", "@var/log", "deep/@home/user", "@other"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        let open = || OwnedFd::from(File::open(dir.path()).unwrap());
        let told = |text: &str, all| {
            fs::write(dir.path().join("@/etc/fstab"), text).unwrap();
            system(open(), all).map(|(files, _)| {
                let found = |path| joined::find(&files, path).unwrap().is_some();
                (found("var/log"), found("home/user"))
            })
        };
        let text = "UUID=1 / btrfs subvol=@ 0 0\nUUID=1 /home btrfs rw,subvol=/deep/@home\n\
                    UUID=1 /var btrfs subvol=@var\n";
        assert_eq!(told(text, Some(open())).unwrap(), (true, true));
        assert!(told(text, None).is_err());
        assert_eq!(
            told("UUID=1 / btrfs\nUUID=1 /srv btrfs nofail,subvol=gone\n", Some(open())).unwrap(),
            (false, false)
        );
        // That of another device, or of nobody knows which, is not the root's.
        for root in ["UUID=2 / btrfs\n", "LABEL=1 / btrfs\n", ""] {
            let other = |options| {
                told(
                    &format!("{root}UUID=1 /home btrfs {options}subvol=deep/@home\n"),
                    Some(open()),
                )
            };
            let fault = other("").unwrap_err();
            assert!(fault.detail.contains("mounts /home from UUID=1"), "{fault}");
            assert_eq!(other("nofail,").unwrap(), (false, false));
        }
        let links = "/dev/disk/by-uuid/1 / btrfs\nUUID=1 /home btrfs subvol=deep/@home\n";
        assert_eq!(told(links, Some(open())).unwrap(), (false, true));
        for bad in ["subvol=gone", "subvol=../x", "defaults"] {
            let text = format!("UUID=1 / btrfs\nUUID=1 /var btrfs {bad}\n");
            let fault = told(&text, Some(open())).unwrap_err();
            assert!(fault.detail.contains("mounts /var from UUID=1"), "{fault}");
        }
        let absent = "UUID=1 / btrfs\nUUID=1 /srv btrfs subvol=@other\n";
        assert!(told(absent, Some(open())).unwrap_err().detail.contains("no directory"), "no /srv");
    }

    #[test]
    fn limits_hold_and_kernels_errors_are_faults() {
        let dir = tempfile::tempdir().unwrap();
        File::create(dir.path().join("f")).unwrap().set_len(2 << 20).unwrap();
        let mounted = Mounted::new(OwnedFd::from(File::open(dir.path()).unwrap())).unwrap();
        let write = |limits| super::super::pack::write(&mounted, std::io::sink(), limits);
        let fault = write(UnpackLimits { entries: 9, bytes: 1 << 20, ids: 65_536 }).unwrap_err();
        assert!(fault.detail.contains("max_unpacked_bytes"), "{fault}");
        assert!(write(UnpackLimits { entries: 1, bytes: 1 << 30, ids: 65_536 }).is_err());
        use nix::errno::Errno;
        for (errno, kind) in [
            (Errno::ENODEV, FaultKind::HostUnsupported),
            (Errno::EUCLEAN, FaultKind::ImageUnacceptable),
            (Errno::ENOMEM, FaultKind::ResourcesExhausted),
        ] {
            assert_eq!(not_mounted(FileSystem::Xfs, errno).kind, kind);
        }
    }
}
