//! Pause, suspend, and back.

use crate::fault::Result;
use crate::instance::parts::Parts;
use crate::instance::record::{Frozen, Record};

/// Freezes the instance; a suspend also gives its memory back as far as the
/// host can (to swap, and what is only cache).
pub fn freeze(parts: &Parts, mut record: Record, how: Frozen) -> Result<Record> {
    let group = parts.group(&record);
    let was_frozen = record.frozen.is_some();
    group.freeze()?;
    if how == Frozen::Suspended
        && let Err(fault) = group.reclaim()
    {
        // Suspended all the same: how much comes back is the host's affair.
        tracing::debug!(instance = %record.id, %fault, "taking memory back");
    }
    record.frozen = Some(how);
    record.save(&parts.paths(&record)).inspect_err(|_| {
        if !was_frozen && let Err(fault) = group.thaw() {
            tracing::error!(instance = %record.id, %fault, "thawing after a failed pause");
        }
    })?;
    Ok(record)
}

/// Thaws the instance.
pub fn thaw(parts: &Parts, mut record: Record) -> Result<Record> {
    let group = parts.group(&record);
    group.thaw()?;
    record.frozen = None;
    record.save(&parts.paths(&record)).inspect_err(|_| {
        if let Err(fault) = group.freeze() {
            tracing::error!(instance = %record.id, %fault, "freezing again after a failed resume");
        }
    })?;
    Ok(record)
}
