//! Mounts: detached trees, their attributes, and putting them into place.
//!
//! A mount is built as a descriptor that nothing else can see, and put into
//! place complete. Until then, the end of the process is its end too.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags, openat, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_reconfigure, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick, mount_bind, mount_change,
    move_mount, open_tree, unmount as unmount_once,
};

use crate::fault::{OrFault, Result};

/// Attributes of one mount, whatever the file system says.
pub type Attributes = MountAttrFlags;

/// How many mounts may lie on one another at a path before [`unmount`] gives up.
const STACK_LIMIT: usize = 64;

/// A private, detached copy of the mount that holds `path`, its root at `path`.
/// Mounts below `path` are not copied.
pub fn clone_tree(path: &Path) -> Result<OwnedFd> {
    copy(CWD, path, OpenTreeFlags::empty())
        .or_fault(format_args!("copying the mount of {}", path.display()))
}

/// [`clone_tree`] with all that is mounted below `path`.
pub fn clone_trees(path: &Path) -> Result<OwnedFd> {
    copy(CWD, path, OpenTreeFlags::AT_RECURSIVE)
        .or_fault(format_args!("copying the mounts of {}", path.display()))
}

fn copy(at: BorrowedFd<'_>, path: &Path, more: OpenTreeFlags) -> rustix::io::Result<OwnedFd> {
    open_tree(at, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | more)
}

/// A copy of the mount at `path` from `at`, which itself is meant where `path` is empty. No link is
/// followed at its end, and it takes no part in what is mounted where it came from. The mount
/// must be attached.
pub fn clone_tree_at(at: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    flags.set(OpenTreeFlags::AT_EMPTY_PATH, path.as_os_str().is_empty());
    let tree = copy(at, path, flags)?;
    change(tree.as_fd(), Attributes::empty(), Attributes::empty(), true)?;
    Ok(tree)
}

/// A program, or another file, by a mount of its own through which nobody can write to it: not
/// even a process that holds a link of proc's to it, be it an instance's or the host's.
pub fn read_only_copy(path: &Path) -> rustix::io::Result<OwnedFd> {
    let tree = copy(CWD, path, OpenTreeFlags::empty())?;
    change(tree.as_fd(), Attributes::MOUNT_ATTR_RDONLY, Attributes::empty(), true)?;
    Ok(tree)
}

/// Sets and clears attributes of a mount, and with `private` ends its part in what others mount.
pub fn change(
    mount: BorrowedFd<'_>,
    set: Attributes,
    clear: Attributes,
    private: bool,
) -> rustix::io::Result<()> {
    setattr(
        mount,
        libc::mount_attr {
            attr_set: u64::from(set.bits()),
            attr_clr: u64::from(clear.bits()),
            propagation: if private { libc::MS_PRIVATE } else { 0 },
            userns_fd: 0,
        },
    )
}

/// Sets attributes of a detached mount; with `user_ns`, ids on the file system
/// appear as that user namespace maps them.
pub fn set_attributes(
    mount: BorrowedFd<'_>,
    set: Attributes,
    user_ns: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let mut attr_set = u64::from(set.bits());
    if user_ns.is_some() {
        attr_set |= libc::MOUNT_ATTR_IDMAP;
    }
    let attr = libc::mount_attr {
        attr_set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_ns.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    setattr(mount, attr).or_fault("setting the attributes of a mount")
}

fn setattr(mount: BorrowedFd<'_>, attr: libc::mount_attr) -> rustix::io::Result<()> {
    // SAFETY: the mount's descriptor is open for the call, as is one in `attr`; the path is a
    // constant C string and `attr` lives through the call with its size beside it.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// One option of a file system to [`create`].
#[derive(Clone, Copy, Debug)]
pub enum FsOption<'a> {
    /// `name`
    Flag(&'a str),
    /// `name=value`
    Text(&'a str, &'a Path),
    /// An open file or directory.
    Fd(&'a str, BorrowedFd<'a>),
}

/// Why a file system could not be made: the error, and what the kernel said.
#[derive(Debug)]
pub struct CreateError {
    /// The error number.
    pub errno: Errno,
    /// The kernel's sentences; often empty.
    pub said: String,
}

impl std::error::Error for CreateError {}

impl std::fmt::Display for CreateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let CreateError { errno, said } = self;
        if said.is_empty() { write!(f, "{errno}") } else { write!(f, "{errno} ({said})") }
    }
}

/// Makes a file system instance as a detached mount.
pub fn create(
    fs_type: &str,
    options: &[FsOption<'_>],
    attributes: Attributes,
) -> Result<OwnedFd, CreateError> {
    let context = fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| CreateError { errno, said: String::new() })?;
    configure(context.as_fd(), options, attributes)
        .map_err(|errno| CreateError { errno, said: messages(context.into()) })
}

fn configure(
    context: BorrowedFd<'_>,
    options: &[FsOption<'_>],
    attributes: Attributes,
) -> rustix::io::Result<OwnedFd> {
    for option in options {
        match *option {
            FsOption::Flag(name) => fsconfig_set_flag(context, name)?,
            FsOption::Text(name, value) => fsconfig_set_string(context, name, value)?,
            FsOption::Fd(name, fd) => fsconfig_set_fd(context, name, fd)?,
        }
    }
    fsconfig_create(context)?;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// What the kernel has to say on a file system context: one message a read.
fn messages(mut context: File) -> String {
    let mut said = Vec::new();
    let mut line = [0; 1024];
    while let Ok(length @ 1..) = context.read(&mut line) {
        // A letter for the severity and a space come first.
        said.push(
            String::from_utf8_lossy(line[..length].get(2..).unwrap_or(&[])).trim().to_owned(),
        );
    }
    said.join("; ")
}

/// Lets nobody write to the FUSE file system whose root is at `path`, by whatever mount of it.
pub fn make_fuse_read_only(path: &Path) -> Result<()> {
    const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;
    let doing = || format!("making {} read-only", path.display());
    let found = rustix::fs::statfs(path).or_fault(doing())?;
    if found.f_type as u64 != FUSE_SUPER_MAGIC {
        return Err(Errno::NOTSUP).or_fault(format_args!("{}: it is not FUSE", doing()));
    }
    let context = fspick(CWD, path, FsPickFlags::FSPICK_CLOEXEC).or_fault(doing())?;
    fsconfig_set_flag(context.as_fd(), "ro").or_fault(doing())?;
    fsconfig_reconfigure(context.as_fd()).or_fault(doing())
}

/// Puts a detached mount at `path`, which must exist.
pub fn attach(mount: BorrowedFd<'_>, path: &Path) -> Result<()> {
    move_mount(mount, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .or_fault(format_args!("mounting at {}", path.display()))
}

/// Puts a detached mount at `name`, a directory of the mounted or detached `parent` and no link.
pub fn attach_below(mount: BorrowedFd<'_>, parent: BorrowedFd<'_>, name: &Path) -> Result<()> {
    let doing = || format!("mounting at {} of a mount", name.display());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = openat(parent, name, flags, Mode::empty()).or_fault(doing())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", place.as_fd(), "", flags).or_fault(doing())
}

/// Says how mounts on the mount at `path` reach others, and theirs it.
pub fn propagate(path: &Path, kind: MountPropagationFlags) -> Result<()> {
    mount_change(path, kind).or_fault(format_args!("setting what {} shares", path.display()))
}

/// Makes the private mount whose root is `mount` one more slave, or peer, beside that at `path`,
/// in whatever mount namespace it is.
pub fn join_group(path: &Path, mount: BorrowedFd<'_>) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_SET_GROUP | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(CWD, path, mount, "", flags)
        .or_fault(format_args!("having a mount share with {}", path.display()))
}

/// Puts a detached mount on what `target` is open as, or on `name` in it.
pub fn attach_on(
    mount: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    name: &str,
) -> rustix::io::Result<()> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    flags.set(MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH, name.is_empty());
    move_mount(mount, "", target, name, flags)
}

/// The root directory of a detached mount, for work inside it.
pub fn root_of(mount: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(mount, ".", flags, Mode::empty()).or_fault("opening the root of a mount")
}

/// Takes away everything that is mounted at `path`. Nothing there is success.
/// Files still open keep the file system alive until they are closed.
pub fn unmount(path: &Path) -> Result<()> {
    for _ in 0..STACK_LIMIT {
        match unmount_once(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // EINVAL: no mount point.
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(e) => return Err(e).or_fault(format_args!("unmounting {}", path.display())),
        }
    }
    Err(Errno::BUSY).or_fault(format_args!("unmounting {}: too many mounts", path.display()))
}

/// Takes away what was last mounted at `path`, and all below it; what it covered is there again.
pub fn unmount_top(path: &Path) -> Result<()> {
    unmount_once(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        .or_fault(format_args!("unmounting the top of {}", path.display()))
}

/// Whether something is mounted at `path` itself; `false` when there is no such path.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match statx(CWD, path, flags, StatxFlags::TYPE) {
        Ok(found) => Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(e) => Err(e).or_fault(format_args!("looking at {}", path.display())),
    }
}

/// The mount points strictly below `path`, the latest mounted first: the order
/// in which they can be unmounted.
pub fn mounts_below(path: &Path) -> Result<Vec<PathBuf>> {
    let doing = "reading /proc/self/mountinfo";
    let mut found = Vec::new();
    for line in BufReader::new(File::open("/proc/self/mountinfo").or_fault(doing)?).split(b'\n') {
        let line = line.or_fault(doing)?;
        let Some(field) = line.split(|b| *b == b' ').nth(4) else { continue };
        let point = PathBuf::from(OsString::from_vec(unescape(field)));
        if point.starts_with(path) && point != path {
            found.push(point);
        }
    }
    found.reverse();
    Ok(found)
}

/// Makes `path` (a directory) a mount point of its own, once, whose mounts and
/// unmounts are shared with mount namespaces copied from this one.
///
/// Shared, not private: a service of the host that starts with a mount
/// namespace of its own gets a copy of every mount there is. Were they
/// private, an instance's deletion would not reach that copy, and its disk and
/// loop device would stay in use until the other service ends.
pub fn make_shared_mount_point(path: &Path) -> Result<()> {
    let doing = || format!("making {} a mount point", path.display());
    if !is_mount_point(path)? {
        mount_bind(path, path).or_fault(doing())?;
    }
    // First away from the parent's peers, then a peer group of its own.
    mount_change(path, MountPropagationFlags::PRIVATE).or_fault(doing())?;
    mount_change(path, MountPropagationFlags::SHARED).or_fault(doing())
}

/// Undoes mountinfo's `\040` and the like.
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) if byte == b'\\' => {
                out.push(code);
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Unmounted(PathBuf);
    impl Drop for Unmounted {
        fn drop(&mut self) {
            let _ = unmount(&self.0);
        }
    }

    fn tmpfs() -> OwnedFd {
        create("tmpfs", &[FsOption::Text("mode", Path::new("0755"))], Attributes::empty()).unwrap()
    }

    #[test]
    fn mountinfo_escapes() {
        assert_eq!(unescape(br"/a\040b\134c"), br"/a b\c");
        assert_eq!(unescape(br"/a\04"), br"/a\04");
    }

    #[test]
    fn root_mounts_are_seen_listed_and_taken_away_even_in_a_stack() {
        let dir = tempfile::tempdir().unwrap();
        let point = dir.path().join("with space");
        std::fs::create_dir(&point).unwrap();
        let _guard = Unmounted(point.clone());
        assert!(!is_mount_point(&point).unwrap());
        attach(tmpfs().as_fd(), &point).unwrap();
        attach(tmpfs().as_fd(), &point).unwrap();
        assert!(is_mount_point(&point).unwrap());
        assert_eq!(mounts_below(dir.path()).unwrap(), [point.clone(), point.clone()]);
        assert_eq!(mounts_below(&point).unwrap(), Vec::<PathBuf>::new());
        unmount(&point).unwrap();
        assert!(!is_mount_point(&point).unwrap());
        unmount(&point).unwrap();
        unmount(&dir.path().join("absent")).unwrap();
    }

    #[test]
    fn root_a_mount_point_is_made_once_and_shared() {
        let dir = tempfile::tempdir().unwrap();
        let _guard = Unmounted(dir.path().to_owned());
        make_shared_mount_point(dir.path()).unwrap();
        make_shared_mount_point(dir.path()).unwrap();
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let own: Vec<_> =
            table.lines().filter(|l| l.contains(dir.path().to_str().unwrap())).collect();
        assert_eq!(own.len(), 1, "{own:?}");
        assert!(own[0].contains("shared:"), "{own:?}");
    }
}
