//! Looks into stacked layers as overlayfs would show them, without a mount.
//!
//! Links are resolved here, inside the stack, so that a layer's content can
//! never lead a lookup to the host's files.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::whiteout::{OPAQUE_VALUE, OPAQUE_XATTR};
use crate::fault::{OrFault, Result};

/// Links that one lookup may lead through, as in the kernel.
const MAX_LINKS: usize = 40;

/// Directories that make up one, highest layer first.
type Stack = Rc<Vec<Rc<OwnedFd>>>;

/// Layers, stacked.
pub struct StackedLayers {
    root: Stack,
}

/// A regular file that was found.
pub struct Found {
    /// Its path without links, from the root.
    pub path: Vec<Vec<u8>>,
    /// Permission bits.
    pub mode: u32,
    directory: Rc<OwnedFd>,
}

enum Step {
    Absent,
    Directory(Stack),
    Link(Vec<u8>),
    File { mode: u32, directory: Rc<OwnedFd> },
    Other,
}

impl StackedLayers {
    /// Stacks unpacked layers, lowest first.
    pub fn new(layers: &[PathBuf]) -> Result<StackedLayers> {
        let mut root = Vec::new();
        for layer in layers.iter().rev() {
            let fd = rustix::fs::open(layer.as_path(), directory_flags(), Mode::empty())
                .or_fault(format_args!("opening the layer {}", layer.display()))?;
            root.push(Rc::new(fd));
        }
        Ok(StackedLayers { root: Rc::new(root) })
    }

    /// The regular file at `path`; `None` when there is none.
    pub fn find(&self, path: &str) -> Result<Option<Found>> {
        let mut todo: VecDeque<Vec<u8>> = parts(path.as_bytes()).collect();
        let mut here: Vec<(Vec<u8>, Stack)> = Vec::new();
        let mut links = 0;
        while let Some(part) = todo.pop_front() {
            if part == b".." {
                // Above the root is the root, as in a changed root.
                here.pop();
                continue;
            }
            let stack = here.last().map_or(&self.root, |(_, stack)| stack);
            match step(stack, &part).or_fault(format_args!("looking up {path} in the image"))? {
                Step::Directory(stack) => here.push((part, stack)),
                Step::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(None);
                    }
                    if target.starts_with(b"/") {
                        here.clear();
                    }
                    let target: Vec<_> = parts(&target).collect();
                    target.into_iter().rev().for_each(|part| todo.push_front(part));
                }
                Step::File { mode, directory } if todo.is_empty() => {
                    let mut path: Vec<_> = here.into_iter().map(|(part, _)| part).collect();
                    path.push(part);
                    return Ok(Some(Found { path, mode, directory }));
                }
                Step::Absent | Step::File { .. } | Step::Other => return Ok(None),
            }
        }
        Ok(None)
    }

    /// The first `limit` bytes of a regular file; `None` when there is none.
    pub fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        self.find(path)?.map(|found| found.read(limit)).transpose()
    }
}

impl Found {
    /// Its last name.
    pub fn name(&self) -> &[u8] {
        self.path.last().map_or(&[], Vec::as_slice)
    }

    /// The name of the directory it is in; empty at the root.
    pub fn directory_name(&self) -> &[u8] {
        self.path.len().checked_sub(2).map_or(&[], |at| self.path[at].as_slice())
    }

    /// Its first `limit` bytes.
    pub fn read(&self, limit: u64) -> Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut bytes = Vec::new();
        rustix::fs::openat(&*self.directory, self.name(), flags, Mode::empty())
            .map_err(std::io::Error::from)
            .and_then(|fd| File::from(fd).take(limit).read_to_end(&mut bytes))
            .or_fault("reading a file of the image")?;
        Ok(bytes)
    }
}

/// One name in a merged directory.
fn step(stack: &Stack, name: &[u8]) -> rustix::io::Result<Step> {
    let mut directories = Vec::new();
    for directory in stack.iter() {
        let stat = match rustix::fs::statat(&**directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT | Errno::NAMETOOLONG) => continue,
            other => other?,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            let fd = rustix::fs::openat(&**directory, name, directory_flags(), Mode::empty())?;
            let opaque = is_opaque(&fd)?;
            directories.push(Rc::new(fd));
            if opaque {
                break;
            }
            continue;
        }
        if !directories.is_empty() {
            break;
        }
        return Ok(match kind {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&**directory, name, Vec::new())?;
                Step::Link(target.into_bytes())
            }
            FileType::RegularFile => {
                Step::File { mode: stat.st_mode & 0o7777, directory: Rc::clone(directory) }
            }
            FileType::CharacterDevice if stat.st_rdev == 0 => Step::Absent,
            _ => Step::Other,
        });
    }
    Ok(if directories.is_empty() { Step::Absent } else { Step::Directory(Rc::new(directories)) })
}

fn is_opaque(directory: &OwnedFd) -> rustix::io::Result<bool> {
    let mut value = [0; 8];
    match rustix::fs::fgetxattr(directory, OPAQUE_XATTR, &mut value) {
        Ok(length) => Ok(&value[..length] == OPAQUE_VALUE),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

fn parts(path: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").map(<[u8]>::to_vec)
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    struct Layers(Vec<tempfile::TempDir>);

    impl Layers {
        fn new(count: usize) -> Layers {
            Layers((0..count).map(|_| tempfile::tempdir().unwrap()).collect())
        }
        fn file(&self, layer: usize, name: &str, content: &str) {
            let path = self.0[layer].path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        fn whiteout(&self, layer: usize, name: &str) {
            let path = self.0[layer].path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mode = Mode::empty();
            rustix::fs::mknodat(rustix::fs::CWD, path, FileType::CharacterDevice, mode, 0).unwrap();
        }
        fn read(&self, path: &str) -> Option<String> {
            let paths: Vec<_> = self.0.iter().map(|dir| dir.path().to_owned()).collect();
            let bytes = StackedLayers::new(&paths).unwrap().read(path, 100).unwrap();
            bytes.map(|bytes| String::from_utf8(bytes).unwrap())
        }
    }

    #[test]
    fn higher_layers_hide_lower_ones_and_whiteouts_delete() {
        let layers = Layers::new(3);
        layers.file(0, "etc/a", "a0");
        layers.file(0, "etc/b", "b0");
        layers.file(1, "etc/a", "a1");
        layers.whiteout(2, "etc/b");
        assert_eq!(layers.read("/etc/a").as_deref(), Some("a1"));
        assert_eq!(layers.read("/etc/b"), None);
        layers.whiteout(1, "gone");
        layers.file(0, "gone/x", "x");
        assert_eq!(layers.read("/gone/x"), None);
    }

    #[test]
    fn root_opaque_directories_hide_all_below() {
        let layers = Layers::new(2);
        layers.file(0, "d/old", "old");
        layers.file(1, "d/new", "new");
        assert_eq!(layers.read("/d/old").as_deref(), Some("old"));
        let fd = fs::File::open(layers.0[1].path().join("d")).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::fsetxattr(fd, OPAQUE_XATTR, OPAQUE_VALUE, flags).unwrap();
        assert_eq!(layers.read("/d/old"), None);
        assert_eq!(layers.read("/d/new").as_deref(), Some("new"));
    }

    #[test]
    fn links_cross_layers_and_never_leave_them() {
        let layers = Layers::new(2);
        layers.file(0, "usr/lib/x", "x");
        symlink("usr/lib", layers.0[1].path().join("lib")).unwrap();
        symlink("../../../../usr/lib/x", layers.0[1].path().join("up")).unwrap();
        symlink("/etc/hostname", layers.0[1].path().join("out")).unwrap();
        symlink("loop", layers.0[1].path().join("loop")).unwrap();
        assert_eq!(layers.read("/lib/x").as_deref(), Some("x"));
        assert_eq!(layers.read("/up").as_deref(), Some("x"));
        assert_eq!(layers.read("/out"), None);
        assert_eq!(layers.read("/loop"), None);
        assert_eq!(layers.read("/usr/lib/x/y"), None);
        assert_eq!(layers.read("/usr/lib"), None);
    }
}
