//! What service and monitor say to each other.
//!
//! On the monitor's socket every request and every answer is one JSON object
//! on a line. Two requests change what a connection is for: after `subscribe`
//! the monitor sends a [`Message`] whenever something happens, and after
//! `attach` the connection carries the console's bytes, raw, both ways.

use serde::{Deserialize, Serialize};

use crate::cgroup::plan::CgroupPlan;
use crate::fault::{Fault, FaultKind};
use crate::runtime::disks::Disk;
use crate::sys::process::ProcessId;
use crate::types::ExitStatus;

/// A request to a monitor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Lets the created first process run.
    Start,
    /// Asks how things are.
    Status,
    /// Says what shall follow when the first process ends.
    OnExit {
        /// What shall follow.
        action: ExitAction,
    },
    /// Replaces the cgroup plan that a restart applies.
    Plan {
        /// The new plan.
        plan: CgroupPlan,
    },
    /// Replaces its disks, now and for a restart: volumes come, go and change their sizes.
    Disks {
        /// All of them; its own are as they were.
        disks: Vec<Disk>,
    },
    /// Sends a signal to the first process.
    Signal {
        /// Its number, 1 to 64.
        signal: i32,
    },
    /// Turns the connection into a stream of [`Message`]s; the answer is the status.
    Subscribe,
    /// Turns the connection into the console's bytes, both ways.
    Attach {
        /// Columns of the client's terminal; 0 leaves the size as it is.
        #[serde(default)]
        columns: u16,
        /// Rows of the client's terminal.
        #[serde(default)]
        rows: u16,
    },
    /// Writes a text to the console and its log, as if the instance had.
    Note {
        /// The text.
        text: String,
    },
    /// Sets the size of the terminal.
    Resize {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// Kills the first process at once, cleans up and ends. The answer comes
    /// first; that it is done is told by the end of the connection.
    Quit,
}

/// The answer to a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done; how things are now.
    Done(MonitorStatus),
    /// Not done, and why.
    Failed {
        /// Kind of the fault.
        kind: FaultKind,
        /// What happened.
        detail: String,
    },
}

impl From<Fault> for Answer {
    fn from(fault: Fault) -> Self {
        Answer::Failed { kind: fault.kind, detail: fault.detail }
    }
}

impl Answer {
    /// The answer as a result.
    pub fn into_result(self) -> crate::fault::Result<MonitorStatus> {
        match self {
            Answer::Done(status) => Ok(status),
            Answer::Failed { kind, detail } => Err(Fault::new(kind, detail)),
        }
    }
}

/// How a monitor and its instance are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MonitorStatus {
    /// The monitor itself, to be watched by pidfd.
    pub monitor: ProcessId,
    /// The first process, while there is one.
    pub init: Option<ProcessId>,
    /// Where the instance is in its life.
    pub phase: Phase,
    /// Number of times it rebooted itself since the monitor was launched.
    pub guest_reboots: u32,
    /// What follows when the first process ends.
    pub on_exit: ExitAction,
    /// How it ended, once it has.
    pub exit: Option<ExitRecord>,
}

/// Where an instance is in its life, as its monitor sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The first process exists and waits for `start`.
    Created,
    /// It runs.
    Running,
    /// It has ended and will not come back.
    Ended,
}

/// What follows when the first process ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitAction {
    /// What the guest asked for: a reboot starts it again, all else ends it.
    #[default]
    Guest,
    /// The end, even if the guest asked for a reboot (a stop is under way).
    End,
    /// A new start, however it ended (a reboot is under way); then [`ExitAction::Guest`] again.
    Restart,
}

/// How an instance ended: the content of `exit.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Wait status of the first process.
    pub status: ExitStatus,
    /// What that means.
    pub kind: ExitKind,
    /// Why it could not be started again, when [`ExitKind::RestartFailed`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Number of times it rebooted itself before.
    pub guest_reboots: u32,
    /// Whether the service had asked for the end ([`ExitAction::End`]).
    #[serde(default)]
    pub asked: bool,
}

/// What an end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitKind {
    /// Powered off or halted from inside (`reboot(2)`; the kernel ends the
    /// first process with SIGINT for either).
    PowerOff,
    /// Rebooted from inside while the end was wanted.
    Reboot,
    /// The first process exited.
    Exited,
    /// A signal ended it.
    Killed,
    /// It was to be started again and could not.
    RestartFailed,
}

/// What a subscriber is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Message {
    /// The first process runs.
    Started {
        /// The first process.
        init: ProcessId,
    },
    /// It ended and runs anew.
    Restarted {
        /// The new first process.
        init: ProcessId,
        /// Whether the guest asked for it, or the service did.
        guest: bool,
        /// Number of times it rebooted itself.
        guest_reboots: u32,
    },
    /// The kernel killed processes of it for want of memory.
    OutOfMemory {
        /// Number of those since it booted.
        kills: u64,
    },
    /// It ended. The connection ends after this.
    Exited {
        /// How; absent when it never ran.
        exit: Option<ExitRecord>,
    },
}

/// A value as a line.
pub(crate) fn line<T: Serialize>(value: &T) -> Vec<u8> {
    // These types have string keys only and no failing serialiser.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_documented() {
        for (text, request) in [
            (r#"{"op":"start"}"#, Request::Start),
            (r#"{"op":"on_exit","action":"end"}"#, Request::OnExit { action: ExitAction::End }),
            (
                r#"{"op":"attach","columns":80,"rows":24}"#,
                Request::Attach { columns: 80, rows: 24 },
            ),
            (r#"{"op":"attach"}"#, Request::Attach { columns: 0, rows: 0 }),
            (r#"{"op":"signal","signal":38}"#, Request::Signal { signal: 38 }),
        ] {
            assert_eq!(serde_json::from_str::<Request>(text).unwrap(), request);
        }
        for bad in [r#"{"op":"fly"}"#, r#"{"op":"resize","columns":-1,"rows":1}"#, "{}", "start"] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
    }
}
