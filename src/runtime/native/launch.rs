//! The monitor's part of a start: it prepares, makes the first stage, and waits for the word
//! of the first process.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime::LinuxNamespaceType;
use rustix::process::{Pid, WaitOptions, waitpid};

use super::cgroups::{self, Cgroups, V1};
use super::config::Bundle;
use super::namespaces;
use super::talk::Line;
use crate::fault::{Fault, OrFault, Result};
use crate::runtime::cli::DEADLINE;
use crate::runtime::{Create, Created};
use crate::sys::child::{self, Birth};
use crate::sys::process::ProcessId;

/// A killed process is gone within moments, unless the kernel is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// All that the stages work with, opened by the host's root.
pub(super) struct Plan {
    /// What is asked for.
    pub bundle: Bundle,
    /// Name of the session's keyring.
    pub id: String,
    /// The instance's cgroups.
    pub cgroups: Cgroups,
    /// The namespaces that are joined: of users, of the network.
    pub joined: [File; 2],
    /// Its `oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// The hierarchies of version 1, if the instance gets to see its cgroups there.
    pub v1: Vec<V1>,
}

/// Makes the container up to where its program would be executed.
pub(super) fn create(create: &Create<'_>, dirs: &[PathBuf]) -> Result<Created> {
    let plan = prepare(create, dirs)?;
    let (line, theirs) = Line::pair()?;
    let birth = Birth {
        cgroup: plan.cgroups.unified.as_ref().map(std::os::fd::AsFd::as_fd),
        ..Birth::default()
    };
    let (stage, handle) = child::start(&birth, || namespaces::first_stage(&plan, &theirs))
        .or_fault("starting the first stage")?;
    drop(theirs);
    let mut born = None;
    let made = line.hear_of_birth(&mut born);
    let _ = handle.signal(libc::SIGKILL);
    let _ = waitpid(Some(stage), WaitOptions::empty());
    match (born, made) {
        (Some(init), Ok(console)) => {
            Ok(Created { pid: init.as_raw_pid(), console, line: Some(line) })
        }
        (born, made) => {
            // One that is not known by now ends with its connection.
            drop(line);
            born.into_iter().for_each(end);
            Err(made.err().unwrap_or_else(|| Fault::internal("starting", "it has no number")))
        }
    }
}

fn prepare(create: &Create<'_>, dirs: &[PathBuf]) -> Result<Plan> {
    let bundle = Bundle::read(create.bundle)?;
    let cgroups = Cgroups::open(dirs, false)?;
    cgroups.hold_devices(&bundle.config.linux.resources.devices)?;
    let open = |kind| {
        let path = bundle.config.joined(kind)?;
        File::open(path).or_fault(format_args!("opening {}", path.display()))
    };
    let joined = [open(LinuxNamespaceType::User)?, open(LinuxNamespaceType::Network)?];
    let sees = bundle.config.mounts.iter().any(|mount| mount.kind.as_deref() == Some("cgroup"));
    Ok(Plan {
        id: create.id.to_owned(),
        cgroups,
        joined,
        oom_score_adj: bundle.config.process.oom_score_adj.or(create.setup.oom_score_adj),
        v1: if sees { cgroups::v1_hierarchies()? } else { Vec::new() },
        bundle,
    })
}

/// Lets the first process run, and waits until it does.
pub(super) fn start(line: &Line) -> Result<()> {
    line.release()?;
    match line.hear(DEADLINE)? {
        None => Ok(()),
        Some((message, _)) => Err(Fault::internal("starting", format!("it said {message:?}"))),
    }
}

/// Ends a first process that is this process's child.
fn end(pid: Pid) {
    if let Some(init) = ProcessId::of(pid.as_raw_pid())
        && let Ok(Some(handle)) = init.open()
    {
        let _ = handle.signal(libc::SIGKILL);
        let _ = handle.wait(PATIENCE);
    }
    // One that the kernel holds is reaped when it ends, as any child is.
    let _ = waitpid(Some(pid), WaitOptions::NOHANG);
}
