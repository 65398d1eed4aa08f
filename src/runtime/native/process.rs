//! The process itself: its session and terminal, its user, its rights, its program. The same
//! for the first process and for one that is executed in a running instance.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Capability;
use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, fchown, openat};
use rustix::io::Errno;
use rustix::process::{Signal, fchdir, set_parent_process_death_signal, setsid, umask};
use rustix::thread::{
    self, CapabilitySet, CapabilitySets, Gid, Uid, clear_ambient_capability_set,
    configure_capability_in_ambient_set, set_capabilities, set_keep_capabilities,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::config::{Capabilities, Process, User, refused};
use super::dev::is_of_type;
use super::mounts::open;
use super::rights::be_closed;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::runtime::spec::PATH;
use crate::sys::fs::{make_dirs_in_root, open_in_root};
use crate::sys::process::close_on_exec_from;
use crate::sys::{child, filter};

/// Type of procfs as statfs(2) gives it, and the inode of its root.
const PROC: i64 = 0x9fa0;
const PROC_ROOT: u64 = 1;

/// Mode bits that new files lack unless the configuration says otherwise.
const UMASK: u32 = 0o022;

/// A program, ready to be executed.
pub(super) struct Program {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// Becomes it. Returns only with the reason why not.
    pub fn execute(&self) -> Fault {
        let _ = set_parent_process_death_signal(None::<Signal>);
        // Nothing of the host's is left open in it.
        if let Err(e) = close_on_exec_from(3) {
            return Fault::internal("closing descriptors", e);
        }
        let error = child::execute(&self.path, &self.arguments, &self.environment);
        let doing = format!("executing {}", self.path.to_string_lossy());
        Fault { kind: FaultKind::InstanceUnsupported, ..Fault::internal(doing, error) }
    }
}

/// Gives the process its terminal: as the one of its session, as its standard files, and as
/// its user's.
pub(super) fn take_terminal(peer: &OwnedFd, uid: u32) -> Result<()> {
    let doing = "taking the terminal";
    setsid().or_fault(doing)?;
    rustix::process::ioctl_tiocsctty(peer).or_fault(doing)?;
    fchown(peer, Some(rustix::fs::Uid::from_raw(uid)), None).or_fault(doing)?;
    rustix::stdio::dup2_stdin(peer).or_fault(doing)?;
    rustix::stdio::dup2_stdout(peer).or_fault(doing)?;
    rustix::stdio::dup2_stderr(peer).or_fault(doing)
}

/// Gives up all that the process is not to have, and finds its program. Must be called as root
/// of the instance, with its root directory and in its namespaces.
pub(super) fn confine(process: &Process, seccomp: &[u8], id: &str) -> Result<Program> {
    child::join_session_keyring(&format!("_ses.{id}")).or_fault("making a session keyring")?;
    if let Some(profile) = &process.apparmor_profile {
        change_profile(profile)?;
    }
    umask(Mode::from_raw_mode(process.user.umask.unwrap_or(UMASK)));
    let directory = directory(&process.cwd)?;
    if process.no_new_privileges {
        thread::set_no_new_privs(true).or_fault("giving up new privileges")?;
    }
    // Now: without no_new_privs it takes a right over the user namespace.
    if !seccomp.is_empty() {
        filter::load(seccomp).or_fault("loading the seccomp program")?;
    }
    bound(&process.capabilities)?;
    become_user(&process.user)?;
    be_closed()?;
    limit(&process.capabilities)?;
    // As the user: it may not be let in.
    fchdir(&directory).or_fault(format_args!("entering {}", process.cwd.display()))?;
    drop(directory);
    let here = rustix::process::getcwd(Vec::new()).or_fault("looking where it is")?;
    if !here.as_bytes().starts_with(b"/") {
        return Err(refused("process.cwd: it lies outside of the instance"));
    }
    program(process)
}

/// Opens the working directory, which is made when it is absent. Links in it are the image's
/// own and stay below the root, but none of proc's is followed: those lead to open files, of
/// which this process still has some of the host's.
fn directory(path: &Path) -> Result<OwnedFd> {
    let doing = || format!("opening the working directory {}", path.display());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, "/", flags, Mode::empty()).or_fault(doing())?;
    let directory = match open_in_root(root.as_fd(), path, flags, Mode::empty()) {
        Err(Errno::NOENT) => make_dirs_in_root(root.as_fd(), path, (0, 0)),
        found => found,
    };
    // Where it leads is the image's affair, a full disk is the host's.
    directory.or_fault(doing()).map_err(|fault| match fault.kind {
        FaultKind::Internal => Fault { kind: FaultKind::RuntimeFailed, ..fault },
        _ => fault,
    })
}

/// Takes everything else out of what programs can gain.
fn bound(capabilities: &Capabilities) -> Result<()> {
    let kept = set(&capabilities.bounding)?;
    let last = last_capability();
    for capability in (0..=last).map(|number| CapabilitySet::from_bits_retain(1 << number)) {
        if !kept.contains(capability) {
            thread::remove_capability_from_bounding_set(capability)
                .or_fault("giving up capabilities")?;
        }
    }
    Ok(())
}

/// The highest that the kernel has: one beyond is none of it.
fn last_capability() -> u32 {
    let has = |number: &u32| {
        thread::capability_is_in_bounding_set(CapabilitySet::from_bits_retain(1 << number)).is_ok()
    };
    (0..63).take_while(has).last().unwrap_or(0)
}

fn become_user(user: &User) -> Result<()> {
    let doing = || format!("becoming user {}:{}", user.uid, user.gid);
    let groups: Vec<Gid> = user.additional_gids.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_keep_capabilities(true).or_fault(doing())?;
    set_thread_groups(&groups).or_fault(doing())?;
    set_thread_res_gid(gid, gid, gid).or_fault(doing())?;
    set_thread_res_uid(uid, uid, uid).or_fault(doing())?;
    set_keep_capabilities(false).or_fault(doing())
}

fn limit(capabilities: &Capabilities) -> Result<()> {
    let doing = "limiting its capabilities";
    let sets = CapabilitySets {
        effective: set(&capabilities.effective)?,
        permitted: set(&capabilities.permitted)?,
        inheritable: set(&capabilities.inheritable)?,
    };
    set_capabilities(None, sets).or_fault(doing)?;
    clear_ambient_capability_set().or_fault(doing)?;
    for capability in set(&capabilities.ambient)?.iter() {
        configure_capability_in_ambient_set(capability, true).or_fault(doing)?;
    }
    Ok(())
}

fn set(names: &[Capability]) -> Result<CapabilitySet> {
    names.iter().try_fold(CapabilitySet::empty(), |set, name| {
        Ok(set | CapabilitySet::from_bits_retain(1 << number(*name)?))
    })
}

/// As the kernel counts them (linux/capability.h).
fn number(capability: Capability) -> Result<u32> {
    use Capability as C;
    const ALL: [Capability; 41] = [
        C::Chown,
        C::DacOverride,
        C::DacReadSearch,
        C::Fowner,
        C::Fsetid,
        C::Kill,
        C::Setgid,
        C::Setuid,
        C::Setpcap,
        C::LinuxImmutable,
        C::NetBindService,
        C::NetBroadcast,
        C::NetAdmin,
        C::NetRaw,
        C::IpcLock,
        C::IpcOwner,
        C::SysModule,
        C::SysRawio,
        C::SysChroot,
        C::SysPtrace,
        C::SysPacct,
        C::SysAdmin,
        C::SysBoot,
        C::SysNice,
        C::SysResource,
        C::SysTime,
        C::SysTtyConfig,
        C::Mknod,
        C::Lease,
        C::AuditWrite,
        C::AuditControl,
        C::Setfcap,
        C::MacOverride,
        C::MacAdmin,
        C::Syslog,
        C::WakeAlarm,
        C::BlockSuspend,
        C::AuditRead,
        C::Perfmon,
        C::Bpf,
        C::CheckpointRestore,
    ];
    let found = ALL.iter().position(|known| *known == capability);
    let number = found.and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| refused(format!("process.capabilities: {capability} is unknown")))
}

/// Has the kernel change to an AppArmor profile with the program.
fn change_profile(profile: &str) -> Result<()> {
    let doing = format!("changing to the AppArmor profile {profile}");
    let proc = procfs(CWD)?;
    let own = rustix::process::getpid().as_raw_pid();
    let mut file = Err(Errno::NOENT);
    for name in ["attr/apparmor/exec", "attr/exec"] {
        if file.is_err() {
            file = open(proc.as_fd(), &Path::new(&own.to_string()).join(name), OFlags::WRONLY);
        }
    }
    let file = file.or_fault(&doing)?;
    rustix::io::write(file, format!("exec {profile}").as_bytes()).map(drop).or_fault(doing)
}

/// The proc below a root, if it is one, and its root: what is written there must reach the kernel.
fn procfs(root: BorrowedFd<'_>) -> Result<OwnedFd> {
    let doing = "opening /proc";
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = if root.as_raw_fd() == CWD.as_raw_fd() {
        openat(CWD, "/proc", flags | OFlags::NOFOLLOW, Mode::empty())
    } else {
        open(root, Path::new("proc"), flags)
    };
    let proc = proc.or_fault(doing)?;
    is_of_type(proc.as_fd(), PROC, "/proc")?;
    if rustix::fs::fstat(&proc).or_fault(doing)?.st_ino != PROC_ROOT {
        return Err(refused("/proc in the instance is only a part of one"));
    }
    Ok(proc)
}

/// Sets what is the namespaces' own below /proc/sys.
pub(super) fn set_sysctls(root: BorrowedFd<'_>, sysctls: &BTreeMap<String, String>) -> Result<()> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let proc = procfs(root)?;
    for (name, value) in sysctls {
        let doing = || format!("setting the sysctl {name}");
        let path = Path::new("sys").join(name.replace('.', "/"));
        let file = open(proc.as_fd(), &path, OFlags::WRONLY).or_fault(doing())?;
        is_of_type(file.as_fd(), PROC, "the sysctl")?;
        rustix::io::write(file, value.as_bytes()).or_fault(doing())?;
    }
    Ok(())
}

/// Finds the program as its user would, by the PATH that it is given.
fn program(process: &Process) -> Result<Program> {
    let text = |text: &String| CString::new(text.as_str()).or_fault("reading process.args and env");
    let name = process.args.first().map(String::as_str).unwrap_or_default();
    let path = process.env.iter().rev().find_map(|variable| variable.strip_prefix("PATH="));
    Ok(Program {
        path: find(name, path.unwrap_or(PATH))?,
        arguments: process.args.iter().map(text).collect::<Result<_>>()?,
        environment: process.env.iter().map(text).collect::<Result<_>>()?,
    })
}

fn find(name: &str, path: &str) -> Result<CString> {
    let mut why = Errno::NOENT;
    let candidates: Vec<PathBuf> = if name.contains('/') {
        vec![name.into()]
    } else {
        path.split(':')
            .map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name))
            .collect()
    };
    for candidate in candidates {
        match executable(&candidate) {
            Ok(()) => {
                use std::os::unix::ffi::OsStrExt;
                return CString::new(candidate.as_os_str().as_bytes())
                    .or_fault("reading process.args");
            }
            Err(errno @ (Errno::ACCESS | Errno::PERM)) => why = errno,
            Err(_) => {}
        }
    }
    let detail = match why {
        Errno::NOENT => format!("{name}: no such program in the instance"),
        _ => format!("{name}: the user may not execute it"),
    };
    Err(Fault::new(FaultKind::InstanceUnsupported, detail))
}

fn executable(path: &Path) -> rustix::io::Result<()> {
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?;
    let found = rustix::fs::stat(path)?;
    match rustix::fs::FileType::from_raw_mode(found.st_mode).is_file() {
        true => Ok(()),
        false => Err(Errno::ACCESS),
    }
}
