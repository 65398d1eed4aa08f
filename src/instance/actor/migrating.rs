//! An instance goes to another host, and perhaps comes back.
//!
//! ```text
//! record.departure   whose it is
//! None               this host's
//! Copying            this host's: a service that finds it so gives the move up
//! Committing         the other host knows: it is asked until it answers
//! Moved              the other host's; what is here is kept for a revert
//! ```

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};
use uuid::Uuid;

use super::Actor;
use crate::fault::{Fault, FaultKind, Result};
use crate::instance::host_parts::HostParts;
use crate::instance::live::Live;
use crate::instance::moved::Departure;
use crate::instance::operation::OperationWriter;
use crate::instance::ops::migrate;
use crate::instance::record::{Desired, KeptResize, Record};
use crate::instance::teardown::undone;
use crate::migration::peer::Peer;
use crate::migration::push::{self, Push, Watch};
use crate::types::{
    EventKind, IncomingOutcome, Migrate, MigrationState, RevertMigration, Stop, TaskState,
};

/// How long the other host is asked, within the operation, whether it has the instance.
const ASK_FOR: Duration = Duration::from_secs(30);
/// Between two questions.
const ASK_EVERY: Duration = Duration::from_secs(5);

impl Actor {
    /// Moves the instance. When that fails it is as it was, and runs if it did.
    pub(super) async fn migrate(
        &mut self,
        wanted: Migrate,
        operation: &Arc<OperationWriter>,
    ) -> Result<()> {
        if let Some(KeptResize::Unconfirmed { .. }) = &self.record.resize {
            return Err(Fault::new(
                FaultKind::InstanceInvalidState,
                "a resize awaits: confirm or revert it before the instance moves",
            ));
        }
        if let Some(volume) = self.record.volumes.first() {
            return Err(Fault::new(
                FaultKind::InstanceInvalidState,
                format!(
                    "volume {} is attached, and what holds it is this host's: detach all volumes \
                     before the instance moves, and attach them there",
                    volume.id
                ),
            ));
        }
        let ran = self.live.is_some();
        operation.may_be_aborted();
        self.set_departure(Some(Departure {
            move_id: Uuid::new_v4(),
            to: wanted.to.clone(),
            state: MigrationState::Copying,
            ran,
            since: Utc::now(),
        }))
        .await?;
        let moved = self.go(wanted, operation).await;
        let Err(fault) = moved else { return Ok(()) };
        if self.record.departure.as_ref().is_some_and(Departure::is_away) {
            return Err(fault);
        }
        let fault = undone(fault, "noting that it stays", self.set_departure(None).await);
        if ran && self.live.is_none() && !self.handle.has_urgent() {
            return Err(undone(fault, "starting it again", self.start().await));
        }
        Err(fault)
    }

    /// After the service was away: a move that was not committed is none, and the instance is
    /// what it was. A stop that was under way for it is over by now.
    pub(super) async fn finish_move(&mut self) {
        let Some(departure) = self.record.departure.clone().filter(|gone| !gone.is_away()) else {
            return;
        };
        self.task_state = Some(TaskState::RevertingMigration);
        self.publish();
        let outcome = self.stay(&departure).await;
        if let Err(fault) = &outcome {
            error!(instance = %self.record.id, fault = %fault.in_full(), "giving up an interrupted move");
        }
        self.end(&outcome);
    }

    async fn stay(&mut self, departure: &Departure) -> Result<()> {
        self.set_departure(None).await?;
        let parts = &self.shared.parts;
        let same_boot = self.record.boot_id.as_deref() == Some(parts.boot_id.as_str());
        let again = same_boot || parts.config.host.resume_guests_state_on_host_boot;
        if departure.ran && self.live.is_none() && again { self.start().await } else { Ok(()) }
    }

    async fn go(&mut self, wanted: Migrate, operation: &Arc<OperationWriter>) -> Result<()> {
        let timeout = wanted.timeout;
        operation.stage("preparing");
        let record = self.record.clone();
        let (move_id, request_id) = (self.departure()?.move_id, operation.request_id());
        let begin = move |parts: &HostParts, watch: &Watch<'_>| {
            migrate::begin(parts, &record, &wanted, (move_id, &request_id), watch)
        };
        let push = Arc::new(Mutex::new(self.meanwhile(operation, begin).await?));
        if let Err(fault) = self.send(&push, timeout, operation).await {
            let give_up = move |_: &HostParts| {
                migrate::give_up(&lock(&push));
                Ok(())
            };
            return Err(undone(fault, "giving it up", self.shared.on_guest(give_up).await));
        }
        operation.stage("handing over");
        self.hand_over(push).await
    }

    /// Sends all of it: what is there while it runs, and the rest once it does not.
    async fn send(
        &mut self,
        push: &Arc<Mutex<Push>>,
        timeout: Option<u32>,
        operation: &Arc<OperationWriter>,
    ) -> Result<()> {
        if self.live.is_some() {
            operation.stage("copying while it runs");
            let (record, push) = (self.record.clone(), push.clone());
            let ahead = move |parts: &HostParts, watch: &Watch<'_>| {
                migrate::send_ahead(parts, &record, &mut lock(&push), watch)
            };
            self.meanwhile(operation, ahead).await?;
        }
        if self.live.is_some() {
            operation.stage("stopping");
            self.stop(&Stop { timeout }).await?;
        }
        operation.stage("copying");
        let (mut record, push) = (self.record.clone(), push.clone());
        let rest = move |parts: &HostParts, watch: &Watch<'_>| {
            let sent = migrate::send(parts, &mut record, &mut lock(&push), watch);
            Ok((record, sent))
        };
        let (record, sent) = self.meanwhile(operation, rest).await?;
        self.record = record;
        sent?;
        if operation.keep_on() && !self.handle.has_urgent() {
            return Ok(());
        }
        Err(Fault::new(FaultKind::InstanceInvalidState, "the move to the other host was aborted"))
    }

    /// Has the other host have it. Whatever becomes of its answer, one of both has it.
    async fn hand_over(&mut self, push: Arc<Mutex<Push>>) -> Result<()> {
        // From here on a service that starts asks before it does anything to the instance.
        // That may have ended by itself, and Nova still wish it to run.
        self.record.desired = Desired::Stopped;
        if let Err(fault) = self.set_state(MigrationState::Committing).await {
            let give_up = move |_: &HostParts| {
                migrate::give_up(&lock(&push));
                Ok(())
            };
            return Err(undone(fault, "giving it up", self.shared.on_guest(give_up).await));
        }
        let theirs = push.clone();
        let Err(fault) = self.shared.on_guest(move |_| lock(&theirs).commit()).await else {
            return self.gone().await;
        };
        warn!(instance = %self.record.id, fault = %fault.in_full(), "the other host did not say that it took the instance");
        let deadline = Instant::now() + ASK_FOR;
        loop {
            let theirs = push.clone();
            match self.shared.on_guest(move |_| lock(&theirs).end()).await {
                Ok(IncomingOutcome::Committed) => return self.gone().await,
                Ok(IncomingOutcome::Aborted) => {
                    self.set_state(MigrationState::Copying).await?;
                    return Err(fault);
                }
                Err(_) if Instant::now() < deadline => sleep(ASK_EVERY).await,
                Err(silent) => {
                    return Err(silent.context(
                        "it is not known whether the other host has taken the instance, and is \
                         found out as soon as that answers",
                    ));
                }
            }
        }
    }

    /// It is the other host's.
    async fn gone(&mut self) -> Result<()> {
        self.set_state(MigrationState::Moved).await?;
        let departure = self.departure()?.clone();
        info!(instance = %self.record.id, to = departure.to, "the instance has moved");
        self.shared.emit(EventKind::Updated, &self.view(), self.request_id.clone());
        self.acknowledge(departure).await;
        Ok(())
    }

    /// Tells the other host that it is known here whose the instance is.
    async fn acknowledge(&self, departure: Departure) {
        let told = self.shared.on_guest(move |parts| {
            migrate::acknowledge(parts, &departure);
            Ok(())
        });
        if let Err(fault) = told.await {
            warn!(instance = %self.record.id, fault = %fault.in_full(), "acknowledging a move");
        }
    }

    /// Waits until it is time to ask whose the instance is; for ever, when that is known.
    pub(super) async fn in_doubt(record: &Record) {
        match &record.departure {
            Some(departure) if departure.state == MigrationState::Committing => {
                sleep(ASK_EVERY).await;
            }
            _ => std::future::pending().await,
        }
    }

    /// Asks the other host whose the instance is.
    pub(super) async fn find_out(&mut self) {
        let asked = self.ask_peer(false).await;
        let settled = match asked {
            Ok(IncomingOutcome::Committed) => self.gone().await,
            Ok(IncomingOutcome::Aborted) => self.stays().await,
            Err(fault) => {
                warn!(instance = %self.record.id, fault = %fault.in_full(), "asking the other host whether it has the instance");
                return;
            }
        };
        if let Err(fault) = &settled {
            error!(instance = %self.record.id, fault = %fault.in_full(), "ending a move");
        }
        self.end(&settled);
    }

    /// The other host did not take it.
    async fn stays(&mut self) -> Result<()> {
        let departure = self.departure()?.clone();
        info!(instance = %self.record.id, "the other host did not take the instance");
        self.stay(&departure).await?;
        self.shared.emit(EventKind::Updated, &self.view(), None);
        Ok(())
    }

    /// Takes it back, as it was when it went; it is not started.
    pub(super) async fn revert_migration(&mut self, wanted: RevertMigration) -> Result<()> {
        let departure = self.departure()?.clone();
        if !wanted.force && self.ask_peer(true).await? == IncomingOutcome::Committed {
            return Err(Fault::new(
                FaultKind::InstanceInvalidState,
                format!("the instance has run on {}: delete it there first", departure.to),
            ));
        }
        self.set_departure(None).await?;
        self.shared.emit(EventKind::Updated, &self.view(), self.request_id.clone());
        if !wanted.force {
            self.acknowledge(departure).await;
        }
        Ok(())
    }

    async fn ask_peer(&self, revert: bool) -> Result<IncomingOutcome> {
        let departure = self.departure()?.clone();
        let request_id = self.request_id.clone().unwrap_or_else(migrate::new_request_id);
        let ask = move |parts: &HostParts| {
            let peer = Peer::new(&parts.config, &departure.to)?;
            push::end(&peer, departure.move_id, &request_id, revert)
        };
        self.shared.on_guest(ask).await
    }

    /// Does work that takes long, and hears meanwhile what becomes of the instance.
    async fn meanwhile<T: Send + 'static>(
        &mut self,
        operation: &Arc<OperationWriter>,
        work: impl FnOnce(&HostParts, &Watch<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (handle, operation) = (self.handle.clone(), operation.clone());
        let watched = move |parts: &HostParts| {
            let watch = Watch {
                report: &|total, processed| operation.bytes(total, processed),
                go_on: &|| !handle.has_urgent() && !operation.is_aborted(),
            };
            work(parts, &watch)
        };
        let shared = self.shared.clone();
        let mut working = pin!(async move { shared.on_guest(watched).await });
        loop {
            tokio::select! {
                done = &mut working => return done,
                event = Live::next(&mut self.live) => self.on_monitor(event).await,
            }
        }
    }

    fn departure(&self) -> Result<&Departure> {
        let missing = || Fault::internal("moving an instance", "its record says nothing of it");
        self.record.departure.as_ref().ok_or_else(missing)
    }

    async fn set_state(&mut self, state: MigrationState) -> Result<()> {
        let departure = Departure { state, since: Utc::now(), ..self.departure()?.clone() };
        self.set_departure(Some(departure)).await
    }

    /// Says how far it is, durably; what cannot be written is not so.
    async fn set_departure(&mut self, departure: Option<Departure>) -> Result<()> {
        let before = std::mem::replace(&mut self.record.departure, departure);
        let saved = self.save().await;
        if saved.is_err() {
            self.record.departure = before;
        }
        self.publish();
        saved
    }
}

fn lock(push: &Mutex<Push>) -> MutexGuard<'_, Push> {
    push.lock().unwrap_or_else(PoisonError::into_inner)
}
