//! Work on volumes, in a process of its own.
//!
//! A block device whose other end is away answers nobody, and no signal ends who waits for it.
//! So a child does whatever may have to wait: this program, with a hidden first argument
//! ([`COMMAND`]), told what to do on its standard input. Whoever asked waits for a while only.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::device::{clear, empty};
use super::{holders, source};
use crate::cgroup::DeviceNumber;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::sys::loopdev::{self, LoopDevice};
use crate::sys::process::{other_life, readable, wait_child};
use crate::types::VolumeSource;

/// The hidden first argument by which the program knows that it is the child.
const COMMAND: &str = "volume-work";

/// Longest that looking and attaching may take.
const LOOK: Duration = Duration::from_secs(30);
/// Longest that it may take to write what waits to be written to a volume.
const SYNC: Duration = Duration::from_secs(120);
/// Time for a child to end when it has answered.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// What is to be done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Work {
    /// Whether it can be a volume: [`super::Seen`].
    Look {
        /// What.
        source: VolumeSource,
        /// Whether it is only to be read.
        read_only: bool,
        /// The mark of the volume's own device.
        mark: String,
        /// Directories of berth's.
        own: Vec<PathBuf>,
        /// What may be the same.
        others: Vec<VolumeSource>,
    },
    /// Gives it a device: its number.
    Attach {
        /// What.
        source: VolumeSource,
        /// Whether it is only to be read.
        read_only: bool,
        /// The device's mark.
        mark: String,
    },
    /// Who has a device open: a list of [`super::Holder`].
    Holders {
        /// The device.
        device: DeviceNumber,
        /// Those who may.
        pids: Vec<i32>,
    },
    /// Makes a device as large as its source is.
    Resize {
        /// The device.
        number: u32,
        /// Its mark.
        mark: String,
    },
    /// Takes the blocks away from whoever has the device open: whether that was possible.
    Empty {
        /// The device.
        number: u32,
        /// Its mark.
        mark: String,
    },
    /// Writes what waits, and frees the device: whether it is free.
    Clear {
        /// The device.
        number: u32,
        /// Its mark.
        mark: String,
        /// Whether one that is in use stays as it is; else it ends with its last user.
        keep: bool,
    },
}

impl Work {
    fn limit(&self) -> Duration {
        match self {
            Work::Look { .. } | Work::Attach { .. } | Work::Holders { .. } => LOOK,
            Work::Resize { .. } | Work::Empty { .. } | Work::Clear { .. } => SYNC,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Work::Look { .. } => "looking at a volume",
            Work::Attach { .. } => "attaching a volume",
            Work::Holders { .. } => "looking who has a volume open",
            Work::Resize { .. } => "resizing a volume",
            Work::Empty { .. } => "taking a volume away",
            Work::Clear { .. } => "letting go of a volume",
        }
    }
}

/// What a child says.
#[derive(Serialize, Deserialize)]
enum Answer<T> {
    Done(T),
    Fault { kind: FaultKind, detail: String, field: Option<String> },
}

/// Has a child do it.
pub fn run<T: DeserializeOwned>(work: &Work) -> Result<T> {
    let doing = work.name();
    let mut child = other_life(COMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .or_fault(doing)?;
    let (Some(mut told), Some(mut said)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(Fault::internal(doing, "the child has no pipes"));
    };
    told.write_all(&serde_json::to_vec(work).or_fault(doing)?).or_fault(doing)?;
    drop(told);
    if !readable(said.as_fd(), work.limit()).or_fault(doing)? {
        // One that the kernel holds dies when it is let go; waiting for it leaves no zombie.
        let _ = child.kill();
        tracing::warn!(pid = child.id(), doing, "a volume does not answer");
        let _ = std::thread::Builder::new().name("berth-volume".into()).spawn(move || child.wait());
        return Err(Fault::new(
            FaultKind::Timeout,
            format!(
                "{doing}: what holds its blocks did not answer within {} seconds; see whether it \
                 is there, and try again",
                work.limit().as_secs()
            ),
        ));
    }
    let mut answer = Vec::new();
    said.read_to_end(&mut answer).or_fault(doing)?;
    wait_child(&mut child, LAST_WORDS).or_fault(doing)?;
    match serde_json::from_slice(&answer).or_fault(doing)? {
        Answer::Done(done) => Ok(done),
        Answer::Fault { kind, detail, field } => Err(Fault { field, ..Fault::new(kind, detail) }),
    }
}

/// The child: `None` for the program's other lives.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    if arguments.next()? != COMMAND {
        return None;
    }
    let answer = match act() {
        Ok(done) => Answer::Done(done),
        Err(Fault { kind, detail, field, .. }) => Answer::Fault { kind, detail, field },
    };
    let text = serde_json::to_vec(&answer).unwrap_or_default();
    let written = io::stdout().write_all(&text).and_then(|()| io::stdout().flush());
    Some(if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn act() -> Result<serde_json::Value> {
    let doing = "working on a volume";
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text).or_fault(doing)?;
    let work: Work = serde_json::from_slice(&text).or_fault(doing)?;
    let name = work.name();
    match work {
        Work::Look { source, read_only, mark, own, others } => {
            value(source::look(&source, read_only, &mark, &own, &others)?)
        }
        Work::Attach { source, read_only, mark } => {
            value(source::attach(&source, read_only, &mark)?)
        }
        Work::Holders { device, pids } => value(holders::find(device, &pids)),
        Work::Resize { number, mark } => {
            if let Some(device) = device(number, &mark)? {
                device.update_size().or_fault(name)?;
            }
            value(())
        }
        Work::Empty { number, mark } => match device(number, &mark)? {
            Some(device) => value(empty(&device).or_fault(name)?),
            None => value(true),
        },
        Work::Clear { number, mark, keep } => match device(number, &mark)? {
            Some(device) => value(clear(device, &mark, keep).or_fault(name)?),
            None => value(true),
        },
    }
}

fn value(done: impl Serialize) -> Result<serde_json::Value> {
    serde_json::to_value(done).or_fault("answering")
}

/// The device, if it still is this volume's.
fn device(number: u32, mark: &str) -> Result<Option<LoopDevice>> {
    let found = loopdev::open_marked(number).or_fault("opening a volume's device")?;
    Ok(found.filter(|(_, of)| of == mark).map(|(device, _)| device))
}
