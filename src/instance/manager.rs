//! All instances of the host: who there is, what they have taken, and what
//! became of them while the service was away.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::runtime::Handle as Runtime;
use tokio::sync::{Semaphore, oneshot};
use tracing::{error, info, warn};
use uuid::Uuid;

use super::action::{Action, Created, ExecRequest, RequestContext};
use super::actor::Actor;
use super::event::{EventLog, EventSubscription};
use super::handle::{Handle, Job, View, not_found};
use super::operation::{OperationHandle, OperationWriter, Operations};
use super::ops::recover::{self, Recovered};
use super::ops::{self, destroy};
use super::parts::Parts;
use super::record::{self, Desired, KeptResize, Record, SCHEMA};
use super::taken::Taken;
use super::validate;
use crate::config::Config;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::host::{self, Trials, Usage};
use crate::monitor;
use crate::network;
use crate::rootfs::idmap;
use crate::types::{
    Capabilities, Check, EventKind, HostInfo, HostStats, Image, ImageFormat, ImageImport, Instance,
    InstanceCreate, InstanceStats, Operation, Problem, Snapshot, TaskState,
};

/// The longest pause between two looks for images that were unused for too long.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);

/// What all actors share.
#[derive(Debug)]
pub struct Inner {
    parts: Arc<Parts>,
    instances: RwLock<BTreeMap<Uuid, Arc<Handle>>>,
    // Held while ids, CPUs and addresses are given out.
    allocation: Mutex<()>,
    operations: Operations,
    events: Arc<EventLog>,
    slots: Arc<Semaphore>,
    imports: Arc<Semaphore>,
    runtime: Runtime,
    checks: Vec<Check>,
    started_at: DateTime<Utc>,
}

/// The manager: the service's whole knowledge of instances and images.
#[derive(Clone, Debug)]
pub struct Manager {
    inner: Arc<Inner>,
}

impl Inner {
    /// Runs work on the host: on a blocking thread, when a slot is free.
    pub async fn host<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Parts) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let slot = self.slots.clone().acquire_owned().await.or_fault("waiting for a slot")?;
        let parts = self.parts.clone();
        let done = self.runtime.spawn_blocking(move || {
            let _slot = slot;
            work(&parts)
        });
        done.await.map_err(|error| Fault::internal("working on the host", error))?
    }

    /// Makes a snapshot on a thread of its own, and returns once it needs the
    /// instance no longer; the operation goes on.
    pub async fn snapshot(
        self: &Arc<Self>,
        record: Record,
        wanted: Snapshot,
        operation: OperationWriter,
    ) -> Result<()> {
        let slot = self.slots.clone().acquire_owned().await.or_fault("waiting for a slot")?;
        let (taken, was_taken) = oneshot::channel();
        let inner = self.clone();
        self.runtime.spawn_blocking(move || {
            let report = |stage: &str, done, total| {
                operation.stage(stage);
                operation.progress(done, total);
            };
            let go_on = || {
                drop(slot);
                // The actor may be gone with the service.
                let _ = taken.send(());
                let permit = inner.runtime.block_on(inner.imports.clone().acquire_owned());
                permit.or_fault("waiting for a slot")
            };
            let outcome = ops::snapshot::snapshot(&inner.parts, &record, &wanted, &report, go_on);
            operation.finish(outcome);
        });
        // It was not taken: the operation has ended and says why.
        was_taken.await.or_fault("taking the snapshot")
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

    /// Takes an instance that is gone out of the list.
    pub fn forget(&self, handle: &Arc<Handle>) {
        let mut instances = self.instances.write().unwrap_or_else(PoisonError::into_inner);
        if instances.get(&handle.id).is_some_and(|known| Arc::ptr_eq(known, handle)) {
            instances.remove(&handle.id);
        }
    }

    /// What instances have taken, save one. Whoever takes more of it holds
    /// [`allocate`](Self::allocate) until that can be seen in a view.
    pub fn taken(&self, except: Uuid) -> Taken {
        let mut taken = Taken::default();
        for handle in self.handles().iter().filter(|handle| handle.id != except) {
            handle.with_view(|view| taken.add(&view.record));
        }
        taken
    }

    fn handles(&self) -> Vec<Arc<Handle>> {
        self.instances.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn handle(&self, id: Uuid) -> Result<Arc<Handle>> {
        let instances = self.instances.read().unwrap_or_else(PoisonError::into_inner);
        instances.get(&id).cloned().ok_or_else(|| not_found(id))
    }

    /// The lock under which ids, CPUs, addresses and names are given out.
    pub fn allocate(&self) -> MutexGuard<'_, ()> {
        self.allocation.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Manager {
    /// Opens the host, takes up every instance and removes what none owns.
    /// `checks` are the outcomes of [`probe`], to be reported.
    /// Needs a tokio context; blocks.
    pub fn open(config: Config, checks: Vec<Check>) -> Result<Manager> {
        let parts = Arc::new(Parts::open(config)?);
        let configured = parts.config.service.concurrency;
        let slots = if configured > 0 {
            configured
        } else {
            2 * std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
        };
        let inner = Arc::new(Inner {
            imports: Arc::new(Semaphore::new(parts.config.images.concurrency)),
            parts,
            instances: RwLock::default(),
            allocation: Mutex::default(),
            operations: Operations::default(),
            events: EventLog::new(),
            slots: Arc::new(Semaphore::new(slots)),
            runtime: Runtime::current(),
            checks,
            started_at: Utc::now(),
        });
        inner.recover()?;
        inner.expire_images();
        Ok(Manager { inner })
    }

    /// Makes an instance; the same request again is success, another one a conflict.
    pub fn create(
        &self,
        context: RequestContext,
        id: Uuid,
        request: InstanceCreate,
    ) -> Result<Created> {
        validate::create(&request)?;
        self.inner.parts.network.validate(&request.vifs, request.dns.as_ref())?;
        crate::rootfs::seed::check_files(&request.files, request.flavor.root_gb.max(1) << 30)?;
        let digest = record::digest(&request)?;
        let inner = &self.inner;
        let allocation = inner.allocate();
        if let Ok(handle) = inner.handle(id) {
            return self.repeated(&handle, &digest, &context);
        }
        inner.parts.images.get(request.image_id)?;
        let record = self.plan_record(id, digest, request)?;
        let definition = record.definition.clone();
        crate::cgroup::Limits::from_flavor(
            &definition.flavor,
            &inner.parts.config.instances,
            record.pinned_cpus.as_deref(),
        )?;
        network::Rates::from_extra_specs(&definition.flavor.extra_specs)?;
        let (operation, writer) =
            inner.operations.begin("instance.create", id, &context.request_id);
        let view =
            View { record: record.clone(), init: None, task_state: Some(TaskState::Creating) };
        let (handle, jobs) = Handle::new(view);
        let handle = Arc::new(handle);
        *handle.creating().lock().unwrap_or_else(PoisonError::into_inner) = Some(operation.clone());
        inner.instances.write().unwrap_or_else(PoisonError::into_inner).insert(id, handle.clone());
        drop(allocation);
        let actor = Actor::new(inner.clone(), handle, record, None);
        inner.runtime.spawn(actor.run_new(definition, context, writer, jobs));
        Ok(Created { operation, existed: false })
    }

    fn repeated(&self, handle: &Handle, digest: &str, context: &RequestContext) -> Result<Created> {
        if handle.with_view(|view| view.record.request_digest != digest) {
            return Err(Fault::new(
                FaultKind::InstanceExists,
                format!("instance {} was created from another request; delete it first", handle.id),
            ));
        }
        if handle.with_view(|view| view.task_state == Some(TaskState::Deleting)) {
            return Err(Fault::new(
                FaultKind::InstanceInvalidState,
                format!("instance {} is being deleted; create it once it is gone", handle.id),
            ));
        }
        let creating = handle.creating().lock().unwrap_or_else(PoisonError::into_inner).clone();
        let operation = creating.unwrap_or_else(|| {
            let (operation, writer) =
                self.inner.operations.begin("instance.create", handle.id, &context.request_id);
            writer.finish(Ok(()));
            operation
        });
        Ok(Created { operation, existed: true })
    }

    /// Gives out ids, CPUs and addresses; the caller holds the allocation lock.
    fn plan_record(&self, id: Uuid, digest: String, mut request: InstanceCreate) -> Result<Record> {
        let inner = &self.inner;
        let mut taken = inner.taken(id);
        network::assign_names(&mut request.vifs);
        for (index, vif) in request.vifs.iter_mut().enumerate() {
            taken.take(&inner.parts.network, vif, &format!("vifs[{index}]."), id)?;
        }
        let dedicated =
            request.flavor.extra_specs.get("hw:cpu_policy").is_some_and(|p| p == "dedicated");
        let pinned_cpus = dedicated
            .then(|| {
                host::pick_dedicated(
                    &inner.parts.dedicated_cpus,
                    &taken.cpus,
                    request.flavor.vcpus as usize,
                )
            })
            .transpose()?;
        Ok(Record {
            schema: SCHEMA,
            generation: 0,
            id,
            request_digest: digest,
            id_block: idmap::allocate(&inner.parts.config.instances, &taken.blocks)?,
            definition: request,
            pinned_cpus,
            layers: Vec::new(),
            image_config: Default::default(),
            root_bytes: 0,
            ephemeral_bytes: 0,
            rescue: None,
            desired: Desired::Stopped,
            frozen: None,
            quiesced: false,
            resize: None,
            seeded: false,
            boot_id: None,
            created_at: Utc::now(),
            started_at: None,
            exit: None,
            guest_reboots: 0,
            fault: None,
        })
    }

    /// Queues an action on an instance.
    pub fn action(
        &self,
        context: RequestContext,
        id: Uuid,
        action: Action,
    ) -> Result<Arc<OperationHandle>> {
        let handle = self.inner.handle(id)?;
        match &action {
            Action::Stop(stop) => validate::timeout(stop.timeout)?,
            Action::Reboot(reboot) => validate::timeout(reboot.timeout)?,
            Action::Resize(resize) => validate::resize(resize)?,
            Action::SetPassword(wanted) => validate::password(wanted)?,
            Action::Rescue(wanted) => {
                validate::rescue(wanted)?;
                self.inner.parts.images.get(wanted.image_id)?;
                let root_gb = handle.with_view(|view| view.record.definition.flavor.root_gb);
                let files = wanted.files.as_deref().unwrap_or_default();
                crate::rootfs::seed::check_files(files, root_gb.max(1) << 30)?;
            }
            Action::Snapshot(wanted) => {
                let parts = &self.inner.parts;
                ops::snapshot::check(parts, wanted)?;
                let record = handle.with_view(|view| view.record.clone());
                ops::snapshot::check_format(parts, &record, wanted.format)?;
            }
            Action::AttachInterface(vif) => {
                self.inner.parts.network.validate(std::slice::from_ref(vif), None)?;
            }
            _ => {}
        }
        let kind = action.verb().name();
        let (operation, writer) = self.inner.operations.begin(kind, id, &context.request_id);
        handle.enqueue(Job { context, action, operation: writer })?;
        Ok(operation)
    }

    /// An instance as it is.
    pub fn instance(&self, id: Uuid) -> Result<Instance> {
        Ok(self.inner.handle(id)?.with_view(View::instance))
    }

    /// All instances, in the order of their ids.
    pub fn instances(&self) -> Vec<Instance> {
        self.inner.handles().iter().map(|handle| handle.with_view(View::instance)).collect()
    }

    /// What an instance uses now.
    pub fn stats(&self, id: Uuid) -> Result<InstanceStats> {
        let view = self.inner.handle(id)?.view();
        super::stats::read(&self.inner.parts, &view)
    }

    /// The last `length` bytes that the console's log keeps.
    pub fn console_output(&self, id: Uuid, length: Option<u64>) -> Result<Vec<u8>> {
        self.inner.handle(id)?;
        let files = crate::console::ConsoleFiles::of(&self.inner.parts.layout.instance(id));
        crate::console::read(&files, length)
    }

    /// Connects to the console of a running instance.
    pub fn console_attach(&self, id: Uuid) -> Result<(UnixStream, crate::monitor::Monitor)> {
        self.running(id, "its console")?;
        let socket = self.inner.parts.layout.instance(id).monitor_socket();
        let monitor = crate::monitor::Monitor::connect(&socket)?.ok_or_else(|| not_found(id))?;
        Ok((monitor.attach(0, 0)?, monitor))
    }

    /// The command that, run on the host, runs the request inside the instance.
    pub fn exec_command(&self, id: Uuid, request: &ExecRequest) -> Result<Command> {
        let view = self.running(id, "a command in it")?;
        super::exec::command(&self.inner.parts, &view.record, request)
    }

    fn running(&self, id: Uuid, what: &str) -> Result<View> {
        let view = self.inner.handle(id)?.view();
        if view.init.is_some() && view.record.frozen.is_none() {
            return Ok(view);
        }
        Err(Fault::new(
            FaultKind::InstanceInvalidState,
            format!("{what} needs the instance to be RUNNING; it is {}", view.power_state()),
        ))
    }

    /// Has an image in the store.
    pub fn import_image(
        &self,
        context: RequestContext,
        id: Uuid,
        request: ImageImport,
    ) -> Result<Arc<OperationHandle>> {
        let inner = self.inner.clone();
        let (operation, writer) = inner.operations.begin("image.import", id, &context.request_id);
        self.inner.runtime.spawn(async move {
            let Ok(permit) = inner.imports.clone().acquire_owned().await else { return };
            let parts = inner.parts.clone();
            inner.runtime.spawn_blocking(move || {
                let _permit = permit;
                writer.stage("fetching");
                let outcome = parts.images.import(id, &request, &|progress| {
                    writer.stage(progress.stage);
                    writer.progress(progress.done, progress.total);
                });
                writer.finish(outcome.map(|image| {
                    info!(image = %id, bytes = image.size, layers = image.layers.len(), "image imported");
                }));
            });
        });
        Ok(operation)
    }

    /// All images, in the order of their ids.
    pub fn images(&self) -> Vec<Image> {
        self.inner.parts.images.list()
    }

    /// An image.
    pub fn image(&self, id: Uuid) -> Result<Image> {
        self.inner.parts.images.get(id)
    }

    /// Removes an image that no instance stands on.
    pub fn delete_image(&self, id: Uuid) -> Result<()> {
        {
            // No create may take the image up between the check and the removal.
            let _allocation = self.inner.allocate();
            self.inner.parts.images.delete(id)?;
        }
        self.inner.parts.images.collect()
    }

    /// An operation.
    pub fn operation(&self, id: Uuid) -> Result<Arc<OperationHandle>> {
        self.inner.operations.get(id)
    }

    /// The operations that are remembered, oldest first.
    pub fn operations(&self) -> Vec<Operation> {
        self.inner.operations.list()
    }

    /// Those that have not ended.
    pub fn unfinished_operations(&self) -> Vec<Arc<OperationHandle>> {
        self.inner.operations.unfinished()
    }

    /// The events after `sequence`; only those to come without it.
    pub fn events_after(&self, sequence: Option<u64>) -> Result<EventSubscription> {
        self.inner.events.after(sequence)
    }

    /// The host and the service on it.
    pub fn host_info(&self) -> Result<HostInfo> {
        let inner = &self.inner;
        let parts = &inner.parts;
        let usage = self.usage();
        Ok(HostInfo {
            hypervisor_hostname: host::hypervisor_hostname(&parts.config)?,
            hypervisor_type: "berth".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            hypervisor_version: version_number(env!("CARGO_PKG_VERSION")),
            api_version: "v1".into(),
            architecture: host::architecture()?,
            kernel: host::kernel_release()?,
            uptime: host::uptime()?,
            service_started_at: inner.started_at,
            inventory: host::inventory(&parts.config, parts.layout.state(), &usage)?,
            capabilities: Capabilities {
                cgroup_layout: parts.hierarchy.layout().to_string(),
                runtime: parts.runtime_info.clone(),
                storage_backend: "loop".into(),
                image_formats: vec![
                    ImageFormat::DockerArchive,
                    ImageFormat::OciArchive,
                    ImageFormat::RootfsTar,
                    ImageFormat::Qcow2,
                    ImageFormat::Raw,
                    ImageFormat::Vmdk,
                    ImageFormat::Vhd,
                    ImageFormat::Vhdx,
                    ImageFormat::Vdi,
                ],
                lxcfs: parts.lxcfs().is_some(),
                swap_limit: parts.hierarchy.limits_swap(),
                buffered_write_limit: parts.hierarchy.limits_buffered_writes(),
                checks: inner.checks.clone(),
            },
        })
    }

    fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for handle in self.inner.handles() {
            handle.with_view(|view| {
                let flavor = &view.record.definition.flavor;
                match &view.record.pinned_cpus {
                    Some(cpus) => usage.pcpus += u32::try_from(cpus.len()).unwrap_or(u32::MAX),
                    None => usage.vcpus += flavor.vcpus,
                }
                usage.memory_mb += flavor.memory_mb;
                usage.local_gb +=
                    flavor.root_gb + flavor.ephemeral_gb + flavor.swap_mb.div_ceil(1024);
                if let Some(KeptResize::Unconfirmed { flavor, .. }) = &view.record.resize {
                    usage.local_gb += flavor.root_gb + flavor.ephemeral_gb;
                }
                usage.instances += 1;
                usage.running += u32::from(view.init.is_some());
            });
        }
        usage
    }

    /// What the host uses now.
    pub fn host_stats(&self) -> Result<HostStats> {
        host::stats()
    }

    /// The probes' outcomes at the start of the service.
    pub fn checks(&self) -> Vec<Check> {
        self.inner.checks.clone()
    }
}

impl Inner {
    /// Takes up every instance that has a record and removes what none owns.
    fn recover(self: &Arc<Self>) -> Result<()> {
        let mut known = BTreeSet::new();
        let mut records = Vec::new();
        for id in recover::ids_in(&self.parts.layout.instances()) {
            match Record::load(&self.parts.layout.instance(id)) {
                Ok(Some(record)) => records.push(record),
                Ok(None) => continue,
                // What it owns stays: the operator may mend the record.
                Err(fault) => {
                    self.parts.images.keep_all_layers();
                    error!(instance = %id, fault = %fault.in_full(), "the instance's record cannot be read; the instance is left alone")
                }
            }
            known.insert(id);
        }
        monitor::end_unrecorded(&self.parts.layout)?;
        for id in recover::orphans(&self.parts, &known) {
            match destroy::purge(&self.parts, id) {
                Ok(()) => info!(instance = %id, "removed what an interrupted operation left"),
                Err(fault) => {
                    error!(instance = %id, fault = %fault.in_full(), "removing what an interrupted operation left")
                }
            }
        }
        // What went away with its namespace leaves its rates' devices behind.
        self.parts.network.start()?;
        self.parts.hierarchy.clear_stale_rates()?;
        // Four at a time: each waits for the disk or the kernel most of its time.
        let queue = Mutex::new(records);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let _context = self.runtime.enter();
                    while let Some(record) = pop(&queue) {
                        self.recover_one(record);
                    }
                });
            }
        });
        self.parts.images.collect()
    }

    /// Lets images go that were unused for `images.unused_seconds`, now and from time to time.
    fn expire_images(self: &Arc<Self>) {
        let Ok(age @ 1..) = u64::try_from(self.parts.config.images.unused_seconds) else { return };
        let pause = Duration::from_secs(age).min(EXPIRE_EVERY);
        let parts = Arc::downgrade(&self.parts);
        let runtime = self.runtime.clone();
        self.runtime.spawn(async move {
            while let Some(parts) = parts.upgrade() {
                let expired = runtime.spawn_blocking(move || parts.images.expire());
                if let Ok(Err(fault)) = expired.await {
                    error!(
                        fault = %fault.in_full(),
                        "removing images that were unused for too long"
                    );
                }
                tokio::time::sleep(pause).await;
            }
        });
    }

    fn recover_one(self: &Arc<Self>, record: Record) {
        let id = record.id;
        let before = record.clone();
        let (record, live) = match recover::recover(&self.parts, record) {
            Ok((_, Recovered::Gone)) => {
                info!(instance = %id, "finished an interrupted delete");
                return;
            }
            Ok((record, Recovered::Running(live))) => (record, Some(live)),
            Ok((record, Recovered::Stopped)) => (record, None),
            Err(fault) => {
                // It is listed, with its fault, and can be deleted or started again.
                warn!(instance = %id, fault = %fault.in_full(), "taking the instance up");
                (Record { fault: Some(Problem::from(&fault)), ..before }, None)
            }
        };
        let view =
            View { record: record.clone(), init: live.as_ref().map(|l| l.init), task_state: None };
        let (handle, jobs) = Handle::new(view);
        let handle = Arc::new(handle);
        self.instances.write().unwrap_or_else(PoisonError::into_inner).insert(id, handle.clone());
        self.runtime.spawn(Actor::new(self.clone(), handle, record, live).run(jobs));
    }
}

/// Probes the host as `serve` and `berth check` do.
pub fn probe(config: &Config) -> Vec<Check> {
    let overlay = || crate::rootfs::trial(&config.storage, config.instances.id_map_first);
    host::probe(config, &Trials { overlay: &overlay, runtime: &host::check::runtime_trial })
}

fn pop(queue: &Mutex<Vec<Record>>) -> Option<Record> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop()
}

/// The version as Nova's number: major × 1,000,000 + minor × 1,000 + patch.
fn version_number(version: &str) -> u32 {
    version
        .split(['.', '-', '+'])
        .take(3)
        .fold(0, |number, part| number * 1000 + part.parse::<u32>().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_nova_numbers() {
        assert_eq!(version_number("0.1.0"), 1_000);
        assert_eq!(version_number("12.3.4-rc1"), 12_003_004);
    }
}
