//! Another program in a running container: what `berth-monitor exec` does.
//!
//! ```text
//! service ── helper ──────────────── waits, carries a terminal's bytes, gives the exit code
//!               │    ╲
//!               │     first stage    host's root: cgroups; joins the namespaces; root inside
//!               │          ╎
//!               └───── process       in the PID namespace: terminal, rights, program
//! ```
//!
//! This is where an instance comes nearest to the host's programs: until it executes its own,
//! the last process is berth's, seen from inside. So it runs from a copy of the program's mount
//! through which nobody can write, and cannot be traced, so that none of its files can be opened
//! from inside. Until then it has some of the host's: a handle of the first process, the user
//! namespace, the cgroups. What it finds inside (root, `/proc`, `/dev/pts`) is a tenant's: it opens
//! nothing there through a link, and writes to no file that is not of the expected kind.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::{CWD, FileType, Mode, OFlags, fchown, fstat, openat};
use rustix::process::setsid;
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};
use serde::Deserialize;

use super::cgroups::Cgroups;
use super::config::{Bundle, Process, refused};
use super::launch::{self, Born};
use super::process::{self, Program};
use super::rights::{as_root_of_the_host, be_closed, become_its_root, die_with_the_monitor};
use super::state::State;
use super::talk::{Line, Message};
use super::{dev, relay};
use crate::fault::{Fault, OrFault, Result};
use crate::sys::child::{self, Birth};
use crate::sys::process::PidFd;

/// Exit code when the program could not be executed, as of a shell.
pub(super) const NOT_EXECUTED: u8 = 127;

/// An [`Exec`](crate::runtime::Exec) as it is read: the cgroups are the instance's own, found by its state.
#[derive(Deserialize)]
struct Request {
    process: Process,
}

/// What the stages work with.
struct Plan {
    process: Process,
    seccomp: Vec<u8>,
    id: String,
    cgroups: Cgroups,
    init: PidFd,
    users: File,
    oom_score_adj: Option<i32>,
}

/// Runs a request in a container; gives the exit code of its program.
pub(super) fn run(root: &Path, id: &str, request: OwnedFd) -> Result<u8> {
    be_closed()?;
    let plan = prepare(root, id, request)?;
    let Born { pid, master, line } =
        launch::born(plan.cgroups.unified(), |line| first_stage(&plan, line))?;
    if let Some(master) = &master {
        relay::copy_size(master.as_fd());
    }
    launch::start(&line).inspect_err(|_| launch::end(pid))?;
    drop(line);
    relay::attend(pid, master)
}

fn prepare(root: &Path, id: &str, request: OwnedFd) -> Result<Plan> {
    let mut text = Vec::new();
    File::from(request).read_to_end(&mut text).or_fault("reading the request")?;
    let Request { process } = serde_json::from_slice(&text).or_fault("reading the request")?;
    let state =
        State::load(root, id)?.ok_or_else(|| Fault::internal("exec", "no such container"))?;
    let init = state.running()?;
    let Bundle { config, seccomp } = Bundle::read(&state.bundle)?;
    let handle = init.open().or_fault("opening the first process")?;
    let users = config.joined(LinuxNamespaceType::User)?;
    let users = File::open(users).or_fault(format_args!("opening {}", users.display()))?;
    own_pipes(&config.linux.uid_mappings, process.user.uid)?;
    Ok(Plan {
        cgroups: cgroups(&state, init.pid)?,
        init: handle.ok_or_else(|| Fault::internal("exec", "the instance has ended"))?,
        users,
        seccomp,
        id: id.to_owned(),
        oom_score_adj: process.oom_score_adj.or(crate::sys::process::guests_oom_score_adj()),
        process,
    })
}

/// The instance's own cgroups. In one of version 2 that it has divided, nothing may be: then that
/// of its first process, as long as it is below.
fn cgroups(state: &State, init: i32) -> Result<Cgroups> {
    let mut cgroups = Cgroups::open(&state.cgroups, true)?;
    let Some(own) = cgroups.unified_dir().map(Path::to_owned) else { return Ok(cgroups) };
    let divided = std::fs::read_to_string(own.join("cgroup.subtree_control"));
    if divided.is_ok_and(|controllers| controllers.trim().is_empty()) {
        return Ok(cgroups);
    }
    let doing = "looking for the first process's cgroup";
    let text = std::fs::read_to_string(format!("/proc/{init}/cgroup")).or_fault(doing)?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let name = own.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let below = path.and_then(|path| path.split_once(name)).map(|(_, below)| below);
    let below = below.filter(|below| below.is_empty() || below.starts_with('/'));
    let below = below.filter(|below| !below.split('/').any(|part| part == ".."));
    let below = below.ok_or_else(|| refused("its first process is in another cgroup"))?;
    cgroups.unified_in(&own.join(below.trim_start_matches('/')))?;
    Ok(cgroups)
}

/// Gives the pipes that are the program's standard files to its user, who otherwise could not
/// open them anew by `/dev/stdout`. Nothing but pipes and sockets: a device would be the host's.
fn own_pipes(mappings: &[super::config::Mapping], uid: u32) -> Result<()> {
    let inside = |mapping: &&super::config::Mapping| {
        (mapping.inside..mapping.inside.saturating_add(mapping.size)).contains(&uid)
    };
    let Some(mapping) = mappings.iter().find(inside) else { return Ok(()) };
    let host = rustix::fs::Uid::from_raw(mapping.host + (uid - mapping.inside));
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for fd in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        let found = fstat(fd).or_fault("looking at the standard files")?;
        let kind = FileType::from_raw_mode(found.st_mode);
        if matches!(kind, FileType::Fifo | FileType::Socket) {
            fchown(fd, Some(host), None).or_fault("giving the standard files away")?;
        }
    }
    Ok(())
}

fn first_stage(plan: &Plan, line: &Line) -> i32 {
    let go = || -> Result<()> {
        die_with_the_monitor()?;
        plan.cgroups.enter()?;
        as_root_of_the_host(plan.oom_score_adj, &plan.process.rlimits)?;
        // Those of its first process at once, but the one of users, which is the instance's
        // own whatever its first process has become.
        let namespaces = ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::PROCESS_ID
            | ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::CONTROL_GROUP;
        let doing = "joining the instance's namespaces";
        move_into_thread_name_spaces(plan.init.as_fd(), namespaces).or_fault(doing)?;
        move_into_link_name_space(plan.users.as_fd(), Some(LinkNameSpaceType::User))
            .or_fault(doing)?;
        become_its_root()?;
        let birth = Birth { of_parent: true, ..Birth::default() };
        let (pid, _) =
            child::start(&birth, || life(plan, line)).or_fault("starting the process")?;
        line.say(&Message::Born(pid.as_raw_pid()), None)
    };
    match go() {
        Ok(()) => 0,
        Err(fault) => {
            line.fail(&fault);
            1
        }
    }
}

fn life(plan: &Plan, line: &Line) -> i32 {
    match make(plan, line) {
        Ok(Some(program)) => line.fail(&program.execute()),
        Ok(None) => {}
        Err(fault) => line.fail(&fault),
    }
    1
}

fn make(plan: &Plan, line: &Line) -> Result<Option<Program>> {
    die_with_the_monitor()?;
    let mut master = None;
    if plan.process.terminal {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, "/", flags, Mode::empty()).or_fault("opening the root directory")?;
        let terminal = dev::terminal(root.as_fd())?;
        process::take_terminal(&terminal.peer, plan.process.user.uid)?;
        master = Some(terminal.master);
    } else {
        setsid().or_fault("beginning a session")?;
    }
    let program = process::confine(&plan.process, &plan.seccomp, &plan.id)?;
    die_with_the_monitor()?;
    line.say(&Message::Ready, master.as_ref().map(|master| master.as_fd()))?;
    drop(master);
    Ok(line.is_released().then_some(program))
}
