//! How fast a move may send.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Gives leave to send so many bytes a second, over all connections of a move.
pub struct Throttle {
    /// Bytes a second; 0: as many as there are.
    rate: u64,
    /// When all that was given leave to will have been sent.
    free_at: Mutex<Instant>,
}

impl Throttle {
    /// For `rate` bytes a second; 0: no limit.
    pub fn new(rate: u64) -> Throttle {
        Throttle { rate, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may be sent.
    pub fn wait(&self, bytes: u64) {
        std::thread::sleep(self.pause(bytes, Instant::now()));
    }

    fn pause(&self, bytes: u64, now: Instant) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        // What was not used before is no credit.
        let begin = (*free_at).max(now);
        *free_at = begin + Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        begin - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_their_time() {
        let throttle = Throttle::new(1000);
        let now = Instant::now() + Duration::from_secs(1);
        assert_eq!(throttle.pause(500, now), Duration::ZERO);
        assert_eq!(throttle.pause(250, now), Duration::from_millis(500));
        assert_eq!(throttle.pause(1, now), Duration::from_millis(750));
        let later = now + Duration::from_secs(10);
        assert_eq!(throttle.pause(1, later), Duration::ZERO);
        assert_eq!(Throttle::new(0).pause(u64::MAX, now), Duration::ZERO);
    }
}
