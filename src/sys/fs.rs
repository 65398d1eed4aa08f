//! Files: staying inside a tree that may be hostile, growing and freezing a
//! mounted file system.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    FallocateFlags, Gid, Mode, OFlags, ResolveFlags, Uid, fallocate, fchmod, fchown, mkdirat,
    openat2, renameat, unlinkat,
};
use rustix::io::Errno;

/// Opens `path` as a process with `root` as its root directory would: no
/// symbolic link, absolute or with `..`, leads out of the tree, and no magic
/// link of proc is followed. The descriptor is closed on exec.
pub fn open_in_root(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    const TRIES: usize = 16;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..TRIES {
        match openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve) {
            // A rename somewhere on the host while the kernel resolved a `..`.
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens the directory `path` inside `root`; those missing on the way are made,
/// mode 0755, of the given owner.
pub fn make_dirs_in_root(
    root: BorrowedFd<'_>,
    path: &Path,
    owner: (u32, u32),
) -> rustix::io::Result<OwnedFd> {
    let open =
        |path: &Path| open_in_root(root, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
    let mut done = PathBuf::from("/");
    let mut parent = open(&done)?;
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        done.push(name);
        let next = match open(&done) {
            Err(Errno::NOENT) => {
                mkdirat(parent.as_fd(), name, Mode::from_raw_mode(0o755))?;
                let made = open(&done)?;
                set_owner_and_mode(made.as_fd(), owner, 0o755)?;
                made
            }
            other => other?,
        };
        parent = next;
    }
    Ok(parent)
}

/// Puts a file with `content` at `name` in the directory `parent`, in one step:
/// whatever was there (a link, a device, a pipe) is replaced, never opened.
/// A directory is not replaced (`EISDIR`).
pub fn replace_file(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    content: &[u8],
    owner: (u32, u32),
    mode: u32,
) -> io::Result<()> {
    let temporary = format!(".berth-{}", uuid::Uuid::new_v4().simple());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, &temporary, flags, Mode::from_raw_mode(0o600))?;
    let placed = (|| {
        let mut file = File::from(fd);
        io::Write::write_all(&mut file, content)?;
        set_owner_and_mode(file.as_fd(), owner, mode)?;
        Ok(renameat(parent, &temporary, parent, name)?)
    })();
    placed.inspect_err(|_: &io::Error| {
        // The caller hears of the first failure; what is left is one stray file of ours.
        let _ = unlinkat(parent, &temporary, rustix::fs::AtFlags::empty());
    })
}

/// The owner first: changing it takes set-id bits away.
fn set_owner_and_mode(
    fd: BorrowedFd<'_>,
    (uid, gid): (u32, u32),
    mode: u32,
) -> rustix::io::Result<()> {
    fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    fchmod(fd, Mode::from_raw_mode(mode))
}

/// Has the kernel begin to write a file's data to its disk (sync_file_range(2)), which is a hint:
/// that it is there, only a sync says.
pub fn begin_writeback(file: &File) {
    // SAFETY: the descriptor is open; no memory is handed over.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE);
    }
}

/// Reserves all `size` bytes of a file on its file system.
pub fn preallocate(file: &File, size: u64) -> io::Result<()> {
    Ok(fallocate(file, FallocateFlags::empty(), 0, size)?)
}

const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610; // _IOW('f', 16, __u64)
const XFS_IOC_FSGEOMETRY_V1: libc::c_ulong = 0x8070_5864; // _IOR('X', 100, 112 bytes)
const XFS_IOC_FSGROWFSDATA: libc::c_ulong = 0x4010_586E; // _IOW('X', 110, 16 bytes)

/// Grows the mounted ext4 that holds `directory` to `blocks` of its blocks.
/// The kernel wants `CAP_SYS_RESOURCE`.
pub fn grow_ext4(directory: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    // SAFETY: the request reads one u64, which lives through the call.
    let done = unsafe { libc::ioctl(directory.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Grows the data part of the mounted xfs that holds `directory` to `blocks` of its blocks.
pub fn grow_xfs(directory: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    #[repr(C)]
    struct Growth {
        blocks: u64,
        inode_percent: u32,
    }
    // struct xfs_fsop_geom_v1; the eighth number is the share of inodes, which
    // the growth request sets again.
    let mut geometry = [0u32; 28];
    // SAFETY: the request writes 112 bytes, the array's size.
    let done =
        unsafe { libc::ioctl(directory.as_raw_fd(), XFS_IOC_FSGEOMETRY_V1, geometry.as_mut_ptr()) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let growth = Growth { blocks, inode_percent: geometry[7] };
    // SAFETY: the request reads a xfs_growfs_data, which lives through the call.
    let done =
        unsafe { libc::ioctl(directory.as_raw_fd(), XFS_IOC_FSGROWFSDATA, &raw const growth) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const FIFREEZE: libc::c_ulong = 0xC004_5877; // _IOWR('X', 119, int)
const FITHAW: libc::c_ulong = 0xC004_5878; // _IOWR('X', 120, int)

/// Writes all of the file system that holds `directory` to its device and
/// holds whoever wants to change it until [`thaw`]; false, when it is frozen
/// already, or about to be. It returns when the writes under way have ended, and
/// no signal ends it before.
pub fn freeze(directory: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: the request's argument is unused.
    match unsafe { libc::ioctl(directory.as_raw_fd(), FIFREEZE, 0) } {
        0 => Ok(true),
        _ => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::EBUSY) => Ok(false),
            e => Err(e),
        },
    }
}

/// Lets changes go on; not frozen is success.
pub fn thaw(directory: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request's argument is unused.
    match unsafe { libc::ioctl(directory.as_raw_fd(), FITHAW, 0) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            e => Err(e),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn root(dir: &Path) -> OwnedFd {
        File::open(dir).unwrap().into()
    }

    fn own() -> (u32, u32) {
        (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw())
    }

    #[test]
    fn links_do_not_lead_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::create_dir_all(inside.join("a")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        symlink(&outside, inside.join("absolute")).unwrap();
        symlink("../../out", inside.join("a/relative")).unwrap();
        symlink("/proc/self/root", inside.join("magic")).unwrap();
        let root = root(&inside);
        for path in ["absolute/x", "a/relative/x", "magic/x"] {
            assert!(make_dirs_in_root(root.as_fd(), Path::new(path), own()).is_err(), "{path}");
        }
        // `..` stops at the root.
        make_dirs_in_root(root.as_fd(), Path::new("b/c"), own()).unwrap();
        open_in_root(root.as_fd(), Path::new("../../b/c"), OFlags::PATH, Mode::empty()).unwrap();
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn a_link_is_replaced_not_followed_and_a_directory_stays() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        std::fs::write(&target, "old").unwrap();
        symlink(&target, dir.path().join("link")).unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        let root = root(dir.path());
        let put = |name: &str| replace_file(root.as_fd(), OsStr::new(name), b"new", own(), 0o4755);
        put("link").unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"old");
        let meta = std::fs::symlink_metadata(dir.path().join("link")).unwrap();
        assert!(meta.is_file());
        assert_eq!(meta.permissions().mode() & 0o7777, 0o4755);
        assert_eq!(put("d").unwrap_err().raw_os_error(), Some(libc::EISDIR));
        // target, link, d: no temporary file.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
