//! Pause, suspend, and back.

use crate::fault::Result;
use crate::instance::host_parts::HostParts;
use crate::instance::record::{Frozen, Record};

/// Freezes the instance and silences its interfaces; a suspend also gives its
/// memory back as far as the host can (to swap, and what is only cache).
pub fn freeze(parts: &HostParts, before: Record, how: Frozen) -> Result<Record> {
    let group = parts.group(&before);
    let mut record = Record { frozen: Some(how), ..before.clone() };
    group.freeze()?;
    if how == Frozen::Suspended
        && let Err(fault) = group.reclaim()
    {
        // Suspended all the same: how much comes back is the host's affair.
        tracing::debug!(instance = %record.id, fault = %fault.in_full(), "taking memory back");
    }
    let silenced = record.definition.vifs.iter().try_for_each(|vif| parts.traffic(&record, vif));
    match silenced.and_then(|()| record.save(&parts.paths(&record))) {
        Ok(()) => Ok(record),
        Err(fault) => {
            if before.frozen.is_none() {
                hear(parts, &before);
                if let Err(fault) = group.thaw() {
                    tracing::error!(instance = %before.id, fault = %fault.in_full(), "thawing after a failed pause");
                }
            }
            Err(fault)
        }
    }
}

/// Thaws the instance; its interfaces hear again.
pub fn thaw(parts: &HostParts, before: Record) -> Result<Record> {
    let group = parts.group(&before);
    let mut record = Record { frozen: None, ..before };
    group.thaw()?;
    record.save(&parts.paths(&record)).inspect_err(|_| {
        if let Err(fault) = group.freeze() {
            tracing::error!(instance = %record.id, fault = %fault.in_full(), "freezing again after a failed resume");
        }
    })?;
    hear(parts, &record);
    Ok(record)
}

/// Ends the silence of a frozen instance's interfaces. One that is gone must
/// not keep the instance from what was asked for.
fn hear(parts: &HostParts, record: &Record) {
    for vif in &record.definition.vifs {
        if let Err(fault) = parts.traffic(record, vif) {
            tracing::warn!(instance = %record.id, vif = %vif.devname, fault = %fault.in_full(), "ending its silence");
        }
    }
}
