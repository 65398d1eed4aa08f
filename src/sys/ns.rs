//! Namespaces that outlive their processes: made once, pinned as files.

use std::ffi::c_void;
use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::ids::IdBlock;
use super::{mount, thread};
use crate::fault::{OrFault, Result};

/// Makes a user namespace whose ids 0… are `block` (users and groups), and a
/// network namespace that it owns, with `lo` up; pins both as files, which are
/// made when absent. Pins that exist are replaced.
///
/// The user namespace belongs to the block's first user: what the kernel counts
/// for each user (inotify, pending signals and timers, message queues, locked
/// memory, namespaces), it counts for all users of a namespace to its owner.
/// root as owner of all would be one purse for every instance and the host.
pub fn create_pinned(block: IdBlock, user_ns: &Path, net_ns: &Path) -> Result<()> {
    unpin(user_ns)?;
    unpin(net_ns)?;
    // The holder lives no longer than the thread that starts it.
    let pinned = thread::on_own_thread(|| {
        let holder = thread::with_effective_user(block.first, Holder::start)?;
        holder.map_ids(block)?;
        holder.pin("user", user_ns)?;
        holder.pin("net", net_ns)
    })
    .and_then(|()| thread::in_netns(net_ns, loopback_up));
    pinned.inspect_err(|_| {
        // The first failure is what the caller needs to hear.
        let _ = unpin(user_ns);
        let _ = unpin(net_ns);
    })
}

/// Has the pin `to` be of the namespace that is pinned at `from`, whatever it was of before.
pub fn replace(from: &Path, to: &Path) -> Result<()> {
    let same = || Some(fs::metadata(from).ok()?.ino() == fs::metadata(to).ok()?.ino());
    if mount::is_mount_point(to)? && same() == Some(true) {
        return Ok(());
    }
    mount::unmount(to)?;
    make_pin(to)?;
    mount::attach(mount::clone_tree(from)?.as_fd(), to)
}

fn make_pin(path: &Path) -> Result<()> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .or_fault(format_args!("making {}", path.display()))
}

/// Removes a pin; the namespace ends with its last process. Absence is success.
pub fn unpin(path: &Path) -> Result<()> {
    mount::unmount(path)?;
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).or_fault(format_args!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A child that does nothing but be in new namespaces, until dropped.
///
/// It shares the service's memory and descriptors, so that starting it costs
/// no copy of either, and dies with the thread that started it.
struct Holder {
    pid: Pid,
    /// The child's stack, freed after the child.
    _stack: Vec<u8>,
}

const STACK: usize = 32 * 1024;

impl Holder {
    fn start() -> Result<Holder> {
        let mut stack = vec![0u8; STACK];
        // SAFETY: the pointer is one past the end of the allocation, rounded
        // down to 16 as the ABI demands; only the child uses what is below it.
        let top = unsafe { stack.as_mut_ptr().add(STACK) };
        let top = top.wrapping_sub(top as usize % 16).cast::<c_void>();
        let flags = libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_NEWUSER | libc::CLONE_NEWNET;
        let parent = std::process::id() as usize as *mut c_void;
        // The child has this thread's signal mask: with all blocked, only
        // SIGKILL reaches it, and none of the service's handlers runs in it.
        let before =
            SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).or_fault("blocking signals")?;
        // SAFETY: `be_there` touches no memory but its own stack, which lives in
        // the returned value until the child was reaped (see Drop). Without
        // an exit signal nobody else's wait() can reap it.
        let pid = unsafe { libc::clone(be_there, top, flags, parent) };
        let error = std::io::Error::last_os_error();
        before.thread_set_mask().or_fault("restoring the signal mask")?;
        match Pid::from_raw(pid.max(0)) {
            Some(pid) => Ok(Holder { pid, _stack: stack }),
            None => Err(error).or_fault("making a user and a network namespace"),
        }
    }

    fn map_ids(&self, block: IdBlock) -> Result<()> {
        let map = format!("0 {} {}\n", block.first, block.size);
        for file in ["gid_map", "uid_map"] {
            fs::write(format!("/proc/{}/{file}", self.pid), &map)
                .or_fault(format_args!("mapping ids: {file} {}", map.trim_end()))?;
        }
        Ok(())
    }

    fn pin(&self, name: &str, path: &Path) -> Result<()> {
        make_pin(path)?;
        let namespace = format!("/proc/{}/ns/{name}", self.pid);
        mount::attach(mount::clone_tree(Path::new(&namespace))?.as_fd(), path)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Both can only fail if the child is gone, which nothing else can bring about.
        let _ = kill_process(self.pid, Signal::KILL);
        let any = WaitOptions::from_bits_retain(libc::__WALL.cast_unsigned());
        while waitpid(Some(self.pid), any).is_err_and(|e| e == Errno::INTR) {}
    }
}

/// What the child does. It shares memory with the service, so it may not even
/// set `errno`: every call here either succeeds or never returns.
extern "C" fn be_there(parent: *mut c_void) -> libc::c_int {
    // SAFETY: system calls with constant arguments that read and write no memory.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // The parent may have died before that call.
        if libc::syscall(libc::SYS_getppid) != parent as libc::c_long {
            return 0;
        }
        loop {
            // No descriptors, no time limit, all signals blocked: for ever.
            libc::syscall(libc::SYS_ppoll, 0usize, 0usize, 0usize, 0usize, 0usize);
        }
    }
}

fn loopback_up() -> Result<()> {
    let doing = "setting lo up";
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").or_fault(doing)?;
    // SAFETY: an all-zero ifreq is valid: integers, bytes and null pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which lives through the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }.or_fault(doing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Pins(PathBuf, PathBuf);
    impl Drop for Pins {
        fn drop(&mut self) {
            let _ = unpin(&self.0);
            let _ = unpin(&self.1);
        }
    }

    const BLOCK: IdBlock = IdBlock { first: 1_900_000_000, size: 65_536 };

    #[test]
    fn root_namespaces_are_made_pinned_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let pins = Pins(dir.path().join("user"), dir.path().join("net"));
        create_pinned(BLOCK, &pins.0, &pins.1).unwrap();
        let first = fs::metadata(&pins.1).unwrap().ino();
        assert_ne!(first, fs::metadata("/proc/self/ns/net").unwrap().ino());
        assert_ne!(
            fs::metadata(&pins.0).unwrap().ino(),
            fs::metadata("/proc/self/ns/user").unwrap().ino()
        );
        let flags = thread::in_netns(&pins.1, || {
            fs::read_to_string("/proc/thread-self/net/if_inet6").or_fault("reading")
        });
        assert!(flags.unwrap().contains(" lo\n"), "lo is not up");
        // This thread stays root's.
        assert!(rustix::process::geteuid().is_root());
        let other = Pins(dir.path().join("other-user"), dir.path().join("other-net"));
        create_pinned(BLOCK, &other.0, &other.1).unwrap();
        for _ in 0..2 {
            replace(&other.1, &pins.1).unwrap();
            let inode = |path| fs::metadata(path).unwrap().ino();
            assert_eq!(inode(&pins.1), inode(&other.1));
        }
        drop(other);
        // Once more with the pins in place: new namespaces, no stack of mounts.
        create_pinned(BLOCK, &pins.0, &pins.1).unwrap();
        assert_ne!(first, fs::metadata(&pins.1).unwrap().ino());
        unpin(&pins.0).unwrap();
        unpin(&pins.1).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        unpin(&pins.0).unwrap();
    }

    #[test]
    fn root_the_network_belongs_to_the_user_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let pins = Pins(dir.path().join("user"), dir.path().join("net"));
        create_pinned(BLOCK, &pins.0, &pins.1).unwrap();
        let enter = |arguments: &[&str]| {
            let mut command = std::process::Command::new("nsenter");
            command.arg(format!("--user={}", pins.0.display()));
            command.arg(format!("--net={}", pins.1.display()));
            command.args(arguments).output().unwrap()
        };
        let map = enter(&["cat", "/proc/self/uid_map"]);
        let map = String::from_utf8(map.stdout).unwrap();
        assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "1900000000", "65536"]);
        let add = enter(&["ip", "address", "add", "192.0.2.1/32", "dev", "lo"]);
        assert!(add.status.success(), "{add:?}");
    }

    #[test]
    fn root_a_failure_leaves_no_pin() {
        let dir = tempfile::tempdir().unwrap();
        let (user, net) = (dir.path().join("user"), dir.path().join("net"));
        let beyond = IdBlock { first: u32::MAX, size: 2 };
        assert!(create_pinned(beyond, &user, &net).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn root_many_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pins: Vec<_> = (0..16)
            .map(|i| Pins(dir.path().join(format!("u{i}")), dir.path().join(format!("n{i}"))))
            .collect();
        std::thread::scope(|scope| {
            for pin in &pins {
                scope.spawn(|| create_pinned(BLOCK, &pin.0, &pin.1).unwrap());
            }
        });
        let inodes: std::collections::BTreeSet<_> =
            pins.iter().map(|p| fs::metadata(&p.1).unwrap().ino()).collect();
        assert_eq!(inodes.len(), 16);
    }
}
