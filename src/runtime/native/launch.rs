//! How a process comes to be: what a start and an `exec` have in common. The process that waits
//! for it makes the first stage, and hears of what that makes.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::process::{Pid, WaitOptions, waitpid};

use super::namespaces;
use super::plan::Plan;
use super::talk::Line;
use crate::fault::{Fault, OrFault, Result};
use crate::runtime::cli::DEADLINE;
use crate::runtime::{Create, Created};
use crate::sys::child::{self, Birth};
use crate::sys::process::ProcessId;

/// A process that only waits to be let go.
pub(super) struct Born {
    /// Its number; it is this process's child.
    pub pid: Pid,
    /// Its terminal's master, if it has one.
    pub master: Option<OwnedFd>,
    /// It ends with this.
    pub line: Line,
}

/// Makes the container up to where its program would be executed.
pub(super) fn create(create: &Create<'_>, dirs: &[PathBuf]) -> Result<Created> {
    let plan = Plan::prepare(create, dirs)?;
    let Born { pid, master, line } =
        born(plan.cgroups.unified(), |line| namespaces::first_stage(&plan, line))?;
    Ok(Created { pid: pid.as_raw_pid(), console: master, line: Some(line) })
}

/// Starts a first stage, in a cgroup of version 2, and waits until the process that it makes has
/// come to its end.
pub(super) fn born(
    cgroup: Option<BorrowedFd<'_>>,
    first_stage: impl FnOnce(&Line) -> i32,
) -> Result<Born> {
    let (line, theirs) = Line::pair()?;
    let mut own = Some(line);
    let birth = Birth { cgroup, ..Birth::default() };
    let started = child::start(&birth, || {
        // The copies that a child has: as long as one is open, no end of this one's is to be heard.
        own = None;
        first_stage(&theirs)
    });
    let (stage, handle) = started.or_fault("starting the first stage")?;
    drop(theirs);
    let line = own.ok_or_else(|| Fault::internal("starting the first stage", "it is this one"))?;
    let mut born = None;
    let made = line.hear_of_birth(&mut born, DEADLINE);
    let _ = handle.signal(libc::SIGKILL);
    let _ = waitpid(Some(stage), WaitOptions::empty());
    match (born, made) {
        (Some(pid), Ok(master)) => Ok(Born { pid, master, line }),
        (born, made) => {
            // One that is not known by now ends with its connection.
            drop(line);
            born.into_iter().for_each(end);
            Err(made.err().unwrap_or_else(|| Fault::internal("starting", "it has no number")))
        }
    }
}

/// Lets a process execute its program, and waits until it does.
pub(super) fn start(line: &Line) -> Result<()> {
    line.release()?;
    match line.hear(DEADLINE)? {
        None => Ok(()),
        Some((message, _)) => Err(Fault::internal("starting", format!("it said {message:?}"))),
    }
}

/// Ends a process that is this process's child.
pub(super) fn end(pid: Pid) {
    if let Some(process) = ProcessId::of(pid.as_raw_pid()) {
        let _ = process.end();
    }
    // One that the kernel holds is reaped when it ends, as any child is.
    let _ = waitpid(Some(pid), WaitOptions::NOHANG);
}

#[cfg(test)]
mod tests {
    use super::super::talk::Message;
    use super::*;
    use std::time::Duration;

    const ENDS_AS_IT_SHOULD: i32 = 3;

    /// A first stage whose child waits to be let go; `word` is what is said of that.
    fn stage(line: &Line, word: impl FnOnce(Pid)) -> i32 {
        let waits = || {
            // Whoever would hear it may be gone already.
            let heard = line.say(&Message::Ready, None).is_ok();
            if heard && line.is_released() { 4 } else { ENDS_AS_IT_SHOULD }
        };
        let birth = Birth { of_parent: true, ..Birth::default() };
        word(child::start(&birth, waits).unwrap().0);
        0
    }

    /// The exit code of the only child of this process, which must end by itself.
    fn code_of_the_child() -> i32 {
        let children = crate::sys::process::children(std::process::id());
        let [child] = &children[..] else { return 5 };
        if !child.wait(Duration::from_secs(10)).unwrap() {
            child.signal(libc::SIGKILL).unwrap();
        }
        let (_, status) = rustix::process::wait(WaitOptions::empty()).unwrap().unwrap();
        status.exit_status().unwrap_or(6)
    }

    #[test]
    fn a_process_ends_when_nobody_is_left_to_let_it_go() {
        let code = child::alone(|| {
            let born = born(None, |line| {
                stage(line, |pid| line.say(&Message::Born(pid.as_raw_pid()), None).unwrap())
            });
            drop(born.unwrap().line);
            code_of_the_child()
        });
        assert_eq!(code.unwrap(), ENDS_AS_IT_SHOULD);
    }

    #[test]
    fn a_process_ends_of_which_nobody_has_heard() {
        let code = child::alone(|| {
            let made = born(None, |line| {
                stage(line, |_| line.fail(&Fault::internal("telling the monitor", "lost")))
            });
            assert!(made.is_err());
            code_of_the_child()
        });
        assert_eq!(code.unwrap(), ENDS_AS_IT_SHOULD);
    }
}
