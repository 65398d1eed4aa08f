//! The actor: the only one that changes an instance.
//!
//! ```text
//!            create                start                  init ends
//!   (none) ─────────▶ SHUTDOWN ─────────────▶ RUNNING ─────────────────▶ SHUTDOWN / CRASHED
//!                        ▲                    │    ▲
//!                        │ stop          pause│    │unpause     (reboot from inside: the
//!                        └────────────────── PAUSED / SUSPENDED  monitor starts it again)
//! ```
//!
//! Jobs come one at a time from the handle's queue, so an operation never
//! meets another on the same instance. Between jobs the actor listens to the
//! instance's monitor. Work on the host runs on blocking threads, bounded for
//! the whole service; waiting for a guest holds none of them.

mod migrating;

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};
use uuid::Uuid;

use super::action::{Action, RequestContext};
use super::admission;
use super::handle::{Handle, Job, View};
use super::host_parts::HostParts;
use super::image_jobs;
use super::live::{Live, MonitorEvent};
use super::operation::OperationWriter;
use super::ops;
use super::record::{Desired, Frozen, Record};
use super::shared::Shared;
use super::state::{Admission, Verb};
use super::teardown::undone;
use crate::fault::{Fault, FaultKind, Result};
use crate::monitor::ExitRecord;
use crate::store::atomic;
use crate::types::{
    EventKind, ExitStatus, InjectedFile, Problem, Rescue, Resize, Stop, TaskState, Vif,
    VolumeAttach,
};

/// Nova's `shutdown_timeout`.
const SHUTDOWN_TIMEOUT: u32 = 60;

/// The one that changes the instance.
pub struct Actor {
    shared: Arc<Shared>,
    handle: Arc<Handle>,
    record: Record,
    live: Option<Live>,
    task_state: Option<TaskState>,
    request_id: Option<String>,
    // New starts by the monitor, whoever asked.
    restarts: u64,
}

/// Whether the actor goes on.
enum Next {
    Continue,
    Gone,
}

impl Actor {
    /// An actor for a record that was read or is about to be made.
    pub fn new(
        shared: Arc<Shared>,
        handle: Arc<Handle>,
        record: Record,
        live: Option<Live>,
    ) -> Self {
        Actor { shared, handle, record, live, task_state: None, request_id: None, restarts: 0 }
    }

    /// Makes the instance, then serves its queue until it is gone.
    pub async fn run_new(
        mut self,
        files: Vec<InjectedFile>,
        context: RequestContext,
        operation: OperationWriter,
        jobs: mpsc::Receiver<Job>,
    ) {
        self.begin(TaskState::Creating, &context);
        let made = self.create(files).await;
        self.end(&made);
        let failed = made.is_err();
        if failed {
            self.shared.registry.forget(&self.handle);
        }
        *self.handle.creating().lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        operation.finish(made);
        if failed { self.refuse_rest(jobs) } else { self.run(jobs).await }
    }

    /// Serves the queue until the instance is gone.
    pub async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        self.finish_stop().await;
        self.finish_move().await;
        loop {
            tokio::select! {
                // What has happened by now comes before what is to be done about it.
                biased;
                event = Live::next(&mut self.live) => self.on_monitor(event).await,
                () = Actor::in_doubt(&self.record) => self.find_out().await,
                job = jobs.recv() => {
                    let Some(job) = job else { return };
                    if let Next::Gone = self.serve(job).await {
                        return self.refuse_rest(jobs);
                    }
                }
            }
        }
    }

    /// Goes on with a stop that the end of the last service cut short.
    async fn finish_stop(&mut self) {
        if self.live.is_none() || self.record.desired != Desired::Stopped {
            return;
        }
        self.task_state = Some(TaskState::Stopping);
        self.publish();
        let outcome = self.stop(&Stop::default()).await;
        if let Err(fault) = &outcome {
            error!(instance = %self.record.id, fault = %fault.in_full(), "finishing an interrupted stop");
        }
        self.end(&outcome);
    }

    fn refuse_rest(self, mut jobs: mpsc::Receiver<Job>) {
        jobs.close();
        while let Ok(job) = jobs.try_recv() {
            job.operation.finish(Err(super::handle::not_found(self.record.id)));
        }
    }

    async fn serve(&mut self, job: Job) -> Next {
        let verb = job.action.verb();
        if verb.is_urgent() {
            self.handle.urgent_taken();
        }
        let admission = match admission::admit(&self.view(), &job.action) {
            Ok(admission) => admission,
            Err(fault) => {
                job.operation.finish(Err(fault));
                return Next::Continue;
            }
        };
        if admission == Admission::Nothing {
            let outcome = self.remember_desired(verb).await;
            job.operation.finish(outcome);
            return Next::Continue;
        }
        self.begin(verb.task_state(), &job.context);
        job.operation.stage(verb.name());
        let action = match job.action {
            // Most of it goes on without the instance.
            Action::Snapshot(wanted) => {
                let record = self.record.clone();
                let taken = image_jobs::snapshot(&self.shared, record, wanted, job.operation).await;
                if let Err(fault) = taken {
                    warn!(instance = %self.record.id, fault = %fault.in_full(), "no snapshot was taken");
                }
                self.end(&Ok(()));
                return Next::Continue;
            }
            action => action,
        };
        let operation = Arc::new(job.operation);
        let outcome = self.act(action, &operation).await;
        let gone = verb == Verb::Delete && outcome.is_ok();
        if gone {
            self.shared.registry.forget(&self.handle);
            self.shared.emit(EventKind::Deleted, &self.view(), self.request_id.take());
        } else {
            self.end(&outcome);
        }
        operation.finish(outcome);
        if gone { Next::Gone } else { Next::Continue }
    }

    async fn act(&mut self, action: Action, operation: &Arc<OperationWriter>) -> Result<()> {
        match action {
            Action::Start => self.start().await,
            Action::Stop(stop) => self.stop(&stop).await,
            Action::Reboot(reboot) => match reboot.reboot_type {
                crate::types::RebootType::Soft => {
                    self.soft_reboot(reboot.timeout.unwrap_or(SHUTDOWN_TIMEOUT)).await
                }
                crate::types::RebootType::Hard => self.hard_reboot().await,
            },
            Action::Pause => self.freeze(Frozen::Paused).await,
            Action::Suspend => self.freeze(Frozen::Suspended).await,
            Action::Unpause | Action::Resume => self.thaw().await,
            Action::Resize(wanted) if wanted.keep => self.resize_and_keep(wanted, operation).await,
            Action::Resize(Resize { flavor, .. }) => {
                let running = self.live.is_some();
                self.change(EventKind::Updated, move |parts, record| {
                    ops::resize::resize(parts, record, flavor, running)
                })
                .await
            }
            Action::Migrate(wanted) => self.migrate(wanted, operation).await,
            Action::RevertMigration(wanted) => self.revert_migration(wanted).await,
            Action::AttachInterface(vif) => self.attach(vif).await,
            Action::DetachInterface(port) => {
                self.change(EventKind::Updated, move |parts, record| {
                    ops::interface::detach(parts, record, port)
                })
                .await
            }
            Action::AttachVolume(id, wanted) => self.attach_volume(id, wanted).await,
            Action::DetachVolume { id, force } => {
                let running = self.live.is_some();
                self.change_volumes(move |parts, record| {
                    ops::volume::detach(parts, record, (id, force), running)
                })
                .await
            }
            Action::ExtendVolume(id) => {
                let running = self.live.is_some();
                self.change_volumes(move |parts, record| {
                    ops::volume::extend(parts, record, id, running)
                })
                .await
            }
            Action::SetPassword(wanted) => {
                let record = self.record.clone();
                self.shared.on_guest(move |parts| ops::password::set(parts, &record, &wanted)).await
            }
            Action::Dump => {
                let record = self.record.clone();
                self.shared.on_guest(move |parts| ops::dump::dump(parts, &record)).await
            }
            Action::ConfirmResize => self.change_in_place(ops::cold_resize::confirm).await,
            Action::RevertResize => self.revert_resize().await,
            Action::Quiesce => {
                let record = self.record.clone();
                let quiesce = move |parts: &HostParts| ops::quiesce::quiesce(parts, record);
                self.record = self.shared.on_guest(quiesce).await?;
                self.shared.emit(EventKind::Updated, &self.view(), self.request_id.clone());
                Ok(())
            }
            Action::Unquiesce => self.change(EventKind::Updated, ops::quiesce::unquiesce).await,
            Action::Rescue(wanted) => self.rescue(wanted).await,
            Action::Unrescue => self.unrescue().await,
            // Served before.
            Action::Snapshot(_) => Ok(()),
            Action::Delete => self.delete().await,
        }
    }

    // ── the verbs ────────────────────────────────────────────────────────

    async fn create(&mut self, files: Vec<InjectedFile>) -> Result<()> {
        let record = self.record.clone();
        self.record =
            self.shared.on_host(move |parts| ops::create::create(parts, record, files)).await?;
        self.shared.emit(EventKind::Created, &self.view(), self.request_id.clone());
        Ok(())
    }

    async fn start(&mut self) -> Result<()> {
        let record = self.record.clone();
        let started = self.shared.on_host(move |parts| ops::start::start(parts, record)).await?;
        self.started(started);
        Ok(())
    }

    fn started(&mut self, (record, live): (Record, Live)) {
        self.record = record;
        self.live = Some(live);
        self.shared.emit(EventKind::Started, &self.view(), self.request_id.clone());
    }

    async fn rescue(&mut self, wanted: Rescue) -> Result<()> {
        // Of an earlier one, stopped since, nothing is left.
        let record = self.record.clone();
        self.record = self.shared.on_host(move |parts| ops::rescue::forget(parts, record)).await?;
        let record = self.record.clone();
        let rescue = move |parts: &HostParts| ops::rescue::rescue(parts, record, wanted);
        let started = self.shared.on_host(rescue).await?;
        self.started(started);
        Ok(())
    }

    async fn unrescue(&mut self) -> Result<()> {
        self.power_off_hard().await?;
        let record = self.record.clone();
        self.record =
            self.shared.on_host(move |parts| ops::rescue::unrescue(parts, record)).await?;
        self.start().await
    }

    async fn stop(&mut self, stop: &Stop) -> Result<()> {
        // The record comes first: the next service finishes a stop that was cut
        // short. A full disk must not keep an instance running, though.
        if let Err(fault) = self.save_desired(Desired::Stopped).await {
            warn!(instance = %self.record.id, fault = %fault.in_full(), "recording that a stop begins");
        }
        let timeout = stop.timeout.unwrap_or(SHUTDOWN_TIMEOUT);
        if timeout > 0 && self.asked(ops::stop::Ask::PowerOff).await {
            self.wait_for_end(Duration::from_secs(timeout.into())).await;
        }
        self.power_off_hard().await?;
        self.record.exit = self.record.exit.take().map(asked_for);
        self.save().await?;
        self.shared.emit(EventKind::Stopped, &self.view(), self.request_id.clone());
        Ok(())
    }

    async fn soft_reboot(&mut self, timeout: u32) -> Result<()> {
        if !self.asked(ops::stop::Ask::Reboot).await {
            return self.hard_reboot().await;
        }
        let restarts = self.restarts;
        let deadline = Instant::now() + Duration::from_secs(timeout.into());
        let handle = self.handle.clone();
        while self.live.is_some() && self.restarts == restarts {
            tokio::select! {
                event = Live::next(&mut self.live) => self.on_monitor(event).await,
                () = sleep_until(deadline) => {
                    info!(instance = %self.record.id, timeout, "soft reboot timed out; turning hard");
                    break;
                }
                () = handle.urgent() => {
                    return Err(Fault::new(FaultKind::InstanceInvalidState, "the reboot was cut short by a more urgent operation"));
                }
            }
        }
        if self.live.is_some() && self.restarts > restarts {
            return self.save().await;
        }
        self.hard_reboot().await
    }

    async fn hard_reboot(&mut self) -> Result<()> {
        self.power_off_hard().await?;
        self.start().await
    }

    async fn freeze(&mut self, how: Frozen) -> Result<()> {
        let record = self.record.clone();
        self.record =
            self.shared.on_guest(move |parts| ops::freeze::freeze(parts, record, how)).await?;
        let kind = if how == Frozen::Paused { EventKind::Paused } else { EventKind::Suspended };
        self.shared.emit(kind, &self.view(), self.request_id.clone());
        Ok(())
    }

    async fn thaw(&mut self) -> Result<()> {
        let record = self.record.clone();
        self.record = self.shared.on_guest(move |parts| ops::freeze::thaw(parts, record)).await?;
        self.shared.emit(EventKind::Resumed, &self.view(), self.request_id.clone());
        Ok(())
    }

    async fn attach(&mut self, vif: Vif) -> Result<()> {
        let (shared, handle, view) = (self.shared.clone(), self.handle.clone(), self.view());
        self.change(EventKind::Updated, move |parts, record| {
            let vif = {
                let _allocation = shared.registry.lock_allocations();
                let vif = ops::interface::plan(
                    parts,
                    &record,
                    vif,
                    shared.registry.allocations(record.id),
                )?;
                // From here on no other instance is given its name and addresses.
                let record = ops::interface::with(&record, &vif);
                handle.publish(View { record, ..view });
                vif
            };
            ops::interface::attach(parts, record, vif)
        })
        .await
    }

    async fn attach_volume(&mut self, id: Uuid, wanted: VolumeAttach) -> Result<()> {
        let (shared, handle, view) = (self.shared.clone(), self.handle.clone(), self.view());
        let running = self.live.is_some();
        self.change_volumes(move |parts, record| {
            let volume = {
                let _giving = shared.registry.lock_volumes();
                let others = shared.registry.volumes(record.id);
                let volume = ops::volume::plan(parts, record, (id, &wanted), &others, running)?;
                // From here on no other instance is given it.
                handle.publish(View { record: ops::volume::with(record, &volume), ..view });
                volume
            };
            ops::volume::attach(parts, record, &volume, running)
        })
        .await
    }

    /// Stops the instance, if the flavor can be had, and resizes it. One that
    /// ran runs again when this fails.
    async fn resize_and_keep(
        &mut self,
        wanted: Resize,
        operation: &Arc<OperationWriter>,
    ) -> Result<()> {
        let (record, flavor) = (self.record.clone(), wanted.flavor.clone());
        let check = move |parts: &HostParts| ops::cold_resize::check(parts, &record, flavor);
        if self.shared.on_host(check).await? == Admission::Nothing {
            return Ok(());
        }
        let ran = self.live.is_some();
        let resized = self.stop_and_keep(wanted, operation).await;
        match resized {
            Err(fault) if ran && self.live.is_none() && !self.handle.has_urgent() => {
                Err(undone(fault, "starting it again", self.start().await))
            }
            other => other,
        }
    }

    async fn stop_and_keep(
        &mut self,
        wanted: Resize,
        operation: &Arc<OperationWriter>,
    ) -> Result<()> {
        if self.live.is_some() {
            operation.stage("stopping");
            self.stop(&Stop { timeout: wanted.timeout }).await?;
        }
        let (handle, operation) = (self.handle.clone(), operation.clone());
        operation.stage("copying");
        let progress = move |done, total| {
            operation.progress(done, Some(total));
            !handle.has_urgent()
        };
        self.change_in_place(move |parts, record| {
            ops::cold_resize::resize_and_keep(parts, record, wanted.flavor, &progress)
        })
        .await
    }

    async fn revert_resize(&mut self) -> Result<()> {
        if self.record.resize.is_some() && self.live.is_some() {
            // What it would write on its way down is discarded anyway.
            self.stop(&Stop { timeout: Some(0) }).await?;
        }
        self.change_in_place(ops::cold_resize::revert).await
    }

    async fn delete(&mut self) -> Result<()> {
        if let Err(fault) = self.save_desired(Desired::Deleted).await {
            // On a full disk the record cannot say so, but it can go: what no
            // record owns is removed at the next start.
            warn!(instance = %self.record.id, fault = %fault.in_full(), "recording that a delete begins");
            let id = self.record.id;
            self.shared
                .on_host(move |parts| atomic::remove_file(&parts.layout.instance(id).record()))
                .await?;
        }
        self.live = None;
        let record = self.record.clone();
        self.shared
            .when_ended(record.id, move |parts, ended| {
                ops::destroy::destroy_rest(parts, &record, ended)
            })
            .await
    }

    // ── parts of verbs ───────────────────────────────────────────────────

    /// Asks the init of a running instance; false when it cannot be asked, so
    /// that only force is left.
    async fn asked(&mut self, ask: ops::stop::Ask) -> bool {
        let outcome = match self.let_run().await {
            Ok(()) => self.ask(ask).await,
            Err(fault) => Err(fault),
        };
        if let Err(fault) = &outcome {
            warn!(instance = %self.record.id, fault = %fault.in_full(), ?ask, "the instance cannot be asked");
        }
        outcome.is_ok() && self.live.is_some()
    }

    async fn ask(&mut self, ask: ops::stop::Ask) -> Result<()> {
        let Some(live) = &self.live else { return Ok(()) };
        let (monitor, record) = (live.monitor.clone(), self.record.clone());
        let asked = move |parts: &HostParts| ops::stop::ask(parts, &monitor, &record, ask);
        self.shared.on_guest(asked).await
    }

    /// Waits until the first process ended, the time is over, or something urgent comes.
    async fn wait_for_end(&mut self, most: Duration) {
        let deadline = Instant::now() + most;
        let handle = self.handle.clone();
        while self.live.is_some() {
            tokio::select! {
                event = Live::next(&mut self.live) => self.on_monitor(event).await,
                () = sleep_until(deadline) => return,
                () = handle.urgent() => return,
            }
        }
    }

    /// Ends whatever is left of the running instance and takes its root down.
    async fn power_off_hard(&mut self) -> Result<()> {
        self.live = None;
        let record = self.record.clone();
        self.record = self
            .shared
            .when_ended(record.id, move |parts, ended| ops::stop::take_down(parts, record, ended))
            .await?;
        Ok(())
    }

    async fn let_run(&mut self) -> Result<()> {
        if self.record.quiesced {
            self.change(EventKind::Updated, ops::quiesce::unquiesce).await?;
        }
        if self.record.frozen.is_some() { self.thaw().await } else { Ok(()) }
    }

    /// Runs a change of the record on the host and publishes it.
    async fn change(
        &mut self,
        kind: EventKind,
        change: impl FnOnce(&HostParts, Record) -> Result<Record> + Send + 'static,
    ) -> Result<()> {
        let record = self.record.clone();
        self.record = self.shared.on_host(move |parts| change(parts, record)).await?;
        self.shared.emit(kind, &self.view(), self.request_id.clone());
        Ok(())
    }

    /// [`change`](Self::change) for changes of several steps, which leave the
    /// record telling how far they came.
    async fn change_in_place(
        &mut self,
        change: impl FnOnce(&HostParts, &mut Record) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let changed = self.shared.on_host(in_place(&self.record, change)).await?;
        self.take_changed(changed)
    }

    /// [`change_in_place`](Self::change_in_place) for what may wait for a volume's blocks: that
    /// holds none of the slots.
    async fn change_volumes(
        &mut self,
        change: impl FnOnce(&HostParts, &mut Record) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let changed = self.shared.on_guest(in_place(&self.record, change)).await?;
        self.take_changed(changed)
    }

    fn take_changed(&mut self, (record, outcome): (Record, Result<()>)) -> Result<()> {
        self.record = record;
        outcome?;
        self.shared.emit(EventKind::Updated, &self.view(), self.request_id.clone());
        Ok(())
    }

    async fn save_desired(&mut self, desired: Desired) -> Result<()> {
        self.record.desired = desired;
        self.save().await
    }

    async fn save(&mut self) -> Result<()> {
        let mut record = self.record.clone();
        self.record = self
            .shared
            .on_host(move |parts| {
                record.save(&parts.layout.instance(record.id))?;
                Ok(record)
            })
            .await?;
        Ok(())
    }

    /// The monitor made the cgroup anew, on the CPUs that it had when it was planned.
    async fn booted_again(&mut self) -> Result<()> {
        let record = self.record.clone();
        let confirm = move |parts: &HostParts| {
            parts.placement.confirm(record.id);
            // Open vSwitch clears those of an interface that root inside had taken away.
            record.definition.vifs.iter().try_for_each(|vif| parts.traffic(&record, vif))
        };
        self.shared.on_host(confirm).await?;
        self.save().await
    }

    /// An action that is fulfilled already still says what Nova wants.
    async fn remember_desired(&mut self, verb: Verb) -> Result<()> {
        let desired = match verb {
            Verb::Start => Desired::Running,
            Verb::Stop => Desired::Stopped,
            _ => return Ok(()),
        };
        if self.record.desired == desired {
            return Ok(());
        }
        let saved = self.save_desired(desired).await;
        self.publish();
        saved
    }

    // ── what the monitor says ────────────────────────────────────────────

    async fn on_monitor(&mut self, event: MonitorEvent) {
        match event {
            MonitorEvent::GuestRebooted { init, guest_reboots } => {
                self.restarts += 1;
                self.record.guest_reboots = guest_reboots;
                self.record.started_at = Some(Utc::now());
                if let Some(live) = &mut self.live {
                    live.init = init;
                }
                if let Err(fault) = self.booted_again().await {
                    error!(instance = %self.record.id, fault = %fault.in_full(), "recording a reboot");
                }
                self.publish();
                self.shared.emit(EventKind::GuestRebooted, &self.view(), None);
            }
            MonitorEvent::OutOfMemory(kills) => {
                warn!(instance = %self.record.id, kills, "the instance is out of memory; the kernel killed processes of it");
                self.shared.emit(EventKind::OutOfMemory, &self.view(), None);
            }
            MonitorEvent::Exited(exit) => self.on_exit(exit).await,
            MonitorEvent::Lost => self.on_monitor_lost().await,
        }
    }

    /// The first process ended. Within a stop this is the wished-for end; else
    /// the guest powered itself off or crashed.
    async fn on_exit(&mut self, exit: Option<ExitRecord>) {
        self.live = None;
        if let Some(exit) = exit {
            info!(instance = %self.record.id, kind = ?exit.kind, status = ?exit.status, "the instance ended");
            self.record.exit = Some(ops::stop::status(exit));
        }
        let unasked = self.task_state.is_none();
        let record = self.record.clone();
        match self
            .shared
            .when_ended(record.id, move |parts, ended| {
                ops::stop::clean_up_after_end(parts, record, ended, unasked)
            })
            .await
        {
            Ok(record) => self.record = record,
            Err(fault) => {
                self.record.frozen = None;
                error!(instance = %self.record.id, fault = %fault.in_full(), "taking the ended instance down");
            }
        }
        self.publish();
        if unasked {
            self.shared.emit(EventKind::Stopped, &self.view(), None);
        }
    }

    /// The monitor is gone without a word: killed. Its console and the exit
    /// status went with it, so the instance is power-cycled, as Nova last
    /// asked for it to run.
    async fn on_monitor_lost(&mut self) {
        warn!(instance = %self.record.id, "the instance's monitor was lost");
        let asked = self.task_state.is_some();
        if !asked {
            self.task_state = Some(TaskState::Rebooting);
            self.publish();
        }
        let outcome = self.power_off_hard().await;
        if asked {
            // The operation under way goes on from a stopped instance.
            return;
        }
        let outcome = match outcome {
            Ok(()) if self.record.desired == Desired::Running => self.start().await,
            other => other,
        };
        match &outcome {
            Ok(()) => warn!(instance = %self.record.id, "started again after its monitor was lost"),
            Err(fault) => {
                error!(instance = %self.record.id, fault = %fault.in_full(), "starting again after its monitor was lost")
            }
        }
        self.end(&outcome);
        if outcome.is_err() {
            self.shared.emit(EventKind::Stopped, &self.view(), None);
        }
    }

    // ── publishing ───────────────────────────────────────────────────────

    fn begin(&mut self, task: TaskState, context: &RequestContext) {
        self.task_state = Some(task);
        self.request_id = Some(context.request_id.clone());
        self.publish();
    }

    fn end(&mut self, outcome: &Result<()>) {
        self.task_state = None;
        self.request_id = None;
        self.record.fault = outcome.as_ref().err().map(Problem::from);
        self.publish();
    }

    fn view(&self) -> View {
        View {
            record: self.record.clone(),
            init: self.live.as_ref().map(|live| live.init),
            task_state: self.task_state,
        }
    }

    fn publish(&self) {
        self.handle.publish(self.view());
    }
}

/// A stop that was asked for ends in SHUTDOWN, whatever signal it took.
fn asked_for(exit: ExitStatus) -> ExitStatus {
    ExitStatus { code: Some(0), signal: None, ..exit }
}

impl std::fmt::Debug for Actor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Actor").field("id", &self.record.id).finish_non_exhaustive()
    }
}

/// Work that gives the record as far as `change` came, and what came of it.
fn in_place(
    record: &Record,
    change: impl FnOnce(&HostParts, &mut Record) -> Result<()> + Send + 'static,
) -> impl FnOnce(&HostParts) -> Result<(Record, Result<()>)> + Send + 'static {
    let mut record = record.clone();
    move |parts| {
        let outcome = change(parts, &mut record);
        Ok((record, outcome))
    }
}
