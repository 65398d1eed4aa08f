//! A source of content that may be slow: whoever waits for it does no work.

use std::time::{Duration, Instant};

use super::progress::Listener;
use super::source::Source;
use crate::fault::{Fault, FaultKind, Result};

/// How long in all its bytes may be waited for, for each [`STRETCH`], as part of the work.
const ALLOWANCE: Duration = Duration::from_secs(1);
/// Bytes for which the allowance is.
const STRETCH: u64 = 8 << 20;

/// A source that was waited for so long ...
const SPAN: Duration = Duration::from_secs(600);
/// ... and gave fewer bytes meanwhile is given up, 1 KiB a second: it holds no slot,
/// but a thread, a process and room on the disk.
const LEAST: u64 = 600 << 10;

/// How a source gives, by the time that it was waited for.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Whether it is still fast enough after `bytes` for which it was waited so long.
    fn suffices(&mut self, waited: Duration, bytes: u64) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < SPAN {
            return true;
        }
        std::mem::take(self).bytes >= LEAST
    }
}

/// The content, and how it is waited for: one that comes swiftly as part of the
/// work, one that trickles or stands still as none.
pub(super) struct Supply<'a> {
    source: Source,
    watcher: Listener<'a>,
    /// What is left of the allowance, and bytes until it is full again.
    allowance: Duration,
    until: u64,
    pace: Pace,
}

impl<'a> Supply<'a> {
    pub fn new(source: Source, watcher: Listener<'a>) -> Supply<'a> {
        Supply { source, watcher, allowance: ALLOWANCE, until: STRETCH, pace: Pace::default() }
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
        let (read, waited) = if came {
            (self.source.read(buffer), begun.elapsed())
        } else {
            self.watcher.idle();
            let read = self.source.read(buffer);
            let waited = begun.elapsed();
            self.watcher.busy();
            (read, waited)
        };
        let n = read?;
        if n > 0 && !self.pace.suffices(waited, n as u64) {
            return Err(Fault::new(
                FaultKind::GlanceUnavailable,
                format!(
                    "the image comes too slowly: less than {} KiB in {} seconds; look at the \
                     image service and the network to it, then try again",
                    LEAST >> 10,
                    SPAN.as_secs()
                ),
            ));
        }
        self.until = self.until.saturating_sub(n as u64);
        if self.until == 0 {
            (self.allowance, self.until) = (ALLOWANCE, STRETCH);
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_trickles_is_given_up_and_what_was_not_waited_for_is_not() {
        let gives = |bytes: u64, each: Duration| {
            let mut pace = Pace::default();
            (1..=10_000).find(|_| !pace.suffices(each, bytes))
        };
        assert_eq!(gives(1000, Duration::from_secs(1)), Some(600));
        assert_eq!(gives(1024, Duration::from_secs(1)), None);
        // A byte at a time from a file: nobody waits for it.
        assert_eq!(gives(1, Duration::from_micros(5)), None);
        // Fast at first is no credit for ever.
        let mut pace = Pace::default();
        assert!(pace.suffices(SPAN, 1 << 30));
        assert!(!pace.suffices(SPAN, 1));
    }
}
