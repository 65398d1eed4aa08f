//! A source of content that may be slow: whoever waits for it does no work.

use std::time::{Duration, Instant};

use super::progress::Listener;
use super::source::Source;
use crate::fault::Result;

/// How long in all its bytes may be waited for, for each [`STRETCH`], as part of the work.
const ALLOWANCE: Duration = Duration::from_secs(1);
/// Bytes for which the allowance is.
const STRETCH: u64 = 8 << 20;

/// The content, and how it is waited for: one that comes swiftly as part of the
/// work, one that trickles or stands still as none.
pub(super) struct Supply<'a> {
    source: Source,
    watcher: Listener<'a>,
    /// What is left of the allowance, and bytes until it is full again.
    allowance: Duration,
    until: u64,
}

impl<'a> Supply<'a> {
    pub fn new(source: Source, watcher: Listener<'a>) -> Supply<'a> {
        Supply { source, watcher, allowance: ALLOWANCE, until: STRETCH }
    }

    /// The source.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Takes bytes; 0 at the end.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let begun = Instant::now();
        let came = self.source.comes_within(self.allowance);
        self.allowance = self.allowance.saturating_sub(begun.elapsed());
        let n = if came {
            self.source.read(buffer)?
        } else {
            self.watcher.idle();
            let read = self.source.read(buffer);
            self.watcher.busy();
            read?
        };
        self.until = self.until.saturating_sub(n as u64);
        if self.until == 0 {
            (self.allowance, self.until) = (ALLOWANCE, STRETCH);
        }
        Ok(n)
    }
}
