//! The root file system and what is mounted on it.
//!
//! The first process is root of the instance here, in its own mount namespace, in which there
//! still is a copy of the host's mounts. Each mount is made as a tree of its own and put on a
//! directory that was opened below the root, where no link is followed: the files are an
//! image's or a tenant's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, symlinkat};
use rustix::io::Errno;

use super::cgroups::V1;
use super::config::{Mount, refused};
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::sys::mount::{self, Attributes, FsOption};

/// Size of the file system that holds the mount points of cgroups.
const CGROUP_DIRS: &str = "size=1024k";

/// A mount's options: attributes of the mount, and what is the file system's own.
#[derive(Debug, PartialEq, Eq)]
struct Options<'a> {
    set: Attributes,
    clear: Attributes,
    data: Vec<&'a str>,
}

impl Options<'_> {
    fn parse(options: &[String]) -> Options<'_> {
        let mut parsed =
            Options { set: Attributes::empty(), clear: Attributes::empty(), data: Vec::new() };
        for option in options {
            match attribute(option) {
                Some((true, bits)) => {
                    parsed.set |= bits;
                    parsed.clear &= !bits;
                    // Access times are one value, not bits.
                    if Attributes::MOUNT_ATTR__ATIME.contains(bits) && !bits.is_empty() {
                        parsed.set = parsed.set & !Attributes::MOUNT_ATTR__ATIME | bits;
                        parsed.clear |= Attributes::MOUNT_ATTR__ATIME;
                    }
                }
                Some((false, bits)) => {
                    parsed.set &= !bits;
                    parsed.clear |= bits;
                }
                None if matches!(option.as_str(), "bind" | "defaults" | "rprivate" | "private") => {
                }
                None => parsed.data.push(option),
            }
        }
        parsed
    }
}

/// Whether an option sets or clears, and what.
fn attribute(option: &str) -> Option<(bool, Attributes)> {
    Some(match option {
        "ro" => (true, Attributes::MOUNT_ATTR_RDONLY),
        "rw" => (false, Attributes::MOUNT_ATTR_RDONLY),
        "nosuid" => (true, Attributes::MOUNT_ATTR_NOSUID),
        "suid" => (false, Attributes::MOUNT_ATTR_NOSUID),
        "nodev" => (true, Attributes::MOUNT_ATTR_NODEV),
        "dev" => (false, Attributes::MOUNT_ATTR_NODEV),
        "noexec" => (true, Attributes::MOUNT_ATTR_NOEXEC),
        "exec" => (false, Attributes::MOUNT_ATTR_NOEXEC),
        "nosymfollow" => (true, Attributes::MOUNT_ATTR_NOSYMFOLLOW),
        "noatime" => (true, Attributes::MOUNT_ATTR_NOATIME),
        "strictatime" => (true, Attributes::MOUNT_ATTR_STRICTATIME),
        "relatime" => (false, Attributes::MOUNT_ATTR__ATIME),
        "nodiratime" => (true, Attributes::MOUNT_ATTR_NODIRATIME),
        "diratime" => (false, Attributes::MOUNT_ATTR_NODIRATIME),
        _ => return None,
    })
}

/// A copy of the root file system's mount, on top of itself: what is made below it is in this
/// namespace alone. The copy keeps what the namespace's maker locked, as that it has no devices.
pub(super) fn root(path: &Path) -> Result<OwnedFd> {
    let doing = || format!("mounting the root file system {}", path.display());
    let tree = mount::clone_tree_at(CWD, path).or_fault(doing())?;
    mount::attach(tree.as_fd(), path)?;
    Ok(tree)
}

/// Makes a mount.
pub(super) fn mount(root: BorrowedFd<'_>, mount: &Mount, v1: &[V1]) -> Result<()> {
    let Mount { destination, kind, source, options } = mount;
    let doing = || format!("mounting {}", destination.display());
    let bind = options.iter().any(|option| option == "bind");
    let parsed = Options::parse(options);
    let tree = match kind.as_deref() {
        _ if bind => bound(source.as_deref(), destination, &parsed)?,
        None | Some("bind") => {
            return Err(refused(format!("mounts: {} must have bind", destination.display())));
        }
        Some("cgroup") if !v1.is_empty() => return cgroups_v1(root, destination, &parsed, v1),
        Some("cgroup") => file_system("cgroup2", source.as_deref(), &parsed)?,
        Some(kind) => file_system(kind, source.as_deref(), &parsed)?,
    };
    let target = target(root, destination, is_directory(tree.as_fd())?)?;
    mount::attach_on(tree.as_fd(), target.as_fd(), "").or_fault(doing())
}

fn file_system(kind: &str, source: Option<&Path>, options: &Options<'_>) -> Result<OwnedFd> {
    let source = source.map(|source| FsOption::Text("source", source));
    let data = options.data.iter().map(|option| match option.split_once('=') {
        Some((name, value)) => FsOption::Text(name, Path::new(value)),
        None => FsOption::Flag(option),
    });
    let all: Vec<_> = source.into_iter().chain(data).collect();
    mount::create(kind, &all, options.set).or_fault(format_args!("making a {kind}"))
}

fn bound(source: Option<&Path>, to: &Path, options: &Options<'_>) -> Result<OwnedFd> {
    if let Some(other) = options.data.first() {
        return Err(refused(format!("mounts: {}: {other:?} is no option of a bind", to.display())));
    }
    let source = source.filter(|source| source.is_absolute());
    let source = source
        .ok_or_else(|| refused(format!("mounts: {}: its source must be absolute", to.display())))?;
    let doing = || format!("mounting {} at {}", source.display(), to.display());
    let tree = mount::clone_tree_at(CWD, source).or_fault(doing())?;
    // What the host has not, as devices, is locked: only more can be taken.
    let times = options.clear & Attributes::MOUNT_ATTR__ATIME;
    mount::change(tree.as_fd(), options.set, times, false).or_fault(doing())?;
    Ok(tree)
}

/// A directory for each hierarchy of version 1, and names for controllers that share one.
fn cgroups_v1(root: BorrowedFd<'_>, to: &Path, options: &Options<'_>, v1: &[V1]) -> Result<()> {
    let doing = || format!("mounting cgroups at {}", to.display());
    let own = Options {
        set: options.set & !Attributes::MOUNT_ATTR_RDONLY,
        clear: options.clear,
        data: vec!["mode=755", CGROUP_DIRS],
    };
    let tree = file_system("tmpfs", Some(Path::new("cgroup")), &own)?;
    let place = target(root, to, true)?;
    mount::attach_on(tree.as_fd(), place.as_fd(), "").or_fault(doing())?;
    for V1 { dir, controllers } in v1 {
        mkdirat(&tree, dir, Mode::from_raw_mode(0o755)).or_fault(doing())?;
        let mut data: Vec<&str> = controllers.iter().map(String::as_str).collect();
        let name = format!("name={dir}");
        if controllers.is_empty() {
            data.extend(["none", &name]);
        }
        let hierarchy = Options { set: options.set, clear: options.clear, data };
        let hierarchy = file_system("cgroup", Some(Path::new("cgroup")), &hierarchy)?;
        mount::attach_on(hierarchy.as_fd(), tree.as_fd(), dir).or_fault(doing())?;
        for controller in controllers.iter().filter(|controller| *controller != dir) {
            symlinkat(dir, &tree, controller).or_fault(doing())?;
        }
    }
    let read_only = options.set & Attributes::MOUNT_ATTR_RDONLY;
    mount::change(tree.as_fd(), read_only, Attributes::empty(), false).or_fault(doing())
}

fn is_directory(tree: BorrowedFd<'_>) -> Result<bool> {
    let found = rustix::fs::fstat(tree).or_fault("looking at a mount")?;
    Ok(rustix::fs::FileType::from_raw_mode(found.st_mode).is_dir())
}

/// Opens a path below the root, of which no part may be a link.
pub(super) fn open(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    const TRIES: usize = 16;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..TRIES {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // A rename somewhere on the host while the kernel resolved a `..`.
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens the place of a mount. What is absent is made.
fn target(root: BorrowedFd<'_>, path: &Path, directory: bool) -> Result<OwnedFd> {
    let doing = || format!("opening {} in the root file system", path.display());
    let flags = if directory { OFlags::PATH | OFlags::DIRECTORY } else { OFlags::PATH };
    match open(root, path, flags) {
        Err(Errno::NOENT) => {}
        other => return other.map_err(|errno| unusable(path, errno)),
    }
    let mut here = PathBuf::from("/");
    let mut parent = open(root, &here, OFlags::PATH | OFlags::DIRECTORY).or_fault(doing())?;
    let mut names = path.components().peekable();
    while let Some(component) = names.next() {
        let name = match component {
            Component::RootDir => continue,
            Component::Normal(name) => name,
            _ => return Err(refused(format!("mounts: {} must have no ..", path.display()))),
        };
        here.push(name);
        if names.peek().is_none() && !directory {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW;
            openat(&parent, name, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))
                .or_fault(doing())?;
            break;
        }
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(unusable(&here, errno)),
        }
        parent = open(root, &here, OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|errno| unusable(&here, errno))?;
    }
    open(root, path, flags).map_err(|errno| unusable(path, errno))
}

fn unusable(path: &Path, errno: Errno) -> Fault {
    let what = match errno {
        Errno::LOOP => "a link is on its way",
        Errno::NOTDIR => "no directory",
        _ => return Fault::internal(format_args!("opening {} inside", path.display()), errno),
    };
    let detail = format!(
        "{} in the instance's root file system cannot be mounted on: {what}",
        path.display()
    );
    Fault::new(FaultKind::ImageUnacceptable, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> (Attributes, Attributes, Vec<String>) {
        let options: Vec<String> = options.iter().map(ToString::to_string).collect();
        let Options { set, clear, data } = Options::parse(&options);
        (set, clear, data.into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn the_last_of_two_options_holds() {
        let none = Attributes::empty();
        let read_only = Attributes::MOUNT_ATTR_RDONLY;
        assert_eq!(parse(&["rw", "ro"]), (read_only, none, vec![]));
        assert_eq!(parse(&["ro", "rw"]), (none, read_only, vec![]));
        let (set, clear, _) = parse(&["noatime", "strictatime"]);
        assert_eq!(set, Attributes::MOUNT_ATTR_STRICTATIME);
        assert_eq!(clear, Attributes::MOUNT_ATTR__ATIME);
        let (set, _, data) = parse(&["nosuid", "mode=755", "newinstance", "bind"]);
        assert_eq!(set, Attributes::MOUNT_ATTR_NOSUID);
        assert_eq!(data, ["mode=755", "newinstance"]);
    }

    #[test]
    fn no_link_below_the_root_is_followed_or_made_through() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        for (link, to) in [("absolute", "/real"), ("up", "../.."), ("out", "/tmp"), ("gone", "x")] {
            std::os::unix::fs::symlink(to, dir.path().join(link)).unwrap();
        }
        let root = std::fs::File::open(dir.path()).unwrap();
        let try_target =
            |path: &str, directory| target(root.as_fd(), Path::new(path), directory).map(drop);
        for link in ["absolute", "up", "out", "gone"] {
            for path in [format!("/{link}"), format!("/{link}/a")] {
                for directory in [false, true] {
                    let made = try_target(&path, directory);
                    let fault = made.expect_err(&path);
                    assert_eq!(fault.kind, FaultKind::ImageUnacceptable, "{path}: {fault}");
                }
            }
        }
        try_target("/new/a/b", true).unwrap();
        try_target("/new/file", false).unwrap();
        assert!(dir.path().join("new/a/b").is_dir() && dir.path().join("new/file").is_file());
    }
}
