//! The start of the service: every instance with a record is taken up, and what
//! none owns is removed.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{error, info, warn};

use super::actor::Actor;
use super::handle::{Handle, View};
use super::ops::destroy;
use super::ops::recover::{self, Recovered};
use super::record::Record;
use super::shared::Shared;
use crate::fault::Result;
use crate::monitor;
use crate::types::Problem;

/// Takes up every instance that has a record and removes what none owns.
pub fn take_up_all(shared: &Arc<Shared>) -> Result<()> {
    let mut known = BTreeSet::new();
    let mut records = Vec::new();
    for id in recover::ids_in(&shared.parts.layout.instances()) {
        match Record::load(&shared.parts.layout.instance(id)) {
            Ok(Some(record)) => records.push(record),
            Ok(None) => continue,
            // What it owns stays: the operator may mend the record.
            Err(fault) => {
                shared.parts.images.keep_all_layers();
                error!(instance = %id, fault = %fault.in_full(), "the instance's record cannot be read; the instance is left alone")
            }
        }
        known.insert(id);
    }
    monitor::end_unrecorded(&shared.parts.layout)?;
    for id in recover::orphans(&shared.parts, &known) {
        match destroy::purge(&shared.parts, id) {
            Ok(()) => info!(instance = %id, "removed what an interrupted operation left"),
            Err(fault) => {
                error!(instance = %id, fault = %fault.in_full(), "removing what an interrupted operation left")
            }
        }
    }
    // What went away with its namespace leaves its rates' devices behind.
    shared.parts.network.start()?;
    shared.parts.hierarchy.clear_stale_rates()?;
    // Four at a time: each waits for the disk or the kernel most of its time.
    let queue = Mutex::new(records);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let _context = shared.runtime.enter();
                while let Some(record) = pop(&queue) {
                    take_up(shared, record);
                }
            });
        }
    });
    shared.parts.placement.begin();
    shared.parts.images.collect()
}

fn take_up(shared: &Arc<Shared>, record: Record) {
    let id = record.id;
    let before = record.clone();
    let (record, live) = match recover::recover(&shared.parts, record) {
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
    shared.registry.add(handle.clone());
    shared.runtime.spawn(Actor::new(shared.clone(), handle, record, live).run(jobs));
}

fn pop(queue: &Mutex<Vec<Record>>) -> Option<Record> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop()
}
