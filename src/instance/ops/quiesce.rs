//! Quiesce: the instance runs on while its disks take no change, so that what
//! is on them is consistent. It holds until unquiesce or a stop, also across a
//! restart of the service.

use crate::fault::Result;
use crate::instance::host_parts::HostParts;
use crate::instance::record::Record;
use crate::instance::teardown::undone;

/// Freezes the instance's disks.
pub fn quiesce(parts: &HostParts, mut record: Record) -> Result<Record> {
    if record.quiesced {
        return Ok(record);
    }
    let paths = parts.paths(&record);
    parts.sync_disks(&paths)?;
    // The record first: the next service then knows that it was meant.
    record.quiesced = true;
    record.save(&paths)?;
    match parts.freeze_disks(&paths) {
        Ok(()) => Ok(record),
        Err(fault) => {
            record.quiesced = false;
            Err(undone(fault, "recording it", record.save(&paths)))
        }
    }
}

/// Thaws them.
pub fn unquiesce(parts: &HostParts, mut record: Record) -> Result<Record> {
    let paths = parts.paths(&record);
    parts.thaw_disks(&paths)?;
    if record.quiesced {
        record.quiesced = false;
        record.save(&paths)?;
    }
    Ok(record)
}

/// Brings a running instance's disks to what its record says, should a
/// quiesce or a snapshot have been cut short.
pub fn restore(parts: &HostParts, record: &Record) -> Result<()> {
    let paths = parts.paths(record);
    if record.quiesced { parts.freeze_disks_again(&paths) } else { parts.thaw_disks(&paths) }
}
