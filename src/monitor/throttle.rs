//! How much of a console the monitor takes: as much as an instance can have to
//! say, and no more, as a serial line would.
//!
//! What the monitor does for a console runs outside the instance's limits: CPU,
//! and writes to the host's disk. So it takes from a purse that fills by [`RATE`]
//! up to [`BURST`]; when that is empty it leaves the terminal alone until there is
//! enough for a [`MEAL`], and whoever writes there waits, as for any terminal that
//! is slow. Nothing is lost. A boot says some tens of KiB and never notices.
//!
//! A look at the console costs the host as much as [`LOOK`] bytes do, however
//! little is there, and one that found less waits for a [`MEAL`] as soon as the purse has
//! none: without that, single bytes would be as good a flood.

use std::time::{Duration, Instant};

/// Bytes in a second that are taken for ever. Twenty times what a machine's serial
/// line carries; of the log it writes 22 GB in a day.
const RATE: u64 = 256 * 1024;

/// Bytes that are taken at once from a console that was silent.
const BURST: u64 = 1024 * 1024;

/// Bytes that are worth a look at a console whose purse was empty: eight looks in a second.
const MEAL: u64 = RATE / 8;

/// Bytes that a look costs at least.
pub(super) const LOOK: u64 = 1024;

/// A console's purse.
#[derive(Debug)]
pub(super) struct Throttle {
    /// Bytes that may be taken, at the time of `at`.
    purse: u64,
    at: Instant,
    /// It was empty, or a look found little, and a meal is not there yet.
    waiting: bool,
}

impl Throttle {
    /// A full purse.
    pub fn new(now: Instant) -> Throttle {
        Throttle { purse: BURST, at: now, waiting: false }
    }

    /// How long the console is to be left alone; `None` when it may be looked at.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.fill(now);
        if self.waiting && self.purse < MEAL {
            // Rounded up: a poll that ends too soon would turn once more for nothing.
            let millis = ((MEAL - self.purse) * 1000).div_ceil(RATE);
            return Some(Duration::from_millis(millis.max(1)));
        }
        self.waiting = false;
        None
    }

    /// Bytes that a look may take.
    pub fn left(&self) -> usize {
        usize::try_from(self.purse).unwrap_or(usize::MAX)
    }

    /// Notes what a look took; it may be more than was left.
    pub fn took(&mut self, bytes: usize) {
        let cost = LOOK.max(bytes as u64);
        self.purse = self.purse.saturating_sub(cost);
        let enough = if (bytes as u64) < LOOK { MEAL } else { LOOK };
        self.waiting = self.purse < enough;
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        let nanos = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
        let filled = u64::try_from(u128::from(nanos) * u128::from(RATE) / 1_000_000_000);
        let filled = filled.unwrap_or(u64::MAX);
        if filled > 0 {
            self.purse = self.purse.saturating_add(filled).min(BURST);
            // Fractions of a byte are lost: too little to be noticed.
            self.at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes and looks that a console which always has `each` bytes takes in a time.
    fn flooded(each: usize, seconds: u64) -> (u64, u64) {
        let begin = Instant::now();
        let mut now = begin;
        let mut throttle = Throttle::new(now);
        let (mut bytes, mut looks) = (0, 0);
        while now - begin < Duration::from_secs(seconds) {
            match throttle.wait(now) {
                Some(wait) => now += wait,
                None => {
                    let took = each.min(throttle.left());
                    throttle.took(took);
                    bytes += took as u64;
                    looks += 1;
                    now += Duration::from_micros(1);
                }
            }
        }
        (bytes, looks)
    }

    #[test]
    fn a_flood_is_taken_by_the_rate_after_a_burst() {
        let (bytes, looks) = flooded(4096, 10);
        let most = BURST + 10 * RATE + MEAL;
        assert!((most - 2 * MEAL..=most).contains(&bytes), "{bytes}");
        assert!(looks <= bytes.div_ceil(4096) + 10 * 8, "{looks}");
    }

    #[test]
    fn single_bytes_are_no_better() {
        let (bytes, looks) = flooded(1, 10);
        assert!(bytes <= (BURST + 10 * RATE) / LOOK + 1, "{bytes}");
        assert_eq!(bytes, looks);
    }

    #[test]
    fn who_types_never_waits_and_silence_fills_the_purse() {
        let mut now = Instant::now();
        let mut throttle = Throttle::new(now);
        for _ in 0..10_000 {
            assert_eq!(throttle.wait(now), None);
            throttle.took(1);
            now += Duration::from_millis(10);
        }
        throttle.took(usize::MAX);
        assert!(throttle.wait(now).is_some_and(|wait| wait <= Duration::from_millis(125)));
        now += Duration::from_secs(3600);
        assert_eq!(throttle.wait(now), None);
        assert_eq!(throttle.left() as u64, BURST);
    }
}
