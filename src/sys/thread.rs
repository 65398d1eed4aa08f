//! Work on a thread of its own: for what the kernel keeps per thread (network
//! and mount namespace, file system ids) and what must therefore never be set on a
//! thread of a pool.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{chroot, fchdir};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, LinkNameSpaceType, capabilities,
    move_into_link_name_space, set_capabilities, set_capabilities_secure_bits, set_thread_res_uid,
};

use super::ids::IdBlock;
use crate::fault::{Fault, FaultKind, OrFault, Result};

/// Runs `f` on a new thread that first entered the network namespace `net_ns`
/// (a pin, or `/proc/PID/ns/net`), and that ends with `f`.
pub fn in_netns<T: Send>(net_ns: &Path, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_own_thread(|| {
        let doing = || format!("entering the network namespace {}", net_ns.display());
        let fd = std::fs::File::open(net_ns).or_fault(doing())?;
        move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network)).or_fault(doing())?;
        f()
    })
}

/// Runs `f` on a new thread that acts on files as root of `block`, with all of
/// the service's capabilities: files it makes in an instance's tree belong to
/// the instance's root. Overlayfs refuses ids that its mounts do not map.
pub fn as_ids<T: Send>(block: IdBlock, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_own_thread(|| {
        keep_capabilities()?;
        let (uid, gid) = (Uid::from_raw(block.first), Gid::from_raw(block.first));
        setfsgid(gid);
        setfsuid(uid);
        // These calls tell of no failure; asking again gives what is in force.
        if setfsgid(gid) != gid || setfsuid(uid) != uid {
            return Err(Fault::internal(
                "acting as an instance's root",
                format!("the kernel refused the id {}", block.first),
            ));
        }
        f()
    })
}

/// A mount namespace that the present thread may be in; only for a thread of its own.
#[derive(Debug)]
pub struct MountNamespace(OwnedFd);

impl MountNamespace {
    fn open(path: &Path) -> Result<MountNamespace> {
        let file =
            std::fs::File::open(path).or_fault(format_args!("opening {}", path.display()))?;
        Ok(MountNamespace(file.into()))
    }

    /// Goes there: its root is then the thread's root and working directory.
    pub fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Mount))
            .or_fault("entering a mount namespace")
    }
}

/// Runs `f` on a new thread with a copy of the host's mounts of its own, which
/// no mount leaves or enters and which ends with `f`. It is given that and the
/// mount namespace `other` (`/proc/PID/ns/mnt`).
pub fn in_own_mounts<T: Send>(
    other: &Path,
    f: impl FnOnce(MountNamespace, MountNamespace) -> Result<T> + Send,
) -> Result<T> {
    on_own_thread(|| {
        let other = MountNamespace::open(other)?;
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)
            .map_err(std::io::Error::from)
            .or_fault("making a mount namespace")?;
        let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", all).or_fault("keeping mounts to a namespace")?;
        let own = MountNamespace::open(Path::new("/proc/thread-self/ns/mnt"))?;
        f(own, other)
    })
}

/// Runs `f` on a new thread that may go to the mount namespace `other` (`/proc/PID/ns/mnt`) and back
/// to the host's. It is given that of the host and the other.
pub fn between_mounts<T: Send>(
    other: &Path,
    f: impl FnOnce(MountNamespace, MountNamespace) -> Result<T> + Send,
) -> Result<T> {
    on_own_thread(|| {
        let other = MountNamespace::open(other)?;
        let own = MountNamespace::open(Path::new("/proc/thread-self/ns/mnt"))?;
        // Who shares its root directory with other threads goes nowhere.
        unshare(CloneFlags::CLONE_FS)
            .map_err(std::io::Error::from)
            .or_fault("having a root directory of its own")?;
        f(own, other)
    })
}

/// Gives the thread a working directory that it shares with no other: only for
/// a thread of its own.
pub fn work_in(directory: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_FS)
        .map_err(std::io::Error::from)
        .and_then(|()| std::env::set_current_dir(directory))
        .or_fault(format_args!("working in {}", directory.display()))
}

/// Runs `f` on a new thread whose root directory is an open one.
pub fn in_root<T: Send>(root: BorrowedFd<'_>, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_own_thread(|| {
        let doing = "changing a thread's root directory";
        unshare(CloneFlags::CLONE_FS).map_err(std::io::Error::from).or_fault(doing)?;
        fchdir(root).and_then(|()| chroot(".")).or_fault(doing)?;
        f()
    })
}

/// Runs `f` on a new thread that lacks a right which this one has: what the kernel notes of
/// whoever uses it, it does not note then.
pub fn without_right<T: Send>(right: CapabilitySet, f: impl FnOnce() -> T + Send) -> Result<T> {
    on_own_thread(|| {
        let doing = "doing without a right";
        let mut sets = capabilities(None).or_fault(doing)?;
        sets.effective.remove(right);
        set_capabilities(None, sets).or_fault(doing)?;
        Ok(f())
    })
}

/// Runs `f` with `uid` as this thread's effective user and all capabilities.
/// To be called on a thread of its own, which is root again afterwards.
pub(super) fn with_effective_user<T>(uid: u32, f: impl FnOnce() -> Result<T>) -> Result<T> {
    use rustix::process::Uid;
    keep_capabilities()?;
    // The kernel's call, for this thread: the C library's changes all of them.
    let become_user = |uid| {
        set_thread_res_uid(Uid::ROOT, uid, Uid::ROOT)
            .or_fault(format_args!("acting as user {uid:?}"))
    };
    become_user(Uid::from_raw(uid))?;
    let done = f();
    become_user(Uid::ROOT)?;
    done
}

/// Without this bit, leaving user 0 takes this thread's capabilities.
fn keep_capabilities() -> Result<()> {
    set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)
        .or_fault("keeping capabilities over a change of ids")
}

/// Runs `f` on a new thread, which ends with it.
pub(super) fn on_own_thread<T: Send>(f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("berth-enter".into())
            .spawn_scoped(scope, f)
            .or_kind(FaultKind::ResourcesExhausted, "starting a thread")?
            .join()
            .unwrap_or_else(|_| Err(Fault::internal("a helper thread", "it panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_files_made_as_ids_belong_to_the_block_and_this_thread_is_unchanged() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let block = IdBlock { first: 1_900_000_000, size: 65_536 };
        // The directory is root's, mode 0700: only a kept capability lets us in.
        as_ids(block, || std::fs::write(&path, b"x").or_fault("writing")).unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (block.first, block.first));
        let own = dir.path().join("own");
        std::fs::write(&own, b"").unwrap();
        assert_eq!(std::fs::metadata(&own).unwrap().uid(), 0);
    }

    #[test]
    fn a_panic_inside_is_a_fault() {
        let block = IdBlock { first: 0, size: 1 };
        let fault = as_ids::<()>(block, || panic!("on purpose")).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Internal);
    }
}
