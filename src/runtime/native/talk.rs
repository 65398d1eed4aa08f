//! What the monitor and a process that is being made say to each other, over a socket that is
//! closed when that process executes its program.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::sys::process::readable;
use crate::sys::scm;

/// Most bytes of a message; what is said of a fault is cut to fit.
const MOST: usize = 16 << 10;
const MOST_WORDS: usize = 4 << 10;

/// From the process that is being made.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// Its number in the host's PID namespace, which it cannot see; from its maker.
    Born(i32),
    /// All is made. It comes with the terminal's master, if there is a terminal.
    Ready,
    /// It could not be made, or could not execute its program.
    Failed {
        /// The fault's kind.
        kind: FaultKind,
        /// In words.
        detail: String,
    },
}

/// One end.
#[derive(Debug)]
pub struct Line(UnixStream);

impl Line {
    /// The two ends: of the monitor, and of the process.
    pub(super) fn pair() -> Result<(Line, Line)> {
        let (one, other) = scm::message_pair().or_fault("making a socket")?;
        Ok((Line(one), Line(other)))
    }

    /// Says something.
    pub(super) fn say(&self, message: &Message, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let text = serde_json::to_vec(message).or_fault("telling the monitor")?;
        scm::send_message(&self.0, &text, fd).or_fault("telling the monitor")
    }

    /// Says what went wrong. Who should hear it may be gone.
    pub(super) fn fail(&self, fault: &Fault) {
        let detail = fault.detail.chars().take(MOST_WORDS).collect();
        let _ = self.say(&Message::Failed { kind: fault.kind, detail }, None);
    }

    /// Hears the next message, or the fault that it is; none: nobody has the other end any more.
    /// The process has executed its program or has ended, and so has its maker.
    pub(super) fn hear(&self, limit: Duration) -> Result<Option<(Message, Option<OwnedFd>)>> {
        let doing = "waiting for the instance's first process";
        if !readable(self.0.as_fd(), limit).or_fault(doing)? {
            let detail = format!("it was not made within {} seconds", limit.as_secs());
            return Err(Fault::new(FaultKind::RuntimeFailed, detail));
        }
        let (text, fd) = scm::receive_message(&self.0, MOST).or_fault(doing)?;
        if text.is_empty() {
            return Ok(None);
        }
        match serde_json::from_slice(&text).or_fault(doing)? {
            Message::Failed { kind, detail } => Err(Fault::new(kind, detail)),
            message => Ok(Some((message, fd))),
        }
    }

    /// Hears that a process is born, and that all is made: in either order, for its maker and it
    /// run beside each other, each within `limit`. Gives its number, as soon as that is known, and the terminal's master.
    pub(super) fn hear_of_birth(
        &self,
        born: &mut Option<Pid>,
        limit: Duration,
    ) -> Result<Option<OwnedFd>> {
        let mut ready = None;
        loop {
            match self.hear(limit)? {
                Some((Message::Born(pid), _)) => *born = Pid::from_raw(pid),
                Some((Message::Ready, master)) => ready = Some(master),
                _ => {
                    let detail = "the process ended before it was made, and said nothing";
                    return Err(Fault::new(FaultKind::RuntimeFailed, detail));
                }
            }
            if born.is_some()
                && let Some(master) = ready.take()
            {
                return Ok(master);
            }
        }
    }

    /// Lets the process execute its program.
    pub(super) fn release(&self) -> Result<()> {
        scm::send_message(&self.0, b"go", None)
            .or_kind(FaultKind::RuntimeFailed, "starting the first process, which may have ended")
    }

    /// Waits, in the process, for that; `false`: whoever would say it is gone, or cannot be heard.
    pub(super) fn is_released(&self) -> bool {
        loop {
            match scm::receive_message(&self.0, 2) {
                Ok((text, _)) => return !text.is_empty(),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
    }
}
