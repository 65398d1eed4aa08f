//! Processes: identities that survive the reuse of numbers, pidfds, waiting,
//! and what a monitor does to itself and to its children.

use std::fs::{self, File};
use std::io::{self, Write};
use std::num::NonZero;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::{Errno, FdFlags};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, set_child_subreaper,
};
use serde::{Deserialize, Serialize};

use super::thread;
use crate::fault::{OrFault, Result};

/// Lets threads share two heaps of glibc, which otherwise makes eight for each CPU,
/// all of which keep what they once held: a fifth of a service's memory with 500
/// instances. To be called before threads start.
pub fn share_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number in the allocator; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// This program again, to lead the life that a hidden first argument names: away from the service's
/// environment and directory.
pub fn other_life(name: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg(name).env_clear().current_dir("/");
    command
}

/// A process, told from a later one with the same number by its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number in the host's pid namespace.
    pub pid: i32,
    /// Clock ticks from the host's boot to its start (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has the number now; `None` when there is none or it is a zombie.
    pub fn of(pid: i32) -> Option<ProcessId> {
        let (state, start_time) =
            parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        (!matches!(state, 'Z' | 'X')).then_some(ProcessId { pid, start_time })
    }

    /// [`ProcessId::of`], also of one whose first thread has ended before others: those live on, with
    /// all that it has open.
    pub fn of_any_thread(pid: i32) -> Option<ProcessId> {
        let (state, start_time) =
            parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        let threads = || fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().count();
        let lives = !matches!(state, 'Z' | 'X') || threads() > 1;
        lives.then_some(ProcessId { pid, start_time })
    }

    /// This process.
    pub fn own() -> Option<ProcessId> {
        ProcessId::of(std::process::id().cast_signed())
    }

    /// Whether it still runs; a zombie does not.
    pub fn is_alive(self) -> bool {
        ProcessId::of(self.pid) == Some(self)
    }

    /// Whether the process neither handles nor blocks nor ignores a signal, so
    /// that the kernel does what is the signal's default (proc(5), `SigCgt`).
    pub fn leaves_to_kernel(self, signal: i32) -> bool {
        let masks = self.signal_masks(["SigBlk:", "SigIgn:", "SigCgt:"]);
        masks.is_some_and(|masks| masks.iter().all(|mask| mask & (1 << (signal - 1)) == 0))
    }

    /// Whether the process ignores a signal.
    pub fn ignores(self, signal: i32) -> bool {
        self.signal_masks(["SigIgn:"]).is_some_and(|[mask]| mask & (1 << (signal - 1)) != 0)
    }

    /// Lines of its status; `None` when it has ended.
    fn signal_masks<const N: usize>(self, names: [&str; N]) -> Option<[u64; N]> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let mask = |name| {
            let mask = status.lines().find_map(|line| line.strip_prefix(name))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        };
        let masks = names.map(mask);
        let whole = self.is_alive() && masks.iter().all(Option::is_some);
        whole.then(|| masks.map(Option::unwrap_or_default))
    }

    /// Whether it has a controlling terminal, or reads from one. No file is looked at, for some
    /// are answered for by the instance's own programs.
    pub fn is_at_terminal(self) -> bool {
        let controlling = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
            // The command's name, in parentheses, may hold anything.
            stat.rsplit_once(") ")?.1.split(' ').nth(4)?.parse::<i32>().ok()
        };
        let reads = || {
            let input = fs::read_link(format!("/proc/{}/fd/0", self.pid)).unwrap_or_default();
            input.starts_with("/dev/pts") || input == Path::new("/dev/console")
        };
        self.is_alive() && (controlling().is_some_and(|number| number != 0) || reads())
    }

    /// A descriptor of it, readable once it ends; `None` when it has ended.
    pub fn open(self) -> io::Result<Option<PidFd>> {
        let fd = match PidFd::open(self.pid) {
            Ok(fd) => fd,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(e) => return Err(e),
        };
        // Checked after the open: from here on the number cannot mean another.
        Ok(self.is_alive().then_some(fd))
    }

    /// [`ProcessId::open`], also of one whose first thread has ended before others.
    pub fn open_any_thread(self) -> io::Result<Option<PidFd>> {
        let fd = match PidFd::open(self.pid) {
            Ok(fd) => fd,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(e) => return Err(e),
        };
        Ok((ProcessId::of_any_thread(self.pid) == Some(self)).then_some(fd))
    }

    /// Kills it, and waits until it is gone, 10 seconds at most: longer takes one that the kernel
    /// holds. One that has ended is success.
    pub fn end(self) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let doing = || format!("killing process {}", self.pid);
        let Some(handle) = self.open().or_fault(doing())? else { return Ok(()) };
        handle.signal(libc::SIGKILL).or_fault(doing())?;
        handle.wait(PATIENCE).or_fault(doing()).map(drop)
    }

    /// Sends a signal; `false` when the process has ended.
    pub fn signal(self, signal: i32) -> io::Result<bool> {
        match self.open()? {
            Some(fd) => fd.signal(signal),
            None => Ok(false),
        }
    }
}

/// State and start time out of `/proc/PID/stat`. The name in parentheses may
/// itself hold spaces and parentheses, so the last `)` counts.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// A pidfd.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Takes a pidfd that the kernel has just given.
    ///
    /// # Safety
    ///
    /// It must be open, a pidfd, and nobody else's.
    pub(super) unsafe fn from_raw(fd: std::os::fd::RawFd) -> PidFd {
        // SAFETY: the caller's promise.
        PidFd(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) })
    }

    fn open(pid: i32) -> io::Result<PidFd> {
        let pid = Pid::from_raw(pid).ok_or(Errno::INVAL)?;
        Ok(PidFd(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// That of a child that was not waited for.
    pub fn of_child(child: &Child) -> io::Result<PidFd> {
        PidFd::open(child.id().cast_signed())
    }

    /// Sends a signal; `false` when the process has ended.
    pub fn signal(&self, signal: i32) -> io::Result<bool> {
        let signal = NonZero::new(signal).ok_or(Errno::INVAL)?;
        // SAFETY: a number that libc keeps for itself (a real-time signal) must not be handled
        // here; it is only sent.
        let signal = unsafe { Signal::from_raw_nonzero_unchecked(signal) };
        match pidfd_send_signal(&self.0, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits until the process has ended; `false` when the time is over first.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        readable(self.as_fd(), limit)
    }

    /// The descriptor, for a poll or an event loop.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<PidFd> for OwnedFd {
    fn from(fd: PidFd) -> OwnedFd {
        fd.0
    }
}

/// Waits until `fd` can be read or is hung up; `false` when the time is over first.
pub fn readable(fd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let deadline = std::time::Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        // None, which is for ever, only for longer than a number of seconds can say.
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) if left > Duration::ZERO => {}
            Ok(n) => return Ok(n > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Handles on the children of a process, each checked to be one after it was
/// opened, so that a reused process id is never signalled.
pub fn children(parent: u32) -> Vec<PidFd> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<i32> = lists
        .flat_map(|list| {
            list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .collect();
    let open = |pid| {
        let handle = PidFd::open(pid).ok()?;
        (parent_of(pid)? == parent).then_some(handle)
    };
    pids.into_iter().filter_map(open).collect()
}

/// The number of a process's parent; `None` when there is no such process.
pub fn parent_of(pid: i32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, in parentheses, may hold anything.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// Waits for a child; `None` when the time is over first (it is then killed and reaped).
pub fn wait_child(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    if PidFd::of_child(child)?.wait(limit)? {
        return child.wait().map(Some);
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
}

/// Reaps one child that has ended, if any has: its number and how it ended.
pub fn reap() -> Option<(i32, Ended)> {
    let (pid, status) = rustix::process::wait(WaitOptions::NOHANG).ok()??;
    let ended = match status.terminating_signal() {
        Some(signal) => Ended::Killed(signal),
        None => Ended::Exited(status.exit_status()?),
    };
    Some((pid.as_raw_pid(), ended))
}

/// Has a write to a closed pipe or socket be an error, as in every program of Rust's, and no end.
pub fn ignore_broken_pipes() {
    // SAFETY: to ignore a signal needs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Makes orphans among this process's descendants its children.
pub fn become_subreaper() -> io::Result<()> {
    Ok(set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Names this process (`comm`, at most 15 bytes are kept).
pub fn set_name(name: &str) -> io::Result<()> {
    let name = std::ffi::CString::new(name)?;
    Ok(rustix::thread::set_name(&name)?)
}

/// Closes on exec every descriptor but the standard three: what this process
/// was given by mistake its children shall not get.
pub fn keep_standard_descriptors_only() {
    // Every kernel that berth works on has the call.
    let _ = close_on_exec_from(3);
}

/// Closes on exec every descriptor from `first` on.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: touches no memory; only marks descriptors.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs a program that reads `input` to its end. What it said on its standard error is told by
/// `Err` where it failed.
pub fn feed(command: &mut Command, input: &[u8]) -> io::Result<std::result::Result<(), String>> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    // Dropped at once, which is the program's end of file. If it ended before reading
    // all, what it said is of more use than the broken pipe.
    let written = child.stdin.take().map(|mut stdin| stdin.write_all(input));
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Ok(Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    written.unwrap_or(Ok(())).map(Ok)
}

/// Takes a descriptor that this process was given, by its number; it is closed on exec from here on.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: only asks for the descriptor's flags.
    let open = unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
    if number <= 2 || !open {
        return Err(Errno::BADF.into());
    }
    // SAFETY: it is open, and of this process's own code none has opened it.
    let fd: OwnedFd = unsafe { std::os::fd::FromRawFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Has a command's process keep `fd` open, by its number, and this one keep both until then.
pub fn hand_over(command: &mut Command, fd: OwnedFd, held: OwnedFd) {
    let keep = move || {
        let _ = &held;
        Ok(rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty())?)
    };
    // SAFETY: the closure makes one system call on a descriptor that was opened before the fork.
    unsafe { command.pre_exec(keep) };
}

/// The `oom_score_adj` for what instances run: this process's own, but never
/// the protection that the service and its monitors have from the kernel.
/// `None` when that cannot be known.
pub fn guests_oom_score_adj() -> Option<i32> {
    let own = fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse::<i32>().ok()?;
    Some(own.max(0))
}

/// Starts a command as the first process of a PID namespace of its own: it
/// sees no other process, and whatever it starts ends with it.
pub fn spawn_alone(command: &mut Command) -> Result<Child> {
    // The namespace is for children of the thread that asks for it.
    thread::on_own_thread(|| {
        let doing = format!("starting {}", command.get_program().display());
        unshare(CloneFlags::CLONE_NEWPID).or_fault("taking a PID namespace")?;
        command.spawn().or_fault(doing)
    })
}

/// Has a command's program find `content` in a file that no other process can open by a name, and
/// that ends with it; gives the name by which the program itself does.
pub fn pass_on(command: &mut Command, content: &[u8]) -> io::Result<PathBuf> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"process", flags)?);
    file.write_all(content)?;
    fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::WRITE)?;
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    // Only in this child: others of the service's may be made meanwhile.
    let keep = move || Ok(rustix::io::fcntl_setfd(&file, FdFlags::empty())?);
    // SAFETY: the closure makes one system call on a descriptor that it holds open.
    unsafe { command.pre_exec(keep) };
    Ok(name.into())
}

/// What a child does to itself before it executes its program.
#[derive(Clone, Debug, Default)]
pub struct ChildSetup {
    /// `cgroup.procs` files of the cgroups that it enters.
    pub cgroups: Vec<PathBuf>,
    /// Its `oom_score_adj`, when that shall differ from the parent's.
    pub oom_score_adj: Option<i32>,
}

impl ChildSetup {
    /// Adds the set-up to a command. Signals are unblocked as well.
    pub fn apply(&self, command: &mut Command) -> io::Result<()> {
        // Opened here: the child must not allocate.
        let open = |path: &Path| fs::OpenOptions::new().write(true).open(path);
        let cgroups = self.cgroups.iter().map(|p| open(p)).collect::<io::Result<Vec<_>>>()?;
        let oom = self.oom_score_adj.map(|value| value.to_string());
        let setup = move || {
            for procs in &cgroups {
                rustix::io::write(procs, b"0")?;
            }
            if let Some(value) = &oom {
                let own = rustix::fs::open(
                    c"/proc/self/oom_score_adj",
                    OFlags::WRONLY | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                rustix::io::write(&own, value.as_bytes())?;
            }
            Ok(nix::sys::signal::SigSet::empty().thread_set_mask()?)
        };
        // SAFETY: the closure makes only system calls on what was prepared
        // before the fork: no allocation, no lock.
        unsafe { command.pre_exec(setup) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        assert_eq!(parse_stat(stat), Some(('S', 4242)));
        assert_eq!(parse_stat("7 (x"), None);
    }

    #[test]
    fn what_is_passed_on_is_for_one_child_to_read() {
        let mut command = Command::new("cat");
        let name = pass_on(&mut command, b"a secret").unwrap();
        let other = Command::new("cat").arg(&name).output().unwrap();
        assert!(!other.status.success(), "another child has it: {other:?}");
        let said = command.arg(&name).output().unwrap();
        assert_eq!(said.stdout, b"a secret");
    }

    #[test]
    fn what_a_process_does_with_a_signal_is_known() {
        let leaves = |script: &str| {
            let mut child =
                Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = [0; 3];
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
            let process = ProcessId::of(child.id().cast_signed()).unwrap();
            let leaves = process.leaves_to_kernel(libc::SIGTERM);
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(!process.leaves_to_kernel(libc::SIGTERM), "it is no more");
            leaves
        };
        assert!(leaves("echo up; exec sleep 1000"));
        assert!(!leaves("trap : TERM; echo up; while :; do sleep 0.1; done"));
        assert!(!leaves("trap '' TERM; echo up; exec sleep 1000"));
    }

    #[test]
    fn a_shell_at_a_terminal_is_known() {
        let (_master, peer) = crate::sys::pty::open().unwrap();
        let start = |script: &str, at: Stdio| {
            // Whatever terminal this test has is not theirs.
            let mut command = Command::new("setsid");
            command.args(["sh", "-c", script]).stdin(at).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut line = [0; 3];
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
            let process = ProcessId::of(child.id().cast_signed()).unwrap();
            let known = (process.is_at_terminal(), process.ignores(libc::SIGTERM));
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(!process.is_at_terminal() && !process.ignores(libc::SIGTERM), "it is no more");
            known
        };
        let terminal = || Stdio::from(peer.try_clone().unwrap());
        let sleeps = "echo up; exec sleep 1000";
        assert_eq!(start(&format!("trap '' TERM; {sleeps}"), terminal()), (true, true));
        assert_eq!(start(sleeps, terminal()), (true, false));
        assert_eq!(start(&format!("trap '' TERM; {sleeps}"), Stdio::null()), (false, true));
    }

    #[test]
    fn identity_ends_with_the_process() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(child.id().cast_signed()).unwrap();
        assert!(id.is_alive());
        let other = ProcessId { start_time: id.start_time + 1, ..id };
        assert!(!other.is_alive(), "the same number at another time is another process");
        assert!(!other.signal(libc::SIGKILL).unwrap());
        let fd = id.open().unwrap().unwrap();
        assert!(!fd.wait(Duration::ZERO).unwrap());
        assert!(id.signal(libc::SIGKILL).unwrap());
        assert!(fd.wait(Duration::from_secs(30)).unwrap());
        assert!(!id.is_alive(), "a zombie does not run");
        child.wait().unwrap();
        assert!(id.open().unwrap().is_none());
        assert!(!fd.signal(libc::SIGTERM).unwrap());
    }

    #[test]
    fn a_child_that_hangs_is_killed_and_reaped() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(wait_child(&mut child, Duration::from_millis(10)).unwrap().is_none());
        assert!(child.try_wait().unwrap().is_some());
    }

    #[test]
    fn a_child_starts_with_no_signal_blocked() {
        let mut mask = nix::sys::signal::SigSet::empty();
        mask.add(nix::sys::signal::Signal::SIGTERM);
        mask.thread_block().unwrap();
        let mut command = Command::new("grep");
        command.args(["SigBlk", "/proc/self/status"]);
        ChildSetup { oom_score_adj: Some(500), ..Default::default() }.apply(&mut command).unwrap();
        let out = command.output().unwrap();
        mask.thread_unblock().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), "SigBlk:\t0000000000000000\n");
    }

    #[test]
    fn only_children_are_found() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        assert_eq!(parent_of(child.id().cast_signed()), Some(std::process::id()));
        assert!(!children(std::process::id()).is_empty());
        assert!(children(child.id()).is_empty());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
