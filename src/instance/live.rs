//! A running instance: its monitor, its first process, and what the monitor says.

use std::os::unix::net::UnixStream as StdUnixStream;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::UnixStream;
use tracing::warn;

use crate::fault::{OrFault, Result};
use crate::monitor::{ExitRecord, Message, Monitor};
use crate::sys::process::ProcessId;

/// Messages are short lines; hundreds of instances share the service's memory.
const BUFFER: usize = 512;

/// A running instance.
#[derive(Debug)]
pub struct Live {
    /// Where its monitor is reached.
    pub monitor: Monitor,
    /// Its first process.
    pub init: ProcessId,
    messages: Lines<BufReader<UnixStream>>,
}

/// What happened to a running instance.
#[derive(Debug)]
pub enum MonitorEvent {
    /// It rebooted itself and runs again.
    GuestRebooted {
        /// The new first process.
        init: ProcessId,
        /// Reboots since it was started.
        guest_reboots: u32,
    },
    /// The kernel killed processes of it for want of memory: so many since its boot.
    OutOfMemory(u64),
    /// Its first process ended; how, if it ever ran.
    Exited(Option<ExitRecord>),
    /// The monitor is gone without a word.
    Lost,
}

impl Live {
    /// Follows a running instance; needs a tokio context.
    pub fn follow(monitor: Monitor, init: ProcessId, messages: StdUnixStream) -> Result<Live> {
        messages.set_nonblocking(true).or_fault("following the monitor")?;
        let stream = UnixStream::from_std(messages).or_fault("following the monitor")?;
        Ok(Live { monitor, init, messages: BufReader::with_capacity(BUFFER, stream).lines() })
    }

    /// The next event; never, when nothing runs. Safe to drop while it waits.
    pub async fn next(live: &mut Option<Live>) -> MonitorEvent {
        let Some(live) = live else { return std::future::pending().await };
        loop {
            let line = match live.messages.next_line().await {
                Ok(Some(line)) => line,
                Ok(None) | Err(_) => return MonitorEvent::Lost,
            };
            match Message::deserialize(&mut serde_json::Deserializer::from_str(&line)) {
                Ok(Message::Restarted { init, guest_reboots, .. }) => {
                    return MonitorEvent::GuestRebooted { init, guest_reboots };
                }
                Ok(Message::OutOfMemory { kills }) => return MonitorEvent::OutOfMemory(kills),
                Ok(Message::Exited { exit }) => return MonitorEvent::Exited(exit),
                Ok(_) => {}
                Err(error) => warn!(%error, "a message of the monitor was not understood"),
            }
        }
    }
}
