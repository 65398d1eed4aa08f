//! One handle per instance: what others see of it, and the queue into its actor.

use std::sync::{Mutex, PoisonError, RwLock};

use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::action::{Action, RequestContext};
use super::moved::Departure;
use super::operation::OperationWriter;
use super::record::{Frozen, KeptResize, Record};
use crate::fault::{Fault, FaultKind, Result};
use crate::sys::process::ProcessId;
use crate::types::{Instance, PowerState, TaskState, UnconfirmedResize};

/// Jobs that may wait for one instance; Nova sends one at a time, so a full
/// queue is a client gone wild.
pub const QUEUE: usize = 64;

/// A piece of work for the actor.
#[derive(Debug)]
pub struct Job {
    /// Who asked.
    pub context: RequestContext,
    /// For what.
    pub action: Action,
    /// Where progress and outcome go.
    pub operation: OperationWriter,
}

/// An instance as others see it.
#[derive(Debug)]
pub struct Handle {
    /// Nova's id.
    pub id: Uuid,
    jobs: mpsc::Sender<Job>,
    view: RwLock<View>,
    urgent: watch::Sender<u32>,
    creating: Mutex<Option<std::sync::Arc<super::operation::OperationHandle>>>,
}

/// What the actor publishes.
#[derive(Clone, Debug)]
pub struct View {
    /// The durable part.
    pub record: Record,
    /// The first process, while the instance runs or is frozen.
    pub init: Option<ProcessId>,
    /// What is being done to it.
    pub task_state: Option<TaskState>,
}

impl View {
    /// The power state that record and processes amount to.
    pub fn power_state(&self) -> PowerState {
        match (self.init, self.record.frozen) {
            (Some(_), Some(Frozen::Paused)) => PowerState::Paused,
            (Some(_), Some(Frozen::Suspended)) => PowerState::Suspended,
            (Some(_), None) => PowerState::Running,
            (None, _) if self.task_state == Some(TaskState::Creating) => PowerState::NoState,
            (None, _) => match &self.record.exit {
                // A first process that a signal or its own failure ended was not powered off.
                Some(exit) if exit.signal.is_some() || exit.code.is_some_and(|code| code != 0) => {
                    PowerState::Crashed
                }
                _ => PowerState::Shutdown,
            },
        }
    }

    /// The API's form.
    pub fn instance(&self) -> Instance {
        let record = &self.record;
        let power_state = self.power_state();
        Instance {
            id: record.id,
            definition: record.definition.clone(),
            volumes: record.volumes_inside(),
            power_state,
            power_state_number: power_state.number(),
            task_state: self.task_state,
            quiesced: record.quiesced,
            unconfirmed_resize: unconfirmed(record),
            migration: record.departure.as_ref().map(Departure::shown),
            rescue_image_id: record.rescue.as_ref().map(|rescue| rescue.image_id),
            fault: record.fault.clone(),
            pid: self.init.map(|init| init.pid),
            id_map_first: record.id_block.first,
            id_map_size: record.id_block.size,
            pinned_cpus: record.pinned_cpus.clone(),
            exit: record.exit.clone(),
            guest_reboots: record.guest_reboots,
            created_at: record.created_at,
            started_at: record.started_at,
            generation: record.generation,
        }
    }
}

fn unconfirmed(record: &Record) -> Option<UnconfirmedResize> {
    match record.resize.clone()? {
        KeptResize::Unconfirmed { flavor, since, .. } => Some(UnconfirmedResize { flavor, since }),
        KeptResize::Undoing => None,
    }
}

impl Handle {
    /// A handle and the receiving end for its actor.
    pub fn new(view: View) -> (Handle, mpsc::Receiver<Job>) {
        let (jobs, receiver) = mpsc::channel(QUEUE);
        let handle = Handle {
            id: view.record.id,
            jobs,
            view: RwLock::new(view),
            urgent: watch::channel(0).0,
            creating: Mutex::new(None),
        };
        (handle, receiver)
    }

    /// Queues a job; a graceful wait that is under way is cut short by an urgent one.
    pub fn enqueue(&self, job: Job) -> Result<()> {
        let urgent = job.action.verb().is_urgent();
        if urgent {
            self.urgent.send_modify(|n| *n += 1);
        }
        self.jobs.try_send(job).map_err(|error| {
            if urgent {
                self.urgent_taken();
            }
            match error {
                mpsc::error::TrySendError::Full(_) => Fault::new(
                    FaultKind::ServiceUnavailable,
                    format!("{QUEUE} operations already wait for this instance; try again later"),
                ),
                mpsc::error::TrySendError::Closed(_) => not_found(self.id),
            }
        })
    }

    /// Told by the actor when it takes an urgent job from the queue.
    pub fn urgent_taken(&self) {
        self.urgent.send_modify(|n| *n = n.saturating_sub(1));
    }

    /// Waits until an urgent job waits. Safe to drop.
    pub async fn urgent(&self) {
        let mut waiting = self.urgent.subscribe();
        // The sender is this handle's own: it cannot be gone.
        let _ = waiting.wait_for(|n| *n > 0).await;
    }

    /// Whether an urgent job waits.
    pub fn has_urgent(&self) -> bool {
        *self.urgent.borrow() > 0
    }

    /// What the actor last published.
    pub fn view(&self) -> View {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at what the actor last published without a copy.
    pub fn with_view<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        look(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The actor's publishing.
    pub fn publish(&self, view: View) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
    }

    /// The operation that is making the instance, while it is being made.
    pub fn creating(&self) -> &Mutex<Option<std::sync::Arc<super::operation::OperationHandle>>> {
        &self.creating
    }
}

/// The fault for an unknown id.
pub fn not_found(id: Uuid) -> Fault {
    Fault::new(FaultKind::InstanceNotFound, format!("no instance {id} on this host"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::record::tests::record;
    use crate::types::ExitStatus;

    fn exit(code: Option<i32>, signal: Option<i32>) -> Option<ExitStatus> {
        Some(ExitStatus { code, signal, oom_killed: false, at: chrono::Utc::now() })
    }

    #[test]
    fn power_states() {
        let init = Some(ProcessId { pid: 1, start_time: 1 });
        let state = |init, frozen, exit, task_state| {
            let record = Record { frozen, exit, ..record() };
            View { record, init, task_state }.power_state()
        };
        assert_eq!(state(init, None, None, None), PowerState::Running);
        assert_eq!(state(init, Some(Frozen::Paused), None, None), PowerState::Paused);
        assert_eq!(state(init, Some(Frozen::Suspended), None, None), PowerState::Suspended);
        assert_eq!(state(None, None, None, None), PowerState::Shutdown);
        assert_eq!(state(None, None, exit(Some(0), None), None), PowerState::Shutdown);
        assert_eq!(state(None, None, exit(Some(3), None), None), PowerState::Crashed);
        assert_eq!(state(None, None, exit(None, Some(9)), None), PowerState::Crashed);
        assert_eq!(state(None, None, None, Some(TaskState::Creating)), PowerState::NoState);
    }
}
