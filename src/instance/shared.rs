//! What the manager and all actors work with.

use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::runtime::Handle as Runtime;
use tokio::sync::Semaphore;
use tracing::info;

use super::event::EventLog;
use super::handle::View;
use super::host_parts::HostParts;
use super::operation::Operations;
use super::registry::Registry;
use crate::config::Config;
use crate::fault::{Fault, OrFault, Result};
use crate::types::EventKind;

/// The host, who is on it, what is being done, and how much at once.
#[derive(Debug)]
pub struct Shared {
    /// The host.
    pub parts: Arc<HostParts>,
    /// The instances.
    pub registry: Registry,
    /// What is being done.
    pub operations: Operations,
    /// What happened.
    pub events: Arc<EventLog>,
    /// Work on the host that may be under way at once.
    pub host_slots: Arc<Semaphore>,
    /// Images that may be on their way in at once.
    pub import_slots: Arc<Semaphore>,
    /// Images that may be on their way out at once: of their own, for one that is taken
    /// slowly is not to keep others from coming in.
    pub upload_slots: Arc<Semaphore>,
    /// Where actors run.
    pub runtime: Runtime,
}

impl Shared {
    /// Opens the host. Needs a tokio context.
    pub fn open(config: Config) -> Result<Shared> {
        let parts = Arc::new(HostParts::open(config)?);
        let configured = parts.config.service.concurrency;
        let slots = if configured > 0 {
            configured
        } else {
            2 * available_parallelism().map_or(2, NonZero::get)
        };
        Ok(Shared {
            registry: Registry::default(),
            operations: Operations::default(),
            events: EventLog::new(),
            host_slots: Arc::new(Semaphore::new(slots)),
            import_slots: Arc::new(Semaphore::new(parts.config.images.concurrency)),
            upload_slots: Arc::new(Semaphore::new(parts.config.images.concurrency)),
            runtime: Runtime::current(),
            parts,
        })
    }

    /// Runs work on the host: on a blocking thread, when a slot is free.
    pub async fn on_host<T: Send + 'static>(
        &self,
        work: impl FnOnce(&HostParts) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let slot = self.host_slots.clone().acquire_owned().await.or_fault("waiting for a slot")?;
        let parts = self.parts.clone();
        let done = self.runtime.spawn_blocking(move || {
            let _slot = slot;
            work(&parts)
        });
        done.await.map_err(|error| Fault::internal("working on the host", error))?
    }

    /// Publishes an event.
    pub fn emit(&self, kind: EventKind, view: &View, request_id: Option<String>) {
        info!(
            instance = %view.record.id,
            event = ?kind,
            power_state = %view.power_state(),
            request_id = request_id.as_deref().unwrap_or("-"),
            "instance event"
        );
        self.events.publish(kind, view.record.id, view.power_state(), request_id.as_deref());
    }
}
