//! The manager: takes requests, refuses what cannot be, and hands the rest to
//! the actors. All it knows is in [`Shared`].

use std::io::Read;
use std::process::Command;
use std::sync::{Arc, PoisonError};

use chrono::{DateTime, Utc};
use tracing::warn;
use uuid::Uuid;

use super::action::{Action, Created, ExecRequest, RequestContext};
use super::actor::Actor;
use super::backend::{Backend, Console, Inspecting};
use super::event::EventSubscription;
use super::handle::{Handle, Job, View, not_found};
use super::operation::OperationHandle;
use super::ops;
use super::record;
use super::shared::Shared;
use super::{
    arrivals, disk_watch, exec, host_report, image_jobs, lxcfs_watch, recovery, stats, validate,
};
use crate::cgroup::{CgroupLayout, CgroupLimits};
use crate::config::Config;
use crate::console::{self, ConsoleFiles};
use crate::fault::{Fault, FaultKind, Result};
use crate::host;
use crate::migration::peer::Peer;
use crate::migration::receive::Chunk;
use crate::monitor::Monitor;
use crate::network;
use crate::rootfs::seed;
use crate::runtime::walls::Walls;
use crate::types::{
    Check, HostInfo, HostStats, Image, ImageImport, ImageInspect, Incoming, IncomingFile,
    IncomingInstance, IncomingOutcome, Instance, InstanceCreate, InstanceStats, Operation,
    TaskState,
};

/// The service's whole knowledge of instances and images.
#[derive(Debug)]
pub struct Manager {
    shared: Arc<Shared>,
    checks: Vec<Check>,
    started_at: DateTime<Utc>,
}

impl Manager {
    /// Opens the host, takes up every instance and removes what none owns.
    /// `checks` are the outcomes of [`host_report::probe`], to be reported.
    /// Needs a tokio context; blocks.
    pub fn open(config: Config, checks: Vec<Check>) -> Result<Manager> {
        let shared = Arc::new(Shared::open(config)?);
        let started_at = Utc::now();
        if shared.parts.hierarchy.layout() != CgroupLayout::V2 {
            warn!(
                "limits of units inside (MemoryMax=, CPUQuota=, TasksMax=) do nothing on this host: its \
                 controllers are on cgroup v1, which no instance is given; boot it with \
                 systemd.unified_cgroup_hierarchy=1"
            );
        }
        recovery::take_up_all(&shared)?;
        image_jobs::expire_unused(&shared);
        arrivals::expire_idle(&shared);
        lxcfs_watch::start(&shared)?;
        disk_watch::start(&shared)?;
        Ok(Manager { shared, checks, started_at })
    }

    fn repeated(&self, handle: &Handle, digest: &str, context: &RequestContext) -> Result<Created> {
        if !handle.with_view(|view| view.record.is_of_request(digest))? {
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
                self.shared.operations.begin("instance.create", handle.id, &context.request_id);
            writer.finish(Ok(()));
            operation
        });
        Ok(Created { operation, existed: true })
    }

    /// Checks of a request what can be checked before its turn comes.
    fn check(&self, handle: &Handle, action: &Action) -> Result<()> {
        let parts = &self.shared.parts;
        match action {
            Action::Stop(stop) => validate::timeout(stop.timeout)?,
            Action::Reboot(reboot) => validate::timeout(reboot.timeout)?,
            Action::Resize(resize) => validate::resize(resize)?,
            Action::Migrate(wanted) => {
                validate::timeout(wanted.timeout)?;
                if let Some(flavor) = &wanted.flavor {
                    validate::flavor("flavor", flavor)?;
                }
                Peer::check(&parts.config, &wanted.to)?;
            }
            Action::SetPassword(wanted) => validate::password(wanted)?,
            Action::Rescue(wanted) => {
                validate::rescue(wanted)?;
                parts.images.get(wanted.image_id)?;
                let root_gb = handle.with_view(|view| view.record.definition.flavor.root_gb);
                let files = wanted.files.as_deref().unwrap_or_default();
                seed::check_files(files, root_gb.max(1) << 30)?;
            }
            Action::Snapshot(wanted) => {
                ops::snapshot::check(parts, wanted)?;
                let record = handle.with_view(|view| view.record.clone());
                ops::snapshot::check_format(parts, &record, wanted.format)?;
            }
            Action::AttachInterface(vif) => {
                parts.network.validate(std::slice::from_ref(vif), None)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn running(&self, id: Uuid, what: &str) -> Result<View> {
        let view = self.shared.registry.find(id)?.view();
        if view.init.is_some() && view.record.frozen.is_none() {
            return Ok(view);
        }
        Err(Fault::new(
            FaultKind::InstanceInvalidState,
            format!("{what} needs the instance to be RUNNING; it is {}", view.power_state()),
        ))
    }
}

impl Backend for Manager {
    fn create(
        &self,
        context: RequestContext,
        id: Uuid,
        request: InstanceCreate,
    ) -> Result<Created> {
        validate::create(&request)?;
        self.shared.parts.network.validate(&request.vifs, request.dns.as_ref())?;
        seed::check_files(&request.files, request.flavor.root_gb.max(1) << 30)?;
        let digest = record::digest(&request)?;
        let shared = &self.shared;
        let allocation = shared.registry.lock_allocations();
        if let Ok(handle) = shared.registry.find(id) {
            return self.repeated(&handle, &digest, &context);
        }
        shared.registry.arrivals.refuse_if_coming(id)?;
        shared.parts.images.get(request.image_id)?;
        let (definition, files) = request.into_parts();
        let record = shared.plan_record(id, &digest, definition)?;
        let definition = &record.definition;
        CgroupLimits::from_flavor(
            &definition.flavor,
            &shared.parts.config.instances,
            record.pinned_cpus.as_deref(),
        )?;
        network::Rates::from_extra_specs(&definition.flavor.extra_specs)?;
        Walls::from_extra_specs(&definition.flavor.extra_specs)?;
        let (operation, writer) =
            shared.operations.begin("instance.create", id, &context.request_id);
        let view =
            View { record: record.clone(), init: None, task_state: Some(TaskState::Creating) };
        let (handle, jobs) = Handle::new(view);
        let handle = Arc::new(handle);
        *handle.creating().lock().unwrap_or_else(PoisonError::into_inner) = Some(operation.clone());
        shared.registry.add(handle.clone());
        drop(allocation);
        let actor = Actor::new(shared.clone(), handle, record, None);
        shared.runtime.spawn(actor.run_new(files, context, writer, jobs));
        Ok(Created { operation, existed: false })
    }

    fn action(
        &self,
        context: RequestContext,
        id: Uuid,
        action: Action,
    ) -> Result<Arc<OperationHandle>> {
        let handle = self.shared.registry.find(id)?;
        self.check(&handle, &action)?;
        let kind = action.verb().name();
        let (operation, writer) = self.shared.operations.begin(kind, id, &context.request_id);
        handle.enqueue(Job { context, action, operation: writer })?;
        Ok(operation)
    }

    fn instance(&self, id: Uuid) -> Result<Instance> {
        Ok(self.shared.registry.find(id)?.with_view(View::instance))
    }

    fn instances(&self) -> Vec<Instance> {
        self.shared.registry.all().iter().map(|handle| handle.with_view(View::instance)).collect()
    }

    fn stats(&self, id: Uuid) -> Result<InstanceStats> {
        stats::read(&self.shared.parts, &self.shared.registry.find(id)?.view())
    }

    fn console_output(&self, id: Uuid, length: Option<u64>) -> Result<Vec<u8>> {
        self.shared.registry.find(id)?;
        console::read(&ConsoleFiles::of(&self.shared.parts.layout.instance(id)), length)
    }

    fn console_attach(&self, id: Uuid) -> Result<Console> {
        self.running(id, "its console")?;
        let socket = self.shared.parts.layout.instance(id).monitor_socket();
        let monitor = Monitor::connect(&socket)?.ok_or_else(|| not_found(id))?;
        let stream = monitor.attach(0, 0)?;
        Ok(Console { stream, resize: Box::new(move |columns, rows| monitor.resize(columns, rows)) })
    }

    fn exec_command(&self, id: Uuid, request: ExecRequest) -> Result<Command> {
        let view = self.running(id, "a command in it")?;
        exec::command(&self.shared.parts, &view.record, &request)
    }

    fn import_image(
        &self,
        context: RequestContext,
        id: Uuid,
        request: ImageImport,
    ) -> Result<Arc<OperationHandle>> {
        Ok(image_jobs::import(&self.shared, &context, id, request))
    }

    fn inspect_image(&self, context: RequestContext, request: ImageInspect) -> Result<Inspecting> {
        image_jobs::inspect(&self.shared, &context, request)
    }

    fn images(&self) -> Vec<Image> {
        self.shared.parts.images.list()
    }

    fn image(&self, id: Uuid) -> Result<Image> {
        self.shared.parts.images.get(id)
    }

    fn delete_image(&self, id: Uuid) -> Result<()> {
        {
            // No create may take the image up between the check and the removal.
            let _allocation = self.shared.registry.lock_allocations();
            self.shared.parts.images.delete(id)?;
        }
        self.shared.parts.images.collect()
    }

    fn operation(&self, id: Uuid) -> Result<Arc<OperationHandle>> {
        self.shared.operations.get(id)
    }

    fn operations(&self) -> Vec<Operation> {
        self.shared.operations.list()
    }

    fn unfinished_operations(&self) -> Vec<Arc<OperationHandle>> {
        self.shared.operations.unfinished()
    }

    fn events_after(&self, sequence: Option<u64>) -> Result<EventSubscription> {
        self.shared.events.after(sequence)
    }

    fn begin_incoming(&self, move_id: Uuid, wanted: IncomingInstance) -> Result<Incoming> {
        arrivals::begin(&self.shared, move_id, wanted)
    }

    fn incoming_layer(&self, move_id: Uuid, digest: &str, archive: &mut dyn Read) -> Result<()> {
        arrivals::layer(&self.shared, move_id, digest, archive)
    }

    fn incoming_chunk(&self, move_id: Uuid, file: IncomingFile, chunk: Chunk) -> Result<()> {
        arrivals::chunk(&self.shared, move_id, file, &chunk)
    }

    fn commit_incoming(&self, move_id: Uuid) -> Result<()> {
        arrivals::commit(&self.shared, move_id)
    }

    fn acknowledge_incoming(&self, move_id: Uuid) -> Result<()> {
        arrivals::acknowledge(&self.shared, move_id)
    }

    fn end_incoming(
        &self,
        context: RequestContext,
        move_id: Uuid,
        revert: bool,
    ) -> Result<IncomingOutcome> {
        arrivals::end(&self.shared, &context, move_id, revert)
    }

    fn host_info(&self) -> Result<HostInfo> {
        let shared = &self.shared;
        host_report::describe(&shared.parts, &shared.registry, &self.checks, self.started_at)
    }

    fn host_stats(&self) -> Result<HostStats> {
        host::stats()
    }

    fn checks(&self) -> Vec<Check> {
        self.checks.clone()
    }
}
