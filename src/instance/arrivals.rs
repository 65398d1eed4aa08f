//! Instances that another host's service sends: the destination's side of a move.
//!
//! What came of one lies in the instance's directory, which has no record yet: a start of the
//! service removes it. The record is the commit. From then on it is an instance like any other.

use std::fs::File;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, Instant, SystemTime};

use tracing::{error, info, warn};
use uuid::Uuid;

use super::action::{Action, RequestContext};
use super::actor::Actor;
use super::coming::{Coming, Stage};
use super::export::{Export, path_of};
use super::handle::{Handle, Job, View};
use super::ops::{create, destroy, flavor_change};
use super::record::Record;
use super::shared::Shared;
use super::validate;
use crate::cgroup::CgroupLimits;
use crate::fault::{Fault, FaultKind, OrFault, Result};
use crate::image::{ImageExport, ImageStore};
use crate::migration::layer::Receiver;
use crate::migration::receive::Chunk;
use crate::network::Rates;
use crate::runtime::walls::Walls;
use crate::store::atomic;
use crate::types::{
    EventKind, Incoming, IncomingFile, IncomingInstance, IncomingOutcome, OperationStatus,
};

/// Between two looks for those of which nothing came for long.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Whoever has not asked for the end of a move by then does not any more.
const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 3600);

/// Makes ready for an instance, or changes nothing.
pub fn begin(shared: &Arc<Shared>, move_id: Uuid, wanted: IncomingInstance) -> Result<Incoming> {
    let arrivals = &shared.registry.arrivals;
    if let Ok(coming) = arrivals.find(move_id) {
        // The same again: its answer was lost.
        return coming.while_open(|| Ok(coming.answer()));
    }
    let id = wanted.instance_id;
    if let Some(earlier) = arrivals.of_instance(id) {
        // Its sender has given it up: there is one move of an instance at a time.
        give_up(shared, &earlier)?;
    }
    let bytes = wanted.bytes;
    let coming = Arc::new(plan(shared, move_id, wanted)?);
    let mut stage = coming.stage.write().unwrap_or_else(PoisonError::into_inner);
    {
        let _allocation = shared.registry.lock_allocations();
        refuse_known(shared, id)?;
        arrivals.refuse_if_coming(id)?;
        // Between the plan and here another may have been given the same.
        if shared.registry.allocations(id).has(&coming.record) {
            return Err(Fault::new(
                FaultKind::ServiceUnavailable,
                "another instance was made at the same moment: try again",
            ));
        }
        arrivals.lock().insert(move_id, coming.clone());
    }
    match reserve(shared, &coming, bytes) {
        Ok(()) => {
            *stage = Stage::Open;
            info!(instance = %id, %move_id, bytes, "an instance is on its way here");
            Ok(coming.answer())
        }
        Err(fault) => {
            *stage = Stage::Ended;
            remove(shared, &coming)
                .unwrap_or_else(|left| error!(fault = %left.in_full(), "giving up a move"));
            Err(fault)
        }
    }
}

fn refuse_known(shared: &Shared, id: Uuid) -> Result<()> {
    match shared.registry.find(id) {
        Err(_) => Ok(()),
        Ok(_) => Err(Fault::new(
            FaultKind::InstanceExists,
            format!("instance {id} is on this host: delete it first"),
        )),
    }
}

/// What an instance will be here, checked as one that is made here.
fn plan(shared: &Arc<Shared>, move_id: Uuid, wanted: IncomingInstance) -> Result<Coming> {
    let id = wanted.instance_id;
    let export = Export::from_json(wanted.format, wanted.instance)?;
    let image: ImageExport = serde_json::from_value(wanted.image)
        .map_err(|error| Fault::invalid("image", error.to_string()))?;
    if export.layers() != image.layers() || export.definition().image_id != image.id() {
        return Err(Fault::invalid("image", "is not what the instance stands on"));
    }
    refuse_known(shared, id)?;
    let parts = &shared.parts;
    let kept = ImageStore::keep_coming(parts, &image)?;
    let lacking = parts.images.lacking(&image)?;
    let mut definition = export.definition().clone();
    let flavor = wanted.flavor.unwrap_or_else(|| definition.flavor.clone());
    parts.network.validate(&definition.vifs, definition.dns.as_ref())?;
    definition.flavor = flavor.clone();
    let request = serde_json::to_value(&definition).and_then(serde_json::from_value);
    validate::create(&request.or_fault("reading what another host sends")?)?;
    let planned = {
        let _allocation = shared.registry.lock_allocations();
        shared.plan_record(id, "", definition)?
    };
    export.check_ids(planned.id_block)?;
    let old = export.into_record(planned, move_id);
    let mut record = old.clone();
    record.definition.flavor = flavor;
    flavor_change::sizes(&old, &mut record, false)?;
    let specs = &record.definition.flavor.extra_specs;
    CgroupLimits::from_flavor(
        &record.definition.flavor,
        &parts.config.instances,
        record.pinned_cpus.as_deref(),
    )?;
    Rates::from_extra_specs(specs)?;
    Walls::from_extra_specs(specs)?;
    // A flavor smaller than the image is refused, as for one that is made here.
    create::root_bytes(parts, &record.definition.flavor, image.unpacked_size())?;
    Ok(Coming {
        move_id,
        record,
        sent: (old.root_bytes, old.ephemeral_bytes),
        image,
        lacking,
        stage: RwLock::new(Stage::Begun),
        touched: Mutex::new(Instant::now()),
        kept,
    })
}

/// Takes the room for it, which is promised to it from then on.
fn reserve(shared: &Shared, coming: &Coming, bytes: u64) -> Result<()> {
    let (parts, record) = (&shared.parts, &coming.record);
    // Where more is promised than there is, at least what comes now must fit.
    drop(parts.room.for_files(bytes, vec![], "the instance that comes from another host")?);
    if !coming.lacking.image {
        parts.images.hold(record.definition.image_id, record.id)?;
    }
    let paths = parts.paths(record);
    create::make_dir(paths.state())?;
    parts.disks.expect(&paths.root_disk(), record.root_bytes)?;
    match (coming.sent.1, record.ephemeral_bytes) {
        (_, 0) => Ok(()),
        (0, size) => parts.disks.create(&paths.ephemeral_disk(), size),
        (_, size) => parts.disks.expect(&paths.ephemeral_disk(), size),
    }
}

/// Takes the archive of a layer.
pub fn layer(shared: &Shared, move_id: Uuid, digest: &str, archive: &mut dyn Read) -> Result<()> {
    let coming = shared.registry.arrivals.find(move_id)?;
    let archive = &mut Receiver::new(archive);
    coming.while_open(|| shared.parts.images.receive_layer(&coming.image, digest, archive))
}

/// Takes a part of a file.
pub fn chunk(shared: &Shared, move_id: Uuid, file: IncomingFile, chunk: &Chunk) -> Result<()> {
    let coming = shared.registry.arrivals.find(move_id)?;
    coming.while_open(|| {
        let most = match file {
            IncomingFile::Root => coming.sent.0,
            IncomingFile::Ephemeral => coming.sent.1,
            IncomingFile::ImageDisk => {
                coming.image.disk_size().filter(|_| coming.lacking.disk).unwrap_or(0)
            }
            IncomingFile::ConsoleFirst | IncomingFile::ConsoleLog | IncomingFile::ConsoleBefore => {
                2 * shared.parts.config.instances.console_log_bytes.max(1 << 20)
            }
        };
        chunk.check(most)?;
        chunk.write(&path_of(&shared.parts.paths(&coming.record), file))
    })
}

/// Makes it an instance of this host.
pub fn commit(shared: &Arc<Shared>, move_id: Uuid) -> Result<()> {
    let coming = match shared.registry.arrivals.find(move_id) {
        Err(_) if arrived(shared, move_id).is_some() => return Ok(()),
        other => other?,
    };
    let mut stage = coming.stage.write().unwrap_or_else(PoisonError::into_inner);
    match *stage {
        Stage::Open => {}
        Stage::Committed => return Ok(()),
        Stage::Begun | Stage::Ended => {
            return Err(Fault::new(FaultKind::InstanceInvalidState, "the move was ended"));
        }
    }
    let record = take(shared, &coming)?;
    *stage = Stage::Committed;
    let id = record.id;
    info!(instance = %id, %move_id, "the instance has come from another host");
    let view = View { record: record.clone(), init: None, task_state: None };
    let (handle, jobs) = Handle::new(view.clone());
    let handle = Arc::new(handle);
    shared.registry.add(handle.clone());
    shared.registry.arrivals.lock().remove(&move_id);
    shared.emit(EventKind::Created, &view, None);
    shared.runtime.spawn(Actor::new(shared.clone(), handle, record, None).run(jobs));
    Ok(())
}

/// Makes all of it durable, and last the record.
fn take(shared: &Shared, coming: &Coming) -> Result<Record> {
    let (parts, mut record) = (&shared.parts, coming.record.clone());
    let paths = parts.paths(&record);
    parts.disks.accept(&paths.root_disk(), record.root_bytes > coming.sent.0)?;
    if coming.sent.1 > 0 {
        let was_smaller = record.ephemeral_bytes > coming.sent.1;
        parts.disks.accept(&paths.ephemeral_disk(), was_smaller)?;
    }
    if coming.lacking.image {
        let disk = coming.lacking.disk.then(|| paths.image_disk_coming());
        parts.images.adopt(&coming.image, disk.as_deref())?;
        parts.images.hold(record.definition.image_id, record.id)?;
    }
    create::network(parts, &record)?;
    let doing = "making an instance that came durable";
    File::open(parts.layout.instances()).and_then(|all| all.sync_all()).or_fault(doing)?;
    atomic::write(&paths.unacknowledged(), b"")?;
    record.save(&paths)?;
    Ok(record)
}

/// Notes that the other host knows whose the instance is.
pub fn acknowledge(shared: &Shared, move_id: Uuid) -> Result<()> {
    if let Some(handle) = arrived(shared, move_id) {
        atomic::remove_file(&shared.parts.layout.instance(handle.id).unacknowledged())?;
    }
    atomic::remove_file(&shared.parts.layout.ended_move(move_id))
}

/// Ends a move, if it was not committed: whose the instance is.
pub fn end(
    shared: &Arc<Shared>,
    context: &RequestContext,
    move_id: Uuid,
    revert: bool,
) -> Result<IncomingOutcome> {
    let coming = shared.registry.arrivals.lock().get(&move_id).cloned();
    if let Some(coming) = coming {
        // It waits for a commit that is under way.
        give_up(shared, &coming)?;
    }
    if let Some(handle) = arrived(shared, move_id) {
        if revert && handle.with_view(is_untouched) {
            return give_back(shared, context, &handle);
        }
        return Ok(IncomingOutcome::Committed);
    }
    let was_here = shared.parts.layout.ended_move(move_id).exists();
    Ok(if was_here && !revert { IncomingOutcome::Committed } else { IncomingOutcome::Aborted })
}

/// The instance that came by a move.
fn arrived(shared: &Shared, move_id: Uuid) -> Option<Arc<Handle>> {
    let came = |view: &View| {
        view.record.arrival.as_ref().is_some_and(|arrival| arrival.move_id == move_id)
    };
    shared.registry.all().into_iter().find(|handle| handle.with_view(came))
}

/// Whether it never ran here: nothing is lost if it goes.
fn is_untouched(view: &View) -> bool {
    view.init.is_none() && view.record.started_at.is_none()
}

fn give_back(
    shared: &Arc<Shared>,
    context: &RequestContext,
    handle: &Arc<Handle>,
) -> Result<IncomingOutcome> {
    let (operation, writer) =
        shared.operations.begin("instance.delete", handle.id, &context.request_id);
    let action = Action::Delete;
    handle.enqueue(Job { context: context.clone(), action, operation: writer })?;
    let ended = shared.runtime.block_on(operation.wait());
    match (ended.status, ended.fault) {
        (OperationStatus::Succeeded, _) => Ok(IncomingOutcome::Aborted),
        (_, Some(problem)) if problem.code == FaultKind::InstanceNotFound => {
            Ok(IncomingOutcome::Aborted)
        }
        (_, Some(problem)) => Err(Fault::from(&problem)),
        (_, None) => Err(Fault::internal("giving an instance back", "its delete said nothing")),
    }
}

/// Ends one that was not committed; of it nothing is left.
fn give_up(shared: &Shared, coming: &Coming) -> Result<()> {
    let stage = coming.stage.write().unwrap_or_else(PoisonError::into_inner);
    give_up_at(shared, coming, stage)
}

fn give_up_at(
    shared: &Shared,
    coming: &Coming,
    mut stage: RwLockWriteGuard<'_, Stage>,
) -> Result<()> {
    if matches!(*stage, Stage::Committed | Stage::Ended) {
        return Ok(());
    }
    *stage = Stage::Ended;
    info!(instance = %coming.record.id, move_id = %coming.move_id, "a move to here is given up");
    remove(shared, coming)
}

fn remove(shared: &Shared, coming: &Coming) -> Result<()> {
    let parts = &shared.parts;
    let paths = parts.paths(&coming.record);
    // A commit that failed half-way is none.
    let removed = atomic::remove_file(&paths.unacknowledged())
        .and_then(|()| destroy::destroy(parts, &coming.record));
    shared.registry.arrivals.lock().remove(&coming.move_id);
    removed
}

/// Gives up, from time to time, those of which nothing comes any more.
pub fn expire_idle(shared: &Arc<Shared>) {
    forget_old(shared);
    let most = Duration::from_secs(shared.parts.config.migration.idle_timeout);
    let (weak, runtime) = (Arc::downgrade(shared), shared.runtime.clone());
    shared.runtime.spawn(async move {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(shared) = weak.upgrade() else { return };
            let looked = runtime.spawn_blocking(move || {
                let coming: Vec<_> = shared.registry.arrivals.lock().values().cloned().collect();
                for coming in coming {
                    // A layer that takes long holds it, as does a commit.
                    let Ok(stage) = coming.stage.try_write() else { continue };
                    if !coming.is_idle(most) {
                        continue;
                    }
                    warn!(instance = %coming.record.id, "nothing more comes of an instance from another host");
                    if let Err(fault) = give_up_at(&shared, &coming, stage) {
                        error!(fault = %fault.in_full(), "giving up a move");
                    }
                }
            });
            if looked.await.is_err() {
                error!("looking for moves that came to nothing: a defect");
            }
        }
    });
}

fn forget_old(shared: &Shared) {
    let Ok(entries) = std::fs::read_dir(shared.parts.layout.moves()) else { return };
    for entry in entries.flatten() {
        let written = entry.metadata().and_then(|found| found.modified());
        let age = written.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        if age.is_some_and(|age| age > REMEMBERED)
            && let Err(fault) = atomic::remove_file(&entry.path())
        {
            warn!(fault = %fault.in_full(), "forgetting an old move");
        }
    }
}
