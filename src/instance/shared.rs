//! What the manager and all actors work with.

use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::runtime::Handle as Runtime;
use tokio::sync::{Semaphore, oneshot};
use tracing::info;
use uuid::Uuid;

use super::event::EventLog;
use super::handle::View;
use super::host_parts::HostParts;
use super::operation::Operations;
use super::ops::destroy;
use super::record::Record;
use super::registry::Registry;
use crate::config::Config;
use crate::fault::{Fault, OrFault, Result};
use crate::rootfs::idmap;
use crate::types::{Definition, EventKind};
use crate::{host, network};

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

    /// Gives out ids, CPUs and addresses; the caller holds the allocation lock.
    pub fn plan_record(&self, id: Uuid, digest: &str, mut request: Definition) -> Result<Record> {
        let mut allocations = self.registry.allocations(id);
        network::assign_names(&mut request.vifs);
        for (index, vif) in request.vifs.iter_mut().enumerate() {
            allocations.claim(&self.parts.network, vif, &format!("vifs[{index}]."), id)?;
        }
        let dedicated =
            request.flavor.extra_specs.get("hw:cpu_policy").is_some_and(|p| p == "dedicated");
        let pinned_cpus = dedicated
            .then(|| {
                host::pick_dedicated(
                    &self.parts.dedicated_cpus,
                    &allocations.cpus,
                    request.flavor.vcpus as usize,
                )
            })
            .transpose()?;
        let id_block = idmap::allocate(&self.parts.config.instances, &allocations.blocks)?;
        Record::new(id, digest, request, id_block, pinned_cpus)
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

    /// Runs what waits for a guest, on a thread of its own: it holds none of the
    /// slots, nor of the threads that work on the host has, for a guest decides
    /// how long it takes. The work itself has a limit; an instance has one of
    /// these at most, as its actor awaits it.
    pub async fn on_guest<T: Send + 'static>(
        &self,
        work: impl FnOnce(&HostParts) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (said, says) = oneshot::channel();
        let (parts, runtime) = (self.parts.clone(), self.runtime.clone());
        std::thread::Builder::new()
            .name("berth-guest".into())
            .spawn(move || {
                // For what is asynchronous within, as a connection to another host.
                let _context = runtime.enter();
                // The actor may be gone with the service.
                let _ = said.send(work(&parts));
            })
            .or_fault("starting a thread")?;
        says.await.map_err(|error| Fault::internal("waiting for the instance", error))?
    }

    /// Ends an instance's processes, however long they take to die, and then runs
    /// `work` on the host. It is told whether they ended: when they did not, it
    /// tries its other steps, and waits where it keeps nobody else waiting.
    pub async fn when_ended<T: Send + 'static>(
        &self,
        id: Uuid,
        work: impl FnOnce(&HostParts, Result<()>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        match self.on_guest(move |parts| destroy::end_processes(parts, id)).await {
            Ok(()) => self.on_host(move |parts| work(parts, Ok(()))).await,
            Err(fault) => self.on_guest(move |parts| work(parts, Err(fault))).await,
        }
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
