//! Interfaces of an existing instance: attach and detach, running or not.

use uuid::Uuid;

use crate::fault::{Fault, FaultKind, Result};
use crate::instance::allocations::Allocations;
use crate::instance::host_parts::HostParts;
use crate::instance::record::Record;
use crate::instance::teardown::undone;
use crate::network;
use crate::network::fresh::Turn;
use crate::sys::mount;
use crate::types::Vif;

use super::create;

/// What an interface to be attached is to be, with all that it did not bring.
/// The same one again is left undisturbed; another one under the same port is
/// a conflict.
pub fn plan(
    parts: &HostParts,
    record: &Record,
    mut vif: Vif,
    mut others: Allocations,
) -> Result<Vif> {
    let mut all = record.definition.vifs.clone();
    if let Some(same) = all.iter().find(|v| v.id == vif.id) {
        if asks_for_the_same(same, &vif) {
            return Ok(same.clone());
        }
        return Err(Fault::new(
            FaultKind::InterfaceExists,
            format!("port {} is attached with another definition; detach it first", vif.id),
        ));
    }
    others.claim(&parts.network, &mut vif, "", record.id)?;
    all.push(vif);
    network::assign_names(&mut all);
    parts.network.validate(&all, None)?;
    Ok(all.pop().unwrap_or_else(|| unreachable!("one was pushed above")))
}

/// The record with the interface in it.
pub fn with(record: &Record, vif: &Vif) -> Record {
    let mut record = record.clone();
    if !record.definition.vifs.contains(vif) {
        record.definition.vifs.push(vif.clone());
    }
    record
}

/// Attaches an interface that [`plan`] gave.
pub fn attach(parts: &HostParts, record: Record, vif: Vif) -> Result<Record> {
    let known = record.definition.vifs.iter().position(|v| v.id == vif.id);
    let index = known.unwrap_or(record.definition.vifs.len());
    let net_ns = parts.paths(&record).net_ns();
    // Gone with a boot of the host, if taking the instance up failed.
    if !mount::is_mount_point(&net_ns)? {
        create::network(parts, &record)?;
    }
    let attach = |record: &Record| {
        let paths = parts.paths(record);
        let mut turn = Turn::begin(&paths)?;
        parts.network.attach(&vif, index, &net_ns)?;
        parts.traffic(record, &vif)?;
        turn.note(parts.given(record)?)
    };
    if known.is_some() {
        attach(&record)?;
        return Ok(record);
    }
    let mut record = with(&record, &vif);
    // The record first: what was cut short in between is finished at the next
    // start, and an interface that is in no record would stay.
    record.save(&parts.paths(&record))?;
    match attach(&record) {
        Ok(()) => Ok(record),
        Err(fault) => {
            let detached = detach(parts, record, vif.id).map(drop);
            Err(undone(fault, "detaching it again", detached))
        }
    }
}

/// Whether a repeated request is the one that made `known`: the name and the
/// addresses that berth assigned are not in it.
fn asks_for_the_same(known: &Vif, asked: &Vif) -> bool {
    let mut known = known.clone();
    if asked.name.is_none() {
        known.name = None;
    }
    if asked.bridge && asked.addresses.is_empty() {
        known.addresses.clear();
        known.routes.clone_from(&asked.routes);
    }
    known == *asked
}

/// Detaches an interface.
pub fn detach(parts: &HostParts, mut record: Record, port: Uuid) -> Result<Record> {
    let index = record.definition.vifs.iter().position(|v| v.id == port).ok_or_else(|| {
        Fault::new(
            FaultKind::InterfaceNotFound,
            format!("instance {} has no interface of port {port}", record.id),
        )
    })?;
    // The record last: a detach that was cut short is repeated, and an
    // interface that is in no record would stay.
    let paths = parts.paths(&record);
    // After a boot of the host, if taking the instance up failed, nothing is there to turn to.
    let turn = paths.run().exists().then(|| Turn::begin(&paths)).transpose()?;
    parts.network.detach(&record.definition.vifs[index])?;
    record.definition.vifs.remove(index);
    if let Some(mut turn) = turn {
        turn.note(parts.given(&record)?)?;
    }
    record.save(&paths)?;
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vif() -> Vif {
        serde_json::from_value(serde_json::json!({
            "id": Uuid::from_u128(9), "devname": "tap9", "address": "fa:16:3e:00:00:09", "bridge": true
        }))
        .unwrap()
    }

    #[test]
    fn a_repeated_request_is_known_by_what_it_asks() {
        let mut known = vif();
        known.name = Some("eth1".into());
        known.addresses = vec!["10.88.0.2/16".into()];
        assert!(asks_for_the_same(&known, &vif()));
        let other = Vif { mtu: 1400, ..vif() };
        assert!(!asks_for_the_same(&known, &other));
    }
}
