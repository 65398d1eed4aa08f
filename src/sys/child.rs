//! Children that are this program's own code, made with clone3(2).

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::process::Pid;
use rustix::thread::ThreadNameSpaceType;

use super::process::PidFd;

/// `CLONE_INTO_CGROUP`, which needs more bits than libc gives it.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// What a child is born with, and where.
#[derive(Clone, Copy, Debug)]
pub struct Birth<'a> {
    /// Namespaces of its own.
    pub namespaces: ThreadNameSpaceType,
    /// The cgroup of version 2 in which it begins, an open directory. Moving there afterwards
    /// would wait for a grace period of the kernel's.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Whether it becomes a child of this process's parent instead of this process's.
    pub of_parent: bool,
}

impl Default for Birth<'_> {
    fn default() -> Self {
        Birth { namespaces: ThreadNameSpaceType::empty(), cgroup: None, of_parent: false }
    }
}

/// Starts a child that does `life` and exits with what that gives. No signal is blocked,
/// handled or ignored in it. The calling process must have a single thread: what others
/// hold, the allocator's locks too, would be held in the child for ever.
pub fn start(birth: &Birth<'_>, life: impl FnOnce() -> i32) -> io::Result<(Pid, PidFd)> {
    // A child has, that makes another for its parent; its `/proc` may be a tenant's by then.
    if !birth.of_parent && !has_one_thread()? {
        return Err(io::Error::other("a process with several threads makes no children"));
    }
    let mut pidfd: libc::c_int = -1;
    // SAFETY: an all-zero clone_args is valid: numbers alone.
    let mut request: libc::clone_args = unsafe { std::mem::zeroed() };
    request.flags = u64::from(birth.namespaces.bits()) | libc::CLONE_PIDFD as u64;
    request.pidfd = (&raw mut pidfd) as u64;
    if birth.of_parent {
        // The signal of its end is then this process's own.
        request.flags |= libc::CLONE_PARENT as u64;
    } else {
        request.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = birth.cgroup {
        request.flags |= CLONE_INTO_CGROUP;
        request.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child has a copy of this process's memory and its only
    // thread, as after fork; both pointers live through the call.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone3, &raw const request, size_of::<libc::clone_args>())
    };
    match pid {
        0 => {
            default_signals();
            let code = catch_unwind(AssertUnwindSafe(life)).unwrap_or(255);
            // SAFETY: runs no handler of the parent's and flushes none of its buffers.
            unsafe { libc::_exit(code) }
        }
        1.. => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let pid = pid.ok_or_else(|| io::Error::other("clone3 gave no process id"))?;
            // SAFETY: CLONE_PIDFD has the kernel put a new descriptor there, which is nobody else's.
            Ok((pid, unsafe { PidFd::from_raw(pidfd) }))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Does `life` in a process that has one thread, as a test's has not; gives its exit code.
#[cfg(test)]
pub fn alone(life: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: the child has this thread alone, and libc has made its own locks free in it.
    match unsafe { libc::fork() } {
        0 => {
            let code = catch_unwind(AssertUnwindSafe(life)).unwrap_or(255);
            // SAFETY: as in `start`.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let pid = Pid::from_raw(pid.max(0)).ok_or_else(io::Error::last_os_error)?;
            let ended = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())?;
            let code = ended.and_then(|(_, status)| status.exit_status());
            code.ok_or_else(|| io::Error::other("it was killed"))
        }
    }
}

/// `/proc/self/task` has a link for each thread, and the usual two.
fn has_one_thread() -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata("/proc/self/task")?.nlink() == 3)
}

/// What a program that is executed finds otherwise: SIGPIPE ignored, SIGCHLD blocked.
fn default_signals() {
    for signal in 1..=64 {
        // SAFETY: the default needs no handler; numbers that libc keeps for itself it refuses.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // It can only fail for a bad address.
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// Becomes another program; returns only why it did not.
pub fn execute(
    program: &std::ffi::CStr,
    arguments: &[std::ffi::CString],
    environment: &[std::ffi::CString],
) -> io::Error {
    let list = |texts: &[std::ffi::CString]| {
        let pointers = texts.iter().map(|text| text.as_ptr());
        pointers.chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let (arguments, environment) = (list(arguments), list(environment));
    // SAFETY: both lists end with a null pointer and live, with their texts, through the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Leaves the keyring of the session that this process comes from for a new one of this name.
pub fn join_session_keyring(name: &str) -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    let name = std::ffi::CString::new(name)?;
    // SAFETY: the kernel copies the name, which lives through the call.
    let done =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    if done >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
