//! Bringing mounted disks to rest, in a process of its own.
//!
//! How long that takes, the guest decides: a write that itself waits, as
//! `splice(2)` out of a pipe into which nothing comes does, holds `FIFREEZE`
//! off, and no signal ends that call. So a child makes it: this program, with a
//! hidden first argument ([`COMMAND`]). Whoever asked waits for a while only,
//! and the service can end whatever the child does. A child that nobody waits
//! for any more thaws what it froze.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::time::Duration;

use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::sys;
use crate::sys::process::{other_life, readable, wait_child};

/// The hidden first argument by which the program knows that it is the child.
const COMMAND: &str = "rest";

/// Longest that what was written so far may take to reach the disk.
const SYNC: Duration = Duration::from_secs(300);
/// Longest that the writes under way may take to end, after a sync.
const FREEZE: Duration = Duration::from_secs(20);
/// Time for a child to end when it has done its work.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Most bytes of a complaint.
const COMPLAINT: u64 = 1000;

/// What is done to the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// What waits to be written is.
    Sync,
    /// They take no change from here on: all of them, or none.
    Freeze,
    /// The same, when some may be frozen already.
    FreezeAgain,
}

impl Work {
    const ALL: [Work; 3] = [Work::Sync, Work::Freeze, Work::FreezeAgain];

    fn name(self) -> &'static str {
        match self {
            Work::Sync => "sync",
            Work::Freeze => "freeze",
            Work::FreezeAgain => "freeze-again",
        }
    }

    fn limit(self) -> Duration {
        if self == Work::Sync { SYNC } else { FREEZE }
    }
}

/// Does it to the file systems that are mounted there.
pub fn rest(work: Work, disks: &[PathBuf]) -> Result<()> {
    if disks.is_empty() {
        return Ok(());
    }
    let doing = "bringing the disks to rest";
    let mut child = other_life(COMMAND)
        .arg(work.name())
        .args(disks)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .or_fault(doing)?;
    let (Some(mut answer), Some(mut word)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(Fault::internal(doing, "the child has no pipes"));
    };
    if !readable(word.as_fd(), work.limit()).or_fault(doing)? {
        abandon(child, work);
        return Err(Fault::new(
            FaultKind::Timeout,
            format!(
                "the instance's disks did not come to rest within {} seconds ({}): a program \
                 inside holds them up; end it, or stop the instance",
                work.limit().as_secs(),
                work.name()
            ),
        ));
    }
    let done = word.read(&mut [0]).or_fault(doing)? > 0;
    // A child that has failed reads nothing, and says why.
    let heard = answer.write_all(b".");
    let status = wait_child(&mut child, LAST_WORDS).or_fault(doing)?;
    if done && heard.is_ok() && status.is_some_and(|status| status.success()) {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(COMPLAINT).read_to_string(&mut said).or_fault(doing)?;
    }
    Err(Fault::internal(doing, said.trim()))
}

/// Lets a child be that hangs in a system call. It hears of it when the call
/// returns, by the end of its input.
fn abandon(mut child: Child, work: Work) {
    if work == Work::Sync {
        // Fails only for one that has ended.
        let _ = child.kill();
    }
    tracing::warn!(pid = child.id(), work = work.name(), "disks do not come to rest");
    // Waiting for it leaves no zombie; without that thread, there is one.
    let _ = std::thread::Builder::new().name("berth-rest".into()).spawn(move || child.wait());
}

/// The child: `None` for the program's other lives.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if arguments.next()? != COMMAND {
        return None;
    }
    let work = arguments.next()?;
    let work = Work::ALL.into_iter().find(|known| work == known.name())?;
    Some(match act(work, arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    })
}

fn act(work: Work, paths: impl Iterator<Item = OsString>) -> io::Result<()> {
    let disks = paths.map(File::open).collect::<io::Result<Vec<File>>>()?;
    let mut frozen: Vec<&File> = Vec::new();
    let done = disks.iter().try_for_each(|disk| {
        if work == Work::Sync {
            return Ok(rustix::fs::syncfs(disk)?);
        }
        match sys::fs::freeze(disk.as_fd())? {
            true => frozen.push(disk),
            false if work == Work::FreezeAgain => {}
            false => return Err(io::Error::other("an earlier freeze of them goes on still")),
        }
        Ok(())
    });
    let outcome = done.and_then(|()| tell());
    if outcome.is_err() {
        for disk in frozen {
            sys::fs::thaw(disk.as_fd())?;
        }
    }
    outcome
}

/// Says that it is done; an error, when nobody hears it.
fn tell() -> io::Result<()> {
    let mut word = io::stdout();
    word.write_all(b".")?;
    word.flush()?;
    io::stdin().read_exact(&mut [0])
}
