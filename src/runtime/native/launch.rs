//! The monitor's part of a start: it prepares, makes the first stage, and waits for the word
//! of the first process.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, waitpid};

use super::namespaces;
use super::plan::Plan;
use super::talk::Line;
use crate::fault::{Fault, OrFault, Result};
use crate::runtime::cli::DEADLINE;
use crate::runtime::{Create, Created};
use crate::sys::child::{self, Birth};
use crate::sys::process::ProcessId;

/// A killed process is gone within moments, unless the kernel is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the container up to where its program would be executed.
pub(super) fn create(create: &Create<'_>, dirs: &[PathBuf]) -> Result<Created> {
    let plan = Plan::prepare(create, dirs)?;
    let (line, theirs) = Line::pair()?;
    let birth = Birth { cgroup: plan.cgroups.unified(), ..Birth::default() };
    let (stage, handle) = child::start(&birth, || namespaces::first_stage(&plan, &theirs))
        .or_fault("starting the first stage")?;
    drop(theirs);
    let mut born = None;
    let made = line.hear_of_birth(&mut born, DEADLINE);
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
