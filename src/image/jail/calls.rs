//! The system calls that each kind of work in the jail makes.
//!
//! Lists of what is allowed, and by what is done, not by what could do harm: no
//! sockets, no new namespaces or mounts, no processes, no io_uring, bpf, perf,
//! keyrings, userfaultfd, ptrace. A call that is refused does not exist
//! (ENOSYS), so that libraries fall back as on an older kernel.

use libc::c_long;

use super::task::Work;
use crate::sys::filter::Allowed;

/// What a process of any kind does: its memory, its threads' locks, its descriptors.
const LIVING: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_prlimit64,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// What reads files by descriptor and by name.
const READING: &[c_long] = &[
    libc::SYS_copy_file_range,
    libc::SYS_faccessat,
    libc::SYS_fadvise64,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_lgetxattr,
    libc::SYS_llistxattr,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_splice,
    libc::SYS_statx,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
];

/// What makes a tree.
const WRITING: &[c_long] = &[
    libc::SYS_chdir,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_fsetxattr,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_linkat,
    libc::SYS_lsetxattr,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_symlinkat,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
];

/// What starts a program, and what `qemu-img` does besides.
const CONVERTING: &[c_long] = &[
    libc::SYS_clock_getres,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_execve,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_membarrier,
    libc::SYS_pipe2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_set_tid_address,
    libc::SYS_signalfd4,
    libc::SYS_sync_file_range,
    libc::SYS_sysinfo,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_uname,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
];

/// New namespaces, and whether it is a thread that comes of it.
const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET)
    .cast_unsigned();
const THREAD: u32 = libc::CLONE_THREAD.cast_unsigned();
/// `PR_SET_NAME`, of a thread.
const SET_NAME: u32 = libc::PR_SET_NAME.cast_unsigned();

/// The calls of this work.
pub(super) fn of(work: &Work) -> Vec<Allowed> {
    let lists: &[&[c_long]] = match work {
        Work::Convert { .. } => &[LIVING, READING, CONVERTING],
        Work::Stage { .. } | Work::Layer { .. } | Work::Fill { .. } => &[LIVING, READING, WRITING],
        _ => &[LIVING, READING],
    };
    let calls = lists.iter().copied().flatten();
    // Threads alone; `clone3`, whose flags no filter sees, falls back to this.
    let threads =
        Allowed::First { call: libc::SYS_clone, mask: NEW_NAMESPACES | THREAD, set: THREAD };
    // A working directory of a thread's own.
    let tables =
        Allowed::First { call: libc::SYS_unshare, mask: !libc::CLONE_FS.cast_unsigned(), set: 0 };
    let names = Allowed::First { call: libc::SYS_prctl, mask: u32::MAX, set: SET_NAME };
    calls.map(|call| Allowed::Always(*call)).chain([threads, tables, names]).collect()
}
