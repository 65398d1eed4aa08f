//! Work on images that no instance waits for: import, inspection, the later part of a
//! snapshot, expiry. It runs on threads of its own, a few at once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::{error, info};
use uuid::Uuid;

use super::action::RequestContext;
use super::backend::Inspecting;
use super::operation::{OperationHandle, OperationWriter};
use super::ops;
use super::record::Record;
use super::shared::Shared;
use crate::fault::{Fault, OrFault, Result};
use crate::image::{ImageStore, Progress, Watcher};
use crate::runtime::role::Role;
use crate::types::{ImageImport, ImageInspect, ImageInspection, ImageRole, ImageSource, Snapshot};

/// The longest pause between two looks for images that were unused for too long.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);

/// An import's slot, which it holds while it works.
struct Turn<'a> {
    shared: Arc<Shared>,
    writer: &'a OperationWriter,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Watcher for Turn<'_> {
    fn progress(&self, progress: Progress) {
        self.writer.stage(progress.stage);
        self.writer.progress(progress.done, progress.total);
    }

    fn idle(&self) {
        drop(self.permit.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn busy(&self) {
        let mut permit = self.permit.lock().unwrap_or_else(PoisonError::into_inner);
        if permit.is_none() {
            let slots = self.shared.import_slots.clone();
            // Closed it is never.
            *permit = self.shared.runtime.block_on(slots.acquire_owned()).ok();
        }
    }
}

/// Works on images when it is its turn; `end` tells of it once the turn is another's.
fn at_a_turn<T: 'static>(
    shared: &Arc<Shared>,
    writer: OperationWriter,
    work: impl FnOnce(&ImageStore, &Turn<'_>) -> Result<T> + Send + 'static,
    end: impl FnOnce(OperationWriter, Result<T>) + Send + 'static,
) {
    let theirs = shared.clone();
    shared.runtime.spawn(async move {
        let Ok(permit) = theirs.import_slots.clone().acquire_owned().await else { return };
        let parts = theirs.parts.clone();
        theirs.runtime.clone().spawn_blocking(move || {
            writer.stage("fetching");
            let turn = Turn { shared: theirs, writer: &writer, permit: Mutex::new(Some(permit)) };
            let outcome = work(&parts.images, &turn);
            drop(turn);
            end(writer, outcome);
        });
    });
}

/// Has an image in the store.
pub fn import(
    shared: &Arc<Shared>,
    context: &RequestContext,
    id: Uuid,
    request: ImageImport,
) -> Arc<OperationHandle> {
    let (operation, writer) = shared.operations.begin("image.import", id, &context.request_id);
    let work = move |images: &ImageStore, turn: &Turn<'_>| images.import(id, &request, turn);
    at_a_turn(shared, writer, work, move |writer, outcome| {
        writer.finish(outcome.map(|image| {
            info!(image = %id, bytes = image.size, layers = image.layers.len(), "image imported");
        }));
    });
    operation
}

/// Says what an image would become; the operation is there while that is found out, and ends
/// well also where an import would not.
pub fn inspect(
    shared: &Arc<Shared>,
    context: &RequestContext,
    request: ImageInspect,
) -> Result<Inspecting> {
    let ImageInspect { id, source, hash, size, verification } = request;
    if id.is_none() && matches!(source, ImageSource::Glance { .. }) {
        return Err(Fault::invalid("id", "must name the image in Glance"));
    }
    let id = id.unwrap_or_else(Uuid::new_v4);
    let request = ImageImport { name: String::new(), source, hash, size, verification };
    let (_, writer) = shared.operations.begin("image.inspect", id, &context.request_id);
    let (tell, told) = oneshot::channel();
    let work = move |images: &ImageStore, turn: &Turn<'_>| {
        images.inspect(id, &request, turn).map(with_role)
    };
    at_a_turn(shared, writer, work, |writer, outcome| {
        writer.finish(outcome.as_ref().map(drop).map_err(Clone::clone));
        // Whoever asked may be gone.
        let _ = tell.send(outcome);
    });
    Ok(told)
}

/// An image that would be taken, with what its instances are.
fn with_role(mut inspection: ImageInspection) -> ImageInspection {
    let taken = inspection.config.as_ref().filter(|_| inspection.refusal.is_none());
    inspection.role = taken.map(|config| match Role::of(config, None) {
        Role::System(_) => ImageRole::System,
        Role::Application => ImageRole::Application,
    });
    inspection
}

/// Makes a snapshot on a thread of its own, and returns once it needs the
/// instance no longer; the operation goes on.
pub async fn snapshot(
    shared: &Arc<Shared>,
    record: Record,
    wanted: Snapshot,
    operation: OperationWriter,
) -> Result<()> {
    let (let_go, was_let_go) = oneshot::channel();
    let theirs = shared.clone();
    let work = move || {
        let report = |stage: &str, done, total| {
            operation.stage(stage);
            operation.progress(done, total);
        };
        let wait = |slots: &Arc<Semaphore>| {
            let slot = theirs.runtime.block_on(slots.clone().acquire_owned());
            slot.or_fault("waiting for a slot")
        };
        let slot = || wait(&theirs.host_slots);
        let go_on = || {
            // The actor may be gone with the service.
            let _ = let_go.send(());
            wait(&theirs.upload_slots)
        };
        let outcome =
            ops::snapshot::snapshot(&theirs.parts, &record, &wanted, &report, &slot, go_on);
        operation.finish(outcome);
    };
    // Of its own, since many may wait at once: for their guests, then for their turn.
    std::thread::Builder::new()
        .name("berth-snapshot".into())
        .spawn(work)
        .or_fault("starting a thread")?;
    // It was not taken: the operation has ended and says why.
    was_let_go.await.or_fault("taking the snapshot")
}

/// Lets images go that were unused for `images.unused_seconds`, now and from time to time.
pub fn expire_unused(shared: &Shared) {
    let Ok(age @ 1..) = u64::try_from(shared.parts.config.images.unused_seconds) else { return };
    let pause = Duration::from_secs(age).min(EXPIRE_EVERY);
    let parts = Arc::downgrade(&shared.parts);
    let runtime = shared.runtime.clone();
    shared.runtime.spawn(async move {
        while let Some(parts) = parts.upgrade() {
            let expired = runtime.spawn_blocking(move || parts.images.expire());
            if let Ok(Err(fault)) = expired.await {
                error!(fault = %fault.in_full(), "removing images that were unused for too long");
            }
            tokio::time::sleep(pause).await;
        }
    });
}
