//! A resize for good, running or not.

use super::cold_resize;
use super::flavor_change::FlavorChange;
use crate::fault::Result;
use crate::instance::host_parts::HostParts;
use crate::instance::record::Record;
use crate::types::Flavor;

/// Gives the instance another flavor for good. Disks only grow.
pub fn resize(
    parts: &HostParts,
    mut record: Record,
    flavor: Flavor,
    running: bool,
) -> Result<Record> {
    cold_resize::make_free(parts, &mut record)?;
    FlavorChange::plan(parts, &record, flavor, running)?.carry_out(parts, &record, running)
}
