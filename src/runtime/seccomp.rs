//! The system calls that instances may make: an allow-list.
//!
//! What is not named fails with ENOSYS, as on a kernel without it, and programs fall back: glibc
//! from `clone3`, container tools from keyrings. So do calls that reach past namespaces (keyrings,
//! bpf, perf, userfaultfd, io_uring, quotas). What is named as denied fails with EPERM, which the
//! kernel itself would say to a root that is none on the host: modules, kexec, swap, the clock,
//! the log, opening files by handle. Applications get no way to mount, to make namespaces or to
//! restart the machine; an init program needs these, and the user namespace bounds what they can
//! do. What the kernel holds within a process or its namespaces is let through: memory policy,
//! personalities, reading clocks and schedulers.
//!
//! `socketcall`, the 32-bit x86 way to sockets, hides the family behind a pointer that no filter
//! can follow, so it is denied. Kernels since 4.3 have calls for each of its purposes, which musl
//! takes; glibc of 32 bits is mostly built for older kernels and gets no sockets.
//!
//! Arguments of 32 bits are compared as such: the kernel does not look at the register's other half.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

use super::role::Role;
use super::walls::Walls;

/// Calls that every instance may make, whatever the arguments.
const ALLOWED: &[&str] = &[
    "_llseek",
    "_newselect",
    "accept",
    "accept4",
    "access",
    "adjtimex",
    "alarm",
    "arch_prctl",
    "arm_fadvise64_64",
    "arm_sync_file_range",
    "bind",
    "breakpoint",
    "brk",
    "cacheflush",
    "cachestat",
    "capget",
    "capset",
    "chdir",
    "chmod",
    "chown",
    "chown32",
    "chroot",
    "clock_adjtime",
    "clock_adjtime64",
    "clock_getres",
    "clock_getres_time64",
    "clock_gettime",
    "clock_gettime64",
    "clock_nanosleep",
    "clock_nanosleep_time64",
    "close",
    "close_range",
    "connect",
    "copy_file_range",
    "creat",
    "dup",
    "dup2",
    "dup3",
    "epoll_create",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "eventfd",
    "eventfd2",
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fadvise64_64",
    "fallocate",
    "fanotify_mark",
    "fchdir",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "fchown",
    "fchown32",
    "fchownat",
    "fcntl",
    "fcntl64",
    "fdatasync",
    "fgetxattr",
    "flistxattr",
    "flock",
    "fork",
    "fremovexattr",
    "fsetxattr",
    "fstat",
    "fstat64",
    "fstatat64",
    "fstatfs",
    "fstatfs64",
    "fsync",
    "ftruncate",
    "ftruncate64",
    "futex",
    "futex_requeue",
    "futex_time64",
    "futex_wait",
    "futex_waitv",
    "futex_wake",
    "futimesat",
    "get_mempolicy",
    "get_robust_list",
    "get_thread_area",
    "getcpu",
    "getcwd",
    "getdents",
    "getdents64",
    "getegid",
    "getegid32",
    "geteuid",
    "geteuid32",
    "getgid",
    "getgid32",
    "getgroups",
    "getgroups32",
    "getitimer",
    "getpeername",
    "getpgid",
    "getpgrp",
    "getpid",
    "getppid",
    "getpriority",
    "getrandom",
    "getresgid",
    "getresgid32",
    "getresuid",
    "getresuid32",
    "getrlimit",
    "getrusage",
    "getsid",
    "getsockname",
    "getsockopt",
    "gettid",
    "gettimeofday",
    "getuid",
    "getuid32",
    "getxattr",
    "getxattrat",
    "inotify_add_watch",
    "inotify_init",
    "inotify_init1",
    "inotify_rm_watch",
    "io_cancel",
    "io_destroy",
    "io_getevents",
    "io_pgetevents",
    "io_pgetevents_time64",
    "io_setup",
    "io_submit",
    "ioprio_get",
    "ioprio_set",
    "ipc",
    "kcmp",
    "kill",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "lchown",
    "lchown32",
    "lgetxattr",
    "link",
    "linkat",
    "listen",
    "listxattr",
    "listxattrat",
    "llistxattr",
    "lremovexattr",
    "lseek",
    "lsetxattr",
    "lstat",
    "lstat64",
    "madvise",
    "map_shadow_stack",
    "mbind",
    "membarrier",
    "memfd_create",
    "migrate_pages",
    "mincore",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "mlock",
    "mlock2",
    "mlockall",
    "mmap",
    "mmap2",
    "modify_ldt",
    "move_pages",
    "mprotect",
    "mq_getsetattr",
    "mq_notify",
    "mq_open",
    "mq_timedreceive",
    "mq_timedreceive_time64",
    "mq_timedsend",
    "mq_timedsend_time64",
    "mq_unlink",
    "mremap",
    "mseal",
    "msgctl",
    "msgget",
    "msgrcv",
    "msgsnd",
    "msync",
    "munlock",
    "munlockall",
    "munmap",
    "name_to_handle_at",
    "nanosleep",
    "newfstatat",
    "nice",
    "open",
    "openat",
    "openat2",
    "pause",
    "personality",
    "pidfd_getfd",
    "pidfd_open",
    "pidfd_send_signal",
    "pipe",
    "pipe2",
    "pkey_alloc",
    "pkey_free",
    "pkey_mprotect",
    "poll",
    "ppoll",
    "ppoll_time64",
    "prctl",
    "pread64",
    "preadv",
    "preadv2",
    "prlimit64",
    "process_madvise",
    "process_mrelease",
    "process_vm_readv",
    "process_vm_writev",
    "pselect6",
    "pselect6_time64",
    "ptrace",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readahead",
    "readdir",
    "readlink",
    "readlinkat",
    "readv",
    "recv",
    "recvfrom",
    "recvmmsg",
    "recvmmsg_time64",
    "recvmsg",
    "remap_file_pages",
    "removexattr",
    "removexattrat",
    "rename",
    "renameat",
    "renameat2",
    "restart_syscall",
    "rmdir",
    "rseq",
    "rt_sigaction",
    "rt_sigpending",
    "rt_sigprocmask",
    "rt_sigqueueinfo",
    "rt_sigreturn",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "rt_sigtimedwait_time64",
    "rt_tgsigqueueinfo",
    "sched_get_priority_max",
    "sched_get_priority_min",
    "sched_getaffinity",
    "sched_getattr",
    "sched_getparam",
    "sched_getscheduler",
    "sched_rr_get_interval",
    "sched_rr_get_interval_time64",
    "sched_setaffinity",
    "sched_setattr",
    "sched_setparam",
    "sched_setscheduler",
    "sched_yield",
    "seccomp",
    "select",
    "semctl",
    "semget",
    "semop",
    "semtimedop",
    "semtimedop_time64",
    "send",
    "sendfile",
    "sendfile64",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "set_mempolicy",
    "set_mempolicy_home_node",
    "set_robust_list",
    "set_thread_area",
    "set_tid_address",
    "set_tls",
    "setfsgid",
    "setfsgid32",
    "setfsuid",
    "setfsuid32",
    "setgid",
    "setgid32",
    "setgroups",
    "setgroups32",
    "setitimer",
    "setpgid",
    "setpriority",
    "setregid",
    "setregid32",
    "setresgid",
    "setresgid32",
    "setresuid",
    "setresuid32",
    "setreuid",
    "setreuid32",
    "setrlimit",
    "setsid",
    "setuid",
    "setuid32",
    "setxattr",
    "setxattrat",
    "shmat",
    "shmctl",
    "shmdt",
    "shmget",
    "shutdown",
    "sigaction",
    "sigaltstack",
    "signal",
    "signalfd",
    "signalfd4",
    "sigpending",
    "sigprocmask",
    "sigreturn",
    "sigsuspend",
    "splice",
    "stat",
    "stat64",
    "statfs",
    "statfs64",
    "statx",
    "symlink",
    "symlinkat",
    "sync",
    "sync_file_range",
    "sync_file_range2",
    "syncfs",
    "sysinfo",
    "tee",
    "tgkill",
    "time",
    "timer_create",
    "timer_delete",
    "timer_getoverrun",
    "timer_gettime",
    "timer_gettime64",
    "timer_settime",
    "timer_settime64",
    "timerfd_create",
    "timerfd_gettime",
    "timerfd_gettime64",
    "timerfd_settime",
    "timerfd_settime64",
    "times",
    "tkill",
    "truncate",
    "truncate64",
    "ugetrlimit",
    "umask",
    "uname",
    "unlink",
    "unlinkat",
    "utime",
    "utimensat",
    "utimensat_time64",
    "utimes",
    "vfork",
    "vmsplice",
    "wait4",
    "waitid",
    "waitpid",
    "write",
    "writev",
];

/// Calls that only an instance with an init program may make.
const SYSTEM: &[&str] = &[
    "fanotify_init",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "listmount",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "pivot_root",
    "reboot",
    "setdomainname",
    "sethostname",
    "setns",
    "statmount",
    "umount",
    "umount2",
    "vhangup",
];

/// Calls of such an instance that make namespaces. `clone3` hides which behind a pointer.
const NAMESPACES: &[&str] = &["clone", "unshare"];

/// Calls that fail with EPERM for all, as they do in every user namespace but the first; of `socketcall`
/// see above.
const DENIED: &[&str] = &[
    "acct",
    "clock_settime",
    "clock_settime64",
    "delete_module",
    "finit_module",
    "init_module",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "open_by_handle_at",
    "settimeofday",
    "socketcall",
    "stime",
    "swapoff",
    "swapon",
    "syslog",
];

/// `clone` flags that make namespaces: NEWCGROUP, NEWUTS, NEWIPC, NEWUSER,
/// NEWPID, NEWNET, NEWNS. (`CLONE_NEWTIME` exists only for `unshare` and `clone3`.)
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;

/// `CLONE_NEWUSER`.
const NEW_USER: u64 = 0x1000_0000;

/// `SOL_PACKET`, a level of options of sockets.
const SOL_PACKET: u64 = 263;

/// Its options `PACKET_RX_RING` (5) and `PACKET_TX_RING` (13): all of an option's bits that they
/// have in common, and what these are.
const RING: (u64, u64) = (INT & !8, 5);

/// Requests of `ioctl` on loop devices, whose numbers begin with these bits: an instance's disks are
/// some, and what has one open to write may give it another file, or another part of its file.
const LOOP: (u64, u64) = (INT & !0x1f, 0x4c00);

/// Calls whose first argument is a socket's family.
const SOCKETS: &[&str] = &["socket", "socketpair"];

/// Socket families: UNIX, INET, INET6, NETLINK, PACKET, which are of a network
/// namespace or of less. Others reach past it (VSOCK) or are much code of the
/// kernel for nobody here (ALG).
const FAMILIES: [u64; 5] = [1, 2, 10, 16, 17];

/// The other families below 64, more than there are, as the first of a block
/// and its size, a power of two: they answer as those that the kernel lacks.
const OTHER_FAMILIES: [(u64, u64); 10] =
    [(0, 1), (3, 1), (4, 4), (8, 2), (11, 1), (12, 4), (18, 2), (20, 4), (24, 8), (32, 32)];

/// All of an argument of 32 bits.
const INT: u64 = 0xffff_ffff;

/// The profile of an instance with this role and walls, for programs of this machine's architecture.
pub fn profile(role: Role, walls: Walls) -> Result<LinuxSeccomp, OciSpecError> {
    // First: libseccomp has what is said of `socket` count for a part of `socketcall` too, unless
    // all of it is decided.
    let mut calls = vec![deny(DENIED)?, allow(ALLOWED, None)?];
    if role.is_system() {
        calls.push(allow(SYSTEM, None)?);
        if walls.nesting {
            calls.push(allow(NAMESPACES, None)?);
            calls.push(allow(&["clone3"], None)?);
        } else {
            calls.push(allow(NAMESPACES, Some(masked(0, NEW_USER, 0)?))?);
            calls.push(fail(NAMESPACES, libc::EPERM, Some(masked(0, NEW_USER, NEW_USER)?))?);
        }
    } else {
        calls.push(allow(&["clone"], Some(masked(0, NAMESPACE_FLAGS, 0)?))?);
        calls.push(deny(SYSTEM)?);
        calls.push(deny(&["unshare"])?);
    }
    if walls.packet_rings {
        calls.push(allow(&["setsockopt"], None)?);
    } else {
        calls.extend(options_but_rings()?);
    }
    calls.extend(requests_but_of_loops()?);
    for family in FAMILIES {
        calls.push(allow(SOCKETS, Some(masked(0, INT, family)?))?);
    }
    for (first, size) in OTHER_FAMILIES {
        let block = masked(0, INT & !(size - 1), first)?;
        calls.push(fail(SOCKETS, libc::EAFNOSUPPORT, Some(block))?);
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(libc::ENOSYS.cast_unsigned())
        .architectures(architectures(walls.compat_syscalls))
        .syscalls(calls)
        .build()
}

/// `setsockopt` for all that is no ring: whatever has a bit that differs from theirs, in the
/// level or in the option. A rule for each bit, since rules of a call that look at two arguments
/// or at a number's inverse do not add up to this.
fn options_but_rings() -> Result<Vec<LinuxSyscall>, OciSpecError> {
    let (common, ring) = RING;
    let other = |index, bits, value| differing("setsockopt", index, bits, value);
    other(1, INT, SOL_PACKET).chain(other(2, common, ring)).collect()
}

/// `ioctl` for all that asks nothing of a loop device; what does is asked of what has no such requests.
fn requests_but_of_loops() -> Result<Vec<LinuxSyscall>, OciSpecError> {
    let (bits, value) = LOOP;
    let of_loops = fail(&["ioctl"], libc::ENOTTY, Some(masked(1, bits, value)?));
    differing("ioctl", 1, bits, value).chain([of_loops]).collect()
}

/// Lets a call through whose argument differs from `value` in any of these bits.
fn differing(
    name: &str,
    index: usize,
    bits: u64,
    value: u64,
) -> impl Iterator<Item = Result<LinuxSyscall, OciSpecError>> {
    (0..32)
        .map(|bit| 1 << bit)
        .filter(move |bit| bits & bit != 0)
        .map(move |bit| allow(&[name], Some(masked(index, bit, !value & bit)?)))
}

/// This machine's architecture and, if they are wanted, its 32-bit one. Not x32, which nothing
/// uses: its calls have numbers of their own, and a filter to get wrong.
fn architectures(compat: bool) -> Vec<Arch> {
    let (own, other) = match std::env::consts::ARCH {
        "x86_64" => (Arch::ScmpArchX86_64, Some(Arch::ScmpArchX86)),
        "aarch64" => (Arch::ScmpArchAarch64, Some(Arch::ScmpArchArm)),
        _ => (Arch::ScmpArchNative, None),
    };
    [own].into_iter().chain(other.filter(|_| compat)).collect()
}

fn allow(names: &[&str], argument: Option<LinuxSeccompArg>) -> Result<LinuxSyscall, OciSpecError> {
    rule(names, LinuxSeccompAction::ScmpActAllow, argument).build()
}

fn deny(names: &[&str]) -> Result<LinuxSyscall, OciSpecError> {
    fail(names, libc::EPERM, None)
}

fn fail(
    names: &[&str],
    errno: i32,
    argument: Option<LinuxSeccompArg>,
) -> Result<LinuxSyscall, OciSpecError> {
    rule(names, LinuxSeccompAction::ScmpActErrno, argument).errno_ret(errno.cast_unsigned()).build()
}

fn rule(
    names: &[&str],
    action: LinuxSeccompAction,
    argument: Option<LinuxSeccompArg>,
) -> LinuxSyscallBuilder {
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    let rule = LinuxSyscallBuilder::default().names(names).action(action);
    match argument {
        Some(argument) => rule.args(vec![argument]),
        None => rule,
    }
}

/// Whether these bits of an argument are those of `value`.
fn masked(index: usize, mask: u64, value: u64) -> Result<LinuxSeccompArg, OciSpecError> {
    LinuxSeccompArgBuilder::default()
        .index(index)
        .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
        .value(mask)
        .value_two(value)
        .build()
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;
