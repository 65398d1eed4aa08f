//! The event log: what happened lately, for streams that can resume.
//!
//! Readers follow the ring by sequence number and are woken by a watch
//! channel. So a slow reader costs no memory; one that falls behind by more
//! than the ring holds is told so with `events-gone` and reads the present
//! state instead.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::Utc;
use tokio::sync::watch;
use uuid::Uuid;

use crate::fault::{Fault, FaultKind, Result};
use crate::types::{Event, EventKind, PowerState};

/// Events that are kept.
const KEPT: usize = 4096;

/// The latest 4096 events, in memory.
#[derive(Debug)]
pub struct EventLog {
    ring: Mutex<Ring>,
    latest: watch::Sender<u64>,
}

/// Events with consecutive sequence numbers, the last of them `latest`.
#[derive(Debug)]
struct Ring {
    events: VecDeque<Event>,
    latest: u64,
}

impl EventLog {
    /// An empty log. Its sequence begins at the present time in microseconds,
    /// so that a number from before a restart of the service is never taken
    /// for one of now: its owner missed events and is told so.
    pub fn new() -> Arc<EventLog> {
        EventLog::starting_at(u64::try_from(Utc::now().timestamp_micros()).unwrap_or(0))
    }

    fn starting_at(latest: u64) -> Arc<EventLog> {
        let ring = Mutex::new(Ring { events: VecDeque::new(), latest });
        Arc::new(EventLog { ring, latest: watch::Sender::new(latest) })
    }

    /// Adds an event and wakes the readers; returns its sequence number.
    pub fn publish(
        &self,
        kind: EventKind,
        instance_id: Uuid,
        power_state: PowerState,
        request_id: Option<&str>,
    ) -> u64 {
        let mut ring = self.lock();
        ring.latest += 1;
        let sequence = ring.latest;
        if ring.events.len() == KEPT {
            ring.events.pop_front();
        }
        ring.events.push_back(Event {
            sequence,
            kind,
            instance_id,
            power_state,
            at: Utc::now(),
            request_id: request_id.map(str::to_owned),
        });
        // Under the lock, so that the channel never goes back.
        self.latest.send_replace(sequence);
        sequence
    }

    /// The events after `sequence`, those kept first and then as they happen;
    /// `None`: only those that happen from now on. `EventsGone` when some of
    /// them are no longer kept.
    pub fn after(self: &Arc<Self>, sequence: Option<u64>) -> Result<EventSubscription> {
        let ring = self.lock();
        let position = sequence.unwrap_or(ring.latest);
        ring.next_after(position)?;
        drop(ring);
        let latest = self.latest.subscribe();
        Ok(EventSubscription { log: self.clone(), position, latest })
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        // Every change is complete before anything can panic.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    /// The event after `position`; `None` when it has not happened yet.
    fn next_after(&self, position: u64) -> Result<Option<&Event>> {
        let before_first = self.latest - self.events.len() as u64;
        if !(before_first..=self.latest).contains(&position) {
            return Err(Fault::new(
                FaultKind::EventsGone,
                format!(
                    "events after {position} are no longer kept ({before_first} to {} can be \
                     resumed from); read the instances' present state and follow the events anew",
                    self.latest
                ),
            ));
        }
        Ok(usize::try_from(position - before_first).ok().and_then(|index| self.events.get(index)))
    }
}

/// A reader's place in the log.
#[derive(Debug)]
pub struct EventSubscription {
    log: Arc<EventLog>,
    position: u64,
    latest: watch::Receiver<u64>,
}

impl EventSubscription {
    /// The next event, waiting for it; `EventsGone` when the reader was too
    /// slow. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Event> {
        loop {
            self.latest.mark_unchanged();
            if let Some(event) = self.log.lock().next_after(self.position)? {
                self.position = event.sequence;
                return Ok(event.clone());
            }
            // The sender lives in the log, which this subscription keeps.
            let _ = self.latest.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn publish(log: &EventLog) -> u64 {
        log.publish(EventKind::Started, Uuid::nil(), PowerState::Running, Some("req-1"))
    }

    #[tokio::test]
    async fn replay_then_live_without_gap_or_repeat() {
        let log = EventLog::starting_at(100);
        assert_eq!(publish(&log), 101);
        publish(&log);
        publish(&log);
        let mut events = log.after(Some(101)).unwrap();
        assert_eq!(events.next().await.unwrap().sequence, 102);
        assert_eq!(events.next().await.unwrap().sequence, 103);
        assert!(events.next().now_or_never().is_none(), "nothing has happened yet");
        let live = tokio::spawn(async move { events.next().await.unwrap().sequence });
        tokio::task::yield_now().await;
        publish(&log);
        assert_eq!(live.await.unwrap(), 104);
    }

    #[tokio::test]
    async fn without_a_number_only_the_future_is_seen() {
        let log = EventLog::starting_at(0);
        publish(&log);
        let mut events = log.after(None).unwrap();
        assert!(events.next().now_or_never().is_none());
        publish(&log);
        assert_eq!(events.next().await.unwrap().sequence, 2);
    }

    #[tokio::test]
    async fn what_is_no_longer_kept_is_said_to_be_gone() {
        let log = EventLog::starting_at(100);
        for _ in 0..KEPT {
            publish(&log);
        }
        let mut slow = log.after(Some(100)).unwrap();
        publish(&log);
        assert_eq!(slow.next().await.unwrap_err().kind, FaultKind::EventsGone);
        assert_eq!(log.after(Some(100)).unwrap_err().kind, FaultKind::EventsGone);
        assert!(log.after(Some(101)).is_ok());
        // A number of another life of the service.
        assert_eq!(log.after(Some(u64::MAX)).unwrap_err().kind, FaultKind::EventsGone);
        assert_eq!(log.after(Some(0)).unwrap_err().kind, FaultKind::EventsGone);
    }

    #[test]
    fn a_later_log_begins_above_an_earlier_one() {
        let earlier = publish(&EventLog::new());
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(publish(&EventLog::new()) > earlier);
    }
}
