//! berth's own runtime: the monitor makes the container itself, and no program is executed
//! for it. It reads the same bundle that a runtime program would get.
//!
//! A start, in the order in which it happens:
//!
//! ```text
//! service        seccomp      the profile's program, made once, in the bundle
//!                             │ launch
//! monitor        config       what the bundle asks for; what is not done is refused
//! host's root    cgroups      which devices; the files by which one enters
//!                plan         all that needs the host's root, opened
//!                launch       clone3, in the cgroup of version 2 ────╮
//! first stage    namespaces   cgroups of version 1, limits           │
//! host's root                 joins the namespaces of users and of the network
//! root inside                 clone3: mount, PID, IPC, UTS, cgroup ──┼─╮
//! first process  init         a child of the monitor, PID 1 inside     │
//! root inside    mounts       root file system, mounts
//!                dev          /dev, the console
//!                hide         masked and read-only paths
//!                init         pivot_root: the host's files are gone
//!                process      session, terminal, keyring, seccomp, user, capabilities
//!                talk         "ready", with the console's master  ──▶ monitor: created
//!                             waits                               ◀── monitor: start
//!                process      closes all and executes the instance's program
//! ```
//!
//! The socket between monitor and first process ends with that program's begin, or with the
//! monitor, who alone has its other end: then the process, which nobody could start any more,
//! ends too. [`exec`] is the same
//! for a further program, with a process of its own for the monitor's part.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::{Create, Created, Exec, Runtime};
use crate::cgroup;
use crate::fault::{Fault, OrFault, Result};
use crate::sys::mount;
use crate::sys::process::{
    ChildSetup, ProcessId, guests_oom_score_adj, hand_over, inherited,
    keep_standard_descriptors_only, set_name,
};

mod cgroups;
mod config;
mod dev;
mod exec;
mod hide;
mod init;
mod launch;
mod mounts;
mod namespaces;
mod plan;
mod process;
mod relay;
mod rights;
pub mod seccomp;
mod state;
mod talk;

pub use cgroups::change_devices;
use state::State;
pub use talk::Line;

/// What `runtime.program` says to have it.
pub const NAME: &str = "native";

/// The native runtime of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Native {
    /// Its state directory.
    pub root: PathBuf,
    /// The program `berth-monitor`, which also executes programs in running instances.
    pub monitor: PathBuf,
}

impl Runtime for Native {
    fn create(&self, create: &Create<'_>) -> Result<Created> {
        let dirs: Vec<PathBuf> = create
            .setup
            .cgroups
            .iter()
            .filter_map(|file| Some(file.parent()?.to_owned()))
            .collect();
        let created = launch::create(create, &dirs)?;
        let state = State {
            init: ProcessId::of(created.pid),
            bundle: create.bundle.to_owned(),
            cgroups: dirs,
        };
        // Without it there would be no exec. The process ends with its connection.
        state.save(&self.root, create.id)?;
        Ok(created)
    }

    fn start(&self, created: &Created, _: &str, _: &Path) -> Result<()> {
        let Some(line) = &created.line else {
            return Err(Fault::internal("starting", "the first process was made elsewhere"));
        };
        launch::start(line)
    }

    fn delete(&self, id: &str, _: &Path) -> Result<()> {
        match State::load(&self.root, id) {
            Ok(None) => return Ok(()),
            Ok(Some(state)) => {
                if let Some(init) = state.init {
                    init.end()?;
                }
                for dir in &state.cgroups {
                    cgroup::remove_dir(dir)?;
                }
            }
            // Cut short while it was written: its processes are found by their cgroup.
            Err(_) => {}
        }
        State::forget(&self.root, id)
    }

    fn exec_command(&self, id: &str, exec: &Exec) -> Result<Command> {
        if exec.process.args().as_ref().is_none_or(Vec::is_empty) {
            return Err(Fault::invalid("command", "needs at least the program's name"));
        }
        let doing = "preparing the command";
        let program = mount::read_only_copy(&self.monitor).or_fault(doing)?;
        let request = request(exec)?;
        let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
        // Arguments that `monitor::end_strays` knows it by.
        command.arg0("berth-monitor").arg("exec").arg(&self.root).arg(id);
        command.arg(request.as_raw_fd().to_string()).env_clear().current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let setup = ChildSetup { oom_score_adj: guests_oom_score_adj(), ..ChildSetup::default() };
        setup.apply(&mut command).or_fault(doing)?;
        hand_over(&mut command, request, program);
        Ok(command)
    }
}

/// The request in memory: a command line could be read by everybody on the host.
fn request(exec: &Exec) -> Result<OwnedFd> {
    let doing = "preparing the command";
    let mut file = File::from(memfd_create(c"exec", MemfdFlags::CLOEXEC).or_fault(doing)?);
    let text = serde_json::to_vec(exec).or_fault(doing)?;
    file.write_all(&text).and_then(|()| file.seek(SeekFrom::Start(0))).or_fault(doing)?;
    Ok(file.into())
}

/// What `berth-monitor VERB …` does beside being a monitor; none: it is another's to know.
/// Must be called while the process has a single thread.
pub fn command(verb: &str, arguments: &[String]) -> Option<ExitCode> {
    match (verb, arguments) {
        ("exec", [root, id, request]) => Some(run_exec(Path::new(root), id, request)),
        ("try", [dir, id]) => Some(try_out(Path::new(dir), id)),
        _ => None,
    }
}

fn run_exec(root: &Path, id: &str, request: &str) -> ExitCode {
    let run = || {
        keep_standard_descriptors_only();
        let number = request.parse().or_fault("reading the request's number")?;
        let request = inherited(number).or_fault("taking the request")?;
        let _ = set_name("berth:exec");
        exec::run(root, id, request)
    };
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(fault) => {
            eprintln!("{}", crate::fault::harmless(&fault.detail));
            ExitCode::from(exec::NOT_EXECUTED)
        }
    }
}

/// Makes and removes a container of a bundle at `dir`, of which nothing ever runs.
fn try_out(dir: &Path, id: &str) -> ExitCode {
    let native = Native { root: dir.to_owned(), monitor: PathBuf::new() };
    let log = dir.join("log");
    let setup = ChildSetup::default();
    let create = Create {
        id,
        bundle: dir,
        console_socket: None,
        pid_file: &dir.join("pid"),
        log: &log,
        setup: &setup,
    };
    let tried = native.create(&create).map(drop).and(native.delete(id, &log));
    match tried {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("{}", fault.detail);
            ExitCode::FAILURE
        }
    }
}
