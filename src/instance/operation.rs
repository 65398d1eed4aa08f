//! Work that outlives the connection that asked for it.
//!
//! An operation has two ends: the [`OperationWriter`], held by whatever does
//! the work on a blocking thread, and the [`OperationHandle`], from which any
//! number of clients read or await it. [`Operations`] remembers them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::Utc;
use tokio::sync::watch;
use uuid::Uuid;

use crate::fault::{Fault, FaultKind, Result};
use crate::telemetry;
use crate::types::{Operation, OperationBytes, OperationStatus, Problem};

/// Ended operations that are remembered, for clients that ask late.
const KEPT: usize = 1024;

/// The readers' end of an operation.
#[derive(Debug)]
pub struct OperationHandle {
    id: Uuid,
    current: watch::Receiver<Operation>,
    abort: Arc<Mutex<Abort>>,
}

/// Whether an operation can be given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Abort {
    /// It cannot: it goes on to its end.
    #[default]
    Impossible,
    /// It can.
    Possible,
    /// It was asked to.
    Asked,
}

impl OperationHandle {
    /// Its id.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Where it stands now.
    pub fn snapshot(&self) -> Operation {
        self.current.borrow().clone()
    }

    /// Asks it to end and to undo what it did; refused where it goes on to its end.
    pub fn abort(&self) -> Result<()> {
        let mut abort = self.abort.lock().unwrap_or_else(PoisonError::into_inner);
        if *abort == Abort::Impossible && !has_ended(&self.current.borrow()) {
            return Err(Fault::new(
                FaultKind::InstanceInvalidState,
                "the operation cannot be aborted, or no longer: only the move of an instance can, \
                 until the other host was told to take it",
            ));
        }
        *abort = Abort::Asked;
        Ok(())
    }

    /// Where it stands when it has ended. Dropping the future does no harm to it.
    pub async fn wait(&self) -> Operation {
        let mut current = self.current.clone();
        // The writer finishes before it goes away, so an error means "ended".
        let _ = current.wait_for(has_ended).await;
        self.snapshot()
    }
}

/// The worker's end of an operation. Dropped without [`finish`](Self::finish),
/// as by a panic, it ends the operation with a fault, so that nobody waits for ever.
#[derive(Debug)]
pub struct OperationWriter {
    current: watch::Sender<Operation>,
    abort: Arc<Mutex<Abort>>,
}

impl OperationWriter {
    /// Says what is being done now; the first call marks the operation as running.
    pub fn stage(&self, stage: &str) {
        self.current.send_modify(|operation| {
            operation.status = OperationStatus::Running;
            if operation.stage != stage {
                stage.clone_into(&mut operation.stage);
                operation.progress = None;
            }
        });
    }

    /// Says how much of the stage is done, in any unit; `total` where it is known.
    pub fn progress(&self, done: u64, total: Option<u64>) {
        let percent = total.filter(|total| *total > 0).map(|total| {
            let percent = u128::from(done) * 100 / u128::from(total);
            u8::try_from(percent.min(100)).unwrap_or(100)
        });
        // Only a change wakes the readers: progress comes with every block read.
        self.current.send_if_modified(|operation| {
            let changed = operation.progress != percent;
            operation.progress = percent;
            changed
        });
    }

    /// Says how many of the bytes to move are moved.
    pub fn bytes(&self, total: u64, processed: u64) {
        let remaining = total.saturating_sub(processed);
        self.current.send_modify(|operation| {
            operation.bytes = Some(OperationBytes { total, processed, remaining });
        });
        self.progress(processed, Some(total));
    }

    /// From here on it can be aborted, until [`keep_on`](Self::keep_on).
    pub fn may_be_aborted(&self) {
        *self.abort.lock().unwrap_or_else(PoisonError::into_inner) = Abort::Possible;
    }

    /// Whether it was asked to end.
    pub fn is_aborted(&self) -> bool {
        *self.abort.lock().unwrap_or_else(PoisonError::into_inner) == Abort::Asked
    }

    /// From here on it goes on to its end; false when it was asked to end before.
    pub fn keep_on(&self) -> bool {
        let mut abort = self.abort.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = *abort == Abort::Asked;
        if !asked {
            *abort = Abort::Impossible;
        }
        !asked
    }

    /// The request id of the call that asked for it.
    pub fn request_id(&self) -> String {
        self.current.borrow().request_id.clone()
    }

    /// Ends the operation.
    pub fn finish(&self, result: Result<()>) {
        self.current.send_modify(|operation| {
            let now = Utc::now();
            operation.finished_at = Some(now);
            match result {
                Ok(()) => {
                    operation.status = OperationStatus::Succeeded;
                    operation.progress = Some(100);
                }
                Err(fault) => {
                    operation.status = OperationStatus::Failed;
                    operation.fault = Some(Problem {
                        request_id: Some(operation.request_id.clone()),
                        ..Problem::from(&fault)
                    });
                }
            }
            let seconds = (now - operation.created_at).as_seconds_f64();
            telemetry::metrics().operation_ended(&operation.kind, operation.status, seconds);
        });
    }
}

impl Drop for OperationWriter {
    fn drop(&mut self) {
        if !has_ended(&self.current.borrow()) {
            self.finish(Err(Fault::new(
                FaultKind::Internal,
                "the operation was given up before its end; the service's log says why",
            )));
        }
    }
}

fn has_ended(operation: &Operation) -> bool {
    matches!(operation.status, OperationStatus::Succeeded | OperationStatus::Failed)
}

/// A new operation, queued, with both its ends.
pub fn operation(
    kind: &str,
    target: Uuid,
    request_id: &str,
) -> (Arc<OperationHandle>, OperationWriter) {
    let id = Uuid::new_v4();
    let (sender, receiver) = watch::channel(Operation {
        id,
        kind: kind.to_owned(),
        target,
        request_id: request_id.to_owned(),
        status: OperationStatus::Queued,
        progress: None,
        bytes: None,
        stage: String::new(),
        fault: None,
        created_at: Utc::now(),
        finished_at: None,
    });
    let abort = Arc::default();
    let handle = Arc::new(OperationHandle { id, current: receiver, abort: Arc::clone(&abort) });
    (handle, OperationWriter { current: sender, abort })
}

/// The operations under way, and the latest 1024 or so that have ended.
#[derive(Debug, Default)]
pub struct Operations {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    by_id: HashMap<Uuid, Arc<OperationHandle>>,
    oldest_first: VecDeque<Uuid>,
}

impl Operations {
    /// Remembers a new operation and forgets the oldest ended ones beyond the bound.
    pub fn begin(
        &self,
        kind: &str,
        target: Uuid,
        request_id: &str,
    ) -> (Arc<OperationHandle>, OperationWriter) {
        let (handle, writer) = operation(kind, target, request_id);
        let mut known = self.lock();
        known.by_id.insert(handle.id, handle.clone());
        known.oldest_first.push_back(handle.id);
        known.forget_ended();
        (handle, writer)
    }

    /// The operation with this id.
    pub fn get(&self, id: Uuid) -> Result<Arc<OperationHandle>> {
        self.lock().by_id.get(&id).cloned().ok_or_else(|| {
            Fault::new(
                FaultKind::OperationNotFound,
                format!("there is no operation {id}, or it ended long ago"),
            )
        })
    }

    /// All that are remembered, oldest first.
    pub fn list(&self) -> Vec<Operation> {
        let known = self.lock();
        known.oldest_first.iter().map(|id| known.by_id[id].snapshot()).collect()
    }

    /// Those that have not ended, oldest first.
    pub fn unfinished(&self) -> Vec<Arc<OperationHandle>> {
        let known = self.lock();
        let handles = known.oldest_first.iter().map(|id| known.by_id[id].clone());
        handles.filter(|handle| !has_ended(&handle.current.borrow())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Every change is complete before anything can panic.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn forget_ended(&mut self) {
        if self.oldest_first.len() <= KEPT {
            return;
        }
        let mut surplus = self.oldest_first.len() - KEPT;
        let Known { by_id, oldest_first } = self;
        oldest_first.retain(|id| {
            let forget = surplus > 0 && has_ended(&by_id[id].current.borrow());
            if forget {
                surplus -= 1;
                by_id.remove(id);
            }
            !forget
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiters_see_the_end_and_its_fault() {
        let (handle, writer) = operation("instance.start", Uuid::nil(), "req-1");
        assert_eq!(handle.snapshot().status, OperationStatus::Queued);
        let waiter = tokio::spawn({
            let handle = handle.clone();
            async move { handle.wait().await }
        });
        let worker = std::thread::spawn(move || {
            writer.stage("mounting");
            writer.progress(1, Some(3));
            assert_eq!(handle.snapshot().progress, Some(33));
            assert_eq!(handle.snapshot().status, OperationStatus::Running);
            writer.finish(Err(Fault::invalid("name", "is taken")));
        });
        let operation = waiter.await.unwrap();
        worker.join().unwrap();
        assert_eq!(operation.status, OperationStatus::Failed);
        assert_eq!(operation.stage, "mounting");
        let fault = operation.fault.unwrap();
        assert_eq!(fault.code, FaultKind::InvalidInput);
        assert_eq!(fault.request_id.as_deref(), Some("req-1"));
        assert!(operation.finished_at.is_some());
    }

    #[tokio::test]
    async fn a_worker_that_vanishes_fails_the_operation() {
        let (handle, writer) = operation("instance.start", Uuid::nil(), "req-1");
        drop(writer);
        let operation = handle.wait().await;
        assert_eq!(operation.fault.unwrap().code, FaultKind::Internal);
    }

    #[test]
    fn what_can_be_aborted_is_until_it_says_so() {
        let (handle, writer) = operation("instance.migrate", Uuid::nil(), "req-1");
        assert_eq!(handle.abort().unwrap_err().kind, FaultKind::InstanceInvalidState);
        writer.may_be_aborted();
        assert!(writer.keep_on());
        assert!(handle.abort().is_err() && !writer.is_aborted());
        writer.may_be_aborted();
        handle.abort().unwrap();
        assert!(writer.is_aborted() && !writer.keep_on());
        writer.finish(Ok(()));
        handle.abort().unwrap();
    }

    #[test]
    fn progress_never_leaves_its_range() {
        let (handle, writer) = operation("image.import", Uuid::nil(), "req-1");
        for (done, total, percent) in [
            (u64::MAX, Some(1), Some(100)),
            (u64::MAX, Some(u64::MAX), Some(100)),
            (1, Some(0), None),
            (1, None, None),
        ] {
            writer.progress(done, total);
            assert_eq!(handle.snapshot().progress, percent);
        }
    }

    #[test]
    fn only_ended_operations_are_forgotten() {
        let operations = Operations::default();
        let (first, writer) = operations.begin("instance.stop", Uuid::nil(), "req-0");
        let mut ended = Vec::new();
        for _ in 0..KEPT + 10 {
            let (handle, writer) = operations.begin("instance.start", Uuid::nil(), "req-1");
            writer.finish(Ok(()));
            ended.push(handle.id());
        }
        assert_eq!(operations.list().len(), KEPT);
        assert_eq!(operations.list()[0].id, first.id());
        assert_eq!(operations.get(ended[0]).unwrap_err().kind, FaultKind::OperationNotFound);
        assert_eq!(operations.get(ended[KEPT]).unwrap().id(), ended[KEPT]);
        assert_eq!(operations.unfinished().len(), 1);
        writer.finish(Ok(()));
        assert!(operations.unfinished().is_empty());
    }
}
